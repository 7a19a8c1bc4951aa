"""Classifiers that know when they are wrong: declining, calibrated probabilities, and sets."""

import torch
from torch import Tensor

from sureclr.data.embeddings import Embeddings
from sureclr.evaluation.calibrated_sets import measure_sets
from sureclr.evaluation.classifiers import vote_logits
from sureclr.evaluation.neighbour_vote import VOTERS
from sureclr.evaluation.probes import ProbeResult
from sureclr.evaluation.results import PredictionSets, ProbeCalibration, SelectivePrediction
from sureclr.evaluation.scores import Reference, ScoredImages, Scores, auroc_by_score
from sureclr.evaluation.tables import finite_by_score, finite_or_none
from sureclr.maths import metrics
from sureclr.maths.neighbours import top_k, vote

CURVE = 20  # points of a risk-coverage curve in the result


def calibrate_probes(table: Embeddings, reference: Reference) -> dict[str, ProbeCalibration]:
    """Measure the ECE (15 bins) of a linear probe on the features, and of a probe on u = rho mu.

    The logits of the second are linear in u, so they are averaged over the posterior (theory 1).
    """
    assert reference.probe is not None
    train, test = reference.train, table.labelled("test")
    probes = {"features": reference.probe}
    if table.radius is not None:
        u, u_test = train.posterior.mean, test.posterior.mean
        probes["posterior_mean"] = reference.fit(u, train.labels, u_test, test.labels)
    return {
        name: ProbeCalibration(
            probe.accuracy,
            finite_or_none(metrics.ece(probe.probabilities, columns(probe, test.labels))),
        )
        for name, probe in probes.items()
    }


def columns(probe: ProbeResult, labels: Tensor) -> Tensor:
    """Return the probe's column of each label (m,); -1, which is always wrong, if it has none."""
    matches = labels[:, None] == probe.classes
    return torch.where(matches.any(1), matches.long().argmax(1), -1)


def observe_sets(table: Embeddings, reference: Reference) -> dict[str, PredictionSets] | None:
    """Measure the sets of kNN and of the linear probe at a coverage of .9 on labelled images.

    The probabilities are those of the vote (`classifiers.vote_logits`) and of the probe, without a
    temperature, which the coverage does not need.

    Args:
        table: test images.
        reference: the training images and their probe.

    Returns:
        None if one half of the labelled images is too small (`measure_sets`).
    """
    assert reference.probe is not None
    test, train, probe = table.labelled("test"), reference.train, reference.probe
    similarity, index = top_k(test.features, train.features, min(VOTERS, len(train)))
    votes = vote_logits(similarity, columns(probe, train.labels)[index], len(probe.classes))
    logits = {"knn": votes, "linear": reference.logits(test)}
    found = {
        name: measure_sets(z.softmax(1), columns(probe, test.labels))
        for name, z in logits.items()
        if z is not None
    }
    return {name: sets for name, sets in found.items() if sets is not None} or None


def predict_selectively(
    clean: ScoredImages, reference: Reference
) -> dict[str, SelectivePrediction]:
    """Let a classifier decline to answer for the least certain images: kNN and the linear probe.

    Only images whose class is known count.
    """
    scores = {name: score[clean.known] for name, score in clean.scores.items()}
    return {
        name: decline_by_score(correct[clean.known], scores)
        for name, correct in correct_predictions(clean.table, reference).items()
    }


def correct_predictions(table: Embeddings, reference: Reference) -> dict[str, Tensor]:
    """Return by classifier whether its prediction is correct, (n,) bool."""
    train, probe, logits = reference.train, reference.probe, reference.logits(table)
    assert probe is not None and logits is not None
    similarity, index = top_k(table.features, train.features, min(VOTERS, len(train)))
    voted = vote(similarity, train.labels[index], len(train.classes))
    return {"knn": voted == table.labels, "linear": probe.classes[logits.argmax(1)] == table.labels}


def decline_by_score(correct: Tensor, scores: Scores) -> SelectivePrediction:
    """Measure the error rate, R-AUROC, and the area and 20 points of the risk-coverage curve.

    Besides the scores, `random` is the error rate itself, and `best` has every error last; a useful
    score lies between the two.
    """
    error = 1 - float(correct.double().mean())
    area = {name: metrics.aurc(score, correct) for name, score in scores.items()}
    return SelectivePrediction(
        error=error,
        aurc=finite_by_score(
            {**area, "random": error, "best": metrics.aurc(correct.double(), correct)}
        ),
        coverage=tuple((i + 1) / CURVE for i in range(CURVE)),
        risk={
            name: thin_curve(metrics.risk_coverage(score, correct)[1])
            for name, score in scores.items()
        },
        r_auroc=auroc_by_score(scores, correct),
    )


def thin_curve(risk: Tensor) -> tuple[float, ...]:
    """Return the risk at coverage 1/20, 2/20, ..., 1."""
    return tuple(float(risk[max(1, round(len(risk) * (i + 1) / CURVE)) - 1]) for i in range(CURVE))
