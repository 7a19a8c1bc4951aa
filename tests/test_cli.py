"""The command line: what it prints where, its exit codes, and that bad input is one line and writes
nothing.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from tiny import FLAGS, equal, lines, train, write_photos

from sureclr.cli import main
from sureclr.cli.shared import CommandProgress, print_answer

ROOT = Path(__file__).parents[1]
BASE = [*FLAGS, "--stem", "imagenet"]
TINY = [*BASE, "--epochs", "2", "--batch-size", "500"]  # 4 steps on digits


MAIN = "from sureclr.cli import main; main()"
# Whatever the words are, the command prints a line; it does not wait for torch
ANSWER = f"from sureclr.cli import running; running.app = lambda *_, **__: print('list'); {MAIN}"


def process(*words: str, code: str = MAIN) -> list[str]:
    return [sys.executable, "-c", code, *words]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "run"
    main(["pretrain", "digits", *TINY, "--out", str(out)])
    return out


@pytest.fixture
def own(run: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"


def failed(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The refusal on stderr of a command that must end with exit code 2 and leave stdout empty.

    What was understood of the images may stand above it.
    """
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(words)
    out, err = capsys.readouterr()
    assert stopped.value.code == 2 and out == ""
    refusals = [line for line in err.splitlines() if line.startswith("sureclr: ")]
    assert len(refusals) == 1 and err.endswith(refusals[0] + "\n"), err
    err = refusals[0] + "\n"
    assert len(err) < 700
    return err


def answered(words: list[str], capsys: pytest.CaptureFixture[str]) -> Any:
    """The one JSON object on stdout."""
    capsys.readouterr()
    main([*words, "--json"])
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    return json.loads(out)


# --- Help and names -------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [["--help"], ["pretrain", "--help"], ["finetune", "--help"], ["--version"]],
)
def test_help_needs_no_torch(words: list[str]) -> None:
    """Nor anything else that takes its time."""
    code = (
        "import sys\nfrom sureclr.cli import main\ntry:\n    main()\nexcept SystemExit as e:\n   "
        " assert not e.code\nprint([m for m in"
        " ('torch','timm','torchvision','sklearn','matplotlib','numpy') if m in sys.modules],"
        " file=sys.stderr)"
    )
    done = subprocess.run(
        process(*words, code=code), capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert done.returncode == 0 and done.stdout.strip()
    assert done.stderr.strip().splitlines()[-1] == "[]"


def test_every_key_of_the_configuration_is_a_flag_with_its_default(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from dataclasses import fields

    from sureclr.cli.flags import SHORT_FLAGS
    from sureclr.config import PretrainConfig, ViewConfig

    main(["pretrain", "--help"])
    text = capsys.readouterr().out
    flags = [
        f"--{SHORT_FLAGS.get(f.name, f.name).replace('_', '-')}"
        for f in fields(PretrainConfig)
        if f.name not in ("source", "views", "extensions")
    ]
    assert all(
        flag in text
        for flag in flags + [f"--views.{f.name.replace('_', '-')}" for f in fields(ViewConfig)]
    )
    assert "[default: 512]" in " ".join(text.replace("│", " ").split())


def test_list_names_all_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    found = answered(["list"], capsys)
    assert {"digits", "cifar10", "folder:PATH"} <= found["sources"].keys() and {
        "sure",
        "nt-xent",
    } <= found["losses"].keys()
    assert {"small", "resnet50"} <= found["encoders"].keys() and "digits" in found["recipes"]
    main(["list"])
    text = capsys.readouterr().out
    assert all(name in text for kind in found.values() for name in kind)


def test_list_says_which_pretrained_weights_there_are(
    empty_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from weight_cache import put_weights

    assert answered(["list"], capsys)["pretrained"] == []
    put_weights(empty_cache, "test_resnet")
    found = answered(["list"], capsys)
    assert found["pretrained"] == ["test_resnet.r160_in1k"]
    main(["list"])
    (line,) = [x for x in capsys.readouterr().out.splitlines() if "test_resnet" in x]
    assert "on this machine: --init timm." in line


FREEZES = [
    ("--freeze", "--freeze backbone"),
    ("folder:x --freeze --seed 1", "folder:x --freeze backbone --seed 1"),
    ("--freeze folder:x", "--freeze backbone folder:x"),
    ("--freeze stages folder:x", "--freeze stages folder:x"),
    ("--freeze off", "--freeze off"),
    ("--freeze=off --seed 1", "--freeze=off --seed 1"),
    ("--freeze stage", "--freeze stage"),  # a slip, about which the parser has a sentence
]


@pytest.mark.parametrize(("words", "meant"), FREEZES)
def test_freeze_alone_means_the_backbone(words: str, meant: str) -> None:
    from sureclr.cli.running import with_bare_freeze

    assert with_bare_freeze(words.split()) == meant.split()


def test_a_command_understands_freeze_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["pretrain", "--freeze", "digits", "--dry-run"])
    assert ended.value.code == 2 and "freeze backbone keeps" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["pretrain", "digits", "--freeze", "stage", "--dry-run"])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "stages" in said and "off" in said
    main(["pretrain", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--freeze alone means backbone" in text


# --- Resolving the configuration ------------------------------------------------------


def dry(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    main(["pretrain", *words, "--dry-run"])
    return yaml.safe_load(capsys.readouterr().out)


def test_command_line_over_file_over_recipe_over_default(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("epochs: 7\nbatch_size: 64\nviews:\n  flip: 0.25\n  hue: 0.1\n")
    found = dry(
        ["digits", "--recipe", "cifar10", "-c", str(file), "--epochs", "3", "--views.hue", "0.05"],
        capsys,
    )
    assert (
        found["source"],
        found["epochs"],
        found["batch_size"],
        found["encoder"],
        found["optimizer"],
    ) == ("digits", 3, 64, "resnet18", "adam")
    assert (
        found["views"]["hue"],
        found["views"]["flip"],
        found["views"]["strength"],
        found["views"]["contrast"],
    ) == (0.05, 0.25, 0.5, 0.8)


def test_a_source_starts_from_its_own_recipe_and_a_file_from_the_defaults(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dry(["digits"], capsys)["encoder"] == "small"
    source = f"folder:{photos(tmp_path / 'photos', classes=0, each=9)}"
    assert dry([source, "--batch-size", "4"], capsys)["epochs"] == 200
    (tmp_path / "c.yaml").write_text("source: digits\n")
    assert dry(["-c", str(tmp_path / "c.yaml")], capsys)["encoder"] == "resnet18"


def test_dry_run_prints_a_file_that_repeats_it_and_writes_nothing(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    main(
        [
            "pretrain",
            "digits",
            "--epochs",
            "5",
            "--certainty-gradient",
            "off",
            "--views.crop-area",
            "0.3",
            "0.9",
            "--dry-run",
        ]
    )
    text = capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "c.yaml").write_text(text)
    main(["pretrain", "-c", "c.yaml", "--dry-run"])
    assert capsys.readouterr().out == text
    as_json = answered(["pretrain", "-c", "c.yaml", "--dry-run"], capsys)
    assert as_json == yaml.safe_load(text) | {"certainty_gradient": "off"}


# --- Pretraining ----------------------------------------------------------------------


def test_the_runs_own_file_repeats_it(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = answered(
        [
            "pretrain",
            "-c",
            str(run / "config.yaml"),
            "--out",
            str(tmp_path / "again"),
            "--device",
            "cpu",
        ],
        capsys,
    )
    assert equal(run, tmp_path / "again")
    assert answer["run"] == str(tmp_path / "again") and answer["last"]["step"] == 4


def test_an_existing_run_is_left_alone_and_three_exits_are_named(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in own.rglob("*") if path.is_file()}
    said = failed(["pretrain", "digits", *TINY, "--out", str(own)], capsys)
    assert all(word in said for word in ("--resume", "--overwrite", "--out"))
    assert before == {path: path.read_bytes() for path in own.rglob("*") if path.is_file()}


def test_overwrite_trains_anew_and_keeps_what_is_not_ours(own: Path, run: Path) -> None:
    (own / "notes.txt").write_text("mine")
    (own / "results.json").write_text("{}")
    main(["pretrain", "digits", *TINY, "--out", str(own), "--overwrite"])
    assert (
        equal(own, run)
        and (own / "notes.txt").read_text() == "mine"
        and not (own / "results.json").exists()
    )


def test_resume_with_another_option_names_it(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = failed(["pretrain", "--resume", str(own), "--epochs", "9", "--device", "cpu"], capsys)
    assert "epochs" in said and "9" in said


@pytest.mark.parametrize(
    ("signals", "code"), [([signal.SIGTERM], 143), ([signal.SIGINT, signal.SIGINT], 130)]
)
def test_a_signal_ends_with_its_code_and_resume_with_the_same_run(
    run: Path, tmp_path: Path, signals: list[signal.Signals], code: int
) -> None:
    """A real process, killed as a cluster kills it; and by an impatient person (R10)."""
    out = tmp_path / "run"
    words = ["pretrain", "digits", *TINY, "--out", str(out)]
    child = subprocess.Popen(
        process(*words),
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    while child.poll() is None and not (out / "metrics.jsonl").exists():
        time.sleep(0.02)
    for number in signals:
        child.send_signal(number)
        time.sleep(0.05)
    _, said = child.communicate(timeout=120)
    assert child.returncode == code, said
    last = said.strip().splitlines()[-1]
    assert "Traceback" not in said and len(list((out / "checkpoints").iterdir())) <= 2
    assert last.startswith(f"sureclr: stopped by {signals[0].name}") and f"--resume '{out}'" in last
    assert 1 <= len(lines(out)) <= 4
    main(["pretrain", "--resume", str(out), "--device", "cpu"])
    assert equal(run, out)


# --- Evaluating -----------------------------------------------------------------------


def test_knn_and_linear_beside_their_baselines(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("knn", "linear"):
        found = answered([name, str(own)], capsys)
        stored = json.loads((own / "results.json").read_text())[name]
        assert stored.pop("provenance")["seconds"] > 0 and len(stored.pop("sha256")) == 64
        assert found == stored
        assert (
            0.5 < found["accuracy"] <= 1
            and found["interval"][0] <= found["accuracy"] <= found["interval"][1]
        )
        assert found["baselines"].keys() == {"raw_pixels", "untrained"} and found["n_test"] == 797
    main(["knn", str(own)])
    *text, last = capsys.readouterr().out.strip().splitlines()
    assert (
        "raw pixels" in text[0]
        and "untrained encoder" in text[0]
        and last.startswith("next: sureclr")
    )


def test_transfer_has_a_key_of_its_own(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos(tmp_path / "other", classes=2)
    answered(["knn", str(own), "--data", f"folder:{tmp_path / 'other'}"], capsys)
    assert list(json.loads((own / "results.json").read_text())) == [
        "schema",
        f"knn:folder:{tmp_path / 'other'}",
    ]
    assert not (own / "embeddings.parquet").exists()


def test_evaluate_makes_every_evaluation_and_prints_a_summary_of_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second time nothing is made anew: the time of every result stays."""
    own = tmp_path / "run"
    source = f"folder:{write_photos(tmp_path / 'photos')}"
    main(["pretrain", source, *FLAGS, "--size=8", "--batch-size=8", "--epochs=1", f"--out={own}"])
    from sureclr.evaluation.evaluations import EVALUATIONS

    answer = answered(["evaluate", str(own)], capsys)
    skipped = {"learning"}  # the run has no snapshot
    assert set(answer) == set(EVALUATIONS) - skipped
    before = (own / "results.json").read_bytes()
    main(["evaluate", str(own)])
    out, err = capsys.readouterr()
    assert (own / "results.json").read_bytes() == before
    assert "learning is skipped" in err and "snapshot" in err
    for word in ("knn ", "linear ", "uncertainty:", "foreign images", "geometry:", "sensitivity:"):
        assert sum(line.startswith(word) for line in out.splitlines()) == 1, word
    assert f"{answer['linear']['accuracy']:.4f}" in out and out.endswith(
        f"next: sureclr report {own}\n"
    )


def test_a_table_of_other_images_is_not_used(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sureclr.data.embeddings import Embeddings

    first = answered(["knn", str(own)], capsys)
    table = Embeddings.read(own / "embeddings.parquet")
    table.select(torch.arange(100).numpy()).save(own / "embeddings.parquet")
    capsys.readouterr()
    assert answered(["knn", str(own)], capsys) == first
    assert len(Embeddings.read(own / "embeddings.parquet")) == 1797


def photos(folder: Path, classes: int, each: int = 12) -> Path:
    for kind in range(max(1, classes)):
        place = folder / f"class{kind}" if classes else folder
        place.mkdir(parents=True)
        for i in range(each):
            Image.new("RGB", (12, 12), (20 * i, 200 * kind, 90)).save(place / f"{i}.png")
    return folder


def test_unlabelled_images_pretrain_and_linear_says_what_is_needed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = f"folder:{photos(tmp_path / 'photos', classes=0, each=20)}"
    out = str(tmp_path / "run")
    main(
        [
            "pretrain",
            source,
            *BASE,
            "--batch-size",
            "8",
            "--epochs",
            "1",
            "--size",
            "12",
            "--out",
            out,
        ]
    )
    for name in ("linear", "knn"):
        said = failed([name, out, "--device", "cpu"], capsys)
        assert f"{name} needs labels" in said and "sub-folder" in said and "--data" in said


# --- Bad input ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["digitz"],
            ["unknown data source 'digitz'", "did you mean digits", "cifar10", "folder:PATH"],
        ),
        (["."], ["is a folder", "folder:."]),
        (["folder:none"], ["none"]),
        (["folder:empty"], ["empty"]),
        (
            ["digits", "--loss", "nt_xent"],
            ["unknown loss 'nt_xent'", "did you mean nt-xent", "sure"],
        ),
        (
            ["digits", "--encoder", "resnet19"],
            ["unknown encoder 'resnet19'", "did you mean resnet", "small"],
        ),
        (["digits", "--recipe", "cifar"], ["unknown recipe 'cifar'", "did you mean cifar10"]),
        (["digits", "--epocs", "3"], ["--epocs", "--epochs"]),
        (["digits", "--epochs", "ten"], ["--epochs", "ten"]),
        (["digits", "--optimizer", "adamw"], ["adamw", "lars"]),
        (
            ["digits", "--encoder", "convnext_atto", "--stem", "cifar"],
            ["stem cifar", "ResNet family"],
        ),
        (["digits", "--batch-size", "1"], ["--batch-size must be at least 2", "1"]),
        (["digits", "--batch-size", "1001"], ["--batch-size 1001", "1000 training images", "500"]),
        (
            ["digits", "--batch-size", "100", "--micro-batch", "64"],
            ["--batch-size 100", "--micro-batch 64", "128"],
        ),
        (["digits", "--temperature", "0"], ["temperature", "0"]),
        (["digits", "--temperature", "nan"], ["temperature", "nan"]),
        (["digits", "--loss", "dcl", "--samples", "4"], ["dcl takes no samples", "temperature"]),
        (["gone", "--loss", "nt-xent", "--presence", "on"], ["nt-xent takes no presence"]),
        (["gone", "--loss", "nt-xent", "--null-fraction", ".1"], ["nt-xent learns nothing from"]),
        (["table:gone.npz", "--null-fraction", ".1"], ["a table of features has no images"]),
        (["digits", "--null-fraction", "1.5"], ["--null-fraction must lie in [0, 1]", "1.5"]),
        (["digits", "--null-kinds", "stripes"], ["stripes", "noise", "tiles"]),
        (
            ["digits", "--loss", "nt-xent", "--certainty-gradient", "off"],
            ["--certainty-gradient off", "nt-xent"],
        ),
        (["digits", "--views.flip", "2"], ["views.flip", "2"]),
        (["digits", "--views.crop-area", "0.5", "0.2"], ["--views.crop-area", "0.5"]),
        (["digits", "--size", "2"], ["size must be at least 4", "2"]),
        (["digits", "--device", "tpu"], ["tpu", "cpu"]),
        (["digits", "--device", "cuda:99"], ["cuda:99", "cpu"]),
        (["digits", "--track", "wandbb"], ["unknown tracker", "wandb"]),
        (["--resume", "none"], ["no run to resume in none"]),
        (["digits", "--learning-rate", "nan"], ["--learning-rate", "nan"]),
        (["-c", "none.yaml"], ["none.yaml", "cannot be read"]),
        (["-c", "ten.yaml"], ["epochs must be int", "'ten'"]),
        (["-c", "key.yaml"], ["unknown configuration key 'epoch'", "epochs"]),
        (["-c", "views.yaml"], ["views must be a mapping"]),
        (["-c", "source.yaml"], ["source must be str"]),
        (["-c", "source.yaml", "--recipe", "photos"], ["source must be str"]),
        ([], ["needs images to train on", "sureclr pretrain digits"]),
        (["digits", "cifar10"], ["`pretrain` takes", "'cifar10' is one word too many"]),
        (["--resume", "none", "--out", "other"], ["leave out --out"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0] != "unknown" else "",
)
def test_bad_input_is_one_line_exit_2_and_nothing_written(
    words: list[str],
    said: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for name, text in (
        ("ten", "source: digits\nepochs: ten"),
        ("key", "source: digits\nepoch: 3"),
        ("views", "source: digits\nviews: 3"),
        ("source", "source: 5"),
    ):
        (tmp_path / f"{name}.yaml").write_text(text)
    before = sorted(tmp_path.rglob("*"))
    line = failed(["pretrain", *words], capsys)
    assert all(word in line for word in said), line
    assert sorted(tmp_path.rglob("*")) == before


def test_a_wrong_flag_writes_nothing_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """A shell makes a flag of a file that is called --name, where somebody writes *."""
    assert "Unknown option" in (said := failed(["knn", "run", "--\x1b[2J\x07"], capsys))
    assert "\x1b" not in said and "\x07" not in said


def test_no_answer_and_no_message_commands_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Names of classes and versions of a stranger's run come from its files."""
    evil = "cat \x1b]0;owned\x07\x9b31m\u202e\n  two"
    print_answer(False, None, evil)
    CommandProgress().message(evil)
    out, err = capsys.readouterr()
    assert out == err == r"cat \x1b]0;owned\x07\x9b31m\u202e" + "\n  two\n"


@pytest.mark.parametrize("out", ["file", "file/run", "photos"])
def test_an_out_that_cannot_be_is_told_and_left_alone(
    out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    photos(tmp_path / "photos", classes=0)
    before = sorted(tmp_path.rglob("*"))
    line = failed(
        ["pretrain", "digits", *TINY, "--out", str(tmp_path / out), "--overwrite"], capsys
    )
    assert str(tmp_path / out) in line and "--out" in line and sorted(tmp_path.rglob("*")) == before


def test_a_diverging_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--optimizer", "sgd", "--learning-rate", "1e30", "--out", str(tmp_path / "run")]
    assert "diverged" in failed(["pretrain", "digits", *TINY, *options], capsys)


@pytest.mark.parametrize(
    "words",
    [
        ["knn", "none"],
        ["linear", "none"],
        ["evaluate", "none"],
        ["knn", "RUN", "--data", "digitz"],
        ["evaluate", "RUN", "--data", "digitz"],
        ["views", "digitz"],
        ["views", "digits", "--count", "0"],
        ["views", "digits", "--out", "RUN/config.yaml/x.png"],
        ["knn"],
        ["knnn"],
        ["knn", "RUN", "RUN"],
        ["report", "RUN", "RUN", "RUN"],
    ],
)
def test_other_commands_refuse_in_one_line_too(
    words: list[str], own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failed([word.replace("RUN", str(own)) for word in words], capsys)
    assert not (own / "results.json").exists()


def test_a_full_memory_names_the_micro_batch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sureclr.training import pretraining as pretrain

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(pretrain, "pretrain", full)
    assert "--micro-batch" in failed(["pretrain", "digits", *TINY], capsys)


def test_a_bug_of_ours_is_no_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from sureclr.training import pretraining as pretrain

    def bug(*_: Any, **__: Any) -> None:
        raise RuntimeError("a shape is wrong")

    monkeypatch.setattr(pretrain, "pretrain", bug)
    with pytest.raises(RuntimeError, match="a shape is wrong"):
        main(["pretrain", "digits", *TINY])


def test_a_reader_that_goes_away_is_no_error() -> None:
    """`sureclr list | head -1`"""
    child = subprocess.Popen(
        process("list", code=ANSWER), stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    )
    assert child.stdout is not None and child.stderr is not None
    child.stdout.close()
    assert child.wait(timeout=60) == 0 and child.stderr.read() == b""


# --- Pictures -------------------------------------------------------------------------


def test_views_draws_a_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["views", "digits", "--count", "3", "--out", str(tmp_path / "v.png")]
    found = answered([*words, "--null-fraction", "0"], capsys)
    assert found["images"] == 3 and found["null_kinds"] == []
    with Image.open(tmp_path / "v.png") as sheet:
        assert min(sheet.size) > 20
        height = sheet.size[1]
    found = answered([*words, "--null-fraction", "0.1", "--null-kinds", "tiles"], capsys)
    assert found["null_kinds"] == ["tiles"]
    with Image.open(tmp_path / "v.png") as sheet:
        assert sheet.size[1] > height + 96


# --- Runs on images given in Python ---------------------------------------------------


def test_a_run_on_own_images_asks_for_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its config names a source that the images did not come from: nothing may be evaluated on that
    one silently.
    """
    run = train(tmp_path / "run", source="digits", epochs=1, monitor_every=0, snapshot_every=0)
    assert "--data" in failed(["knn", str(run.path)], capsys)
    assert answered(["knn", str(run.path), "--data", "digits"], capsys)["n_test"] == 797


# --- Traps ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "reasons"),
    [
        (["folder:none"], ["none", "is not a folder"]),
        (["digitz"], ["unknown data source", "digits"]),
        (["digits", "--encoder", "small", "--batch-size", "1001"], ["--batch-size 1001"]),
        (
            ["digits", "--encoder", "convnext_atto", "--stem", "imagenet"],
            ["convnext_atto", "8 pixels"],
        ),
        (["digits", "--loss", "nope"], ["unknown loss"]),
        (["digits", "--device", "tpu"], ["tpu"]),
    ],
)
def test_a_dry_run_refuses_what_the_run_would_refuse(
    words: list[str],
    reasons: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [failed(["pretrain", *words, *more], capsys) for more in (["--dry-run"], [])]
    assert lines[0] == lines[1] and all(reason in lines[0] for reason in reasons)
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_does_not_promise_a_folder_that_is_taken(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = failed(["pretrain", "digits", *TINY, "--out", str(own), "--dry-run"], capsys)
    assert "--resume" in line and "--overwrite" in line


def test_an_unknown_command_names_all_commands_and_the_nearest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = failed(["pretian"], capsys)
    assert "did you mean pretrain" in line
    commands = "demo evaluate finetune knn label-next linear list predict pretrain report"
    commands += " uncertainty views"
    assert all(command in line for command in commands.split())


def test_a_word_too_many_is_named_with_the_rule(capsys: pytest.CaptureFixture[str]) -> None:
    line = failed(["report", "a", "b", "c"], capsys)
    assert "`report` takes one run, or two to compare, and 'c' is one word too many" in line


def test_help_has_its_commands_and_options_in_groups(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    text = capsys.readouterr().out
    titles = ["Start", "Train", "Evaluate a run", "Use few labels", "Use a run"]
    places = [text.index(f"─ {title} ─") for title in titles]
    assert places == sorted(places) and places[0] < text.index("│ demo ") < places[1]
    main(["pretrain", "--help"])
    text = capsys.readouterr().out
    titles = ["Run", "Images", "Network", "Loss", "Training", "Monitoring", "Views", "Output"]
    places = [text.index(f"─ {title}") for title in titles]
    assert places == sorted(places) and places[2] < text.index("--projection-dim") < places[3]


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("try batch_size=128.", "try --batch-size 128."),
        ("leave out data=.", "leave out --data."),
        ("views.crop_area must be two numbers", "--views.crop-area must be two numbers"),
        ("replace it with overwrite=True, or", "replace it with --overwrite, or"),
        ("the size of the data", "the size of the data"),
        ("photos/batch_size=3/a.png is damaged", "photos/batch_size=3/a.png is damaged"),
        ("unknown configuration key 'batch_sise'", "unknown configuration key 'batch_sise'"),
        ("the file micro_batch.py", "the file micro_batch.py"),
    ],
)
def test_arguments_become_flags_and_other_words_stay(sentence: str, expected: str) -> None:
    from sureclr.cli.shared import with_flags

    assert with_flags(sentence) == expected


# --- The demo -------------------------------------------------------------------------


def test_the_demo_trains_evaluates_and_reports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a recipe of seconds in place of a minute."""
    from dataclasses import replace

    from sureclr import recipes

    quick = replace(recipes.recipe("digits"), encoder="small-4", epochs=1, projection_dim=8)
    monkeypatch.setitem(recipes.RECIPES, "digits", lambda: quick)
    main(["demo", "--out", str(tmp_path / "demo"), "--device", "cpu"])
    out = capsys.readouterr().out
    results = json.loads((tmp_path / "demo" / "results.json").read_text())
    assert {"knn", "linear", "uncertainty", "learning"} <= set(results)
    accuracy = f"{results['linear']['accuracy']:.3f}"
    assert f"SureCLR features    {accuracy}" in out
    page = tmp_path / "demo" / "report.html"
    assert accuracy in page.read_text(encoding="utf-8")
    assert out.splitlines()[-1].startswith(f"next: open {page}")


def test_the_next_command_can_be_pasted(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spaced = tmp_path / "my run"
    shutil.copytree(run, spaced)
    main(["knn", str(spaced)])
    assert capsys.readouterr().out.splitlines()[-1] == f"next: sureclr linear '{spaced}'"


@pytest.mark.skipif(os.name != "posix", reason="pipes and /dev/full")
def test_a_stream_that_cannot_be_written_stops_no_work_and_no_lost_answer_is_silent(
    tmp_path: Path,
) -> None:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    env["SURECLR_CACHE"] = str(tmp_path / "cache")

    def code(words: list[str], program: str = MAIN, **streams: Any) -> tuple[int, bytes]:
        command = process(*words, code=program)
        done = subprocess.run(command, env=env, cwd=ROOT, check=False, **streams)
        return done.returncode, done.stderr or b""

    reader, broken = os.pipe()
    os.close(reader)
    try:
        assert code(["list"], ANSWER, stdout=broken, stderr=subprocess.PIPE) == (0, b"")
        photos, picture = write_photos(tmp_path / "photos"), tmp_path / "views.png"
        assert code(["views", f"folder:{photos}", "--out", str(picture)], stderr=broken)[0] == 0
        assert picture.is_file()
    finally:
        os.close(broken)
    if Path("/dev/full").exists():
        with open("/dev/full", "wb") as full:
            result, said = code(["list"], ANSWER, stdout=full, stderr=subprocess.PIPE)
        assert result == 2
        assert said.startswith(b"sureclr: the standard output cannot be used (No space left")
        assert said.count(b"\n") == 1
    closed = ["sh", "-c", 'exec 2>&-; exec "$@"', "sh", *process("no-such-command")]
    done = subprocess.run(closed, env=env, cwd=ROOT, check=False, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (2, b"")
