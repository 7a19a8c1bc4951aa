"""Evidence against a gallery (theory 9): is an answer right, and which class is it?

Without labels, the log of the mean of exp(evidence) over the training images says how much more
often than under the uniform law they expect an image's posterior. With labels, the classes have the
probabilities

    p(y) ~ (sum over the labelled images j of class y of exp(s_j / T)) ^ (1 / T')

where s_j is the evidence that the image and image j show the same. If the model were true, T and T'
would be 1; on photographs that is far too sure, so both are fitted on labelled images, each of
which is left out of its own sum.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sureclr.data.counter_rng import sample_rows
from sureclr.data.embeddings import Embeddings
from sureclr.data.image_set import ImageSet
from sureclr.errors import UserError
from sureclr.evaluation.classifiers import (
    LEAST_HELD_OUT,
    ClassifierFacts,
    FittedClassifier,
    Gallery,
    calibration_facts,
    calibration_loss,
    check_learning,
    class_names,
    fit_temperature,
    learning_rows,
    spread_rows,
    tested_in_parts,
)
from sureclr.evaluation.tables import EVIDENCE_AT_ONCE, evidence_against, evidence_dimension
from sureclr.maths.sphere import evidence_matrix

MOST_COMPARED = 50_000  # images of a gallery, in a sample that is always the same
SAMPLED = 2006  # stream of seeds
TEMPERATURES = tuple(2 ** (i / 2) for i in range(-4, 13))  # T that are tried: .25 to 64
# T without 20 held-out images: the best on CIFAR-10 at a kernel dimension of 21 (theory 9)
UNFITTED = 4.0
MOST_HELD_OUT = 1000  # images on which T is fitted: each is compared with the whole gallery


@dataclass(frozen=True, eq=False)
class EvidenceGallery:
    """Images with which others are compared by evidence, at most `MOST_COMPARED` of a gallery.

    Attributes:
        images: those images, (n,), without features.
        place: (g,) int64, the place of each image of the whole gallery among them, or -1.
    """

    images: Embeddings
    place: Tensor

    @staticmethod
    def of(gallery: Embeddings, most: int = MOST_COMPARED) -> "EvidenceGallery":
        """Return the images of a gallery, or a fixed sample of so many of them."""
        rows = sample_rows(torch.arange(len(gallery)), most, SAMPLED)
        place = torch.full((len(gallery),), -1)
        place[rows] = torch.arange(len(rows))
        slim = replace(gallery, features=gallery.features[:, :0])
        return EvidenceGallery(slim.select(rows.numpy()), place)

    def evidence(self, queries: Embeddings, own: Tensor) -> Tensor | None:
        """Return `tables.evidence_against` of these images, (q,) nats; None without a radius.

        Args:
            queries: q images.
            own: (q,) int64, the row of the whole gallery that an image is itself, or -1.
        """
        if len(self.images) < 2:
            return None
        among = torch.where(own >= 0, self.place[own], -1)
        return evidence_against(queries, self.images, among)


def evidence_classifier(
    table: Embeddings, source: str, gallery: Gallery | None = None
) -> FittedClassifier:
    """Return the vote by evidence, with its two temperatures.

    T is the one of `TEMPERATURES` with the least `calibration_loss` after T' was fitted, on at most
    1,000 of the labelled images, each left out of its own sum.

    Args:
        table: the embeddings; labelled images of its test split are for testing alone.
        source: the name of the images, for error messages.
        gallery: that of the table, if it exists already.

    Raises:
        UserError: the loss has no radius, or there are no labelled images, or only one class.
    """
    if table.radius is None:
        raise UserError(
            "the classifier evidence needs a loss with a radius, such as sure, and this run's loss"
            " has none; choose linear or knn."
        )
    check_learning(table, learning_rows(table), source)
    known = EvidenceGallery.of((gallery or Gallery.of(table)).labelled).images
    known = known.select(known.labels.argsort(stable=True).numpy())
    present, target = known.labels.unique(return_inverse=True)
    some = spread_rows(len(known), MOST_HELD_OUT)
    tried = class_evidence(known.select(some.numpy()), known, some, TEMPERATURES)
    best = _best_temperature(tried, target[some])

    def logits(_: ImageSet | None, queries: Embeddings) -> Tensor:
        nobody = torch.full((len(queries),), -1)
        return class_evidence(queries, known, nobody, [TEMPERATURES[best]])[0]

    calibration = calibration_facts(
        tried[best], target[some], "labelled images, each left out of its own sum"
    )
    tested = tested_in_parts(table, lambda part: present[logits(None, part).argmax(1)])
    facts = ClassifierFacts(
        "evidence",
        class_names(table, present),
        len(known),
        **tested,
        **calibration,
        evidence_temperature=TEMPERATURES[best],
    )
    return FittedClassifier(logits, facts)


def _best_temperature(tried: Tensor, target: Tensor) -> int:
    """Return the index of the best temperature of evidence.

    Args:
        tried: (t, n, K) logits at each of `TEMPERATURES`.
        target: (n,) columns.
    """
    if len(target) < LEAST_HELD_OUT:
        return TEMPERATURES.index(UNFITTED)
    losses = [calibration_loss(z, target, fit_temperature(z, target)) for z in tried]
    return losses.index(min(losses))


def class_evidence(
    queries: Embeddings,
    known: Embeddings,
    own: Tensor,
    temperatures: Sequence[float],
) -> Tensor:
    """Return log sum_{j of class y} exp(s_j / T), (t, q, K) float64, for t temperatures.

    The largest s_j of an image is subtracted from all, which changes no probability.

    Args:
        queries: q images.
        known: n labelled images of the same model, sorted by their labels, of K classes.
        own: (q,) int64, the row of `known` that an image is itself, or -1; it is left out.
        temperatures: T, above 0.
    """
    posterior, dimension = known.posterior, evidence_dimension(known)
    counts = known.labels.unique_consecutive(return_counts=True)[1].tolist()
    parts = []
    for rows in torch.arange(len(queries)).split(max(1, EVIDENCE_AT_ONCE // len(known))):
        nats = evidence_matrix(queries.select(rows.numpy()).posterior, posterior, dimension)
        nats = nats.double()
        hit = own[rows] >= 0
        nats[hit.nonzero()[:, 0], own[rows][hit]] = -torch.inf
        nats -= nats.amax(1, keepdim=True)
        sums = [
            torch.stack([of_class.sum(1) for of_class in weights.split(counts, dim=1)], 1)
            for weights in (torch.exp(nats / temperature) for temperature in temperatures)
        ]
        parts.append(torch.stack(sums))
    if not parts:
        return torch.empty(len(temperatures), 0, len(counts), dtype=torch.float64)
    return torch.cat(parts, 1).clamp_min(torch.finfo(torch.float64).tiny).log()
