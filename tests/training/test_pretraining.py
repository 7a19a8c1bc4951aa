"""Pretraining: its step, its record, and that a run broken off in any way ends bit for bit as an
unbroken one.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import CONFIG, FEATURES, IMAGES, STEPS, Interrupting, equal, lines, train, weights

from sureclr.config import from_dict, read_yaml
from sureclr.data.batches import batch
from sureclr.data.image_set import ImageSet
from sureclr.data.user_images import as_image_set
from sureclr.data.views import two_views
from sureclr.errors import UserError
from sureclr.maths.objectives import NTXentLoss, SureLoss
from sureclr.progress import SILENT, SilentProgress
from sureclr.stopping import Stopped
from sureclr.training import records, setup
from sureclr.training.building import with_presence
from sureclr.training.monitor import Monitor
from sureclr.training.pretraining import pretrain
from sureclr.training.records import StepLines
from sureclr.training.run import load
from sureclr.training.run_dir import RunDir
from sureclr.training.setup import new_trainer
from sureclr.training.trainer import Trainer


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def crash() -> None:
    raise ZeroDivisionError("a power cut")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("unbroken") / "run").path


# --- The step and the record ----------------------------------------------------------


@pytest.mark.parametrize(("done", "epoch", "number"), [(0, 0, 0), (4, 1, 1)])
def test_a_step_is_sgd_on_the_loss_of_the_named_views(done: int, epoch: int, number: int) -> None:
    """One step of gradient descent, in the first and in a later epoch, against plain autograd."""
    config = replace(CONFIG, optimizer="sgd", weight_decay=0.0, warmup_epochs=0, loss="nt-xent")
    made, other = (new_trainer(config, as_image_set(IMAGES), torch.device("cpu")) for _ in range(2))
    made.done = done
    loss, posterior = made.step()
    indices, seeds = batch(config.seed, epoch, number, 48, 16)
    _, seen = other.model(two_views(IMAGES[indices], seeds, config.views))
    expected = other.objective(seen)
    expected.backward()
    assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-6) and torch.allclose(
        posterior.direction, seen.direction
    )
    assert not posterior.direction.requires_grad and made.done == done + 1
    for mine, start in zip(made.model.parameters(), other.model.parameters(), strict=True):
        rate = config.learning_rate * (1 + np.cos(np.pi * done / STEPS)) / 2
        moved = start - rate * 1.9 * start.grad  # Nesterov's first step: g + 0.9 g
        assert torch.allclose(mine, moved, atol=1e-7)


def test_a_line_a_step(unbroken: Path) -> None:
    record = lines(unbroken)
    assert [line["step"] for line in record] == list(range(1, STEPS + 1))
    assert [line["epoch"] for line in record] == pytest.approx(
        [step / 3 for step in range(1, STEPS + 1)]
    )
    assert record[-1]["learning_rate"] == pytest.approx(0, abs=1e-12)
    assert max(line["learning_rate"] for line in record) == pytest.approx(CONFIG.learning_rate)
    looked = [line["step"] for line in record if "effective_rank" in line]
    assert looked == [6, 12]
    assert all(
        {"alignment", "uniformity", "cosine_different", "radius"} <= record[step - 1].keys()
        for step in looked
    )
    assert all(np.isfinite(value) for line in record for value in line.values())


def test_speed_is_images_by_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps whose numbers are read together took as long as each other."""
    trainer = new_trainer(CONFIG, as_image_set(IMAGES), torch.device("cpu"))
    clock = iter([10.0, 10.5])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    pending = StepLines(trainer, {})
    pending.step()
    pending.step()
    assert [line["images_per_second"] for line in pending.read()] == [16 / 0.25] * 2


def test_the_folder_is_complete(unbroken: Path) -> None:
    assert {path.name for path in unbroken.iterdir()} == {
        "config.yaml",
        "environment.json",
        "images.json",
        "metrics.jsonl",
        "checkpoints",
        "snapshots",
        "encoder.safetensors",
        "training_images.parquet",
        "lock",
    }
    resolved = replace(with_presence(CONFIG), size=8, channels=1)
    assert from_dict(read_yaml(unbroken / "config.yaml")) == resolved
    assert json.loads((unbroken / "environment.json").read_text())["torch"] == torch.__version__
    assert {path.name for path in (unbroken / "snapshots").iterdir()} == {
        "epoch-00002.safetensors",
        "epoch-00004.safetensors",
    }
    snapshot = load_file(unbroken / "snapshots" / "epoch-00004.safetensors")
    assert snapshot["features"].shape == (48, FEATURES)
    assert snapshot["first_direction"].shape == (48, 8)


def test_encoder_file_is_the_encoder(unbroken: Path) -> None:
    alone, whole = load_file(unbroken / "encoder.safetensors"), weights(unbroken)
    assert all(
        torch.equal(value, whole[f"model.encoder.backbone.{name}"]) for name, value in alone.items()
    )
    assert len(alone) == sum(name.startswith("model.encoder.backbone.") for name in whole)


def test_a_run_repeats_whatever_the_global_generator_says(unbroken: Path, tmp_path: Path) -> None:
    torch.manual_seed(1234)
    before = torch.get_rng_state()
    train(tmp_path / "again")
    assert equal(unbroken, tmp_path / "again")
    assert torch.equal(torch.get_rng_state(), before)


def test_another_seed_is_another_run(unbroken: Path, tmp_path: Path) -> None:
    train(tmp_path / "run", seed=1, epochs=1)
    assert lines(tmp_path / "run")[0]["loss"] != lines(unbroken)[0]["loss"]


# --- The monitor ----------------------------------------------------------------------


class Messages(SilentProgress):
    """Remembers the messages and the tasks."""

    def __init__(self) -> None:
        self.texts, self.tasks = [], []

    def begin(self, task: str, total: int, done: int = 0) -> None:
        self.tasks.append((task, total, done))

    def message(self, text: str) -> None:
        self.texts.append(text)


def labelled() -> ImageSet:
    """Two classes that differ in brightness, so that neighbours are of one class."""
    labels = torch.arange(48) % 2
    pixels = (IMAGES // 4 + 128 * labels[:, None, None, None]).to(torch.uint8)
    names = [str(i) for i in range(48)]
    return ImageSet("mine", pixels, labels, ("dark", "light"), np.full(48, "train"), names)


def test_the_end_compares_knn_with_the_untrained_encoder(tmp_path: Path) -> None:
    """Also where the run was interrupted; the number is that of the run's untrained network."""
    train(tmp_path / "whole", labelled(), progress=(progress := Messages()))
    record = lines(tmp_path / "whole")
    assert [line["step"] for line in record if "knn_untrained" in line] == [1]
    monitor = Monitor.of(labelled(), CONFIG.seed)
    untrained = load(tmp_path / "whole", "cpu").untrained()
    assert record[0]["knn_untrained"] == monitor.knn(untrained.model)["knn"]
    before, after = record[0]["knn_untrained"], record[-1]["knn"]
    expected = (
        f"kNN accuracy on held-out training images {after:.3f} (untrained encoder {before:.3f})"
    )
    assert progress.texts[-1] == expected and progress.tasks == [("Training", 12, 0)]
    assert [text.split(":")[0] for text in progress.texts[:-1]] == [
        "after epoch 2",
        "after epoch 4",
    ]
    with pytest.raises(Stopped):
        train(tmp_path / "broken", labelled(), progress=Interrupting(7, terminate))
    train(tmp_path / "broken", labelled(), resume=True, progress=(again := Messages()))
    assert equal(tmp_path / "whole", tmp_path / "broken")
    assert again.texts[-1] == expected and again.tasks == [("Training", 12, 7)]


def test_monitoring_changes_no_weight(tmp_path: Path) -> None:
    for name, every in (("with", 1), ("without", 0)):
        options = {"monitor_every": every, "snapshot_every": 0, "progress": (log := Messages())}
        train(tmp_path / name, labelled(), **options)
        assert bool(log.texts) == bool(every)
    ours, others = weights(tmp_path / "with"), weights(tmp_path / "without")
    assert all(torch.equal(value, others[name]) for name, value in ours.items())
    assert not any("knn_untrained" in line or "knn" in line for line in lines(tmp_path / "without"))


def test_the_end_of_a_run_is_measured_whatever_the_interval(tmp_path: Path) -> None:
    train(tmp_path / "run", epochs=3, monitor_every=2, snapshot_every=2)
    assert [line["epoch"] for line in lines(tmp_path / "run") if "alignment" in line] == [2, 3]
    names = sorted(path.name for path in (tmp_path / "run" / "snapshots").iterdir())
    assert names == ["epoch-00002.safetensors", "epoch-00003.safetensors"]


class Sampling(NTXentLoss):
    """Remembers the seed of the generator of each step."""

    seeds: ClassVar[list[int]] = []

    def forward(self, posterior: Any, generator: torch.Generator | None = None) -> torch.Tensor:
        self.seeds.append(generator.initial_seed())
        return super().forward(posterior, generator)


def test_losses_that_sample_draw_anew_in_each_step_and_run(tmp_path: Path) -> None:
    for seed in (0, 1):
        loss = Sampling()
        options = {"out": tmp_path / str(seed), "device": "cpu", "progress": SILENT, "loss": loss}
        pretrain(replace(CONFIG, seed=seed, monitor_every=0), IMAGES, **options)
    assert len(Sampling.seeds) == len(set(Sampling.seeds)) == 2 * STEPS


def test_images_without_labels_have_no_comparison(tmp_path: Path) -> None:
    train(tmp_path / "run", encoder="small", epochs=2, progress=(progress := Messages()))
    first, last = progress.texts
    assert first == "images: 48 images (48 train), no labels."
    assert last.startswith("after epoch 2: alignment")


# --- Ahead of the device --------------------------------------------------------------


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that is treated as an accelerator is: the numbers of 5 steps are read together."""
    monkeypatch.setattr(records, "STEPS_AT_ONCE", 5)
    monkeypatch.setattr(
        setup,
        "Trainer",
        lambda *given: Trainer(*given[:-1], ahead=True),  # type: ignore[misc]
    )


@pytest.fixture(scope="module")
def seldom_saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("seldom") / "run", checkpoint_every=0).path


@pytest.mark.parametrize("steps", [None, 1, 5, STEPS])
def test_a_run_ahead_of_its_device_is_the_same(
    seldom_saved: Path, ahead: None, tmp_path: Path, steps: int | None
) -> None:
    """Every line, snapshot and weight, also where a signal stops it; no step waits for its line."""
    out, told = tmp_path / "run", []

    class Watching(SilentProgress):
        def update(self, done: int, numbers: Any = None) -> None:
            told.append(done)
            if done == steps:
                terminate()

    stopped = contextlib.nullcontext() if steps is None else pytest.raises(Stopped)
    with stopped:
        train(out, checkpoint_every=0, progress=Watching())
    if steps is not None:
        train(out, resume=True, checkpoint_every=0, progress=Watching())
    assert equal(seldom_saved, out) and told == list(range(1, STEPS + 1))


@pytest.mark.usefixtures("ahead")
def test_a_run_ahead_of_its_device_names_the_step_that_diverged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps 4 and 5 were taken when the loss of step 4 is read; the lines before it are whole."""
    taken, healthy = [0], SureLoss.forward

    def ruined(self: SureLoss, *args: Any) -> torch.Tensor:
        taken[0] += 1
        return healthy(self, *args) + (float("inf") if taken[0] == 4 else 0.0)

    monkeypatch.setattr(SureLoss, "forward", ruined)
    said = r"the loss is inf at step 3, .*There is no checkpoint yet"
    with pytest.raises(UserError, match=said):
        train(tmp_path / "run", checkpoint_every=0, monitor_every=0, snapshot_every=0)
    assert taken == [5] and [line["step"] for line in lines(tmp_path / "run")] == [1, 2, 3]


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_a_fused_optimizer_does_not_step_on_a_loss_that_is_not_finite(name: str) -> None:
    """Nobody has read the loss yet; its gradient is NaN, and no weight and no moment moves."""
    config = replace(CONFIG, optimizer=name, warmup_epochs=0)
    trainer = new_trainer(config, as_image_set(IMAGES), torch.device("cpu"))
    options = {"momentum": 0.9} if name == "sgd" else {}
    kind, trainer.ahead = type(trainer.optimizer), True
    trainer.optimizer = kind(trainer.model.parameters(), fused=True, **options)
    trainer.step()

    def state() -> list[torch.Tensor]:
        parts = trainer.model.parameters(), trainer.state()[0]["optimizer"].values()
        return [tensor.detach().clone() for part in parts for tensor in part]

    before = state()
    trainer.objective.register_forward_hook(lambda *given: given[-1] * torch.nan)
    loss, _ = trainer.step()
    assert loss.isnan() and next(trainer.model.parameters()).grad.isnan().any()
    assert all(torch.equal(old, new) for old, new in zip(before, state(), strict=True))


# --- Broken off and resumed -----------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 5, 6, STEPS])
def test_stopped_by_a_signal_and_resumed(unbroken: Path, tmp_path: Path, steps: int) -> None:
    """In the first step, in the middle of an epoch, at its end, and after the last step."""
    out = tmp_path / "run"
    with pytest.raises(Stopped, match="SIGTERM.*resume=True") as stopped:
        train(out, progress=Interrupting(steps, terminate))
    assert stopped.value.exit_code == 143
    assert (
        max((out / "checkpoints").iterdir()).name == f"step-{steps:09d}"
        and len(lines(out)) == steps
    )
    train(out, resume=True)
    assert equal(unbroken, out) and (out / "encoder.safetensors").exists()


class StopsTheMonitor(SilentProgress):
    """Sends SIGTERM while the monitor measures after this epoch."""

    def __init__(self, epoch: int) -> None:
        self.start = f"after epoch {epoch}:"

    def message(self, text: str) -> None:
        if text.startswith(self.start):
            terminate()
            raise AssertionError("the signal did not stop the monitor at once")


@pytest.mark.parametrize("epoch", [2, 4])
def test_a_monitor_that_a_signal_stopped_measures_when_the_run_goes_on(
    unbroken: Path, tmp_path: Path, epoch: int
) -> None:
    """It can take minutes, and no step may be lost nor any of its numbers, also in the last one."""
    out = tmp_path / "run"
    with pytest.raises(Stopped, match="SIGTERM.*resume=True"):
        train(out, progress=StopsTheMonitor(epoch))
    assert max((out / "checkpoints").iterdir()).name == f"step-{3 * epoch:09d}"
    assert len(lines(out)) == 3 * epoch - 1
    train(out, resume=True)
    assert equal(unbroken, out) and (out / "encoder.safetensors").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "lars", "loss": "mc-infonce", "samples": 2, "micro_batch": 8, "epochs": 1},
        {"optimizer": "sgd", "loss": "nt-xent", "epochs": 1},
    ],
    ids=["lars-sampling-accumulated", "sgd"],
)
def test_resuming_keeps_every_optimizer_and_sampling_loss_exact(
    tmp_path: Path, changes: dict
) -> None:
    train(tmp_path / "whole", **changes)
    with pytest.raises(Stopped):
        train(tmp_path / "broken", progress=Interrupting(2, terminate), **changes)
    train(tmp_path / "broken", resume=True, **changes)
    assert equal(tmp_path / "whole", tmp_path / "broken")


def test_a_crash_costs_the_steps_since_the_last_checkpoint_and_nothing_else(
    unbroken: Path, tmp_path: Path
) -> None:
    """Twice: in the middle of an epoch, and before there was any checkpoint."""
    out = tmp_path / "run"
    with pytest.raises(ZeroDivisionError):
        train(out, progress=Interrupting(2, crash))
    with pytest.raises(ZeroDivisionError):
        train(out, resume=True, progress=Interrupting(8, crash))
    assert max((out / "checkpoints").iterdir()).name == "step-000000006" and len(lines(out)) == 8
    train(out, resume=True)
    assert equal(unbroken, out)


def test_a_crash_after_a_checkpoint_loses_no_line(
    unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = RunDir.log

    def cut(self: RunDir, line: dict) -> None:
        if line["step"] == 6:
            crash()
        log(self, line)

    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(RunDir, "log", cut)
        train(tmp_path / "run")
    train(tmp_path / "run", resume=True)
    assert equal(unbroken, tmp_path / "run")


def test_a_damaged_checkpoint_is_passed_over(
    unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    with pytest.raises(Stopped):
        train(out, progress=Interrupting(7, terminate))
    file = out / "checkpoints" / "step-000000007" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)
    train(out, resume=True)
    assert "step-000000007 is damaged" in capsys.readouterr().err
    assert equal(unbroken, out)


def test_resuming_a_finished_run_changes_nothing(unbroken: Path) -> None:
    before = {
        path: path.read_bytes()
        for path in unbroken.rglob("*")
        if path.is_file() and path.name != "encoder.safetensors"
    }
    train(unbroken, resume=True)
    assert before == {path: path.read_bytes() for path in before}


def test_resuming_a_finished_run_keeps_its_results(unbroken: Path, tmp_path: Path) -> None:
    shutil.copytree(unbroken, tmp_path / "run")
    (tmp_path / "run" / "results.json").write_text("{}")
    train(tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "results.json").read_text() == "{}"


def test_resuming_forgets_what_was_evaluated_half_way(tmp_path: Path) -> None:
    """The table and the results of a run that goes on are those of other weights."""
    out = tmp_path / "run"
    with pytest.raises(Stopped):
        train(out, progress=Interrupting(5, terminate))
    (out / "results.json").write_text('{"knn": {"accuracy": 0.1}}')
    (out / "embeddings.parquet").write_bytes(b"of step 5")
    train(out, resume=True)
    assert not (out / "results.json").exists() and not (out / "embeddings.parquet").exists()


def test_resuming_with_another_configuration_names_the_key(unbroken: Path) -> None:
    before = (unbroken / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="learning_rate was 0.01 and is now 0.5"):
        train(unbroken, resume=True, learning_rate=0.5)
    with pytest.raises(UserError, match="views.strength was 0.5 and is now 0.7"):
        train(unbroken, resume=True, views=replace(CONFIG.views, strength=0.7))
    assert (unbroken / "metrics.jsonl").read_bytes() == before


def test_a_copy_of_a_checkpoint_is_not_used_and_not_deleted(unbroken: Path, tmp_path: Path) -> None:
    """R1: step 5 copied as step-best sorted behind every real step."""
    out = tmp_path / "run"
    with pytest.raises(Stopped):
        train(out, progress=Interrupting(5, terminate))
    copy = out / "checkpoints" / "step-best"
    shutil.copytree(out / "checkpoints" / "step-000000005", copy)
    train(out, resume=True)
    newest = json.loads((out / "checkpoints" / "step-000000012" / "state.json").read_text())
    assert newest["step"] == 12 and json.loads((copy / "state.json").read_text())["step"] == 5
    digest = hashlib.sha256((out / "checkpoints/step-000000012/manifest.json").read_bytes())
    assert load(out, "cpu").checkpoint == digest.hexdigest()
    shutil.rmtree(copy)
    assert equal(unbroken, out)


def test_two_interrupts_in_a_tenth_of_a_second_save_once(unbroken: Path, tmp_path: Path) -> None:
    """R10: the second one came while the checkpoint of the first was written, and it was lost."""
    out, real, saved = tmp_path / "run", RunDir.save_checkpoint, list[int]()

    def saving(self: RunDir, step: int, *args: Any) -> Path:
        saved.append(step)
        if step == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, step, *args)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped) as stopped:
        patch.setattr(RunDir, "save_checkpoint", saving)
        train(out, progress=Interrupting(5, lambda: os.kill(os.getpid(), signal.SIGINT)))
    assert stopped.value.exit_code == 130 and saved == [3, 5]
    train(out, resume=True)
    assert equal(unbroken, out)


def test_a_third_interrupt_stops_at_once_and_leaves_no_half(unbroken: Path, tmp_path: Path) -> None:
    """R10: in the middle of writing a checkpoint."""
    out, real = tmp_path / "run", os.fsync

    def three_times(handle: int) -> None:
        real(handle)
        if (
            any((out / "checkpoints").glob(".sureclr-draft-*"))
            and (out / "checkpoints/step-000000003").is_dir()
        ):
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "fsync", three_times)
        train(out)
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-000000003"]
    train(out, resume=True)
    assert equal(unbroken, out)


def resumed_or_begun(out: Path, **options: Any) -> None:
    """Resume the run, or start it where the sentence says that it never began."""
    try:
        train(out, resume=True, **options)
    except UserError as error:
        assert re.search("interrupted before its first step|there is no run to resume", str(error))
        train(out, **options)


# --- A full disk ----------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 2, 3, 5, 8, 9, 24])
def test_a_full_disk_ends_with_a_sentence_and_the_run_goes_on(
    unbroken: Path, tmp_path: Path, place: int
) -> None:
    """R11: the disk is full at a number of places; later there is room again."""
    out, real, left = tmp_path / "run", os.fsync, [place]

    def full(handle: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError) as caught:
        patch.setattr(os, "fsync", full)
        train(out)
    said = str(caught.value)
    assert str(out) in said and "bytes are needed and" in said and "are free" in said
    assert not list(out.rglob(".*"))
    resumed_or_begun(out)
    assert equal(unbroken, out)


def test_too_little_room_for_a_checkpoint_is_said_before_the_first_step(tmp_path: Path) -> None:
    """R11: a night of training must not end with the first checkpoint, nor with the fourth.

    Witness of the size: what a run of these kinds has on the disk at once, beside a draft.
    """
    labelled = as_image_set(IMAGES, labels=torch.arange(48) % 2)
    for images, options, number in (
        (IMAGES, {"epochs": 1}, 1),
        (IMAGES, {}, 3),
        (labelled, {}, 4),
        (labelled, {"monitor_every": 0, "snapshot_every": 0}, 3),
    ):
        out = tmp_path / str(number)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError) as caught:
            patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 1000))
            train(out, images, overwrite=True, **options)
        said = re.search(r"needs? about ([\d,]+) bytes.*and 1,000 are free", str(caught.value))
        assert said and not (out / "metrics.jsonl").exists()
        train(out, images, overwrite=True, **{**options, "epochs": 1})
        sizes = [file.stat().st_size for file in (out / "checkpoints").rglob("*.safetensors")]
        assert int(said[1].replace(",", "")) == pytest.approx(number * sum(sizes), rel=0.1)


# --- Diverging ------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_the_run(
    unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with pytest.raises(Stopped):
        train(out, progress=Interrupting(5, terminate))
    kept = {path: path.read_bytes() for path in (out / "checkpoints").rglob("*") if path.is_file()}
    healthy = SureLoss.forward
    with (
        monkeypatch.context() as patch,
        pytest.raises(UserError, match=r"loss is nan at step 5.*lower learning_rate") as caught,
    ):
        patch.setattr(SureLoss, "forward", lambda self, *args: healthy(self, *args) * float("nan"))
        train(out, resume=True)
    assert "\n" not in str(caught.value)
    assert kept == {
        path: path.read_bytes() for path in (out / "checkpoints").rglob("*") if path.is_file()
    }
    train(out, resume=True)
    assert equal(unbroken, out)


def test_a_learning_rate_that_is_far_too_high_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="training has diverged"):
        train(tmp_path / "run", learning_rate=1e30, warmup_epochs=0, optimizer="sgd")


def test_the_end_of_a_diverged_run_says_whether_there_is_a_checkpoint(tmp_path: Path) -> None:
    """R13: in the first epoch there is none, and later its step is named."""
    out = tmp_path / "run"
    options = {"learning_rate": 1e25, "warmup_epochs": 0}
    with pytest.raises(UserError, match=r"diverged.*There is no checkpoint yet") as caught:
        train(out, **options)
    assert not list((out / "checkpoints").iterdir()) and "last checkpoint" not in str(caught.value)
    train(out, overwrite=True, epochs=2)
    with pytest.raises(UserError, match=r"diverged.*The last checkpoint is from step 6, before"):
        train(out, resume=True, accept_changes=True, epochs=9, learning_rate=1e25)
    assert max((out / "checkpoints").iterdir()).name == "step-000000006"


@pytest.mark.parametrize("why", ["statistic", "overflow", "moment"])
def test_what_is_not_finite_stops_before_the_monitor_and_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """A NaN in the features was a LinAlgError of the monitor. Weights can be finite, and features
    overflow all the same.
    """
    out, healthy = tmp_path / "run", Trainer.step

    def step(trainer: Trainer) -> Any:
        result = healthy(trainer)
        if trainer.done == 6:
            norms = [m for m in trainer.model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
            if why == "statistic":
                norms[0].running_var[0] = torch.nan
            elif why == "overflow":
                with torch.no_grad():
                    norms[-1].weight.fill_(3e38)
            else:
                next(iter(trainer.optimizer.state.values()))["exp_avg_sq"].view(-1)[0] = torch.inf
        return result

    monkeypatch.setattr(Trainer, "step", step)
    names = {
        "statistic": r"running_var of the network is not finite",
        "overflow": "a feature of a training image is not finite",
        "moment": r"the optimizer's exp_avg_sq for .* of the network is not finite",
    }
    kept = f"{names[why]} at step 6, .*The last checkpoint is from step 3, before"
    with pytest.raises(UserError, match=kept):
        train(out)
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-000000003"]
    assert max(line["step"] for line in lines(out)) == 5 and not list((out / "snapshots").iterdir())


def test_a_network_that_is_not_finite_does_not_begin(tmp_path: Path) -> None:
    """And the run that would be overwritten is whole."""
    train(tmp_path / "run")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4))
    with torch.no_grad():
        network[1].bias[1] = torch.nan
    said = r"1\.bias of the network is not finite before the first step.*check the images"
    with pytest.raises(UserError, match=said):
        pretrain(CONFIG, IMAGES, encoder=network, out=tmp_path / "run", overwrite=True)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


# --- The user's own images ------------------------------------------------------------


def colours(n: int = 20, side: int = 12) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def test_images_in_any_form_train_alike(tmp_path: Path) -> None:
    """A list of PIL images, an array, a tensor and an ImageSet of the same pixels."""
    pixels = np.ascontiguousarray(colours().transpose(0, 3, 1, 2))
    forms = [
        [Image.fromarray(image) for image in colours()],
        pixels,
        torch.from_numpy(pixels),
        as_image_set(pixels),
    ]
    options = {"epochs": 1, "batch_size": 10, "monitor_every": 0, "snapshot_every": 0}
    ends = [train(tmp_path / str(i), images, **options) for i, images in enumerate(forms)]
    assert all(equal(ends[0].path, end.path) for end in ends[1:])
    assert (ends[0].size, ends[0].channels) == (12, 3)


def test_grey_images_need_no_channel_axis(unbroken: Path, tmp_path: Path) -> None:
    train(tmp_path / "run", IMAGES[:, 0])
    assert equal(unbroken, tmp_path / "run")


def test_the_size_asked_for_is_the_size_trained_at(tmp_path: Path) -> None:
    options = {"epochs": 1, "batch_size": 10, "monitor_every": 0, "snapshot_every": 0}
    run = train(tmp_path / "a", [Image.fromarray(image) for image in colours()], size=8, **options)
    assert run.size == 8
    wide = np.ascontiguousarray(
        colours().transpose(0, 3, 1, 2)[:, :, :10]
    )  # 10 rows, 12 columns: the centred square
    run = train(tmp_path / "b", wide, **options)
    assert run.size == 10 and run.embed(wide).features.shape == (20, FEATURES)


def test_test_images_are_never_trained_on(tmp_path: Path) -> None:
    """Changing every test image changes no bit of the run; unlabelled images do."""
    split = np.array(["train"] * 30 + ["test"] * 10 + ["unlabelled"] * 8)
    ends = []
    for name, changed in (("a", slice(0)), ("b", slice(30, 40)), ("c", slice(40, 48))):
        pixels = IMAGES.clone()
        pixels[changed] = 255 - pixels[changed]
        images = ImageSet(
            "mine",
            pixels,
            torch.arange(48) % 3,
            ("x", "y", "z"),
            split,
            [str(i) for i in range(48)],
        )
        ends.append(train(tmp_path / name, images, epochs=2).path)
    assert equal(ends[0], ends[1]) and not equal(ends[0], ends[2])
    assert "knn" in lines(ends[0])[-1]


@pytest.mark.parametrize(
    ("images", "options", "words"),
    [
        (IMAGES.float(), {}, "must be uint8"),
        (colours().astype(np.int64), {}, "must be uint8"),
        ([], {}, "there are no images"),
        (IMAGES[:10], {}, "batch_size 16 is more than the 10 training images"),
        (IMAGES[:0], {}, "there are no images"),
        ([Image.new("L", (8, 8)), "a.png"], {"batch_size": 2}, "image 1"),
        (["none.png"] * 4, {"batch_size": 2}, "none.png"),
        (IMAGES, {"loss": "nt-xnet"}, "did you mean nt-xent"),
        (IMAGES, {"encoder": "resnet19"}, "unknown encoder"),
        (IMAGES, {"encoder": "convnext_atto", "stem": "cifar"}, "stem cifar"),
        (IMAGES, {"encoder": "convnext_atto"}, "cannot take images of 8 pixels"),
        (IMAGES, {"loss": "dcl", "certainty_weight": 1.0}, "dcl takes no"),
        (IMAGES, {"loss": "dcl", "certainty_gradient": "off"}, "certainty_gradient"),
        (IMAGES, {"temperature": 0.0}, "temperature"),
        (IMAGES, {"device": "gpu"}, "device"),
        (IMAGES, {"device": "meta"}, "device meta is not available"),
        (IMAGES, {"track": "tensorbord"}, "did you mean tensorboard"),
    ],
    ids=range(17),
)
def test_bad_input_is_one_sentence_and_writes_nothing(
    tmp_path: Path, images: object, options: dict, words: str
) -> None:
    with pytest.raises(UserError, match=words) as caught:
        train(tmp_path / "run", images, **options)
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


def test_a_run_on_images_in_hand_is_not_continued_on_its_configurations_source(
    tmp_path: Path,
) -> None:
    """The configuration names digits, and the images came from Python: nothing may mix the two."""
    with pytest.raises(Stopped):
        train(tmp_path / "run", source="digits", progress=Interrupting(2, terminate))
    with pytest.raises(UserError, match="was trained on images .8 pixels, 1 channels., and would"):
        train(tmp_path / "run", None, source="digits", resume=True)
    train(tmp_path / "run", source="digits", resume=True)
    assert lines(tmp_path / "run")[-1]["step"] == STEPS
