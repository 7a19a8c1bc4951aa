"""Two views of an image: the radius should predict their cosine, and evidence be a log odds.

The model says E[mu.mu' | r] = r, and gives s, the log odds that two views show one image (theory 2,
5, 6). Both are tested on views of test images, as they are and after a monotone map that was fitted
on views of training images. Those views are new: the model was not trained on them.
"""

import math

import torch
from torch import Tensor

from sureclr.config import ViewConfig
from sureclr.data.counter_rng import hashed
from sureclr.data.image_set import ImageSet
from sureclr.evaluation.drawn_views import ViewPairs, embed_view_pairs
from sureclr.evaluation.results import (
    Diagram,
    EvidenceCalibration,
    PartnerResult,
    ProbabilityDiagram,
    RadiusCalibration,
)
from sureclr.evaluation.scores import Embed, Reference, auroc_by_score, score_images
from sureclr.evaluation.tables import (
    evidence_dimension,
    finite_numbers,
    finite_or_none,
    mean_cosine_of_different_images,
)
from sureclr.maths import metrics
from sureclr.maths.losses import log_mean_exp_evidence
from sureclr.maths.neighbours import top_k
from sureclr.maths.sphere import Posterior, evidence_matrix

EVIDENCE_IMAGES = 1000  # at most so many images, of whose views all are compared: a million pairs
BINS = 10
PAIRS = 4000  # at most so many training images, on whose views the monotone maps are fitted
TRAINING_VIEWS = 2003  # stream of seeds


def training_view_pairs(
    embed: Embed, images: ImageSet, views: ViewConfig, seed: int, most: int = PAIRS
) -> ViewPairs:
    """Return views of at most `most` training images, chosen by the seed."""
    training = images.rows("train", "unlabelled")
    order = hashed(torch.arange(len(training)), seed, 1)[:, 0].argsort()[:most]
    return embed_view_pairs(embed, images, training[order.numpy()], views, seed, TRAINING_VIEWS)


def calibrate_radius(pairs: ViewPairs, training: ViewPairs) -> RadiusCalibration:
    """Test E[mu.mu' | r] = r (theory 2) in ten bins of equal count, before and after the map.

    The result also has the mean cosine of different images: where it is not 0, the radius has
    absorbed a base rate.

    Args:
        pairs: views of the test images.
        training: views of training images, on which the map r -> cosine is fitted.
    """
    r, cosine = pairs.radius_and_cosine()
    mapped = metrics.monotone_map(*training.radius_and_cosine())(r)
    first, second = (side.direction for side in pairs.sides())
    return RadiusCalibration(
        n=pairs.n,
        n_map=training.n,
        raw=_diagram(metrics.calibration_by_bins(r, cosine, BINS)),
        mapped=_diagram(metrics.calibration_by_bins(mapped, cosine, BINS)),
        mean_r=float(r.mean()),
        mean_cosine=float(cosine.mean()),
        mean_cosine_different=mean_cosine_of_different_images(first, second),
    )


def calibrate_evidence(
    pairs: ViewPairs, training: ViewPairs, most: int = EVIDENCE_IMAGES
) -> EvidenceCalibration:
    """Test whether the evidence s is a log odds in nats.

    Every first view is compared with every second view, so a pair shows one image with prior odds
    of 1 : n - 1, and its probability is sigmoid(s - log(n - 1)). The map s -> probability is fitted
    on as many training pairs. Both get a reliability diagram (bins of equal width) and a mean log
    loss in nats, to be compared with that of a constant probability 1 / n. The model's own
    diagnostic, log E[exp s] over different images, is 0 if the model is true (theory 5).

    Args:
        pairs: views of the test images.
        training: views of training images, on which the map is fitted.
        most: the number of images that are compared at most.
    """
    n = min(pairs.n, training.n, most)
    pairs, training = pairs.first(n), training.first(n)
    dimension = evidence_dimension(pairs.table, views=2)
    s, s_train = (evidence_of_all(views, dimension) for views in (pairs, training))
    same = torch.eye(n, dtype=torch.bool).flatten()
    raw = torch.sigmoid(s - math.log(n - 1))
    mapped = metrics.monotone_map(s_train, same)(s)
    estimate, error = log_mean_exp_evidence(pairs.posterior, dimension)
    return EvidenceCalibration(
        n=n,
        kernel_dimension=dimension,
        kernel_dimension_from="the run" if pairs.table.kernel_dimension else "these views",
        log_mean_exp=finite_or_none(estimate),
        log_mean_exp_standard_error=finite_or_none(error),
        log_loss_prior=log_loss(torch.full_like(raw, 1 / n), same),
        raw=_probability_diagram(raw, same),
        mapped=_probability_diagram(mapped, same),
    )


def evidence_of_all(pairs: ViewPairs, dimension: float) -> Tensor:
    """Return s of every first view with every second view, (n * n,) float64 in nats."""
    a, b = pairs.sides()
    return evidence_matrix(a.posterior, b.posterior, dimension).double().flatten()


def log_loss(probability: Tensor, outcome: Tensor, smallest: float = 1e-9) -> float:
    """Return -mean log(probability of what happened) in nats.

    Args:
        probability: (n,) predicted probabilities.
        outcome: (n,) bool.
        smallest: probabilities of what happened count as at least this.
    """
    of_outcome = torch.where(outcome, probability, 1 - probability)
    return float(-of_outcome.clamp(min=smallest).log().mean())


def _diagram(bins: metrics.Calibration) -> Diagram:
    return Diagram(
        error=finite_or_none(bins.error),
        count=tuple(bins.count.tolist()),
        predicted=finite_numbers(bins.predicted),
        observed=finite_numbers(bins.observed),
    )


def _probability_diagram(probability: Tensor, outcome: Tensor) -> ProbabilityDiagram:
    diagram = _diagram(metrics.calibration_by_bins(probability, outcome, BINS, "width"))
    return ProbabilityDiagram(
        error=diagram.error,
        count=diagram.count,
        predicted=diagram.predicted,
        observed=diagram.observed,
        log_loss=log_loss(probability, outcome),
    )


# --- Recognising the other view -----------------------------------------------------


def find_partners(pairs: ViewPairs, reference: Reference) -> PartnerResult:
    """Find each first view's nearest direction among all second views: is it the same image's?

    Two more scores may predict that: the cosine of the nearest view, and the evidence for the best
    match, max_j s (theory 6).
    """
    first, second = pairs.sides()
    similarity, index = (t[:, 0] for t in top_k(first.direction, second.direction, 1))
    own = torch.arange(pairs.n)
    scores = {**score_images(first, reference).scores, "match_similarity": similarity}
    by_evidence = None
    if first.radius is not None:
        scores["match_evidence"], match = best_evidence(
            first.posterior, second.posterior, evidence_dimension(pairs.table, views=2)
        )
        by_evidence = float((match == own).double().mean())
    return PartnerResult(
        n=pairs.n,
        instance_match=float((index == own).double().mean()),
        instance_match_by_evidence=by_evidence,
        auroc=auroc_by_score(scores, index == own),
    )


def best_evidence(
    a: Posterior, b: Posterior, dimension: float, block: int = 512
) -> tuple[Tensor, Tensor]:
    """Return max_j s(u_i, u'_j) in nats and the j, (n,) each, `block` rows at a time."""
    rows = torch.arange(len(a.direction)).split(block)
    parts = [evidence_matrix(a.part(some), b, dimension).max(1) for some in rows]
    return torch.cat([p.values for p in parts]), torch.cat([p.indices for p in parts])
