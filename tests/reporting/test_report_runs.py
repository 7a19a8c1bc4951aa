"""`sureclr.report` on real runs: tiny ones, trained and evaluated here."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import train

from sureclr.cli import main
from sureclr.evaluation import foreign_images
from sureclr.evaluation.results import read_results
from sureclr.evaluation.session import evaluate
from sureclr.progress import SILENT
from sureclr.reporting.page import report


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of 36 images of two classes."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for split, n in (("train", 12), ("test", 6)):
        for k, kind in enumerate(("dark", "light")):
            (folder / split / kind).mkdir(parents=True)
            for i in range(n):
                pixels = random.integers(0, 128, (8, 8, 3), dtype=np.uint8) + np.uint8(100 * k)
                Image.fromarray(pixels).save(folder / split / kind / f"{i}.png")
    return f"folder:{folder}"


@pytest.fixture(scope="module", autouse=True)
def no_other_data_sets(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Nothing is downloaded, and the folder's cache is our own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(foreign_images, "OTHERS", ())
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def runs(source: str, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs, the first one reported with all its evaluations."""
    paths = [tmp_path_factory.mktemp("runs") / name for name in "ab"]
    for seed, path in enumerate(paths):
        train(path, None, source=source, size=8, epochs=2, seed=seed)
    assert report(paths[0], device="cpu", progress=SILENT) == paths[0] / "report.html"
    return paths


def test_every_evaluation_is_made_and_drawn(runs: list[Path]) -> None:
    results, text = read_results(runs[0]), (runs[0] / "report.html").read_text()
    made = {"knn", "linear", "uncertainty", "ood", "learning", "geometry", "sensitivity"}
    assert results.keys() == made | {"explanation", "heads"}
    assert "has not been evaluated yet" not in text and "could not be evaluated" not in text
    median = results["uncertainty"].information.quantiles[2]
    assert f"An image at the median tells {median:.3f} nats" in text
    assert f"<strong>{results['knn'].accuracy:.3f}</strong>" in text


def test_the_command_writes_the_same_page(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.html"
    main(["report", str(runs[0]), "--no-evaluate", "--out", str(out), "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert answer == {"report": str(out), "bytes": out.stat().st_size}
    assert out.read_bytes() == (runs[0] / "report.html").read_bytes()


def test_two_runs_of_the_same_weights_are_alike(runs: list[Path], tmp_path: Path) -> None:
    import shutil

    twin = tmp_path / "twin"
    shutil.copytree(runs[0], twin)
    page = report(runs[0], twin, evaluate=False, device="cpu", progress=SILENT)
    assert page == runs[0] / "comparison-twin.html" and page.read_text().count("<h1>") == 2
    comparison = read_results(runs[0])["comparison:twin"]
    assert comparison.cka_features == pytest.approx(1, abs=1e-6)
    assert comparison.agreement_knn == pytest.approx(1)
    diagonal = [comparison.cka_blocks.matrix[i][i] for i in range(2)]
    assert diagonal == pytest.approx([1, 1], abs=1e-6)


def test_a_run_that_was_trained_anew_is_compared_anew(runs: list[Path], source: str) -> None:
    def shown() -> str:
        evaluate(runs[1], "knn", device="cpu", progress=SILENT)  # all evaluations would be slow
        page = report(*runs, evaluate=False, device="cpu", progress=SILENT).read_text()
        comparison = read_results(runs[0])["comparison:b"]
        assert f"<strong>{comparison.cka_features:.3f}".replace("-", "\u2212") in page
        return page

    shown()  # the page that makes a comparison does not name its time yet; the next ones do
    before, same = shown(), shown()
    train(runs[1], None, source=source, size=8, epochs=2, seed=7, overwrite=True)
    after = shown()
    assert before == same
    assert _comparison_tiles(after) != _comparison_tiles(before)


def _comparison_tiles(page: str) -> str:
    return page[page.index('data-key="comparison.cka_features"') :][:200]


@pytest.mark.parametrize(
    "words, text",
    [
        (["nowhere"], "not a run folder"),
        (["{run}", "{run}/../a", "--no-evaluate"], "and both are"),
        (["{run}", "--no-evaluate", "--out", "/proc/x/y"], "--out"),
    ],
)
def test_bad_input_is_one_sentence(
    runs: list[Path], words: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["report", *(word.format(run=runs[0]) for word in words)])
    assert stopped.value.code == 2 and text in capsys.readouterr().err


def test_results_of_other_weights_are_not_drawn(
    runs: list[Path], source: str, tmp_path: Path
) -> None:
    """Results of another run were copied into a folder, and the page showed their numbers."""
    train(tmp_path / "run", None, source=source, size=8, epochs=1, seed=5)
    shutil.copy(runs[0] / "results.json", tmp_path / "run")
    page = report(tmp_path / "run", evaluate=False, progress=SILENT).read_text()
    assert "made of other weights" in page and 'data-key="knn.accuracy"' not in page
