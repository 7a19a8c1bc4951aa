"""Signs of quality while a run trains, from training images alone: the test set is never looked at.

kNN on held-out training images, alignment and uniformity (Wang and Isola 2020), effective rank
(RankMe), a warning on collapse.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sureclr.config import ViewConfig
from sureclr.data.counter_rng import hashed
from sureclr.data.image_set import ImageSet
from sureclr.data.views import two_views
from sureclr.maths import losses, metrics, neighbours
from sureclr.maths.sphere import Posterior
from sureclr.models.embedding import embed, evaluating
from sureclr.models.simclr import SimCLR

PROBES = 1024  # fixed training images that are looked at again and again
BANK = 4096  # labelled training images among which the held-out ones look for neighbours
COLLAPSED_COSINE = 0.95  # mean cosine of different images above which directions have collapsed


@dataclass(frozen=True)
class Monitor:
    """The fixed images of a run and how they are looked at.

    Attributes:
        images: the training images.
        probes: (p,) rows whose views, features and posteriors are followed.
        queries, bank: (q,), (b,) rows, disjoint, labelled: held-out images and those among which
            they look for neighbours.
        seed: of the probes' views.
    """

    images: ImageSet
    probes: Tensor
    queries: Tensor
    bank: Tensor
    seed: int

    @staticmethod
    def of(images: ImageSet, seed: int) -> "Monitor":
        order = hashed(torch.arange(len(images)), stream=seed, count=1)[:, 0].argsort()
        labelled = order[images.labels[order] >= 0]
        queries = labelled[: min(PROBES, len(labelled) // 5)]
        return Monitor(images, order[:PROBES], queries, labelled[len(queries) :][:BANK], seed)

    def look(self, model: SimCLR, views: ViewConfig) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Numbers for metrics.jsonl, and the probes' tensors for a snapshot.

        The numbers: knn (accuracy, k = 20), alignment, uniformity, effective_rank, cosine_different
            (mean over pairs of different
        images), and where there is a radius its mean.
        """
        with evaluating(model):
            first, second, features = self._probe_views(model, views)
        clean, knn = embed(model, self.images.select(self.probes)), self._knn(model)
        numbers = {
            **knn,
            "alignment": float(metrics.alignment(first.direction, second.direction)),
            "uniformity": float(metrics.uniformity(first.direction)),
            "effective_rank": float(metrics.effective_rank(features)),
            "cosine_different": mean_cosine_of_different(first.direction),
        }
        tensors = {
            "index": self.probes,
            "label": clean.labels,
            "features": clean.features,
            "direction": clean.direction,
            "first_direction": first.direction,
            "second_direction": second.direction,
        }
        if clean.radius is not None:
            numbers["radius"] = float(clean.radius.mean())
        if (
            clean.certainty is not None
            and first.certainty is not None
            and second.certainty is not None
        ):
            tensors |= {
                "certainty": clean.certainty,
                "first_certainty": first.certainty,
                "second_certainty": second.certainty,
            }
        numbers |= evidence_split(torch.cat([first.direction, second.direction]))
        return numbers, tensors

    def _probe_views(self, model: SimCLR, views: ViewConfig) -> tuple[Posterior, Posterior, Tensor]:
        device = model.mean.device
        seeds = hashed(self.probes, stream=self.seed, count=1)[:, 0]
        both = two_views(self.images.images[self.probes].to(device), seeds, views)
        (h, first), (_, second) = (model(half) for half in both.chunk(2))
        return first, second, h

    def _knn(self, model: SimCLR) -> dict[str, float]:
        if len(self.queries) == 0 or len(self.bank) == 0:
            return {}
        bank, queries = (
            embed(model, self.images.select(rows)) for rows in (self.bank, self.queries)
        )
        similarity, index = neighbours.top_k(queries.features, bank.features, min(20, len(bank)))
        guess = neighbours.vote(similarity, bank.labels[index], len(bank.classes))
        return {"knn": float((guess == queries.labels).float().mean())}


def mean_cosine_of_different(directions: Tensor) -> float:
    """Mean of mu_i.mu_j over i != j, from the norm of the sum: O(n)."""
    n = len(directions)
    return float((directions.sum(0).square().sum() - directions.square().sum()) / (n * (n - 1)))


def evidence_split(directions: Tensor, temperature: float = losses.TEMPERATURE) -> dict[str, float]:
    """NT-Xent's two parts at a fixed temperature, nats: what it says of positives, and the
    log-mean-exp over negatives.

    Their difference, plus log(2n - 2) and a small correction for the positive in the denominator,
    is the loss: one pulls views of an image together, the other spreads the images.
    """
    logits = directions @ directions.T / temperature
    positives = losses.partners(logits)
    negatives = losses.without_own_image(logits).logsumexp(1) - math.log(len(directions) - 2)
    return {"positives": float(positives.mean()), "negatives": float(negatives.mean())}


def collapse_warning(numbers: dict[str, float]) -> str | None:
    """One sentence with the remedy where the directions have collapsed."""
    if numbers.get("cosine_different", 0.0) > COLLAPSED_COSINE:
        return (
            "the representation is collapsing: different images have mean cosine"
            f" {numbers['cosine_different']:.3f}; lower the learning rate, raise the batch size, or"
            " check that the images differ."
        )
    return None
