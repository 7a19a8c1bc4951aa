"""Is a model less sure where it should be? Its certainty, and three plain rivals, against facts
about images.

    certainty             what the loss learned: radius, kappa, minus the predicted loss ...
    neighbour_similarity  cosine of the nearest training image's features
    feature_norm          |h|
    negative_entropy      minus the entropy of the linear probe's softmax, nats

Each is a score: higher is surer. An AUROC of 1 ranks perfectly, 1/2 knows nothing. Test images
    alone are judged; their neighbours
are whole training images, by cosine of features.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sureclr.config import ViewConfig
from sureclr.data.corruptions import CORRUPTIONS, Corruption
from sureclr.data.counter_rng import hashed
from sureclr.data.embeddings import Embeddings
from sureclr.data.image_set import ImageSet, convert
from sureclr.errors import UserError
from sureclr.evaluation.calibration import (
    Embed,
    Pair,
    Result,
    evidence_calibration,
    image_seeds,
    radius_calibration,
    view_pair,
)
from sureclr.evaluation.probes import ProbeResult, linear_probe
from sureclr.files import json_able
from sureclr.maths import metrics
from sureclr.maths.neighbours import top_k, vote
from sureclr.maths.sphere import Posterior, evidence_matrix
from sureclr.progress import SILENT, Progress
from sureclr.training.run import Run

Scores = dict[str, Tensor]

NEIGHBOURS = 20  # of the kNN vote
PAIRS = 4000  # training images at most whose views the monotone map is fitted on
CURVE = 20  # points of a risk-coverage curve in the result
VIEWS, CORRUPTED, TRAINING_VIEWS = 2001, 2002, 2003  # streams of seeds


def uncertainty(
    run: Run,
    images: ImageSet,
    table: Embeddings,
    *,
    seed: int = 0,
    reference: "Reference | None" = None,
    progress: Progress = SILENT,
) -> Result:
    """Everything above for a run, JSON-able.

    Args:
        images, table: the whole images and their embeddings by the run, row by row; labels where
            there are any.
        seed: of corruptions and views.
        reference: of the table, if at hand.
        progress: reports how far the work is; may raise to stop.
    Raises:
        UserError: fewer than two test or two training images.
    """
    fitting = convert(images, run.size, run.channels)
    return measure(
        lambda some: run.embed(some, progress),
        fitting,
        table,
        run.config.views,
        seed,
        reference=reference,
    )


def measure(
    embed: Embed,
    images: ImageSet,
    table: Embeddings,
    views: ViewConfig,
    seed: int = 0,
    levels: slice = slice(None),
    reference: "Reference | None" = None,
) -> Result:
    """`uncertainty` for anything that embeds images. levels: which strengths of each corruption;
    reference: of the table, if at hand.
    """
    test = images.test
    training = images.rows("train", "unlabelled")
    if min(len(test), len(training)) < 2:
        raise UserError(
            f"uncertainty is measured on test images against training images, and {images.name} has"
            f" {len(test)} of the one and {len(training)} of the other; give data with at least two"
            " of both."
        )
    reference = reference or Reference.of(table)
    clean = judge(table.select(table.split == "test"), reference)
    result = {
        "n_test": len(test),
        "n_train": len(reference.train),
        "scores": list(clean.scores),
        "clean": ranking(clean),
    }
    result["corruptions"] = {
        name: corrupted(embed, test, c, clean, reference, seed, levels)
        for name, c in CORRUPTIONS.items()
    }
    pair = view_pair(embed, test, views, seed, VIEWS)
    result["partner"] = partner(pair, reference)
    if pair.posterior.radius is not None:
        some = hashed(torch.arange(len(training)), seed, 1)[:, 0].argsort()[:PAIRS]
        held_out = view_pair(
            embed, images.select(training[some.numpy()]), views, seed, TRAINING_VIEWS
        )
        result["calibration"] = radius_calibration(pair, held_out)
        result["evidence"] = evidence_calibration(pair, held_out)
    if reference.probe is not None:
        result["selective"] = selective(clean, reference)
        result["probe_calibration"] = probe_calibration(table, reference)
    return json_able({**result, "skipped": skipped(clean, reference)})


def skipped(clean: "Judgement", reference: "Reference") -> dict[str, str]:
    """What could not be had, and why."""
    reasons = {}
    if reference.probe is None:
        reasons["r_auroc, selective, negative_entropy, probe_calibration"] = (
            "these need images of two classes, labelled"
        )
    if clean.seen.certainty is None:
        reasons["certainty"] = "this loss has no certainty: the baselines stand alone"
    if clean.seen.radius is None:
        reasons["calibration, evidence"] = "this loss has no radius"
    return reasons


# --- Scores ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Reference:
    """What a query is compared with: the training images (the labelled ones, where there are
    labels) and their linear probe.

    `fit` makes the probes: `linear_probe`, or what remembers them.
    """

    train: Embeddings
    probe: ProbeResult | None
    fit: Callable[..., ProbeResult] = linear_probe

    @staticmethod
    def of(table: Embeddings, fit: Callable[..., ProbeResult] = linear_probe) -> "Reference":
        train, test = table.labelled("train"), table.labelled("test")
        if len(train) == 0 or len(test) == 0 or len(train.labels.unique()) < 2:
            return Reference(table.select(table.split != "test"), None)
        return Reference(
            train,
            fit(train.features, train.labels, test.features, test.labels, allow_missing=True),
            fit,
        )

    def logits(self, seen: Embeddings) -> Tensor | None:
        """(n, classes) of the probe, float64."""
        return (
            None
            if self.probe is None
            else seen.features.double() @ self.probe.weight + self.probe.bias
        )


@dataclass(frozen=True)
class Judgement:
    """n images as embedded, how sure each score is of them, and whether the nearest training image
    has the right class.

    Attributes:
        scores: name -> (n,), higher is surer.
        known: (n,) bool, whether an image's class is known, so that one can ask.
        right: (n,) bool, the answer where it is.
    """

    seen: Embeddings
    scores: Scores
    known: Tensor
    right: Tensor


def judge(seen: Embeddings, reference: Reference) -> Judgement:
    """Scores of some embedded images, and whether each one's nearest training image has its class."""
    similarity, index = (t[:, 0] for t in top_k(seen.features, reference.train.features, 1))
    scores = {} if seen.certainty is None else {"certainty": seen.certainty}
    scores |= {"neighbour_similarity": similarity, "feature_norm": seen.features.norm(dim=1)}
    if (logits := reference.logits(seen)) is not None:
        scores["negative_entropy"] = -entropy(logits)
    known = (seen.labels >= 0) & (reference.probe is not None)
    return Judgement(seen, scores, known, reference.train.labels[index] == seen.labels)


def entropy(logits: Tensor) -> Tensor:
    """Of the softmax, nats. (n, classes) -> (n,)."""
    log_p = logits.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1)


def auroc_of(scores: Scores, positive: Tensor) -> dict[str, float]:
    """AUROC of every score for telling positive rows from the rest."""
    return {name: metrics.auroc(score, positive) for name, score in scores.items()}


def ranking(judged: Judgement) -> Result:
    """R-AUROC (URL benchmark, Kirchhof et al. 2023): does a score predict that the nearest image
    has the class? And how often.

    Of the images whose class is known; empty where there is none.
    """
    if not judged.known.any():
        return {}
    right = judged.right[judged.known]
    scores = {name: score[judged.known] for name, score in judged.scores.items()}
    return {
        "n": len(right),
        "recall_at_1": float(right.double().mean()),
        "r_auroc": auroc_of(scores, right),
    }


# --- Corruptions ----------------------------------------------------------------------


def corrupted(
    embed: Embed,
    images: ImageSet,
    corruption: Corruption,
    clean: Judgement,
    reference: Reference,
    seed: int,
    levels: slice,
) -> Result:
    """One corruption, at each level and at strengths drawn for each image ("random": from nothing
    to the strongest level).
    """
    seeds = image_seeds(images, seed, CORRUPTED)

    def at(strength: float | Tensor) -> Judgement:
        return judge(
            embed(replace(images, images=corruption(images.images, seeds, strength))), reference
        )

    fixed = [
        {"strength": strength, **against_whole(at(strength), clean)}
        for strength in corruption.strengths[levels]
    ]
    strengths = corruption.random_strengths(seeds)
    drawn = at(strengths)
    severity = corruption.severity(strengths)
    spearman = {name: metrics.spearman(score, -severity) for name, score in drawn.scores.items()}
    return {
        "unit": corruption.unit,
        "levels": fixed,
        "random": {**against_whole(drawn, clean), "spearman": spearman},
    }


def against_whole(judged: Judgement, clean: Judgement) -> Result:
    """The ranking, and the share of images that are strictly less certain than they were whole, by
    each score.
    """
    less = {
        name: float((score < clean.scores[name]).double().mean())
        for name, score in judged.scores.items()
    }
    mean = {name: float(score.double().mean()) for name, score in judged.scores.items()}
    return {**ranking(judged), "less_certain": less, "mean": mean}


def partner(pair: Pair, reference: Reference) -> Result:
    """Does a view's nearest direction among the other side's n views belong to its own image, and
    do the scores know?

    Two scores more: the cosine of that nearest view, and max_j s, the evidence for the best match
        (theory 6).
    """
    a, b = pair.sides()
    similarity, index = (t[:, 0] for t in top_k(a.direction, b.direction, 1))
    own = torch.arange(pair.n)
    scores = {**judge(a, reference).scores, "match_similarity": similarity}
    result: Result = {"n": pair.n, "instance_match": float((index == own).double().mean())}
    if a.radius is not None:
        scores["match_evidence"], by_evidence = best_evidence(
            a.posterior, b.posterior, pair.kernel_dimension()
        )
        result["instance_match_by_evidence"] = float((by_evidence == own).double().mean())
    return {**result, "auroc": auroc_of(scores, index == own)}


def best_evidence(
    a: Posterior, b: Posterior, dimension: float, block: int = 512
) -> tuple[Tensor, Tensor]:
    """max_j s(u_i, u'_j) in nats and the j, (n,) each."""
    assert a.radius is not None
    parts = [
        evidence_matrix(Posterior(mu, rho), b, dimension).max(1)
        for mu, rho in zip(a.direction.split(block), a.radius.split(block), strict=True)
    ]
    return torch.cat([p.values for p in parts]), torch.cat([p.indices for p in parts])


def probe_calibration(table: Embeddings, reference: Reference) -> Result:
    """ECE (15 bins) of the linear probe on features, and of one on u, whose logits are averaged
    over the posterior (theory 1).
    """
    assert reference.probe is not None
    train, test = reference.train, table.labelled("test")
    probes = {"features": reference.probe}
    if table.radius is not None:
        u, u_test = train.posterior.mean, test.posterior.mean
        probes["posterior_mean"] = reference.fit(
            u, train.labels, u_test, test.labels, allow_missing=True
        )
    return {
        name: {
            "accuracy": probe.accuracy,
            "ece": metrics.ece(probe.probabilities, columns(probe, test.labels)),
        }
        for name, probe in probes.items()
    }


def columns(probe: ProbeResult, labels: Tensor) -> Tensor:
    """(m,) the probe's column of each label; -1 where it has none (such a row is always wrong)."""
    matches = labels[:, None] == probe.classes
    return torch.where(matches.any(1), matches.long().argmax(1), -1)


# --- Selective prediction -------------------------------------------------------------


def selective(clean: Judgement, reference: Reference) -> Result:
    """If the classifier may abstain: error among the surest, and its area, of kNN and of the linear
    probe, for each score.

    Beside the scores: `random` (the error rate itself) and `best` (every error last); what knows
        something lies between them.
    """
    scores = {name: score[clean.known] for name, score in clean.scores.items()}
    return {
        name: abstaining(right[clean.known], scores)
        for name, right in classified(clean.seen, reference).items()
    }


def classified(seen: Embeddings, reference: Reference) -> dict[str, Tensor]:
    """(n,) bool by classifier: was it right?"""
    train, probe, logits = reference.train, reference.probe, reference.logits(seen)
    assert probe is not None and logits is not None
    similarity, index = top_k(seen.features, train.features, min(NEIGHBOURS, len(train)))
    voted = vote(similarity, train.labels[index], len(train.classes))
    return {"knn": voted == seen.labels, "linear": probe.classes[logits.argmax(1)] == seen.labels}


def abstaining(right: Tensor, scores: Scores) -> Result:
    """Error rate, area under the risk-coverage curve, and twenty points of that curve, of each
    score.
    """
    error = 1 - float(right.double().mean())
    area = {name: metrics.aurc(score, right) for name, score in scores.items()}
    curves = {
        name: thinned(metrics.risk_coverage(score, right)[1]) for name, score in scores.items()
    }
    return {
        "error": error,
        "aurc": {**area, "random": error, "best": metrics.aurc(right.double(), right)},
        "coverage": [(i + 1) / CURVE for i in range(CURVE)],
        "risk": curves,
    }


def thinned(risk: Tensor) -> list[float]:
    """The risk at coverage 1/20, 2/20, ..., 1."""
    return [float(risk[max(1, round(len(risk) * (i + 1) / CURVE)) - 1]) for i in range(CURVE)]
