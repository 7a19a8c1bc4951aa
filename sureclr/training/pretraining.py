"""Contrastive pretraining: `pretrain` sets a run up and trains it."""

from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sureclr.config import PretrainConfig
from sureclr.maths.objectives import Objective
from sureclr.models.devices import choose_device, resolve_precision
from sureclr.progress import ConsoleProgress, Progress
from sureclr.training.building import recorded
from sureclr.training.continuing import (
    check_complete,
    completed,
    configuration_changes,
    recorded_configuration,
    refuse_changes,
)
from sureclr.training.images import (
    MonitorLabels,
    as_begun,
    as_resolved,
    inputs_of,
    keep_features,
    label_file_of,
    training_images,
)
from sureclr.training.loop import run_training
from sureclr.training.run import Run
from sureclr.training.run_dir import FEATURES, RunDir, default_name
from sureclr.training.setup import fitting_trainer, new_trainer
from sureclr.training.track import check_tracker


def pretrain(
    config: PretrainConfig,
    images: Any = None,
    *,
    encoder: nn.Module | None = None,
    loss: Objective | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    accept_changes: bool = False,
    overwrite: bool = False,
    labels: MonitorLabels = None,
    device: str = "auto",
    track: str | None = None,
    root: Path | None = None,
    verify: bool = False,
    progress: Progress | None = None,
) -> Run:
    """Pretrain an encoder by contrasting augmented views, and return the run.

    Args:
        config: everything that decides what the run learns.
        images: the user's own images instead of those of `config.source`: paths, a folder, PIL
            images, an array, a map-style data set, ... (see `sureclr.as_image_set`).
        encoder: a module of the user's own instead of the one that `config.encoder` names. It maps
            images (n, c, h, w), standardised by the mean and the standard deviation of the training
            images, to features (n, f). A copy is trained; the module itself stays as it is.
            `config.stem` does not apply to it.
        loss: a loss object instead of the one that `config.loss` names. It is copied as well.
        out: the run folder; None: runs/SOURCE-LOSS-ENCODER-DATE.
        resume: continue the run in `out` exactly where it stopped.
        accept_changes: continue it although the configuration or the images are others than its
            checkpoint recorded. The changes are stored in the next checkpoints.
        overwrite: replace the run in `out`.
        labels: a file of labels, by which the monitor measures kNN accuracy while the run trains.
            They change nothing of what it learns; images.json names the file.
        device: auto, cuda, mps or cpu.
        track: tensorboard or wandb, which then also gets the numbers.
        root: the folder of the data sets.
        verify: check every byte of the cache of decoded pictures, see `ReadOptions`.
        progress: gets the number of steps done; None: reports on stderr.

    Returns:
        The run. Its configuration records the user's own encoder as "custom:" and its class, a
        registered loss by its name and options, and the size, channels, stem and precision that
        were chosen.

    Raises:
        UserError: bad input. Nothing has been overwritten.
        Stopped: SIGINT or SIGTERM, after a checkpoint.
    """
    config = recorded(config, encoder, loss)
    name = default_name(config.source, config.loss, config.encoder, datetime.now())
    directory = RunDir(Path(out) if out else name)
    directory.check(resume, overwrite, inputs_of(config, images))
    check_tracker(track)
    chosen, progress = choose_device(device), progress or ConsoleProgress()
    file = label_file_of(labels)
    config = _continued(directory, config, accept_changes) if resume else as_begun(config, progress)
    begun = (directory.path, directory.image_paths()) if resume else None
    training = training_images(
        config, images, root, chosen, progress, file, begun=begun, verify=verify
    )
    if not resume:
        config = as_resolved(config, training, progress)
    config = _with_precision(config, chosen, progress, resume)
    if resume:
        encoder = encoder or directory.onnx_network(config)
    probe = chosen.type != "cpu" and not resume
    trainer = fitting_trainer(
        config,
        training,
        chosen,
        progress,
        probe=probe,
        encoder=encoder,
        loss=loss,
        resumed=resume,
    )
    directory.prepare(resume, overwrite, trainer.checkpoint_bytes())
    if not resume:
        keep_features(images, directory.path / FEATURES)
    run_training(
        trainer,
        directory,
        progress,
        resume=resume,
        track=track,
        accept_changes=accept_changes,
        monitor_labels=None if file is None else file.path.absolute(),
    )
    return Run(
        directory,
        trainer.config,
        trainer.model.eval().requires_grad_(True),  # as one that was loaded
        trainer.objective.eval(),
        training.images.shape[-1],
        training.images.shape[1],
        training.name,
        directory.checkpoint_digest() or "",
    )


def check_pretraining(
    config: PretrainConfig,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    accept_changes: bool = False,
    overwrite: bool = False,
    labels: MonitorLabels = None,
    device: str = "auto",
    track: str | None = None,
    root: Path | None = None,
    verify: bool = False,
    progress: Progress | None = None,
) -> None:
    """Raise what `pretrain` would raise before its first step; write no run folder.

    The images are read (a folder is decoded into its cache, a data set may be downloaded), and the
    network is built and tried on two of them.

    Args:
        config: as for `pretrain`, like the other arguments.
        out: the run folder.
        resume: whether the run in `out` would be continued.
        accept_changes: whether it would be continued with another configuration.
        overwrite: whether it would be replaced.
        labels: a file of labels for the monitor.
        device: auto, cuda, mps or cpu.
        track: tensorboard or wandb.
        root: the folder of the data sets.
        verify: whether every byte of the cache of decoded pictures is checked.
        progress: gets the number of decoded images; None: reports on stderr.

    Raises:
        UserError: as `pretrain`.
    """
    config, progress = recorded(config, None, None), progress or ConsoleProgress()
    if out is not None:
        RunDir(Path(out)).check(resume, overwrite, inputs_of(config, None))
    if out is not None and resume:
        config = _continued(RunDir(Path(out)), config, accept_changes)
    else:
        config = as_begun(config, progress)
    check_tracker(track)
    choose_device(device)
    on_cpu = torch.device("cpu")
    file = label_file_of(labels)
    begun = (Path(out), RunDir(Path(out)).image_paths()) if out is not None and resume else None
    images = training_images(config, None, root, on_cpu, progress, file, begun=begun, verify=verify)
    if not resume:
        config = as_resolved(config, images, progress)
    network = RunDir(Path(out)).onnx_network(config) if out is not None and resume else None
    new_trainer(config, images, on_cpu, encoder=network, resumed=resume)


def _with_precision(
    config: PretrainConfig, device: torch.device, progress: Progress, resume: bool
) -> PretrainConfig:
    """Return a configuration with the precision that it has on this device, and say what matters.

    A run keeps the precision with which it began, also where it goes on on another machine.
    """
    if resume and config.precision == "auto":
        return config  # it is of an older version, see `choose_precision`
    precision, sentence = resolve_precision(config.precision, device)
    if sentence:
        progress.message(sentence)
    return replace(config, precision=precision)


def _continued(directory: RunDir, config: PretrainConfig, accept_changes: bool) -> PretrainConfig:
    """Return the configuration with which a run goes on, before images are read.

    Raises:
        UserError: it differs from the recorded one, and that is not accepted.
    """
    before = recorded_configuration(directory)
    config = completed(config, before)
    changes = configuration_changes(directory, before, config)
    if len(config.extensions) > len(before.extensions):
        refuse_changes(directory, changes)
        check_complete(directory, before)
    if not accept_changes:
        refuse_changes(directory, changes)
    return config
