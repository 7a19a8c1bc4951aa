"""Scores of how certain an image is, and what several evaluations compare them with.

    certainty             what the loss learned: radius, kappa, minus the predicted loss ...
    neighbour_similarity  cosine of the features to those of the nearest training image
    feature_norm          length of the features
    negative_entropy      minus the entropy of the linear probe's softmax, in nats

A higher score means more certain. The last three need no special loss: they are the baselines.
"""

from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sureclr.config import ViewConfig
from sureclr.data.corruptions import to_uint8
from sureclr.data.counter_rng import hashed, sample_rows
from sureclr.data.embeddings import Embeddings
from sureclr.data.image_set import ImageSet
from sureclr.data.views import one_view
from sureclr.evaluation.probes import ProbeResult, linear_probe
from sureclr.evaluation.results import ByScore, Sample
from sureclr.evaluation.tables import finite_or_none
from sureclr.maths.metrics import auroc
from sureclr.maths.neighbours import top_k
from sureclr.maths.sphere import Posterior, expected_cosine

Embed = Callable[[ImageSet], Embeddings]  # of images that fit the model already
Scores = dict[str, Tensor]

# Test images that are judged at most. Each is compared with every training image, so without this
# bound the time would grow with the square of the number of images
JUDGED = 5000
SAMPLED = 2005  # stream of seeds
# Changed copies that exist at once: a multiple of the images that `embed` takes at once, so that
# every number is what it would be if all copies were embedded together
COPIES_AT_ONCE = 1024
VALUES_AT_ONCE = 1 << 22  # pixel values that are changed together: 16 MiB in float32


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


# --- Which images, and their changed copies ------------------------------------------


@dataclass(frozen=True, eq=False)
class Judged:
    """The test images that are judged: all, or JUDGED of them in a sample that is always the same.

    Attributes:
        rows: (m,) int64, ascending.
        of: the number of all test images.
    """

    rows: NDArray[np.int64]
    of: int

    @staticmethod
    def among(split: NDArray[np.str_], most: int = JUDGED) -> "Judged":
        """Return those among images with these splits (n,), at most `most` of them."""
        test = np.flatnonzero(split == "test")
        rows = sample_rows(torch.from_numpy(test), most, SAMPLED)
        return Judged(rows.numpy(), len(test))

    @property
    def sample(self) -> Sample | None:
        """How many of how many they are; None if they are all."""
        return Sample(len(self.rows), self.of) if len(self.rows) < self.of else None


Change = Callable[[ImageSet, Tensor], Tensor]


def embed_changed(
    embed: Embed, images: ImageSet, rows: NDArray[np.int64], change: Change
) -> Embeddings:
    """Embed changed copies of some images, of which only a part exists at the same time.

    Args:
        embed: images -> their embeddings.
        images: whole images.
        rows: (m,) of the images to change, m > 0; a row may be there twice.
        change: (k of these images, their places (k,) in 0..m - 1) -> pixels (k, c, h, w) uint8.

    Returns:
        (m) embeddings, in the order of the rows.
    """
    at_once = max(1, VALUES_AT_ONCE // prod(images.images.shape[1:]))
    tables = []
    for places in torch.arange(len(rows)).split(COPIES_AT_ONCE):
        whole = images.select(rows[places.numpy()])
        parts = torch.arange(len(places)).split(at_once)
        pixels = [change(whole.select(part), places[part]) for part in parts]
        tables.append(embed(whole.with_pixels(torch.cat(pixels))))
    return joined_tables(tables)


def joined_tables(tables: Sequence[Embeddings]) -> Embeddings:
    """Return the rows of tables of one model, one table after the other."""
    first = tables[0]
    if len(tables) == 1:
        return first
    return replace(
        first,
        features=torch.cat([table.features for table in tables]),
        direction=torch.cat([table.direction for table in tables]),
        radius=_joined([table.radius for table in tables]),
        certainty=_joined([table.certainty for table in tables]),
        presence=_joined([table.presence for table in tables]),
        labels=torch.cat([table.labels for table in tables]),
        split=np.concatenate([table.split for table in tables]),
        paths=[path for table in tables for path in table.paths],
    )


def _joined(columns: Sequence[Tensor | None]) -> Tensor | None:
    present = [column for column in columns if column is not None]
    return torch.cat(present) if present else None


# --- Views ----------------------------------------------------------------------------


def image_seeds(images: Sized, seed: int, stream: int) -> Tensor:
    """Return an (n,) int64 seed for each image, a function of its place, the seed and the stream.

    Args:
        images: n images, or their rows.
        seed: another seed gives others.
        stream: another stream gives others.
    """
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
