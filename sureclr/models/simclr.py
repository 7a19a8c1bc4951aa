"""SimCLR as one module: images -> features h and a Posterior (Chen et al. 2020, section 2.1;
theory.md, section 5).

The direction comes from the projection head; the number k, which says how sure the view is, from a
small head of its own. What k means (a radius, kappa, a temperature, a predicted loss) is the
objective's to say: the model calls its `read`.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sureclr.maths.sphere import Posterior

Read = Callable[[Tensor, Tensor | None], Posterior]


class ProjectionHead(nn.Sequential):
    """MLP with BN: `layers` linear layers, BN and ReLU between them, BN after the last (as SimCLR's
    code; no linear bias).

    Args:
        inputs, hidden, outputs: numbers of features.
        layers: 1 to 4; 1 is a linear projection.
    """

    def __init__(
        self, inputs: int, outputs: int, hidden: int | None = None, layers: int = 2
    ) -> None:
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
    """Features (n, f) -> k (n,): one hidden layer, BN, ReLU; the last layer is zero at the start,
    so every view starts alike.

    Args:
        gradient: let the gradient of k into the encoder (theory 3), or stop it at the features: the
            encoder is then SimCLR's.
    """

    def __init__(self, inputs: int, hidden: int = 128, gradient: bool = True) -> None:
        super().__init__()
        self.gradient = gradient
        last = nn.Linear(hidden, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.body = nn.Sequential(
            nn.Linear(inputs, hidden, bias=False),
            nn.BatchNorm1d(hidden),
            nn.ReLU(inplace=True),
            last,
        )

    def forward(self, features: Tensor) -> Tensor:
        return cast(Tensor, self.body(features if self.gradient else features.detach()).squeeze(-1))


class SimCLR(nn.Module):
    """Encoder, projection head and (where the objective wants one) certainty head.

    `model(images)` takes floats (n, c, h, w) in [0, 1] and returns features (n, f) and the
    Posterior of each image.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        projection: nn.Module,
        certainty: nn.Module | None,
        read: Read,
        mean: Tensor | None = None,
        std: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.projection, self.certainty, self._read = (
            encoder,
            projection,
            certainty,
            read,
        )
        self.register_buffer("mean", torch.zeros(1) if mean is None else mean)
        self.register_buffer("std", torch.ones(1) if std is None else std)

    def features(self, images: Tensor) -> Tensor:
        """Pooled features h (n, f): what is kept for downstream tasks."""
        return cast(Tensor, self.encoder(standardised(images, self.mean, self.std)))

    def heads(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """Raw outputs: projections (n, d) before normalisation, and k (n,) or None."""
        return self.projection(features), (
            None if self.certainty is None else self.certainty(features)
        )

    def read(self, projections: Tensor, k: Tensor | None) -> Posterior:
        """The Posterior behind raw outputs; always float32, whatever precision the network ran in."""
        return self._read(
            F.normalize(projections.float(), dim=-1), None if k is None else k.float()
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Posterior]:
        features = self.features(images)
        return features, self.read(*self.heads(features))


def standardised(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(images - mean) / std by channel, in the memory order that convolutions are fastest in."""
    return ((images - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)).contiguous(
        memory_format=torch.channels_last
    )
