"""Scores of how certain an image is, and what several evaluations compare them with.

    certainty             what the loss learned: radius, kappa, minus the predicted loss ...
    neighbour_similarity  cosine of the features to those of the nearest training image
    feature_norm          length of the features
    negative_entropy      minus the entropy of the linear probe's softmax, in nats

A higher score means more certain. The last three need no special loss: they are the baselines.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sureclr.config import ViewConfig
from sureclr.data.corruptions import to_uint8
from sureclr.data.counter_rng import hashed
from sureclr.data.embeddings import Embeddings
from sureclr.data.image_set import ImageSet
from sureclr.data.views import one_view
from sureclr.evaluation.probes import ProbeResult, linear_probe
from sureclr.evaluation.results import ByScore
from sureclr.evaluation.tables import finite_or_none
from sureclr.maths.metrics import auroc
from sureclr.maths.neighbours import top_k
from sureclr.maths.sphere import Posterior, pair_radius

Embed = Callable[[ImageSet], Embeddings]  # of images that fit the model already
Scores = dict[str, Tensor]

CHUNK = 1024  # images whose views exist as floats at the same time


@dataclass(frozen=True)
class Reference:
    """What an image is compared with: training images and their linear probe.

    Attributes:
        train: the labelled training images, or all that are no test images if there are no labels.
        probe: their linear probe; None without labels of two classes.
        fit: fits probes: `linear_probe`, or a function that remembers what it fitted.
    """

    train: Embeddings
    probe: ProbeResult | None
    fit: Callable[..., ProbeResult] = linear_probe

    @staticmethod
    def of(table: Embeddings, fit: Callable[..., ProbeResult] = linear_probe) -> "Reference":
        """Return the training images of a table with their probe."""
        train, test = table.labelled("train"), table.labelled("test")
        if len(train) == 0 or len(test) == 0 or len(train.labels.unique()) < 2:
            return Reference(table.select(table.split != "test"), None)
        return Reference(
            train,
            fit(train.features, train.labels, test.features, test.labels),
            fit,
        )

    def logits(self, table: Embeddings) -> Tensor | None:
        """Return the probe's (n, classes) float64 logits of these images; None without a probe."""
        if self.probe is None:
            return None
        return table.features.double() @ self.probe.weight + self.probe.bias


@dataclass(frozen=True)
class ScoredImages:
    """n embedded images with their scores, and whether their nearest training image is right.

    Attributes:
        table: the images.
        scores: name -> (n,), higher is more certain.
        known: (n,) bool, whether the image's class is known.
        correct: (n,) bool, whether the nearest training image has the same label.
    """

    table: Embeddings
    scores: Scores
    known: Tensor
    correct: Tensor


def score_images(table: Embeddings, reference: Reference) -> ScoredImages:
    """Score embedded images. The nearest training image is found by the cosine of the features."""
    similarity, index = (t[:, 0] for t in top_k(table.features, reference.train.features, 1))
    scores = {} if table.certainty is None else {"certainty": table.certainty}
    scores |= {
        "neighbour_similarity": similarity,
        "feature_norm": torch.linalg.vector_norm(table.features, dim=1, dtype=torch.float64),
    }
    if (logits := reference.logits(table)) is not None:
        scores["negative_entropy"] = -entropy(logits)
    known = (table.labels >= 0) & (reference.probe is not None)
    return ScoredImages(table, scores, known, reference.train.labels[index] == table.labels)


def entropy(logits: Tensor) -> Tensor:
    """Return the entropy of the softmax of (n, classes) logits, (n,) in nats."""
    log_p = logits.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1)


def auroc_by_score(scores: Scores, positive: Tensor) -> ByScore:
    """Return each score's AUROC for telling positive rows from the rest; None if all are alike."""
    return {name: finite_or_none(auroc(score, positive)) for name, score in scores.items()}


# --- Views ----------------------------------------------------------------------------


def image_seeds(images: ImageSet, seed: int, stream: int) -> Tensor:
    """Return an (n,) int64 seed for each image, a function of its row, the seed and the stream."""
    return hashed(torch.arange(len(images)) + (seed << 32), stream, 1)[:, 0]


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
        """Return r = rho rho' and the cosine of the two directions of each image, (n,) each."""
        a, b = (side.posterior for side in self.sides())
        return pair_radius(a, b)[0], (a.direction * b.direction).sum(1)


def embed_view_pairs(
    embed: Embed, images: ImageSet, views: ViewConfig, seed: int, stream: int
) -> ViewPairs:
    """Draw two views of each image and embed them.

    They are cropped from whole pictures where the set has them, and rounded to uint8 before they
    are embedded, as any other image.
    """
    seeds, size = image_seeds(images, seed, stream), images.images.shape[-1]
    parts = torch.arange(len(images)).split(CHUNK)
    both = torch.cat(
        [
            to_uint8(one_view(images.for_views(part), seeds[part], view, views, size))
            for view in (0, 1)
            for part in parts
        ]
    )
    twice = images.select(np.tile(np.arange(len(images)), 2))
    return ViewPairs(embed(twice.with_pixels(both)))
