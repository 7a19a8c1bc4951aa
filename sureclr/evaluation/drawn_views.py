"""Two views of each of some images, drawn as in training and embedded."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sureclr.config import ViewConfig
from sureclr.data.corruptions import to_uint8
from sureclr.data.embeddings import Embeddings
from sureclr.data.image_set import ImageSet
from sureclr.data.views import one_view
from sureclr.evaluation.scores import Embed, embed_changed, image_seeds
from sureclr.maths.sphere import Posterior, expected_cosine


@dataclass(frozen=True)
class ViewPairs:
    """Two views of each of n images, drawn as in training.

    Attributes:
        table: 2n rows; rows i and i + n are the views of image i.
    """

    table: Embeddings

    @property
    def n(self) -> int:
        """The number of images."""
        return len(self.table) // 2

    @property
    def posterior(self) -> Posterior:
        """The 2n posteriors."""
        return self.table.posterior

    def sides(self) -> tuple[Embeddings, Embeddings]:
        """Return the table of the n first views and that of the n second views."""
        rows = np.arange(len(self.table))
        return self.table.select(rows[: self.n]), self.table.select(rows[self.n :])

    def first(self, n: int) -> "ViewPairs":
        """Return the pairs of the first n images."""
        rows = np.arange(min(n, self.n))
        return ViewPairs(self.table.select(np.concatenate([rows, rows + self.n])))

    def radius_and_cosine(self) -> tuple[Tensor, Tensor]:
        """Return the expected cosine and the cosine of the two directions of each image, (n,) each.

        The expected one is rho rho', or with a presence pi pi' rho rho'.
        """
        a, b = (side.posterior for side in self.sides())
        return expected_cosine(a, b), (a.direction * b.direction).sum(1)


def embed_view_pairs(
    embed: Embed,
    images: ImageSet,
    rows: NDArray[np.int64],
    views: ViewConfig,
    seed: int,
    stream: int,
) -> ViewPairs:
    """Draw two views of some images and embed them.

    They are cropped from whole pictures where the set has them, and rounded to uint8 before they
    are embedded, as any other image. Of a table of features they are two of the stored views.

    Args:
        embed: images -> their embeddings.
        images: whole images.
        rows: (n,) of those whose views are drawn.
        views: how views are drawn.
        seed: of the views.
        stream: of the seeds.
    """
    n, size = len(rows), images.images.shape[-1]
    seeds = image_seeds(rows, seed, stream)
    if (stored := images.stored_pairs(rows, seeds)) is not None:
        return ViewPairs(embed(stored))

    def views_of(part: ImageSet, places: Tensor) -> Tensor:
        """The first views come first; a part may have the last of them and the first others."""
        own = seeds[places % n]
        sides = [(view, (places // n == view).nonzero()[:, 0]) for view in (0, 1)]
        drawn = [
            one_view(part.for_views(some), own[some], view, views, size)
            for view, some in sides
            if len(some)
        ]
        return to_uint8(torch.cat(drawn))

    return ViewPairs(embed_changed(embed, images, np.tile(rows, 2), views_of))
