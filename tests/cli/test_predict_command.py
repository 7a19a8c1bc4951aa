"""predict at the command line: what it prints, the file it writes, and bad input in one line."""

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import FLAGS

import sureclr
from sureclr.cli import main

TINY = [*FLAGS, "--epochs", "1", "--batch-size", "8", "--size", "8"]
QUICK = ["--epochs", "1", "--seeds", "1", "--lr", "0.03", "--batch-size", "4", "--device", "cpu"]


def write(folder: Path, count: int, seed: int) -> Path:
    """Dark and bright noise in two folders."""
    generator = np.random.default_rng(seed)
    for kind, low in (("bright", 128), ("dark", 0)):
        (folder / kind).mkdir(parents=True)
        for i in range(count):
            pixels = generator.integers(low, low + 128, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / kind / f"{i:02d}.png")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on 2 classes of 16 training and 5 test images, and new photographs."""
    place = tmp_path_factory.mktemp("predict")
    write(place / "photos" / "train", 16, 0)
    write(place / "photos" / "test", 5, 1)
    write(place / "new", 6, 2)
    main(["pretrain", f"folder:{place / 'photos'}", *TINY, "--out", str(place / "run")])
    return place


def failed(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(words)
    out, err = capsys.readouterr()
    assert stopped.value.code == 2 and out == "" and err.count("\n") == 1
    assert err.startswith("sureclr: "), err
    return err


def test_the_counts_the_file_and_the_next_command(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.csv"
    words = ["predict", str(place / "run"), str(place / "new"), "--device", "cpu"]
    capsys.readouterr()
    main([*words, "--out", str(out), "--unfamiliar", "0.2"])
    text = capsys.readouterr().out
    rows = list(csv.DictReader(out.read_text(encoding="utf-8").splitlines()))
    counts = Counter(row["label"] for row in rows)
    for name, count in counts.items():
        assert f"  {name}  {count}  (" in text.replace("dark    ", "dark  ")
    unfamiliar = sum(float(row["familiar"]) <= 0.2 for row in rows)
    assert unfamiliar == sum(row["unfamiliar"] == "true" for row in rows)
    assert f"{unfamiliar} images (" in text and "compared with 10 test images" in text
    accuracy = sureclr.evaluate(place / "run", "linear", device="cpu")["linear"].accuracy
    assert f"accuracy on 10 labelled test images is {accuracy:.3f}" in text
    sizes = [int(row["set_size"]) for row in rows]
    assert all(len(row["set"].split("|")) == int(row["set_size"]) for row in rows if row["set"])
    assert "The column set contains the right class with a probability of 0.9, for all cl" in text
    assert f"A set has {np.mean(sizes):.2f} of 2 classes in the mean" in text
    held = np.mean([row["own_label"] in row["set"].split("|") for row in rows])
    assert f"Observed: {held:.3f} of 12 labelled images that nobody learned from" in text
    middle = np.median([float(row["evidence"]) for row in rows])
    assert f"against 32 training images is {middle:.1f} nats in the median" in text
    assert f"All answers are in {out}" in text
    assert text.splitlines()[-1] == f"next: sureclr label-next {place / 'run'} --budget 100"


def test_one_json_object_with_the_same_numbers(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "cut.png").write_bytes(b"\x89PNG and nothing else")
    files = [str(place / "new" / "dark" / "00.png"), str(place / "cut.png")]
    out = tmp_path / "a.jsonl"
    words = ["predict", str(place / "run"), *files, "--out", str(out), "--device", "cpu"]
    capsys.readouterr()
    main([*words, "--json", "--classifier", "knn"])
    stdout, err = capsys.readouterr()
    answer, rows = json.loads(stdout), [json.loads(line) for line in out.read_text().splitlines()]
    assert stdout.count("\n") == 1 and "next: sureclr" in err
    assert answer["counts"] == {rows[0]["label"]: 1} and answer["images"] == 1
    assert round(answer["mean_probability"], 6) == rows[0]["probability"]
    assert answer["errors"] == {files[1]: rows[1]["error"]} and rows[1]["path"] == files[1]
    assert answer["classifier"]["name"] == "knn" and answer["out"] == str(out)
    assert answer["sets"]["n_calibration"] == 10 and answer["sets"]["mean_size"] in (0, 1, 2)
    assert rows[0]["set_size"] == answer["sets"]["mean_size"] and answer["no_sets"] == ""
    assert abs(answer["mean_evidence"] - rows[0]["evidence"]) < 1e-5
    main([*words, "--overwrite", "--coverage", "0.8", "--classifier", "evidence"])
    text = capsys.readouterr().out
    assert f"1 file could not be read and has a row with an error in the table: {files[1]}" in text
    assert "No image can be marked as unfamiliar at 0.01: with 10 images" in text
    assert "by the evidence classifier" in text and "with a probability of 0.8, for all" in text


def test_the_fine_tuned_classifier_of_the_run(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = str(place / "run"), str(tmp_path / "a.csv")
    words = ["predict", run, str(place / "new"), "--out", out, "--device", "cpu"]
    line = failed([*words, "--classifier", "finetuned"], capsys)
    assert "has no fine-tuned classifier" in line and not Path(out).exists()
    main(["finetune", run, "--labels", "100%", *QUICK])
    main([*words, "--classifier", "finetuned"])
    rows = list(csv.DictReader(Path(out).read_text(encoding="utf-8").splitlines()))
    network = sureclr.load_finetuned(run, "100%", "cpu")
    p = network.probabilities(sureclr.load_images(f"folder:{place / 'new'}", size=8))
    assert [row["label"] for row in rows] == [network.classes[k] for k in p.argmax(1).tolist()]
    main(["finetune", run, "--labels", "8", *QUICK])
    line = failed([*words, "--overwrite", "--classifier", "finetuned"], capsys)
    assert "2 fine-tuned classifiers; choose one" in line and "(it has 100%, 8)" in line
    main([*words, "--overwrite", "--classifier", "finetuned:8"])
    assert "unknown fine-tuned classifier '9'" in failed(
        [*words, "--overwrite", "--classifier", "finetuned:9"], capsys
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--classifier", "svm"], "unknown classifier 'svm'"),
        (["--classifier", "knn:5"], "unknown classifier 'knn:5'"),
        (["--unfamiliar", "2"], "must be a share of at least 0 and below 1, not 2"),
        (["--coverage", "0"], "must be a share above 0 and below 1, and is 0"),
        (["--data", "nothing"], "unknown"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    place: Path,
    tmp_path: Path,
    words: list[str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = ["predict", str(place / "run"), str(place / "new"), "--out", str(tmp_path / "a.csv")]
    assert sentence in failed([*base, *words, "--device", "cpu"], capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_the_user_is_not_replaced(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.csv"
    out.write_text("mine")
    line = failed(["predict", str(place / "run"), "--out", str(out)], capsys)
    assert "exists already; give another --out, or --overwrite" in line
    assert out.read_text() == "mine"
