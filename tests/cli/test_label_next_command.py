"""label-next at the command line: the file it writes, what it says, and bad input in one line."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import FLAGS

from sureclr.cli import main
from sureclr.data.embeddings import Embeddings

TINY = [*FLAGS, "--epochs", "1", "--batch-size", "8", "--size", "12"]


def photos(folder: Path, names: list[str]) -> Path:
    generator = np.random.default_rng(0)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 24 images in one folder, none labelled."""
    place = tmp_path_factory.mktemp("label_next")
    main(
        [
            "pretrain",
            f"folder:{photos(place / 'photos', [f'{i}.png' for i in range(24)])}",
            *TINY,
            "--out",
            str(place / "run"),
        ]
    )
    return place / "run"


def next_(run: Path, out: Path, *words: str) -> list[str]:
    return ["label-next", str(run), "--out", str(out), "--device", "cpu", *words]


def read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def test_the_file_is_to_be_filled_in_and_the_answer_says_the_same(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    main(next_(run, tmp_path / "next.csv", "--budget", "6", "--json"))
    out, err = capsys.readouterr()
    found, rows = json.loads(out), read(tmp_path / "next.csv")
    assert out.count("\n") == 1 and "next: sureclr finetune" in err
    assert [(row["path"], row["label"], row["reason"]) for row in rows] == [
        (row["path"], "", row["reason"]) for row in found["next"]
    ]
    assert len({row["path"] for row in rows}) == 6 and found["known"] == 0 and found["note"] == ""
    table = Embeddings.read(run / "embeddings.parquet")
    for row in rows:
        i = list(table.paths).index(row["path"])
        assert table.split[i] != "test" and float(row["certainty"]) == pytest.approx(
            float(table.certainty[i]), abs=1e-4
        )
    main(next_(run, tmp_path / "again.csv", "--budget", "8"))
    *text, last = capsys.readouterr().out.strip().splitlines()
    assert (
        text[0] == "8 images to label; 0 have a label already."
        and "k-means is the default" in text[1]
        and read(tmp_path / "again.csv")[0]["path"] in text[2]
    )
    assert "3 more" in text[-2]
    assert last.startswith("next: sureclr finetune")


def test_known_images_are_left_out(run: Path, tmp_path: Path) -> None:
    main(next_(run, tmp_path / "first.csv", "--budget", "6"))
    rows = read(tmp_path / "first.csv")
    known = tmp_path / "known.csv"
    known.write_text("path,label\n" + "".join(f"{row['path']},cat\n" for row in rows))
    main(next_(run, tmp_path / "second.csv", "--budget", "6", "--known", str(known)))
    assert not {row["path"] for row in rows} & {
        row["path"] for row in read(tmp_path / "second.csv")
    }


def test_a_set_with_all_its_labels_is_told(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = photos(
        tmp_path / "other",
        [f"train/{kind}/{i}.png" for kind in "ab" for i in range(4)]
        + ["test/a/0.png", "test/b/0.png"],
    )
    main(
        next_(
            run,
            tmp_path / "next.csv",
            "--budget",
            "2",
            "--data",
            f"folder:{other}",
            "--strategy",
            "random",
        )
    )
    said = capsys.readouterr().out
    assert "Every training image of" in said and "0 have a label" not in said
    assert len(read(tmp_path / "next.csv")) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--budget", "0"], "1 or more, not 0"),
        (["--budget", "99"], "99 labels is more than the"),
        (["--budget", "3", "--strategy", "best"], "unknown strategy 'best'"),
        (["--budget", "3", "--known", "missing.csv"], "missing.csv"),
        ([], "--budget"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    words: list[str],
    said: str,
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(next_(run, tmp_path / "next.csv", *words))
    out, err = capsys.readouterr()
    refusals = [line for line in err.splitlines() if line.startswith("sureclr: ")]
    assert stopped.value.code == 2 and out == "" and len(refusals) == 1 and said in refusals[0]
    assert err.endswith(refusals[0] + "\n")
    assert not (tmp_path / "next.csv").exists()


def test_a_file_that_is_there_is_never_overwritten(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Someone may have typed hundreds of labels into it."""
    (tmp_path / "next.csv").write_text("mine")
    with pytest.raises(SystemExit):
        main(next_(run, tmp_path / "next.csv", "--budget", "3"))
    assert (
        tmp_path / "next.csv"
    ).read_text() == "mine" and "exists already" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(next_(run, tmp_path / "nowhere" / "next.csv", "--budget", "3"))
    assert "cannot be written" in capsys.readouterr().err


def test_a_loss_without_a_radius_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = f"folder:{photos(tmp_path / 'photos', [f'{i}.png' for i in range(20)])}"
    main(["pretrain", source, *TINY, "--loss", "nt-xent", "--out", str(tmp_path / "run")])
    with pytest.raises(SystemExit):
        main(
            next_(tmp_path / "run", tmp_path / "next.csv", "--budget", "3", "--strategy", "certain")
        )
    assert "needs the certainty" in capsys.readouterr().err
    main(next_(tmp_path / "run", tmp_path / "next.csv", "--budget", "3"))
    assert list(read(tmp_path / "next.csv")[0]) == ["path", "label", "reason"]
