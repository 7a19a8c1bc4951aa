"""A run: its configuration, its model, and its folder. `sureclr.load(run)` opens one; `build` makes
a fresh model of a configuration.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from sureclr.config import PretrainConfig, differing, from_dict, read_yaml
from sureclr.data.embeddings import Embeddings
from sureclr.data.image_set import ImageSet
from sureclr.data.user_images import as_image_set
from sureclr.errors import UserError
from sureclr.maths.objectives import Objective, objective
from sureclr.models.embedding import as_float, embed
from sureclr.models.encoders import encoder
from sureclr.models.simclr import CertaintyHead, ProjectionHead, SimCLR
from sureclr.progress import SILENT, Progress
from sureclr.training.devices import choose_device
from sureclr.training.run_dir import RunDir

STATISTICS_IMAGES = 10_000  # images from which mean and standard deviation are taken


@dataclass(frozen=True)
class Run:
    """A trained model with what made it.

    Attributes:
        directory: the run folder.
        config: as resolved.
        model: in evaluation mode, on the chosen device.
        objective: the loss with its state (kernel dimension).
        size, channels: of the images that the model takes, pixels and colours.
        source: name of the images it was trained on: a data source, or that of an ImageSet given in
            Python.
    """

    directory: RunDir
    config: PretrainConfig
    model: SimCLR
    objective: Objective
    size: int
    channels: int
    source: str

    @property
    def path(self) -> Path:
        return self.directory.path

    @property
    def kernel_dimension(self) -> float | None:
        """M of the run's likelihood, None where the loss has none."""
        return getattr(self.objective, "kernel_dimension", None)

    def embed(self, images: Any, progress: Progress = SILENT) -> Embeddings:
        """The table of these images (an ImageSet, a uint8 array (n, c, h, w) or (n, h, w), or a
        list of PIL images), at the run's size.
        """
        fitting = as_image_set(images, size=self.size, channels=self.channels)
        return embed(self.model, fitting, kernel_dimension=self.kernel_dimension, progress=progress)

    def untrained(self) -> "Run":
        """The same network as it was before its first step: the baseline of every evaluation."""
        model, criterion = build(self.config, self.channels, self.model.mean, self.model.std)
        return Run(
            self.directory,
            self.config,
            model.to(self.model.mean.device).eval(),
            criterion,
            self.size,
            self.channels,
            self.source,
        )


def build(
    config: PretrainConfig, channels: int, mean: Tensor, std: Tensor
) -> tuple[SimCLR, Objective]:
    """A fresh model and its loss; the initial weights are a function of config.seed. mean, std:
    (channels,) of the pixels in [0, 1].
    """
    criterion = objective(config.loss, **config.objective_options())
    if config.certainty_gradient == "off" and not criterion.uses_certainty:
        raise UserError(
            f"certainty_gradient off needs a loss with a certainty, and {config.loss} has none;"
            " leave it out."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = encoder(config.encoder, config.stem, channels, pretrained=config.init == "timm")
        features = cast(int, network.num_features)
        projection = ProjectionHead(
            features, config.projection_dim, config.projection_hidden, config.projection_layers
        )
        certainty = (
            CertaintyHead(features, gradient=config.certainty_gradient == "on")
            if criterion.uses_certainty
            else None
        )
    model = SimCLR(network, projection, certainty, criterion.read, mean.cpu(), std.cpu())
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it; 1.3x on a CPU
    return model, criterion


def pixel_statistics(images: ImageSet, config: PretrainConfig) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (c,) of the pixels in [0, 1]: timm's own for its pretrained
    weights, else of the training images.
    """
    if config.init == "timm":
        import timm

        about = timm.get_pretrained_cfg(config.encoder)
        if about is not None and len(about.mean) == images.images.shape[1]:
            return torch.tensor(about.mean), torch.tensor(about.std)
    some = as_float(images.images[:: max(1, len(images) // STATISTICS_IMAGES)])
    return some.mean((0, 2, 3)), some.std((0, 2, 3)).clamp(min=1e-3)


def load(path: str | Path, device: str = "auto") -> Run:
    """Open a run folder: its newest undamaged checkpoint in a model, in evaluation mode.

    Raises:
        UserError: no run there, no checkpoint, or a damaged one.
    """
    directory = RunDir(Path(path))
    if not directory.is_run():
        raise UserError(
            f"{path} is not a run folder (it has no config.yaml); give the folder that `sureclr"
            " pretrain` wrote."
        )
    config = from_dict(read_yaml(directory.config))
    parts, numbers = directory.load_checkpoint()
    if names := differing(from_dict(numbers["configuration"]), config):
        raise UserError(
            f"the checkpoint in {path} was made with another {', '.join(names)} than its"
            " config.yaml says; was the configuration edited? Put the original back."
        )
    try:
        mean, std = parts["model"]["mean"], parts["model"]["std"]
        model, criterion = build(replace(config, init="random"), numbers["channels"], mean, std)
        model.load_state_dict(parts["model"])
        criterion.load_state_dict(parts["objective"])
    except (KeyError, RuntimeError) as error:
        raise UserError(
            f"the checkpoint in {path} does not fit its config.yaml"
            f" ({' '.join(str(error).split())[:200]}); it was made by another version of SureCLR:"
            " use that one."
        ) from error
    chosen = choose_device(device)
    return Run(
        directory,
        config,
        model.to(chosen).eval(),
        criterion.to(chosen),
        numbers["size"],
        numbers["channels"],
        numbers["source"],
    )


def environment() -> dict[str, Any]:
    """Versions and machine, for environment.json."""
    import platform

    return {
        "python": platform.python_version(),
        "machine": platform.platform(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        **{name: _version(name) for name in ("sureclr", "torch", "torchvision", "timm", "numpy")},
    }


def _version(name: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:  # run from a checkout that is not installed
        return None
