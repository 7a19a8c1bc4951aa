"""Contrastive pretraining: `pretrain`, and the loop around the step of `trainer.Trainer`."""

import time
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from torch import nn

from sureclr.config import PretrainConfig, from_dict, read_yaml
from sureclr.maths.objectives import Objective
from sureclr.progress import ConsoleProgress, Progress
from sureclr.stopping import StopFlag, stop_on_signals
from sureclr.training.building import recorded
from sureclr.training.devices import choose_device
from sureclr.training.monitor import Monitor, collapse_warning, monitor_text
from sureclr.training.records import (
    begin_run,
    resume_run,
    save_snapshot,
    step_numbers,
    write_encoder,
)
from sureclr.training.run import Run
from sureclr.training.run_dir import RunDir, default_name
from sureclr.training.setup import fitting_trainer, training_images
from sureclr.training.track import Tracker, check_tracker, open_tracker
from sureclr.training.trainer import Trainer


def pretrain(
    config: PretrainConfig,
    images: Any = None,
    *,
    encoder: nn.Module | None = None,
    loss: Objective | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    track: str | None = None,
    root: Path | None = None,
    progress: Progress | None = None,
) -> Run:
    """Pretrain an encoder by contrasting augmented views, and return the run.

    Args:
        config: everything that decides what the run learns.
        images: the user's own images instead of those of `config.source`: an ImageSet, a uint8
            array (n, c, h, w) or (n, h, w), or a list of PIL images.
        encoder: a module of the user's own instead of the one that `config.encoder` names. It maps
            images (n, c, h, w), standardised by the mean and the standard deviation of the training
            images, to features (n, f). A copy is trained; the module itself stays as it is.
            `config.stem` does not apply to it.
        loss: a loss object instead of the one that `config.loss` names. It is copied as well.
        out: the run folder; None: runs/SOURCE-LOSS-ENCODER-DATE.
        resume: continue the run in `out` exactly where it stopped.
        overwrite: replace the run in `out`.
        device: auto, cuda, mps or cpu.
        track: tensorboard or wandb, which then also gets the numbers.
        root: the folder of the data sets.
        progress: gets the number of steps done; None: reports on stderr.

    Returns:
        The run. Its configuration records the user's own encoder as "custom:" and its class, and a
        registered loss by its name and options.

    Raises:
        UserError: bad input. Nothing has been overwritten.
        Stopped: SIGINT or SIGTERM, after a checkpoint.
    """
    config = recorded(config, encoder, loss)
    name = default_name(config.source, config.loss, config.encoder, datetime.now())
    directory = RunDir(Path(out) if out else name)
    directory.check(resume, overwrite)
    check_tracker(track)
    chosen, progress = choose_device(device), progress or ConsoleProgress()
    training = training_images(config, images, root, chosen)
    if resume and config.micro_batch is None:  # use what fitted when the run began
        config = replace(config, micro_batch=from_dict(read_yaml(directory.config)).micro_batch)
    probe = chosen.type != "cpu" and not resume
    trainer = fitting_trainer(
        config, training, chosen, progress, probe=probe, encoder=encoder, loss=loss
    )
    directory.prepare(resume, overwrite)
    with ExitStack() as stack:
        stack.enter_context(directory.lock())
        stop = stack.enter_context(stop_on_signals())
        tracker = stack.enter_context(open_tracker(track, directory.path / "track", trainer.config))
        resume_run(directory, trainer) if resume else begin_run(directory, trainer)
        _train(trainer, directory, Monitor.of(training, config.seed), stop, progress, tracker)
        write_encoder(directory, trainer)
    return Run(
        directory,
        trainer.config,
        trainer.model.eval(),
        trainer.objective.eval(),
        training.images.shape[-1],
        training.images.shape[1],
        training.name,
        directory.newest_digest() or "",
    )


def _train(
    trainer: Trainer,
    directory: RunDir,
    monitor: Monitor,
    stop: StopFlag,
    progress: Progress,
    tracker: Tracker,
) -> None:
    """Take the remaining steps, with a line for each and checkpoints when they are due."""
    config = trainer.config
    saved = f"continue with resume=True, out={str(directory.path)!r}"
    progress.begin("Training", trainer.steps, trainer.done)
    try:
        while trainer.done < trainer.steps:
            untrained = _untrained_knn(trainer, monitor)
            began = time.monotonic()
            loss, posterior = trainer.step()
            numbers = step_numbers(trainer, loss, posterior, time.monotonic() - began) | untrained
            if trainer.done % trainer.per_epoch == 0:
                numbers |= _monitored(trainer, directory, monitor, progress)
            directory.log(numbers)  # before the checkpoint: a crash between the two loses no line
            tracker(numbers)
            progress.update(trainer.done, numbers)
            if trainer.done == trainer.steps:
                _report_gain(directory, numbers, progress)
            if stop or trainer.done == trainer.steps or trainer.is_due(config.checkpoint_every):
                trainer.check_weights()
                directory.save_checkpoint(trainer.done, *trainer.state())
            stop.check(saved)
    finally:
        progress.finish()


def _untrained_knn(trainer: Trainer, monitor: Monitor) -> dict[str, float]:
    """Return the kNN accuracy of the untrained encoder, before the first step of a run."""
    if trainer.done > 0 or not trainer.config.monitor_every:
        return {}
    return {f"{name}_untrained": value for name, value in monitor.knn(trainer.model).items()}


def _monitored(
    trainer: Trainer, directory: RunDir, monitor: Monitor, progress: Progress
) -> dict[str, float]:
    """Return the monitor's numbers after an epoch and save a snapshot, if they are due."""
    config, epoch = trainer.config, trainer.done // trainer.per_epoch
    if not (trainer.is_due(config.monitor_every) or trainer.is_due(config.snapshot_every)):
        return {}
    numbers, tensors = monitor.measure(trainer.model, config.views)
    progress.message(monitor_text(epoch, numbers))
    if warning := collapse_warning(numbers):
        progress.message(warning)
    if trainer.is_due(config.snapshot_every):
        path = directory.snapshots / f"epoch-{epoch:05d}.safetensors"
        save_snapshot(path, tensors, {"epoch": epoch, **numbers})
    return numbers


def _report_gain(directory: RunDir, numbers: dict[str, float], progress: Progress) -> None:
    """Compare kNN at the end of training with the untrained encoder, if both were measured."""
    before = next((line.get("knn_untrained") for line in directory.lines()), None)
    if before is not None and "knn" in numbers:
        progress.message(
            f"kNN accuracy on held-out training images {numbers['knn']:.3f} (untrained encoder"
            f" {before:.3f})"
        )
