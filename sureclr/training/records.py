"""What a training run writes into its folder beside checkpoints."""

import json
import os
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sureclr.config import from_dict, read_yaml, to_yaml
from sureclr.errors import UserError
from sureclr.files import digest_of_bytes, json_bytes, sealed, write_atomically
from sureclr.maths.sphere import Posterior
from sureclr.progress import Progress
from sureclr.training.building import is_own
from sureclr.training.continuing import (
    accepted,
    completed,
    configuration_changes,
    image_changes,
    machine_changes,
    refuse_changes,
)
from sureclr.training.image_record import ImageRecord
from sureclr.training.run_dir import RunDir, checked_safetensors
from sureclr.training.trainer import Trainer


def begin_run(directory: RunDir, trainer: Trainer) -> None:
    """Write what describes a run before its first step.

    For an encoder or a loss of the user's own that includes its state, to which evaluations compare
    the trained one.
    """
    directory.remove_drafts()
    if own := _own_state(trainer):
        directory.save_initial(own)
    _record_images(directory, trainer, ImageRecord.of(trainer.images))
    write_atomically(directory.config, to_yaml(trainer.config).encode())
    write_atomically(
        directory.path / "environment.json", json_bytes(sealed(environment(), "environment.json"))
    )


def _record_images(directory: RunDir, trainer: Trainer, images: ImageRecord) -> None:
    """Write which images are trained on, and let every checkpoint name their digest.

    Checkpoints also name the origins of the run's snapshots: digests of configuration and images,
    the last one of today's. There are several if changes were accepted.
    """
    images.save(directory.images)
    configuration = json.dumps(asdict(trainer.config), sort_keys=True)
    origin = digest_of_bytes(configuration.encode(), images.digest.encode())
    earlier = [one for one in trainer.record.get("origins", []) if one != origin]
    trainer.record |= {
        "images": images.digest,
        "count": len(images.paths),
        "origins": [*earlier, origin],
    }


def resume_run(
    directory: RunDir, trainer: Trainer, progress: Progress, *, accept_changes: bool = False
) -> None:
    """Restore the newest checkpoint of a run into a trainer.

    Args:
        directory: of the run; its lock is held.
        trainer: at step 0, of a configuration that `continuing.completed` returned.
        progress: gets a sentence about what changed.
        accept_changes: go on although configuration or images are others than the checkpoint
            recorded; the next checkpoints name the changes.

    Raises:
        UserError: something changed, or the checkpoint does not fit the trainer.
    """
    directory.remove_drafts()
    checkpoint = directory.load_checkpoint() if directory.saved() else None
    numbers = {} if checkpoint is None else checkpoint.numbers
    images = ImageRecord.of(trainer.images, like=numbers.get("images", ""))
    stored = numbers.get("configuration")
    before = from_dict(read_yaml(directory.config) if stored is None else stored)
    changes = configuration_changes(directory, before, completed(trainer.config, before))
    if checkpoint is not None:
        changes += image_changes(directory, trainer.images, images, numbers)
    if not accept_changes:
        refuse_changes(directory, changes)
    if checkpoint is not None:
        _restore(directory, trainer, checkpoint.parts, numbers)
    else:
        if _own_state(trainer):
            _restore_own(trainer, directory.load_initial())
        _begin_again(directory, progress)
    if (step := directory.foreign_step(directory.lines())) is not None:
        progress.message(
            f"{directory.metrics} is that of another run (its loss at step {step} is not that of"
            " the checkpoint); its lines stay, and the curves of a report will be wrong."
        )
    if text := machine_changes(directory, environment()):
        progress.message(text)
    _record_images(directory, trainer, images)
    if changes:
        _accept(directory, trainer, changes, progress)
    directory.forget_after(trainer.done)
    if trainer.done < trainer.steps and (removed := directory.forget_results()):
        progress.message(
            f"What was computed from the weights of step {trainer.done} is removed, because"
            f" training goes on from them: {', '.join(removed)}."
        )


def _begin_again(directory: RunDir, progress: Progress) -> None:
    """Say that there is no checkpoint to go on from.

    Raises:
        UserError: the run was complete, so that its checkpoints have gone.
    """
    if os.path.lexists(encoder := directory.path / "encoder.safetensors"):
        raise UserError(
            f"the run in {directory.path} is complete and its checkpoints have gone, so it cannot"
            f" go on; put them back. Training it again with overwrite=True replaces {encoder.name}."
        )
    if lines := directory.lines():
        progress.message(
            f"{directory.checkpoints} holds no checkpoint, although the run had taken"
            f" {lines[-1]['step']} steps; it starts again from its first step."
        )


def _restore(
    directory: RunDir,
    trainer: Trainer,
    parts: dict[str, dict[str, Tensor]],
    numbers: dict[str, Any],
) -> None:
    try:
        trainer.restore(parts, numbers)
    except (RuntimeError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the checkpoint of the run in {directory.path} does not fit this configuration"
            f" ({reason}); set the old one again, or start another run."
        ) from error


def _accept(directory: RunDir, trainer: Trainer, changes: list[str], progress: Progress) -> None:
    """Record changes that the user accepted: in config.yaml, and in this and later checkpoints."""
    earlier = trainer.record.get("changes", [])
    trainer.record["changes"] = [*earlier, accepted(changes, trainer.done)]
    write_atomically(directory.config, to_yaml(trainer.config).encode())
    if trainer.saved_step is not None:
        directory.save_checkpoint(trainer.done, *trainer.state())
    progress.message(
        f"The run goes on from step {trainer.done} with accepted changes: {'; '.join(changes)}."
    )


def _own_state(trainer: Trainer) -> dict[str, Tensor]:
    """Return the state of an encoder and a loss of the user's own; {} if both were named."""
    config = trainer.config
    state: dict[str, Tensor] = {}
    if is_own(config.encoder):
        backbone = trainer.model.encoder.backbone.state_dict()
        state |= {f"encoder.{name}": value for name, value in backbone.items()}
    if is_own(config.loss):
        objective = trainer.objective.state_dict()
        state |= {f"objective.{name}": value for name, value in objective.items()}
    return state


def _restore_own(trainer: Trainer, state: dict[str, Tensor]) -> None:
    for prefix, module in (
        ("encoder.", trainer.model.encoder.backbone),
        ("objective.", trainer.objective),
    ):
        part = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        if part:
            module.load_state_dict(part)


def step_numbers(
    trainer: Trainer, loss: float, posterior: Posterior, seconds: float
) -> dict[str, float]:
    """Return a line of metrics.jsonl.

    Args:
        trainer: after the step.
        loss: in nats.
        posterior: of the step's 2n views.
        seconds: that the step took.

    Returns:
        epoch, step, loss, cosine_positive (mean cosine of the two views of an image), learning_rate
        (of the next step), images_per_second, and where they exist radius_views (the mean radius)
        and kernel_dimension.
    """
    first, second = posterior.direction.chunk(2)
    numbers = {
        "epoch": trainer.done / trainer.per_epoch,
        "step": trainer.done,
        "loss": loss,
        "cosine_positive": float((first * second).sum(-1).mean()),
        "learning_rate": trainer.rate(),
        "images_per_second": trainer.config.batch_size / seconds,
    }
    if posterior.radius is not None:
        numbers["radius_views"] = float(posterior.radius.mean())
    dimension = getattr(trainer.objective, "kernel_dimension", None)
    return numbers if dimension is None else {**numbers, "kernel_dimension": float(dimension)}


def save_snapshot(path: Path, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
    """Write features and posterior of the fixed images after an epoch.

    Args:
        path: the safetensors file.
        tensors: as `Monitor.measure` returns them.
        numbers: are written as JSON into the file's metadata: those of the monitor, the epoch, and
            the `origin` of the run (see `_record_images`).
    """
    write_atomically(path, checked_safetensors(tensors, "numbers", numbers))


def write_encoder(directory: RunDir, trainer: Trainer) -> None:
    """Write encoder.safetensors: the backbone's weights, without the heads.

    The file's metadata hold, as JSON under the key `sureclr`, what is needed to use them: the names
    of encoder and stem, channels, size, the mean and standard deviation of the pixels, and a
    sha256.
    """
    encoder, shape = trainer.model.encoder, trainer.images.images.shape
    weights = encoder.backbone.state_dict()
    description = {
        "encoder": trainer.config.encoder,
        "stem": trainer.config.stem,
        "channels": shape[1],
        "size": shape[-1],
        "mean": encoder.mean.tolist(),
        "std": encoder.std.tolist(),
    }
    data = checked_safetensors(weights, "sureclr", description)
    write_atomically(directory.path / "encoder.safetensors", data)


def environment() -> dict[str, Any]:
    """Return versions and machine, for environment.json."""
    import platform

    return {
        "python": platform.python_version(),
        "machine": platform.platform(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        **{name: _version(name) for name in ("sureclr", "torch", "torchvision", "timm", "numpy")},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:  # the package is not installed, or ours runs from a checkout
        return None
