"""Two views of one image: does the radius predict their cosine, and is the evidence really nats?   (theory 2, 5, 6)

The model says E[mu.mu' | r] = r, and gives s, the log odds that two views show one image. Both are
tested on views of test images, raw and after a monotone map fitted on views of training images
(drawn anew: the model was not trained on these).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sureclr.config import ViewConfig
from sureclr.data.corruptions import to_uint8
from sureclr.data.counter_rng import hashed
from sureclr.data.embeddings import Embeddings
from sureclr.data.image_set import ImageSet
from sureclr.data.views import one_view
from sureclr.maths import losses, metrics
from sureclr.maths.sphere import Posterior, evidence_matrix, pair_radius

Embed = Callable[[ImageSet], Embeddings]
Result = dict[str, Any]

EVIDENCE_IMAGES = 1000  # images at most whose views are all compared with all: a million pairs
BINS = 10
CHUNK = 1024  # images whose float views are held at a time


@dataclass(frozen=True)
class Pair:
    """Two views of each of n images, drawn as in training. Rows i and i + n of `seen` show image i."""

    seen: Embeddings

    @property
    def n(self) -> int:
        return len(self.seen) // 2

    @property
    def posterior(self) -> Posterior:
        return self.seen.posterior

    def sides(self) -> tuple[Embeddings, Embeddings]:
        rows = np.arange(len(self.seen))
        return self.seen.select(rows[: self.n]), self.seen.select(rows[self.n :])

    def first(self, n: int) -> "Pair":
        """The pairs of the first n images."""
        rows = np.arange(min(n, self.n))
        return Pair(self.seen.select(np.concatenate([rows, rows + self.n])))

    def radius_and_cosine(self) -> tuple[Tensor, Tensor]:
        """r = rho rho' and the cosine of the two directions, (n,) each."""
        a, b = (side.posterior for side in self.sides())
        return pair_radius(a, b)[0], (a.direction * b.direction).sum(1)

    def kernel_dimension(self) -> float:
        """m of the run's kernel; where its loss has none, that of these views: 1 / E[c^2] over
        different images (theory 3).
        """
        return self.seen.kernel_dimension or 1 / float(
            losses.mean_squared_cosine(self.seen.direction)
        )


def view_pair(embed: Embed, images: ImageSet, views: ViewConfig, seed: int, stream: int) -> Pair:
    """Embed two views of each image (through uint8, as any image would come)."""
    seeds = image_seeds(images, seed, stream)
    parts = [slice(start, start + CHUNK) for start in range(0, len(images), CHUNK)]
    both = torch.cat(
        [
            to_uint8(one_view(images.images[p], seeds[p], view, views))
            for view in (0, 1)
            for p in parts
        ]
    )
    twice = images.select(np.tile(np.arange(len(images)), 2))
    return Pair(embed(replace(twice, images=both)))


def image_seeds(images: ImageSet, seed: int, stream: int) -> Tensor:
    """(n,) int64: the row's own."""
    return hashed(torch.arange(len(images)) + (seed << 32), stream, 1)[:, 0]


def radius_calibration(pair: Pair, training: Pair) -> Result:
    """E[mu.mu' | r] = r (theory 2): ten bins of equal count, mean absolute difference; raw, and
    after the map.

    Beside it the mean cosine of different images: where it is not 0, the radius has absorbed a base
    rate.
    """
    r, cosine = pair.radius_and_cosine()
    mapped = metrics.monotone_map(*training.radius_and_cosine())(r)
    return {
        "n": pair.n,
        "n_map": training.n,
        "raw": diagram(metrics.calibration_by_bins(r, cosine, BINS)),
        "mapped": diagram(metrics.calibration_by_bins(mapped, cosine, BINS)),
        "mean_r": float(r.mean()),
        "mean_cosine": float(cosine.mean()),
        "mean_cosine_different": mean_cosine_different(pair),
    }


def mean_cosine_different(pair: Pair) -> float:
    """Mean cosine of the two sides' directions over different images, from the sides' sums: O(n)."""
    a, b = (side.direction.double() for side in pair.sides())
    return float((a.sum(0) @ b.sum(0) - (a * b).sum()) / (pair.n * (pair.n - 1)))


def evidence_calibration(pair: Pair, training: Pair) -> Result:
    """Is s really nats? Every view of one side against all of the other; a pair shows one image
    with prior odds 1 : n - 1.

    posterior = sigmoid(s - log(n - 1)), raw; and by a monotone map s -> rate fitted on as many
    training pairs. For each a reliability diagram (bins of equal width) and the mean log loss in
    nats, beside that of knowing the prior alone. And the model's own diagnostic, log E[exp s] over
    different images, with its standard error: 0 if the model is true (theory 5).
    """
    n = min(pair.n, training.n, EVIDENCE_IMAGES)
    pair, training = pair.first(n), training.first(n)
    m = pair.kernel_dimension()
    s, s_train = evidence_of_all(pair, m), evidence_of_all(training, m)
    same = torch.eye(n, dtype=torch.bool).flatten()
    raw = torch.sigmoid(s - math.log(n - 1))
    mapped = metrics.monotone_map(s_train, same)(s)
    estimate, error = losses.log_mean_exp_evidence(pair.posterior, m)
    return {
        "n": n,
        "kernel_dimension": m,
        "kernel_dimension_from": "the run" if pair.seen.kernel_dimension else "these views",
        "log_mean_exp": estimate,
        "log_mean_exp_standard_error": error,
        "log_loss_prior": log_loss(torch.full_like(raw, 1 / n), same),
        "raw": reliability(raw, same),
        "mapped": reliability(mapped, same),
    }


def reliability(probability: Tensor, outcome: Tensor) -> Result:
    return {
        **diagram(metrics.calibration_by_bins(probability, outcome, BINS, "width")),
        "log_loss": log_loss(probability, outcome),
    }


def evidence_of_all(pair: Pair, dimension: float) -> Tensor:
    """(n n,) float64 nats: s of every first view with every second view."""
    a, b = pair.sides()
    return evidence_matrix(a.posterior, b.posterior, dimension).double().flatten()


def log_loss(probability: Tensor, outcome: Tensor, smallest: float = 1e-9) -> float:
    """- mean log(probability of what happened), nats; probabilities within `smallest` of 0 and 1
    count as that.
    """
    right = torch.where(outcome, probability, 1 - probability)
    return float(-right.clamp(min=smallest).log().mean())


def diagram(found: metrics.Calibration) -> Result:
    """Plain lists of a reliability diagram."""
    return {
        "error": found.error,
        **{name: getattr(found, name).tolist() for name in ("count", "predicted", "observed")},
    }
