"""What a training run writes into its folder beside checkpoints."""

import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sureclr.config import ONNX, from_dict, read_yaml, to_yaml
from sureclr.errors import UserError
from sureclr.files import digest_of_bytes, json_bytes, remove, sealed, write_atomically
from sureclr.maths.objectives import SureLoss
from sureclr.maths.sphere import Posterior, wide
from sureclr.progress import Progress
from sureclr.training.building import is_own
from sureclr.training.continuing import (
    accepted,
    completed,
    configuration_changes,
    extension_text,
    image_changes,
    machine_changes,
    refuse_changes,
)
from sureclr.training.image_record import ImageRecord
from sureclr.training.run_dir import RunDir, checked_safetensors, digest_of_weights
from sureclr.training.starting import origin_of_start
from sureclr.training.trainer import Trainer

STEPS_AT_ONCE = 32  # whose numbers are read from an accelerator together


def begin_run(directory: RunDir, trainer: Trainer) -> None:
    """Write what describes a run before its first step.

    For a pretrained encoder, and an encoder or a loss of the user's own, that includes its state,
    with which evaluations compare the trained one.
    """
    directory.remove_drafts()
    directory.save_onnx(trainer.model.encoder.backbone)
    if own := _own_state(trainer):
        directory.save_initial(own)
    _record_backbone(trainer)
    _record_images(directory, trainer, ImageRecord.of(trainer.images))
    write_atomically(directory.config, to_yaml(trainer.config).encode())
    about = environment()
    if origin := origin_of_start(trainer.config):
        about["init"] = origin
    write_atomically(
        directory.path / "environment.json", json_bytes(sealed(about, "environment.json"))
    )


def _record_images(directory: RunDir, trainer: Trainer, images: ImageRecord) -> None:
    """Write which images are trained on, and let every checkpoint name their digest.

    Checkpoints also name the origins of the run's snapshots: digests of configuration and images,
    the last one of today's. There are several if changes were accepted.
    """
    images.save(directory.images)
    planned = {k: v for k, v in asdict(trainer.config).items() if k != "extensions"}
    configuration = json.dumps(planned, sort_keys=True)
    origin = digest_of_bytes(configuration.encode(), images.digest.encode())
    earlier = [one for one in trainer.record.get("origins", []) if one != origin]
    trainer.record |= {
        "images": images.digest,
        "count": len(images.paths),
        "origins": [*earlier, origin],
    }


def _record_backbone(trainer: Trainer) -> None:
    """Let every checkpoint name the digest of a frozen encoder, whose weights it does not hold."""
    if trainer.heads_only:
        state = trainer.model.encoder.backbone.state_dict()
        weights = {name: value.cpu().contiguous() for name, value in state.items()}
        trainer.record["backbone"] = digest_of_weights(weights)


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
        _record_backbone(trainer)
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
    if trainer.done < trainer.steps:
        _leave_results(directory, trainer, progress)
        remove(directory.path / "encoder.safetensors")  # it is written again at the end


def _leave_results(directory: RunDir, trainer: Trainer, progress: Progress) -> None:
    """Let nothing in the run folder itself be of the weights that training goes on from.

    At the end of a part of the run, whose checkpoint is kept for good, its results get the folder
    of that checkpoint: first a copy, then config.yaml says that the run is extended, and then they
    leave the run folder. After a kill between two of these, either place has all of them, and
    `RunDir.results_folder` knows which one.
    """
    kept = trainer.done in trainer.ends
    if kept:
        extended = directory.is_extended()
        if not (extended and directory.results_of_step(trainer.done).exists()):
            directory.copy_results(trainer.done)
        if not extended:
            before = from_dict(read_yaml(directory.config))
            write_atomically(directory.config, to_yaml(trainer.config).encode())
            progress.message(extension_text(before, trainer.config))
    if not (left := directory.forget_results()):
        return
    names = ", ".join(left)
    progress.message(
        f"What was computed from the weights of step {trainer.done} is in"
        f" {directory.results_of_step(trainer.done)} now: {names}. It is used with"
        f" checkpoint={trainer.done}."
        if kept
        else f"What was computed from the weights of step {trainer.done} is removed, because"
        f" training goes on from them: {names}."
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
        if trainer.heads_only and not trainer.config.of_table:
            trainer.model.encoder.backbone.load_state_dict(directory.load_backbone(numbers))
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
    """Return the state that `initial.safetensors` holds; {} where the seed alone decides it.

    It is that of a pretrained encoder, and of an encoder and a loss of the user's own.
    """
    config = trainer.config
    state: dict[str, Tensor] = {}
    if is_own(config.encoder) or config.pretrained:
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


class StepLines:
    """The lines of metrics.jsonl of the last steps, whose numbers still lie on the device.

    They are read together, because reading waits until the device has computed them: on a CPU after
    every step, elsewhere after `STEPS_AT_ONCE` or where the loop needs them.
    """

    def __init__(self, trainer: Trainer, first: dict[str, float]) -> None:
        """Start without a line.

        Args:
            trainer: takes the steps.
            first: numbers that the first line gets beside those of its step.
        """
        self.trainer, self.first = trainer, first
        self.most = STEPS_AT_ONCE if trainer.ahead else 1
        self.known: list[dict[str, float]] = []
        self.computed: list[dict[str, Tensor]] = []
        self.began = 0.0

    def step(self) -> bool:
        """Take a step and keep its numbers; return whether the lines should be read now."""
        if not self.known:
            self.began = time.monotonic()
        loss, posterior = self.trainer.step()
        self._add(loss, posterior)
        return len(self.known) >= self.most

    def _add(self, loss: Tensor, posterior: Posterior) -> None:
        trainer = self.trainer
        count = 2 * trainer.config.batch_size  # null views stand behind these
        views, nulls = posterior.part(slice(count)), posterior.part(slice(count, None))
        first, second = views.direction.chunk(2)
        computed = {"loss": loss, "cosine_positive": (first * second).sum(-1).mean()}
        for name, part in (("views", views), ("nulls", nulls)):
            if len(part.direction):
                computed |= {
                    f"{number}_{name}": values.mean()
                    for number in ("radius", "presence")
                    if (values := getattr(part, number)) is not None
                }
        known = {
            "epoch": trainer.done / trainer.per_epoch,
            "step": trainer.done,
            "learning_rate": trainer.rate(),
            **self.first,
        }
        self.first = {}
        objective = trainer.objective
        if isinstance(objective, SureLoss) and not isinstance(objective.dimension, int | float):
            computed["kernel_dimension"] = objective.m.clone()  # its property would wait
        elif (dimension := getattr(objective, "kernel_dimension", None)) is not None:
            known["kernel_dimension"] = float(dimension)
        self.known.append(known)
        self.computed.append(computed)

    def read(self) -> Iterator[dict[str, float]]:
        """Yield the lines that have not been read by their steps, and wait for the device.

        Yields:
            epoch, step, loss (nats), cosine_positive (mean cosine of the two views of an image),
            learning_rate (of the next step), images_per_second, and where they exist radius_views
            and presence_views (means over the views of images), radius_nulls and presence_nulls
            (means over the null views) and kernel_dimension.

        Raises:
            UserError: the loss of a step is not finite; the lines before it have been yielded.
        """
        lines = list(zip(self.known, _read_together(self.computed), strict=True))
        seconds = (time.monotonic() - self.began) / max(len(lines), 1)
        self.known, self.computed = [], []
        for known, computed in lines:
            if not math.isfinite(computed["loss"]):
                done = int(known["step"]) - 1
                raise self.trainer.diverged(f"the loss is {computed['loss']}", done)
            speed = {"images_per_second": self.trainer.config.batch_size / seconds}
            yield {**known, **computed, **speed}


def _read_together(rows: list[dict[str, Tensor]]) -> list[dict[str, float]]:
    """Return the numbers of some scalars after one copy from their device."""
    if not rows:
        return []
    values = iter(torch.stack([wide(x) for row in rows for x in row.values()]).tolist())
    return [{name: next(values) for name in row} for row in rows]


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
    of encoder, stem and pooling (auto: the encoder has no choice), channels, size, the mean and
    standard deviation of the pixels, how the square of a picture is cut and resized (as in
    `ReadOptions`), and a sha256. The encoder of an ONNX file is `backbone.onnx`, and there
    is no other file of it.
    """
    if trainer.config.encoder == ONNX:
        return
    encoder, shape = trainer.model.encoder, trainer.images.images.shape
    weights = encoder.backbone.state_dict()
    description = {
        "encoder": trainer.config.encoder,
        "stem": trainer.config.stem,
        "pool": encoder.pool,
        "channels": shape[1],
        "size": shape[-1],
        "mean": encoder.mean.tolist(),
        "std": encoder.std.tolist(),
        "centre_share": trainer.config.read_options.centre_share,
        "interpolation": trainer.config.read_options.interpolation,
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
