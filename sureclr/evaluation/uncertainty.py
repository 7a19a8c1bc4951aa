"""Is a model less sure where it should be? Its certainty, and three plain rivals, against facts about images.

    certainty             what the loss learned: radius, kappa, minus the predicted loss ...
    neighbour_similarity  cosine of the nearest training image's features
    feature_norm          |h|
    negative_entropy      minus the entropy of the linear probe's softmax, nats

Each is a score: higher is surer. An AUROC of 1 ranks perfectly, 1/2 knows nothing. "Nearest" is the nearest training image, whole, by
cosine of features; test images alone are judged.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sureclr.data.corruptions import CORRUPTIONS, Corruption, to_uint8
from sureclr.data.counter_rng import hashed
from sureclr.data.image_set import ImageSet, convert
from sureclr.data.view_config import ViewConfig
from sureclr.data.views import two_views
from sureclr.errors import UserError
from sureclr.evaluation.linear_probe import ProbeResult, linear_probe
from sureclr.maths import losses, metrics
from sureclr.maths.neighbours import top_k, vote
from sureclr.maths.sphere import Posterior, evidence_matrix, pair_radius
from sureclr.models.embed import Embeddings
from sureclr.training.run import Run

Embed = Callable[[ImageSet], Embeddings]
Result = dict[str, Any]
Scores = dict[str, Tensor]

NEIGHBOURS = 20  # of the kNN vote
PAIRS = 4000  # training images at most whose views the monotone map is fitted on
EVIDENCE_IMAGES = 1000  # images at most whose views are all compared with all: a million pairs
BINS = 10
CURVE = 20  # points of a risk-coverage curve in the result
VIEWS, CORRUPTED, TRAINING_VIEWS = 2001, 2002, 2003  # streams of seeds


def uncertainty(run: Run, images: ImageSet, table: Embeddings, *, seed: int = 0,
                each: Callable[[int, int], None] = lambda done, total: None) -> Result:
    """Everything above for a run, JSON-able.

    Args:
        images, table: the whole images and their embeddings by the run, row by row; labels where there are any.
        seed: of corruptions and views.
        each: called with (images done, in all) while the model runs; may raise to stop.
    Raises:
        UserError: no test images.
    """
    return measure(lambda some: run.embed(some, each), convert(images, run.size, run.channels), table, run.config.views, seed)


def measure(embed: Embed, images: ImageSet, table: Embeddings, views: ViewConfig, seed: int = 0,
            levels: slice = slice(None)) -> Result:
    """`uncertainty` for anything that embeds images. levels: which strengths of each corruption."""
    test = images.test
    if len(test) == 0 or len(test) == len(images):
        raise UserError(f"uncertainty is measured on test images against training images, and {images.name} has "
                        f"{len(test)} test images of {len(images)}; give data with both.")
    reference = Reference.of(table)
    clean = judge(table.select(table.split == "test"), reference)
    result = {"n_test": len(test), "n_train": len(reference.train), "scores": list(clean.scores), "clean": ranking(clean)}
    result["corruptions"] = {name: corrupted(embed, test, c, clean, reference, seed, levels) for name, c in CORRUPTIONS.items()}
    pair = view_pair(embed, test, views, seed, VIEWS)
    result["partner"] = partner(pair, reference)
    if pair.posterior.radius is not None:
        rows = hashed(torch.arange(len(images.train)), seed, 1)[:, 0].argsort()[:PAIRS]
        training = view_pair(embed, images.train.select(rows), views, seed, TRAINING_VIEWS)
        result["calibration"] = radius_calibration(pair, training)
        result["evidence"] = evidence_calibration(pair, training)
    if reference.probe is not None:
        result["selective"] = selective(clean, reference)
        result["probe_calibration"] = probe_calibration(table, reference)
    return json_able({**result, "skipped": skipped(clean, reference)})


def json_able(value: Any) -> Any:
    """NaN (an AUROC without positives or negatives, say) becomes None: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: json_able(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [json_able(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def skipped(clean: "Judgement", reference: "Reference") -> dict[str, str]:
    """What could not be had, and why."""
    reasons = {}
    if reference.probe is None:
        reasons["r_auroc, selective, negative_entropy, probe_calibration"] = "these need labelled training and test images"
    if clean.seen.certainty is None:
        reasons["certainty"] = "this loss has no certainty: the baselines stand alone"
    if clean.seen.radius is None:
        reasons["calibration, evidence"] = "this loss has no radius"
    return reasons


# --- Scores ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reference:
    """What a query is compared with: the training images (the labelled ones, where there are labels) and their linear probe."""

    train: Embeddings
    probe: ProbeResult | None

    @staticmethod
    def of(table: Embeddings) -> "Reference":
        train, test = table.labelled("train"), table.labelled("test")
        if len(train) == 0 or len(test) == 0 or len(train.labels.unique()) < 2:
            return Reference(table.select(table.split != "test"), None)
        return Reference(train, linear_probe(train.features, train.labels, test.features, test.labels, allow_missing=True))

    def logits(self, seen: Embeddings) -> Tensor | None:
        """(n, classes) of the probe, float64."""
        return None if self.probe is None else seen.features.double() @ self.probe.weight + self.probe.bias


@dataclass(frozen=True)
class Judgement:
    """n images as embedded, how sure each score is of them, and whether the nearest training image has the right class.

    Attributes:
        scores: name -> (n,), higher is surer.
        right: (n,) bool; None without labels.
    """

    seen: Embeddings
    scores: Scores
    right: Tensor | None


def judge(seen: Embeddings, reference: Reference) -> Judgement:
    """Scores of some embedded images, and whether each one's nearest training image has its class."""
    similarity, index = (t[:, 0] for t in top_k(seen.features, reference.train.features, 1))
    scores = {} if seen.certainty is None else {"certainty": seen.certainty}
    scores |= {"neighbour_similarity": similarity, "feature_norm": seen.features.norm(dim=1)}
    if (logits := reference.logits(seen)) is not None:
        scores["negative_entropy"] = -entropy(logits)
    labelled = reference.probe is not None and bool((seen.labels >= 0).all())
    return Judgement(seen, scores, reference.train.labels[index] == seen.labels if labelled else None)


def entropy(logits: Tensor) -> Tensor:
    """Of the softmax, nats. (n, classes) -> (n,)."""
    log_p = logits.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1)


def auroc_of(scores: Scores, positive: Tensor) -> dict[str, float]:
    """AUROC of every score for telling positive rows from the rest."""
    return {name: metrics.auroc(score, positive) for name, score in scores.items()}


def ranking(judged: Judgement) -> Result:
    """R-AUROC (Kirchhof et al. 2023, URL benchmark): does a score predict that the nearest neighbour has the class? And its rate."""
    if judged.right is None:
        return {}
    return {"recall_at_1": float(judged.right.double().mean()), "r_auroc": auroc_of(judged.scores, judged.right)}


# --- Corruptions ----------------------------------------------------------------------------------------------------------------


def corrupted(embed: Embed, images: ImageSet, corruption: Corruption, clean: Judgement, reference: Reference, seed: int,
              levels: slice) -> Result:
    """One corruption, at each level and at strengths drawn for each image ("random": from nothing to the strongest level)."""
    seeds = image_seeds(images, seed, CORRUPTED)

    def at(strength: float | Tensor) -> Judgement:
        return judge(embed(replace(images, images=corruption(images.images, seeds, strength))), reference)

    fixed = [{"strength": strength, **against_whole(at(strength), clean)} for strength in corruption.strengths[levels]]
    strengths = corruption.random_strengths(seeds)
    drawn = at(strengths)
    severity = corruption.severity(strengths)
    spearman = {name: metrics.spearman(score, -severity) for name, score in drawn.scores.items()}
    return {"unit": corruption.unit, "levels": fixed, "random": {**against_whole(drawn, clean), "spearman": spearman}}


def against_whole(judged: Judgement, clean: Judgement) -> Result:
    """The ranking, and the share of images that are strictly less certain than they were whole, by each score."""
    less = {name: float((score < clean.scores[name]).double().mean()) for name, score in judged.scores.items()}
    return {**ranking(judged), "less_certain": less, "mean": {name: float(s.double().mean()) for name, s in judged.scores.items()}}


def image_seeds(images: ImageSet, seed: int, stream: int) -> Tensor:
    """(n,) int64: the row's own."""
    return hashed(torch.arange(len(images)) + (seed << 32), stream, 1)[:, 0]


# --- Two views of an image ------------------------------------------------------------------------------------------------------


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
        """m of the run's kernel; where its loss has none, that of these views: 1 / E[c^2] over different images (theory 3)."""
        return self.seen.kernel_dimension or 1 / float(losses.mean_squared_cosine(self.seen.direction))


def view_pair(embed: Embed, images: ImageSet, views: ViewConfig, seed: int, stream: int) -> Pair:
    """Embed two views of each image (through uint8, as any image would come)."""
    both = to_uint8(two_views(images.images, image_seeds(images, seed, stream), views))
    twice = images.select(np.tile(np.arange(len(images)), 2))
    return Pair(embed(replace(twice, images=both)))


def partner(pair: Pair, reference: Reference) -> Result:
    """Does a view's nearest direction among the other side's n views belong to its own image, and do the scores know?

    Two scores more: the cosine of that nearest view, and max_j s, the evidence for the best match (theory 6).
    """
    a, b = pair.sides()
    similarity, index = (t[:, 0] for t in top_k(a.direction, b.direction, 1))
    own = torch.arange(pair.n)
    scores = {**judge(a, reference).scores, "match_similarity": similarity}
    result: Result = {"n": pair.n, "instance_match": float((index == own).double().mean())}
    if a.radius is not None:
        scores["match_evidence"], by_evidence = best_evidence(a.posterior, b.posterior, pair.kernel_dimension())
        result["instance_match_by_evidence"] = float((by_evidence == own).double().mean())
    return {**result, "auroc": auroc_of(scores, index == own)}


def best_evidence(a: Posterior, b: Posterior, dimension: float, block: int = 512) -> tuple[Tensor, Tensor]:
    """max_j s(u_i, u'_j) in nats and the j, (n,) each."""
    assert a.radius is not None
    parts = [evidence_matrix(Posterior(mu, rho), b, dimension).max(1)
             for mu, rho in zip(a.direction.split(block), a.radius.split(block), strict=True)]
    return torch.cat([p.values for p in parts]), torch.cat([p.indices for p in parts])


# --- Calibration ----------------------------------------------------------------------------------------------------------------


def radius_calibration(pair: Pair, training: Pair) -> Result:
    """E[mu.mu' | r] = r (theory 2): ten bins of equal count, mean absolute difference; raw, and after a map fitted on training pairs.

    Beside it the mean cosine of different images: where it is not 0, the radius has absorbed a base rate.
    """
    r, cosine = pair.radius_and_cosine()
    mapped = metrics.monotone_map(*training.radius_and_cosine())(r)
    return {"n": pair.n, "n_map": training.n, "raw": diagram(metrics.calibration(r, cosine, BINS)),
            "mapped": diagram(metrics.calibration(mapped, cosine, BINS)), "mean_r": float(r.mean()), "mean_cosine": float(cosine.mean()),
            "mean_cosine_different": mean_cosine_different(pair)}


def mean_cosine_different(pair: Pair) -> float:
    """Mean cosine of the two sides' directions over different images, from the sides' sums: O(n)."""
    a, b = (side.direction.double() for side in pair.sides())
    return float((a.sum(0) @ b.sum(0) - (a * b).sum()) / (pair.n * (pair.n - 1)))


def evidence_calibration(pair: Pair, training: Pair) -> Result:
    """Is s really nats? Every view of one side against every view of the other; a pair shows one image with prior odds 1 : n - 1.

    posterior = sigmoid(s - log(n - 1)), raw; and by a monotone map s -> rate fitted on as many training pairs. For each a reliability
    diagram (bins of equal width) and the mean log loss in nats, to be compared with that of knowing only the prior. And the model's
    own diagnostic, log E[exp s] over different images, with its standard error: 0 if the model is true (theory 5).
    """
    n = min(pair.n, training.n, EVIDENCE_IMAGES)
    pair, training = pair.first(n), training.first(n)
    s, s_train = (evidence_of_all(p, p.kernel_dimension()) for p in (pair, training))
    same = torch.eye(n, dtype=torch.bool).flatten()
    raw = torch.sigmoid(s - math.log(n - 1))
    mapped = metrics.monotone_map(s_train, same)(s)
    estimate, error = losses.log_mean_exp_evidence(pair.posterior, pair.kernel_dimension())
    return {"n": n, "kernel_dimension": pair.kernel_dimension(), "kernel_dimension_from": "the run" if pair.seen.kernel_dimension else
            "these views", "log_mean_exp": estimate, "log_mean_exp_standard_error": error,
            "log_loss_prior": log_loss(torch.full_like(raw, 1 / n), same),
            "raw": {**diagram(metrics.calibration(raw, same, BINS, "width")), "log_loss": log_loss(raw, same)},
            "mapped": {**diagram(metrics.calibration(mapped, same, BINS, "width")), "log_loss": log_loss(mapped, same)}}


def evidence_of_all(pair: Pair, dimension: float) -> Tensor:
    """(n n,) float64 nats: s of every first view with every second view."""
    a, b = pair.sides()
    return evidence_matrix(a.posterior, b.posterior, dimension).double().flatten()


def log_loss(probability: Tensor, outcome: Tensor, smallest: float = 1e-9) -> float:
    """- mean log(probability of what happened), nats; probabilities within `smallest` of 0 and 1 count as that."""
    right = torch.where(outcome, probability, 1 - probability)
    return float(-right.clamp(min=smallest).log().mean())


def diagram(found: metrics.Calibration) -> Result:
    """Plain lists of a reliability diagram."""
    return {"error": found.error, **{name: getattr(found, name).tolist() for name in ("count", "predicted", "observed")}}


def probe_calibration(table: Embeddings, reference: Reference) -> Result:
    """ECE (15 bins) of the linear probe on features, and of one on the posterior mean u, which is averaged over what a view leaves open."""
    assert reference.probe is not None
    train, test = reference.train, table.labelled("test")
    probes = {"features": reference.probe}
    if table.radius is not None:
        probes["posterior_mean"] = linear_probe(train.posterior.mean, train.labels, test.posterior.mean, test.labels, allow_missing=True)
    return {name: {"accuracy": probe.accuracy, "ece": metrics.ece(probe.probabilities, columns(probe, test.labels))}
            for name, probe in probes.items()}


def columns(probe: ProbeResult, labels: Tensor) -> Tensor:
    """(m,) the probe's column of each label; -1 where it has none (such a row is always wrong)."""
    matches = labels[:, None] == probe.classes
    return torch.where(matches.any(1), matches.long().argmax(1), -1)


# --- Selective prediction -------------------------------------------------------------------------------------------------------


def selective(clean: Judgement, reference: Reference) -> Result:
    """If the classifier may abstain: error among the surest, and its area, of kNN and of the linear probe, for each score.

    Beside the scores: `random` (the error rate itself) and `best` (every error last), between which they lie if they know anything.
    """
    known = torch.from_numpy(np.flatnonzero(clean.seen.labels.numpy() >= 0))
    scores = {name: score[known] for name, score in clean.scores.items()}
    return {name: abstaining(right[known], scores) for name, right in classified(clean.seen, reference).items()}


def classified(seen: Embeddings, reference: Reference) -> dict[str, Tensor]:
    """(n,) bool by classifier: was it right?"""
    train, probe, logits = reference.train, reference.probe, reference.logits(seen)
    assert probe is not None and logits is not None
    similarity, index = top_k(seen.features, train.features, min(NEIGHBOURS, len(train)))
    voted = vote(similarity, train.labels[index], len(train.classes))
    return {"knn": voted == seen.labels, "linear": probe.classes[logits.argmax(1)] == seen.labels}


def abstaining(right: Tensor, scores: Scores) -> Result:
    """Error rate, area under the risk-coverage curve, and twenty points of that curve, of each score."""
    error = 1 - float(right.double().mean())
    area = {name: metrics.aurc(score, right) for name, score in scores.items()}
    curves = {name: thinned(metrics.risk_coverage(score, right)[1]) for name, score in scores.items()}
    return {"error": error, "aurc": {**area, "random": error, "best": metrics.aurc(right.double(), right)},
            "coverage": [(i + 1) / CURVE for i in range(CURVE)], "risk": curves}


def thinned(risk: Tensor) -> list[float]:
    """The risk at coverage 1/20, 2/20, ..., 1."""
    return [float(risk[max(1, round(len(risk) * (i + 1) / CURVE)) - 1]) for i in range(CURVE)]
