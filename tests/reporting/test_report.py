"""What a report evaluates, compares and writes, and what it does where that fails.

Real runs are in test_report_runs.py.
"""

from pathlib import Path

import example_run
import pytest

from sureclr.data.sources import load_images
from sureclr.errors import UserError
from sureclr.evaluation.results import Comparison, Results, read_results, run_path
from sureclr.progress import SILENT
from sureclr.reporting.page import draw_page


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two runs made by hand on digits."""
    images = load_images("digits").select(range(60))
    return [example_run.write_run(tmp_path / name, images, "mine") for name in "ab"]


def no_comparison(a: Path, b: Path) -> Comparison:
    raise AssertionError("nothing is to be compared")


def test_a_run_may_be_a_path_a_text_or_its_results(tmp_path: Path) -> None:
    assert run_path(tmp_path) == run_path(str(tmp_path)) == run_path(Results(tmp_path))


def test_the_page_shows_the_results_that_were_just_made(runs: list[Path]) -> None:
    asked = []

    def evaluate(path: Path) -> Results:
        asked.append(path)
        return Results(path, {"knn": example_run.knn()}, {}, {"linear": "no second class"})

    place = draw_page(runs[:1], None, evaluate, no_comparison, progress=SILENT)
    text = place.read_text()
    assert place == runs[0] / "report.html" and asked == runs[:1]
    assert "0.873" in text and "no second class" in text and "0.902" not in text


def test_without_evaluating_the_stored_results_are_drawn_and_stay(runs: list[Path]) -> None:
    before = (runs[0] / "results.json").read_bytes()
    out = runs[0] / "new" / "page.html"
    assert draw_page(runs[:1], out, None, no_comparison, progress=SILENT) == out
    assert "0.902" in out.read_text() and (runs[0] / "results.json").read_bytes() == before
    assert [file.name for file in out.parent.iterdir()] == ["page.html"]


def test_a_failed_evaluation_is_named_and_stored_results_are_drawn(runs: list[Path]) -> None:
    def evaluate(path: Path) -> Results:
        raise UserError("the images <b>are</b> gone.")

    text = draw_page(runs[:1], None, evaluate, no_comparison, progress=SILENT).read_text()
    assert "could not be made: the images &lt;b&gt;are&lt;/b&gt; gone." in text
    assert "0.902" in text


def test_a_stored_comparison_is_never_drawn_unchecked(runs: list[Path]) -> None:
    """Only what `compare` returns is drawn, which looks at the checkpoints of both runs."""
    stored = read_results(runs[0])
    entries = {**stored.entries, "comparison:b": example_run.comparison(cka=0.111)}
    origins = {**stored.provenance, "comparison:b": example_run.provenance()}
    example_run.write_results(Results(runs[0], entries, origins))
    asked = []

    def compare(a: Path, b: Path) -> Comparison:
        asked.append([a, b])
        return example_run.comparison(cka=0.222)

    place = draw_page(runs, None, None, compare, progress=SILENT)
    text = place.read_text()
    assert place == runs[0] / "comparison-b.html" and asked == [runs]
    assert "0.222" in text and "0.111" not in text and "Two runs compared" in text


def test_runs_that_cannot_be_compared_are_still_drawn(runs: list[Path]) -> None:
    def compare(a: Path, b: Path) -> Comparison:
        raise UserError("they saw other images.")

    text = draw_page(runs, None, None, compare, progress=SILENT).read_text()
    assert "not compared: they saw other images." in text and text.count("<h1>") == 2


def test_without_evaluating_runs_without_a_table_are_not_compared(runs: list[Path]) -> None:
    (runs[1] / "embeddings.parquet").unlink()
    text = draw_page(runs, None, None, no_comparison, progress=SILENT).read_text()
    assert "one of the runs has no embeddings.parquet" in text


@pytest.mark.parametrize("which", [0, 1])
def test_a_folder_that_is_no_run_is_an_error_before_any_work(runs: list[Path], which: int) -> None:
    (runs[which] / "config.yaml").unlink()

    def evaluate(path: Path) -> Results:
        raise AssertionError("nothing is to be evaluated")

    with pytest.raises(UserError, match="is not a run folder"):
        draw_page(runs, None, evaluate, no_comparison, progress=SILENT)


def test_a_page_that_cannot_be_written_is_a_sentence_about_out(runs: list[Path]) -> None:
    with pytest.raises(UserError, match="give another out="):
        draw_page(runs[:1], "/proc/x/y", None, no_comparison, progress=SILENT)
