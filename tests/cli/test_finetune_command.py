"""finetune at the command line: its answer, its file of labels, and bad input in one line."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import FLAGS

from sureclr.cli import main
from sureclr.files import sealed, unsealed

TINY = [*FLAGS, "--epochs", "1", "--batch-size", "8", "--size", "8"]
QUICK = [
    "--epochs",
    "1",
    "--seeds",
    "2",
    "--lr",
    "0.03",
    "0.1",
    "--batch-size",
    "4",
    "--device",
    "cpu",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a folder: 2 classes of 8 training and 3 test images."""
    place, generator = tmp_path_factory.mktemp("finetune"), np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 3)):
        for kind in "ab":
            (place / "photos" / split / kind).mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / "photos" / split / kind / f"{i}.png")
    main(["pretrain", f"folder:{place / 'photos'}", *TINY, "--out", str(place / "run")])
    return place / "run"


def test_one_json_object_and_the_same_as_text(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    main(["finetune", str(run), "--labels", "50%", *QUICK, "--json"])
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert out.count("\n") == 1 and "next: sureclr" in err and "Seed 1" in err
    kept = unsealed(json.loads((run / "results.json").read_text())["finetune:50%"], "finetune:50%")
    assert kept.pop("provenance")["options"]["labels"] == "50%"
    assert (
        kept == found
        and found["n_labels"] == 8
        and found["n_test"] == 6
        and found["configuration"]["learning_rates"] == [0.03, 0.1]
    )
    assert {attempt["learning_rate"] for attempt in found["per_seed"][0]["scratch"]["tried"]} == {
        0.03,
        0.1,
    }
    main(["finetune", str(run), "--labels", "50%", *QUICK])
    text, err = capsys.readouterr()
    rows = text.splitlines()
    assert (
        "8 labels, 2 seeds, 6 test images" in rows[0]
        and f"{found['accuracy']:.4f}" in rows[1]
        and "2 of 2 seeds" in err
    )
    assert f"{found['baselines']['scratch']:.4f}" in rows[2] and rows[-1].startswith(
        "next: sureclr"
    )
    assert Path(rows[-2].removeprefix("The classifier is ").removesuffix(".")).is_file()


def test_seeds_may_be_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--seeds 0,1` is the same as `--seeds 2`, and another order trains others first."""
    quick = [*QUICK[:2], "--lr", "0.03", *QUICK[7:], "--labels", "4", "--json"]
    answers = []
    for seeds in ("2", "0,1", "3"):
        capsys.readouterr()
        main(["finetune", str(run), *quick, "--seeds", seeds])
        answers.append(json.loads(capsys.readouterr().out))
    assert [one["seed"] for one in answers[1]["per_seed"]] == [0, 1]
    assert answers[0]["per_seed"] == answers[1]["per_seed"]
    capsys.readouterr()
    main(["finetune", str(run), *quick, "--seeds", "2,0"])
    named = json.loads(capsys.readouterr().out)["per_seed"]
    by_seed = {one["seed"]: one["scratch"]["accuracy"] for one in answers[2]["per_seed"]}
    assert {one["seed"]: one["scratch"]["accuracy"] for one in named} == {
        seed: by_seed[seed] for seed in (2, 0)
    }


@pytest.mark.parametrize(
    ("accuracies", "words"),
    [
        ((0.33, 0.57), "-0.2400 (-0.2400 to -0.2400, the same labels compared): worse than from"),
        ((0.57, 0.33), "+0.2400 (+0.2400 to +0.2400, the same labels compared): better than from"),
        ((0.57, 0.55), "+0.0200 (+0.0200 to +0.0200, the same labels compared): better with the"),
        ((0.55, 0.57), "-0.0200 (-0.0200 to -0.0200, the same labels compared): worse with the"),
        ((0.57, 0.57), "+0.0000 (+0.0000 to +0.0000, the same labels compared): no difference"),
    ],
)
def test_the_text_says_worse_where_it_is(
    run: Path, accuracies: tuple[float, float], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Accuracies are written into results.json, where the command finds both seeds finished."""
    command = ["finetune", str(run), "--labels", "25%", *QUICK]
    main(command)
    content = json.loads((run / "results.json").read_text())
    entry = content["finetune:25%"]
    for seed in entry["per_seed"]:
        for arm, accuracy in zip(("finetune", "scratch"), accuracies, strict=True):
            seed[arm]["accuracy"] = accuracy + 0.01 * seed["seed"]
    content["finetune:25%"] = sealed(entry, "finetune:25%")
    (run / "results.json").write_text(json.dumps(content))
    capsys.readouterr()
    main(command)
    out, err = capsys.readouterr()
    assert words in out and "2 of 2 seeds" in err
    assert ("outside both intervals" in out) == ("than from" in words)
    assert ("but the intervals of the two accuracies overlap" in out) == ("with the" in words)


def test_a_file_of_labels_that_differs_from_the_folders_is_told(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [f"train/{'ab'[i % 2]}/{i // 2}.png,{'ab'[(i + (i == 0)) % 2]}" for i in range(8)]
    (tmp_path / "mine.csv").write_text("path,label\n" + "\n".join(lines) + "\n")
    main(["finetune", str(run), "--labels", str(tmp_path / "mine.csv"), *QUICK])
    out, err = capsys.readouterr()
    assert "1 of 8 labels in the file are not those of" in err and "8 labels, 2 seeds," in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--labels", "none.csv"], "there is no file of labels"),
        (["--labels", "150%"], "at most 100%"),
        (["--labels", "1"], "too few labels for 2 classes"),
        (["--labels", "99"], "99 labels are more than the 16"),
        (["--labels", "4", "--lr", "-1"], "--learning-rates must be"),
        (["--labels", "4", "--fold", "0"], "no folds of its own"),
        (
            ["--labels", "4", "--seeds", "0,x"],
            "--seeds must be a number of repetitions (5) or seeds (0,1,2)",
        ),
        (["--labels", "4", "--seeds", "1,1"], "seeds must be"),
        (["--labels", "4", "--bn", "off"], "bn"),
        (["--labels", "4", "--data", "nothing"], "nothing"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], said: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*.json")}
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(["finetune", str(run), "--device", "cpu", *words])
    out, err = capsys.readouterr()
    refusals = [line for line in err.splitlines() if line.startswith("sureclr: ")]
    assert stopped.value.code == 2 and out == "" and len(refusals) == 1 and said in refusals[0]
    assert err.endswith(refusals[0] + "\n")
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*.json")}
