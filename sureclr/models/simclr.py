"""SimCLR as one module: images to features and a Posterior (Chen et al. 2020, section 2.1).

The direction of the posterior comes from the projection head. A small head of its own gives a
number k, which says how certain the view is. What k means (a radius, a concentration, a
temperature, a predicted loss) depends on the loss: the model calls the loss's method `read`.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from sureclr.config import Freeze
from sureclr.errors import UserError
from sureclr.maths.sphere import Posterior, unit_rows
from sureclr.models.encoders import encoder_blocks

Read = Callable[[Tensor, Tensor | None], Posterior]


class StandardisedEncoder(nn.Module):
    """An encoder with the standardisation of its images: pixels in [0, 1] to features.

    Args:
        backbone: maps standardised images (n, c, h, w) to features (n, f), and has the attribute
            `num_features`. Call the whole module instead of it: on pixels in [0, 1] the backbone
            alone returns other features.
        mean: (c,) mean of the training images' pixels in [0, 1]; None: 0.
        std: (c,) their standard deviation; None: 1.

    Attributes:
        num_features: f, the number of features of an image.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, backbone: nn.Module, mean: Tensor | None = None, std: Tensor | None = None
    ) -> None:
        """Wrap a backbone, which is not copied."""
        super().__init__()
        self.backbone = backbone
        self.register_buffer("mean", torch.zeros(1) if mean is None else mean)
        self.register_buffer("std", torch.ones(1) if std is None else std)

    @property
    def num_features(self) -> int:
        """Return f, the number of features of an image."""
        return cast(int, self.backbone.num_features)

    @property
    def pool(self) -> str:
        """Return how a vision transformer pools (`token`, `avg`, ...); auto for other networks."""
        found = getattr(self.backbone, "global_pool", None)
        tokens = isinstance(found, str) and hasattr(self.backbone, "num_prefix_tokens")
        return cast(str, found) if tokens else "auto"

    def freeze(self, what: Freeze, name: str) -> None:
        """Keep parts of the encoder from training: their weights and the statistics of their BN.

        They are put into evaluation mode, so call this after `train`.

        Args:
            what: backbone is all of it. stages is all but its last stage, which is the last of
                `encoders.encoder_blocks` (of a vision transformer its last block) and what stands
                behind it, such as the last convolution and norm of EfficientNet. off is nothing.
            name: of the encoder, for the error message.

        Raises:
            UserError: what is stages, and the encoder has no two stages or blocks.
        """
        if what == "backbone":
            self.eval().requires_grad_(False)
        elif what == "stages":
            for module in _before_the_last_stage(self.backbone, name):
                module.training = False  # not that of the modules inside it
                for parameter in module.parameters(recurse=False):
                    parameter.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Map float images (n, c, h, w) in [0, 1] to features (n, f).

        Raises:
            UserError: the images are whole numbers, which would be read as 255 times too bright.
        """
        if not images.is_floating_point():
            raise UserError(
                f"the encoder takes floats in [0, 1], and these images are {images.dtype}; divide"
                " uint8 images by 255."
            )
        return cast(Tensor, self.backbone(standardised(images, self.mean, self.std)))


class ProjectionHead(nn.Sequential):
    """An MLP with BN: linear layers, BN and ReLU between them, and BN after the last one.

    As in SimCLR's code, the linear layers have no bias.

    Args:
        inputs: number of features of the encoder.
        outputs: number of coordinates of a projection.
        hidden: width of the hidden layers; None: `inputs`.
        layers: number of linear layers, 1 to 4; with 1 the projection is linear.
    """

    def __init__(
        self, inputs: int, outputs: int, hidden: int | None = None, layers: int = 2
    ) -> None:
        """Build the head with random weights."""
        widths = [inputs, *[hidden or inputs] * (layers - 1), outputs]
        modules: list[nn.Module] = []
        for before, after in pairwise(widths[:-1]):
            modules += [
                nn.Linear(before, after, bias=False),
                nn.BatchNorm1d(after),
                nn.ReLU(inplace=True),
            ]
        super().__init__(
            *modules, nn.Linear(widths[-2], outputs, bias=False), nn.BatchNorm1d(outputs)
        )


class CertaintyHead(nn.Module):
    """Features (n, f) to numbers k, with one hidden layer, BN and ReLU.

    k is (n,), or (n, outputs) where there are several. The last layer starts at zero, so that k is
    0 for every view at the start of training.

    Args:
        inputs: f, the number of features of the encoder.
        hidden: width of the hidden layer.
        gradient: True: the gradient of k also reaches the encoder. False: it stops at the features,
            and the encoder is trained exactly as SimCLR's.
        outputs: how many numbers of each view.
    """

    def __init__(
        self, inputs: int, hidden: int = 128, gradient: bool = True, outputs: int = 1
    ) -> None:
        """Build the head with random weights below the last layer."""
        super().__init__()
        self.gradient = gradient
        last = nn.Linear(hidden, outputs)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.body = nn.Sequential(
            nn.Linear(inputs, hidden, bias=False),
            nn.BatchNorm1d(hidden),
            nn.ReLU(inplace=True),
            last,
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map features (n, f) to k (n,) or (n, outputs)."""
        k = cast(Tensor, self.body(features if self.gradient else features.detach()))
        return k.squeeze(-1)


class SimCLR(nn.Module):
    """Encoder, projection head and, if the loss uses one, certainty head.

    Args:
        encoder: images in [0, 1] to features (n, f).
        projection: features to projections (n, d).
        certainty: features to numbers k, (n,) or several of each view; None for a loss that has no
            certainty.
        read: the loss's method that makes a Posterior of unit projections and k.
    """

    def __init__(
        self,
        encoder: StandardisedEncoder,
        projection: nn.Module,
        certainty: nn.Module | None,
        read: Read,
    ) -> None:
        """Put the parts together; none of them is copied."""
        super().__init__()
        self.encoder = encoder
        self.projection = projection
        self.certainty = certainty
        self._read = read

    @property
    def mean(self) -> Tensor:
        """Return the mean (c,) of the pixels in [0, 1] that the encoder standardises with."""
        return self.encoder.mean

    @property
    def std(self) -> Tensor:
        """Return the standard deviation (c,) that the encoder standardises with."""
        return self.encoder.std

    @property
    def device(self) -> torch.device:
        """Return the device that the model is on."""
        return self.encoder.mean.device

    def features(self, images: Tensor) -> Tensor:
        """Map images (n, c, h, w) in [0, 1] to features (n, f), which later tasks use."""
        return cast(Tensor, self.encoder(images))

    def heads(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return projections (n, d) before normalisation, and k or None."""
        k = None if self.certainty is None else self.certainty(features)
        return self.projection(features), k

    def read(self, projections: Tensor, k: Tensor | None) -> Posterior:
        """Return the Posterior of what the heads returned.

        It is computed in float32, whatever precision the network ran in.
        """
        return self._read(unit_rows(projections.float()), None if k is None else k.float())

    def forward(self, images: Tensor) -> tuple[Tensor, Posterior]:
        """Map images (n, c, h, w) in [0, 1] to features (n, f) and their Posterior."""
        features = self.features(images)
        return features, self.read(*self.heads(features))


def _before_the_last_stage(network: nn.Module, name: str) -> list[nn.Module]:
    """Return the modules up to the last stage, in the order in which they were registered.

    Those around the last stage, such as the network itself, are among them: their own parameters
    (class token, positions) come before the first block.
    """
    blocks = [block for _, block in encoder_blocks(network)]
    if len(blocks) < 2:
        raise UserError(
            f"freeze stages trains the last stage of an encoder alone, and {name} has no stages or"
            " blocks that SureCLR knows; use freeze backbone, or off."
        )
    inside = set(blocks[-2].modules())
    modules = list(network.modules())
    last = max(place for place, module in enumerate(modules) if module in inside)
    return modules[: last + 1]


def standardised(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return (images - mean) / std for each channel.

    The result is in channels-last memory order, in which convolutions are fastest.
    """
    return ((images - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)).contiguous(
        memory_format=torch.channels_last
    )
