"""A complete run trains on, with a schedule of its own, and nothing of the part before is lost.

Witnesses: a run that was planned longer, an uninterrupted one, and copies of the files.
"""

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import CONFIG, FLAGS, IMAGES, Messages, equal, lines, train, weights, write_photos

import sureclr
from sureclr.cli import main
from sureclr.config import PretrainConfig, TrainingPart, from_dict, read_yaml, to_yaml
from sureclr.data.user_images import as_image_set
from sureclr.errors import UserError
from sureclr.progress import SILENT
from sureclr.reporting.rendering import headline, remarks
from sureclr.reporting.run_files import read_run_files
from sureclr.stopping import Stopped
from sureclr.training import records
from sureclr.training.pretraining import pretrain
from sureclr.training.run import Run, load
from sureclr.training.run_dir import RunDir, read_checked_safetensors
from sureclr.training.trainer import Trainer

QUIET: dict[str, Any] = {"device": "cpu", "progress": SILENT}
FLAT = "test-flat"  # an encoder whose steps are quick
SHORT = replace(CONFIG, encoder=FLAT, epochs=2)  # of three steps each
STEPS = 6


@sureclr.register_encoder(FLAT)
def flat_encoder(channels: int, stem: str) -> torch.nn.Module:
    """Eight features of all pixels of images of 8 x 8."""
    layers = torch.nn.Flatten(), torch.nn.Linear(64 * channels, 8), torch.nn.BatchNorm1d(8)
    network = torch.nn.Sequential(*layers)
    network.num_features = 8  # type: ignore[assignment]
    return network


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("complete") / "run"
    train(out, epochs=2, encoder=FLAT)
    return out


@pytest.fixture
def run(complete: Path, tmp_path: Path) -> Path:
    shutil.copytree(complete, tmp_path / "run")
    return tmp_path / "run"


def extend(out: Path, epochs: int = 2, progress: Any = SILENT, **given: Any) -> Run:
    config = load(out, "cpu").config.extended(epochs, **given)
    return pretrain(config, IMAGES, out=out, resume=True, device="cpu", progress=progress)


def steps(out: Path) -> list[int]:
    return [int(path.name[5:]) for path in RunDir(out).saved()]


def trainer_of(config: PretrainConfig) -> Trainer:
    """One that takes no step, and needs no network."""
    nothing: Any = None
    return Trainer(config, as_image_set(IMAGES), nothing, nothing, nothing, torch.float32)


# --- The learning rate ----------------------------------------------------------------


def rates(config: PretrainConfig) -> list[float]:
    """The rate of every step, as the trainer sets it, and after the last one."""
    trainer, found = trainer_of(config), []
    while trainer.done <= trainer.steps:
        found.append(trainer.rate())
        trainer.done += 1
    return found


def cosine(count: int, peak: float) -> list[float]:
    return [peak * (1 + math.cos(math.pi * step / count)) / 2 for step in range(count)]


def test_each_schedule_has_the_rates_of_its_formula() -> None:
    """Three steps an epoch: a warm-up of 3, 9 of a cosine, and 30 of the extension."""
    first = [0.01 / 3, 0.02 / 3, 0.01, *cosine(9, 0.01)]
    for extended, expected in (
        (CONFIG.extended(10), [0.005 / 3, 0.01 / 3, 0.005, *cosine(27, 0.005), 0]),
        (CONFIG.extended(10, "restart"), [*cosine(30, 0.01), 0]),
        (CONFIG.extended(10, "constant"), [0.001] * 31),
        (CONFIG.extended(10, "constant", 0.3), [0.3] * 31),
        (CONFIG.extended(10, "constant", 0.01), [0.01] * 31),  # the highest of the cosine before
        (CONFIG.extended(2, "restart", 0.3).extended(8), None),
    ):
        if expected is None:
            expected = [*cosine(6, 0.3), 0.0025, 0.005, *cosine(22, 0.005), 0]
        assert rates(extended) == pytest.approx(first + expected)


def test_a_constant_rate_does_not_depend_on_the_number_of_epochs() -> None:
    """Also where the warm-up is longer than the run; another rate is a part of its own."""
    flat = replace(CONFIG, schedule="constant", warmup_epochs=5)
    longer = rates(replace(flat, epochs=8))
    assert longer == pytest.approx([0.01 * min(step / 15, 1) for step in range(1, 26)])
    assert rates(flat) == longer[:13] and rates(flat.extended(3).extended(1)) == longer
    assert rates(flat.extended(4, learning_rate=0.02))[12:] == [0.02] * 13


# --- Against a run that was planned longer --------------------------------------------


def same_weights(a: Path, b: Path) -> bool:
    """Of model, loss and optimizer, bit for bit."""
    mine, other = weights(a), weights(b)
    assert any(name.startswith("optimizer") for name in mine)
    same = (torch.equal(value, other[name]) for name, value in mine.items())
    return mine.keys() == other.keys() and all(same)


def test_an_extended_constant_run_is_the_one_that_was_planned_longer(tmp_path: Path) -> None:
    """Weights, moments, lines and snapshots, bit for bit; the warm-up is longer than the first
    part.
    """
    flat: dict[str, Any] = {"schedule": "constant", "encoder": FLAT}
    ours, planned = tmp_path / "run", tmp_path / "planned"
    train(planned, epochs=4, warmup_epochs=3, **flat)
    train(ours, epochs=2, warmup_epochs=3, **flat)
    extend(ours, progress=(said := Messages()))
    assert any("this is what a run planned with 4 epochs does" in text for text in said.messages)
    assert same_weights(ours, planned) and lines(ours) == lines(planned)
    files = [sorted((out / "snapshots").iterdir()) for out in (ours, planned)]
    assert [file.name for file in files[0]] == [file.name for file in files[1]]
    for pair in zip(*files, strict=True):  # they also name their configuration
        mine, other = (read_checked_safetensors(file, "numbers")[0] for file in pair)
        assert all(torch.equal(value, other[name]) for name, value in mine.items())


class Stopping(Messages):
    """Stops two steps into an extension, as a signal does."""

    def update(self, done: int, numbers: Any = None) -> None:
        if done == STEPS + 2:
            os.kill(os.getpid(), 15)


def test_an_interrupted_extension_and_a_repeated_run_are_exact(run: Path, tmp_path: Path) -> None:
    """The third run takes all parts at once. Of a cosine it is said that a longer one differs."""
    stopped, again, said = tmp_path / "stopped", tmp_path / "again", Messages()
    shutil.copytree(run, stopped)
    for _ in range(2):
        extend(run, schedule="restart", progress=said)
    text = next(text for text in said.messages if "is extended by 2 epochs" in text)
    assert "is not what a run planned with 4 epochs does" in text and "fallen to zero" in text
    with pytest.raises(Stopped):
        extend(stopped, schedule="restart", progress=Stopping())
    with pytest.raises(UserError, match="saved 8 of its 12 steps.*finish it first"):
        extend(stopped)
    pretrain(load(stopped, "cpu").config, IMAGES, out=stopped, resume=True, **QUIET)
    extend(stopped, schedule="restart")
    pretrain(from_dict(read_yaml(run / "config.yaml")), IMAGES, out=again, **QUIET)
    assert equal(run, stopped) and same_weights(run, again)
    assert steps(run) == steps(stopped) == steps(again) == [6, 12, 15, 18]
    mine = lines(run)
    for step in (6, 12):  # the rate of the next step: there was none
        assert mine[step - 1]["learning_rate"] == 0
        mine[step - 1]["learning_rate"] = 0.01
    assert mine == lines(again)


def test_giving_the_extension_again_extends_once(run: Path) -> None:
    """As a script does that is started again."""
    config = load(run, "cpu").config.extended(2)
    for _ in range(2):
        pretrain(config, IMAGES, out=run, resume=True, **QUIET)
    opened = load(run, "cpu").config
    assert lines(run)[-1]["step"] == 12 and opened == config
    assert (opened.epochs, opened.all_epochs) == (2, 4)
    assert "4, batches of 16 images" in load(run, "cpu")._repr_html_()
    words = "extensions was 2 epochs, cosine, learning_rate 0.005 and is now 1 epoch, cosine"
    with pytest.raises(UserError, match=words):
        pretrain(SHORT.extended(1), IMAGES, out=run, resume=True, **QUIET)


@pytest.mark.parametrize("freeze", ["off", "backbone"])
def test_an_encoder_of_the_users_own_trains_on(tmp_path: Path, freeze: Any) -> None:
    """If it is frozen, its features are computed again where they have gone."""
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8))
    own: dict[str, Any] = {"encoder": network, "out": tmp_path / "run", **QUIET}
    config = replace(SHORT, epochs=1, freeze=freeze, cached_views=2)
    before = pretrain(config, IMAGES, **own)
    shutil.rmtree(tmp_path / "run" / "features", ignore_errors=True)
    after = pretrain(before.config.extended(1), IMAGES, resume=True, **own)
    assert after.config.all_epochs == 2 and lines(tmp_path / "run")[-1]["step"] == 6
    pairs = zip(before.encoder.parameters(), after.encoder.parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs) == (freeze == "backbone")
    assert (tmp_path / "run" / "features").exists() == (freeze == "backbone")


# --- What is refused ------------------------------------------------------------------


def test_what_cannot_be_extended_says_why_and_stays(run: Path, tmp_path: Path) -> None:
    config = load(run, "cpu").config

    def refused(words: str, new: PretrainConfig = config, **options: Any) -> None:
        before = {str(path): path.read_bytes() for path in run.rglob("*") if path.is_file()}
        with pytest.raises(UserError, match=words):
            pretrain(new.extended(1), IMAGES, out=run, resume=True, **QUIET, **options)
        assert before == {str(p): p.read_bytes() for p in run.rglob("*") if p.is_file()}

    for value in (0, -3):
        with pytest.raises(UserError, match=f"at least 1 epoch; got {value}"):
            config.extended(value)
    refused("seed was 0 and is now 1", replace(config, seed=1), accept_changes=True)
    (RunDir(run).saved()[-1] / "model.safetensors").write_bytes(b"")
    refused("saved 3 of its 6 steps.*finish it first: continue with resume=True, out='")
    shutil.rmtree(run / "checkpoints")
    refused("no undamaged checkpoint, so it cannot be extended; put its checkpoints back")
    with pytest.raises(UserError, match="no run to resume"):
        pretrain(config.extended(1), IMAGES, out=tmp_path / "none", resume=True, **QUIET)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("3", "extensions must be .*; got 3"),
        ("[3]", "extensions must be TrainingPart; got 3"),
        ("[{epochs: 2}]", "extensions has an entry without learning_rate"),
        ("[{epochs: 2, schedule: up, learning_rate: 1.0}]", "extensions.schedule must be one of"),
        ("[{epochs: 0, schedule: cosine, learning_rate: 1.0}]", "epochs must be at least 1"),
        (
            "[{epochs: 1, schedule: cosine, learning_rate: .nan}]",
            "learning_rate must be a positive",
        ),
        ("[{epochs: 1, steps: 3}]", "unknown configuration key 'extensions.steps'"),
    ],
)
def test_an_extension_in_a_file_is_checked(entry: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(f"source: digits\nextensions: {entry}\n")
    with pytest.raises(UserError, match=words):
        from_dict(read_yaml(tmp_path / "config.yaml"))


def test_extensions_go_through_the_file(tmp_path: Path) -> None:
    config = CONFIG.extended(3).extended(2, "restart")
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert from_dict(read_yaml(tmp_path / "config.yaml")) == config
    assert config.extensions[1] == TrainingPart(2, "restart", 0.01, 0)
    assert from_dict(json.loads(json.dumps(asdict(config)))) == config


# --- What was made of the part before -------------------------------------------------

FILES = {"results.json": b"{}", "comparison-b.html": b"two"}
TREES = {"finetuned/10%.json": b"tuned"}


def put_results(out: Path) -> None:
    for name, data in {**FILES, **TREES}.items():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_bytes(data)


def results_in(folder: Path) -> dict[str, bytes]:
    names = {**FILES, **TREES}
    return {name: (folder / name).read_bytes() for name in names if (folder / name).exists()}


def test_results_of_the_part_before_stay_valid(tmp_path: Path, monkeypatch: Any) -> None:
    """`--checkpoint 6` finds them unchanged, also in a second extension; the rest is of the new
    weights."""
    monkeypatch.setenv("SURECLR_CACHE", str(tmp_path / "cache"))
    out, labelled = tmp_path / "run", as_image_set(IMAGES, labels=torch.arange(48) % 3)
    train(out, labelled, epochs=2, encoder=FLAT)
    which = ["geometry", "learning"]
    first = sureclr.evaluate(out, which, labelled, **QUIET)
    expected = (out / "results.json").read_bytes()
    old, said = load(out, "cpu"), Messages()
    pretrain(old.config.extended(2), labelled, out=out, resume=True, device="cpu", progress=said)
    assert (out / "step-000000006" / "results.json").read_bytes() == expected
    assert not (out / "results.json").exists() and steps(out) == [6, 9, 12]
    (text,) = [text for text in said.messages if "step-000000006 now" in text]
    assert "results.json" in text and "checkpoint=6" in text
    opened = load(out, "cpu", checkpoint=6)
    assert (opened.checkpoint, opened.config) == (old.checkpoint, old.config)
    again = sureclr.evaluate(out, which, labelled, checkpoint=6, **QUIET)
    assert again.provenance == first.provenance
    new = sureclr.evaluate(out, which, labelled, **QUIET)
    assert new.provenance["geometry"].checkpoint != old.checkpoint
    assert new["learning"].epochs == (2, 4) and first["learning"].epochs == (2,)
    for files, epochs in ((read_run_files(out, checkpoint="6"), 2), (read_run_files(out), 4)):
        assert not files.problems and f"· {epochs} epochs" in headline(files)
        assert ("extended after epoch 2" in " ".join(remarks(files))) == (epochs == 4)
    assert (
        "2 epochs, cosine, learning_rate 0.005" in sureclr.report(out, evaluate=False).read_text()
    )


class Killed(BaseException):
    """A kill: nothing that the program still wants to do is done."""


@contextmanager
def killed_at(count: int) -> Iterator[list[int]]:
    """Let nothing happen from the `count`-th change of a folder on; yield how many were tried."""
    tried = [0]

    def counted(change: Any) -> Any:
        def changed(*args: Any, **options: Any) -> Any:
            tried[0] += 1
            if tried[0] >= count:
                raise Killed
            return change(*args, **options)

        return changed

    changes = (os, "link rename replace unlink rmdir"), (Path, "rename replace unlink mkdir rmdir")
    with pytest.MonkeyPatch.context() as patch, suppress(Killed):
        for owner, names in changes:
            for name in names.split():
                patch.setattr(owner, name, counted(getattr(owner, name)))
        yield tried


def test_a_kill_between_any_two_changes_loses_nothing(run: Path, tmp_path: Path) -> None:
    """Every command finds all results in one place, and the next one that trains on leaves them in
    the folder of the step, beside what the user has put there.
    """
    put_results(run)
    (run / "step-000000006").mkdir()
    (run / "step-000000006" / "mine.txt").write_text("mine")
    trainer = trainer_of(load(run, "cpu").config.extended(1))
    trainer.done = STEPS
    places, copy, count, tried = set(), tmp_path / "copy", 0, [0]
    while tried[0] >= count:
        count += 1
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(run, copy)
        with killed_at(count) as tried:
            records._leave_results(RunDir(copy), trainer, SILENT)
        found = RunDir(copy).results_folder()
        places.add(found)
        assert results_in(found) == {**FILES, **TREES}, (count, found)
        RunDir(copy).remove_drafts()
        records._leave_results(RunDir(copy), trainer, SILENT)
        after = copy / "step-000000006"
        assert results_in(after) == {**FILES, **TREES} and not results_in(copy)
        assert (after / "mine.txt").exists()
        assert not list(copy.glob(".*")), count
    assert count > 15 and places == {copy, after}


def test_results_made_while_an_extension_begins_are_of_the_part_before(run: Path) -> None:
    """It was stopped before its first checkpoint, and the last one is evaluated once more."""
    put_results(run)
    directory = RunDir(run)

    class Dying(Messages):
        def begin(self, *args: Any) -> None:
            raise Killed

    with pytest.raises(Killed):
        extend(run, progress=Dying())
    folder = directory.results_folder()
    assert folder == run / "step-000000006" and load(run, "cpu").which == "6"
    (folder / "results.json").write_bytes(b"newer")
    pretrain(SHORT, IMAGES, out=run, resume=True, **QUIET)  # the run knows that it is extended
    assert results_in(folder) == {**FILES, **TREES, "results.json": b"newer"}
    assert directory.results_folder() == run and lines(run)[-1]["step"] == 12


def test_a_drive_without_second_names_gets_copies(run: Path, monkeypatch: Any) -> None:
    put_results(run)
    monkeypatch.setattr(os, "link", lambda *args, **options: (_ for _ in ()).throw(OSError(95, "")))
    extend(run, 1)
    assert results_in(run / "step-000000006") == {**FILES, **TREES}


# --- The command line -----------------------------------------------------------------


def test_the_command_extends_and_refuses(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setenv("SURECLR_CACHE", str(tmp_path / "cache"))
    out, source = tmp_path / "run", f"folder:{write_photos(tmp_path / 'photos')}"
    words = [*FLAGS, "--size", "8", "--epochs", "1", "--schedule", "constant"]
    main(["pretrain", source, *words, "--out", str(out)])
    main(["pretrain", "--resume", str(out), "--extend", "1", "--device", "cpu"])
    assert "planned with 2 epochs does" in capsys.readouterr().err
    more = ["--extend", "2", "--extend-schedule", "restart", "--extend-learning-rate", "0.003"]
    main(["pretrain", "--resume", str(out), *more, "--device", "cpu", "--dry-run"])
    assert "schedule: restart\n  learning_rate: 0.003" in capsys.readouterr().out
    assert len(load(out, "cpu").config.extensions) == 1  # a dry run changes nothing
    for given, told in (
        (["digits", "--extend", "1"], "name the run with --resume RUN"),
        (["--resume", str(out), "--extend-schedule", "cosine"], "belong to --extend EPOCHS"),
        (["--resume", str(out), "--extend", "0"], "at least 1 epoch; got 0"),
        (["--resume", str(out), "--epochs", "9"], "trains on with --extend EPOCHS"),
    ):
        with pytest.raises(SystemExit) as exited:
            main(["pretrain", *given])
        assert exited.value.code == 2 and told in capsys.readouterr().err
