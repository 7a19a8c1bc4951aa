"""Scores of how certain an image is, and what several evaluations compare them with.

    certainty             what the loss learned: radius, kappa, minus the predicted loss ...
    radius, presence      the two factors of the certainty, where the loss has a presence
    evidence              nats by which the training images expect the image's posterior more often
                          than under the uniform law (a fixed sample of 5,000 of them, theory 9)
    familiarity           minus the Mahalanobis distance of the unit-length features under those of
                          the training images (theory 9)
    neighbour_similarity  cosine of the features to those of the nearest training image
    mean_similarity       mean of the cosines to the 20 nearest
    feature_norm          length of the features
    negative_entropy      minus the entropy of the linear probe's softmax, in nats

A higher score means more certain. All but the first three lines need no special loss: they are the
baselines.
"""

from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sureclr.data.counter_rng import hashed, sample_rows
from sureclr.data.embeddings import Embeddings
from sureclr.data.image_set import ImageSet
from sureclr.evaluation.probes import ProbeResult, linear_probe
from sureclr.evaluation.results import ByScore, Sample
from sureclr.evaluation.tables import evidence_against, finite_or_none
from sureclr.maths.metrics import auroc
from sureclr.maths.neighbours import top_k
from sureclr.maths.whitening import PrincipalAxes, principal_axes

Embed = Callable[[ImageSet], Embeddings]  # of images that fit the model already
Scores = dict[str, Tensor]

# Test images that are judged at most. Each is compared with every training image, so without this
# bound the time would grow with the square of the number of images
JUDGED = 5000
SAMPLED = 2005  # stream of seeds
# Changed copies that exist at once: a multiple of the images that `embed` takes at once, so that
# every number is what it would be if all copies were embedded together
COPIES_AT_ONCE = 1024
NEAREST = 20  # training images of which `mean_similarity` is the mean
EXPECTING = 5000  # training images against which evidence is measured
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

    @cached_property
    def axes(self) -> PrincipalAxes:
        """Mean and covariance of the unit-length features of the training images."""
        return principal_axes(self.train.features, of_unit_rows=True)

    @cached_property
    def expecting(self) -> Embeddings:
        """At most `EXPECTING` training images, the same for every run of these images."""
        rows = sample_rows(torch.arange(len(self.train)), EXPECTING, SAMPLED)
        slim = replace(self.train, features=self.train.features[:, :0])
        return slim.select(rows.numpy())

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
    nearest = min(NEAREST, len(reference.train))
    similarity, index = top_k(table.features, reference.train.features, nearest)
    scores = {} if table.certainty is None else {"certainty": table.certainty}
    if table.presence is not None and table.radius is not None:
        scores |= {"radius": table.radius, "presence": table.presence}
    none = torch.full((len(table),), -1)
    if (evidence := evidence_against(table, reference.expecting, none)) is not None:
        scores["evidence"] = evidence
    scores |= {
        "familiarity": -reference.axes.distances(table.features),
        "neighbour_similarity": similarity[:, 0],
        "mean_similarity": similarity.mean(1),
        "feature_norm": torch.linalg.vector_norm(table.features, dim=1, dtype=torch.float64),
    }
    if (logits := reference.logits(table)) is not None:
        scores["negative_entropy"] = -entropy(logits)
    known = (table.labels >= 0) & (reference.probe is not None)
    right = reference.train.labels[index[:, 0]] == table.labels
    return ScoredImages(table, scores, known, right)


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
