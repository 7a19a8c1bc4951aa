"""What a training run writes into its folder beside checkpoints."""

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sureclr.config import PretrainConfig, differing, from_dict, read_yaml, to_yaml
from sureclr.data.image_set import ImageSet
from sureclr.errors import UserError
from sureclr.files import write_atomically
from sureclr.maths.sphere import Posterior
from sureclr.training.building import is_own
from sureclr.training.run_dir import RunDir, plain_tensors
from sureclr.training.trainer import Trainer


def begin_run(directory: RunDir, trainer: Trainer) -> None:
    """Write what describes a run before its first step.

    For an encoder or a loss of the user's own that includes its state, to which evaluations compare
    the trained one.
    """
    if own := _own_state(trainer):
        directory.save_initial(own)
    write_atomically(directory.config, to_yaml(trainer.config).encode())
    write_atomically(
        directory.path / "environment.json", json.dumps(environment(), indent=1).encode()
    )


def check_same_configuration(directory: RunDir, config: PretrainConfig) -> None:
    """Raise a UserError unless a run began with this configuration."""
    before = from_dict(read_yaml(directory.config))
    if names := differing(before, config):
        name = names[0]
        raise UserError(
            f"resume=True continues a run as it began, and {', '.join(names)} differs ({name}:"
            f" {getattr(before, name)} in {directory.config}, now {getattr(config, name)});"
            " leave the option out, or start another run."
        )


def resume_run(directory: RunDir, trainer: Trainer) -> None:
    """Restore the newest checkpoint of a run into a trainer of the same configuration.

    Raises:
        UserError: the configuration is not the one with which the run began.
    """
    check_same_configuration(directory, trainer.config)
    if directory.saved():
        checkpoint = directory.load_checkpoint()
        _check_images(directory, trainer.images, checkpoint.numbers)
        trainer.restore(checkpoint.parts, checkpoint.numbers)
    elif _own_state(trainer):
        _restore_own(trainer, directory.load_initial())
    directory.forget_after(trainer.done)
    if trainer.done < trainer.steps:
        directory.forget_results()


def _check_images(directory: RunDir, images: ImageSet, numbers: dict[str, Any]) -> None:
    """Raise a UserError unless the images are those that the checkpoint records, by their name."""
    channels, _, size = images.images.shape[1:]
    trained = (numbers["source"], numbers["size"], numbers["channels"])
    if trained != (images.name, size, channels):
        name, side, colours = trained
        raise UserError(
            f"the run in {directory.path} was trained on {name} ({side} pixels, {colours}"
            f" channels), and would continue on {images.name} ({size} pixels, {channels} channels);"
            " pass the same images again, from Python if they were given there."
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


def save_snapshot(path: Path, tensors: dict[str, Tensor], numbers: dict[str, float]) -> None:
    """Write features and posterior of the fixed images after an epoch.

    Args:
        path: the safetensors file.
        tensors: as `Monitor.measure` returns them.
        numbers: are written as JSON into the file's metadata.
    """
    from safetensors.torch import save

    write_atomically(path, save(plain_tensors(tensors), {"numbers": json.dumps(numbers)}))


def write_encoder(directory: RunDir, trainer: Trainer) -> None:
    """Write encoder.safetensors: the backbone's weights, without the heads.

    The file's metadata hold, as JSON under the key `sureclr`, what is needed to use them: the names
    of encoder and stem, channels, size, and the mean and standard deviation of the pixels.
    """
    from safetensors.torch import save

    encoder, shape = trainer.model.encoder, trainer.images.images.shape
    weights = plain_tensors(encoder.backbone.state_dict())
    description = {
        "encoder": trainer.config.encoder,
        "stem": trainer.config.stem,
        "channels": shape[1],
        "size": shape[-1],
        "mean": encoder.mean.tolist(),
        "std": encoder.std.tolist(),
    }
    # one key: safetensors writes several in random order, and equal runs would differ in their
    # bytes
    metadata = {"sureclr": json.dumps(description)}
    write_atomically(directory.path / "encoder.safetensors", save(weights, metadata))


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
