"""Classifiers that give a class and a calibrated probability to new images.

Two kinds learn from the frozen features of a run: the linear probe (L2 logistic regression), which
is kept in the run folder, and the vote of the nearest labelled images. The vote by evidence
(evidence_vote.py) is a third kind, and a fine-tuned network, which `finetuning.store` loads, a
fourth.

The probabilities are calibrated by temperature scaling (Guo et al. 2017): the logits z become
softmax(z / T), and one number T is chosen on labelled images that the logits were not fitted on.
"""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from sureclr.data.embeddings import Embeddings
from sureclr.data.image_set import ImageSet
from sureclr.errors import UserError
from sureclr.evaluation.neighbour_vote import VOTERS
from sureclr.evaluation.probes import linear_probe
from sureclr.evaluation.results import Interval, Number, Provenance
from sureclr.files import (
    digest_of_bytes,
    json_bytes,
    make_folder,
    read_json,
    read_safetensors,
    remove,
    sealed,
    unsealed,
    why,
    write_atomically,
)
from sureclr.maths.inputs import rows_not_finite
from sureclr.maths.metrics import wilson_interval
from sureclr.maths.neighbours import PLAIN, Unit, top_k
from sureclr.schema import from_json

if TYPE_CHECKING:
    from sureclr.evaluation.session import Session

METHOD = "linear probe and temperature, 1"  # raise it when a kept classifier would be another one
FOLDS = 5  # of the cross-validation
ONE_FOLD_FROM = 5000  # labels: from here on one fifth is held out once, which is enough for T
LEAST_HELD_OUT = 20  # images from which a temperature is fitted
ROWS_AT_ONCE = 4096  # whose features exist in float64 at the same time
MOST_HELD_OUT = 5000  # images on which kNN and a fine-tuned network are calibrated
VOTE_TEMPERATURE = 0.1  # of the neighbours' weights, as in neighbour_vote
# Share that each class has besides its votes. Of .001, .01, .03, .1 and .3 it had the least loss
# and calibration error with 50 to 5,000 labels (CIFAR-10, 2 epochs, 2,000 test images)
VOTE_FLOOR = 0.03
SAME = 1e-5  # difference of features, relative to their length, that is rounding
LOW, HIGH = 1e-2, 1e2  # between which T is sought


@dataclass(frozen=True)
class ClassifierFacts:
    """What is known of a classifier.

    Attributes:
        name: linear, knn, evidence or finetuned.
        classes: names of the classes that it can answer.
        n_train: labelled images that it learned from; 0 where that is not known.
        n_test: labelled test images, which it did not learn from.
        accuracy: on these test images; None where there are none.
        interval: its 95 % interval, Wilson's.
        n_held_out: labelled images on which the temperature was fitted.
        held_out_accuracy: accuracy on these; for linear and knn, of classifiers that did not learn
            from them.
        temperature: T of the probabilities, softmax(logits / T); 1 where it was not fitted.
        calibration: how the temperature was found, or why it was not, as a sentence.
        evidence_temperature: by what the classifier `evidence` divides the evidence of each image;
            None for the others.
    """

    name: str
    classes: tuple[str, ...]
    n_train: int
    n_test: int
    accuracy: Number
    interval: Interval | None
    n_held_out: int
    held_out_accuracy: Number
    temperature: float
    calibration: str
    evidence_temperature: Number = None


@dataclass(frozen=True, eq=False)
class FittedClassifier:
    """A classifier, ready for use.

    Attributes:
        logits: (n images, their n embeddings) -> (n, K) logits before the temperature.
        facts: what is known of it; `facts.classes` names the K columns.
        tempered_on_test: whether the temperature was fitted on test images.
    """

    logits: Callable[[ImageSet, Embeddings], Tensor]
    facts: ClassifierFacts
    tempered_on_test: bool = False

    def probabilities(self, images: ImageSet, table: Embeddings) -> Tensor:
        """Return the calibrated probability of each class, (n, K) float64."""
        return (self.logits(images, table).double() / self.facts.temperature).softmax(1)

    def without_test_images(self, probabilities: Tensor) -> Tensor:
        """Return these probabilities (n, K) as they are if nothing was fitted on test images."""
        if not self.tempered_on_test:
            return probabilities
        return (probabilities.log() * self.facts.temperature).softmax(1)


class Network(Protocol):
    """A network that classifies images by itself, such as `finetuning.store.Finetuned`."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the columns of `probabilities`."""

    def probabilities(self, images: Any, /) -> Tensor:
        """Return the probability of each class, (n, K)."""


# --- Temperature scaling --------------------------------------------------------------


def calibration_loss(logits: Tensor, target: Tensor, temperature: float) -> float:
    """Return the mean of -sum_k q_k log softmax(logits / T)_k, in nats.

    The true class has q = (n + 1) / (n + K) and each other class 1 / (n + K), where n is the number
    of rows and K that of the classes (Laplace's rule of succession). So no number of right answers
    leads to certainty, and a few of them stay modest.

    Args:
        logits: (n, K).
        target: (n,) int64 columns.
        temperature: T, above 0.
    """
    log_p = (logits.double() / temperature).log_softmax(1)
    return float(-(_smoothed(target, logits.shape[1]) * log_p).sum(1).mean())


def fit_temperature(logits: Tensor, target: Tensor) -> float:
    """Return the temperature T in [0.01, 100] with the least `calibration_loss`.

    The loss is convex in 1 / T, so the sign of its slope says on which side the minimum is.

    Args:
        logits: (n, K) of images that they were not fitted on.
        target: (n,) int64 columns.
    """
    z = logits.double()
    wanted = (_smoothed(target, z.shape[1]) * z).sum(1)
    low, high = math.log(1 / HIGH), math.log(1 / LOW)  # of log(1 / T)
    for _ in range(60):
        middle = (low + high) / 2
        p = (math.exp(middle) * z).softmax(1)
        slope = ((p * z).sum(1) - wanted).mean()
        low, high = (low, middle) if slope > 0 else (middle, high)
    return math.exp(-(low + high) / 2)


def _smoothed(target: Tensor, classes: int) -> Tensor:
    n = len(target)
    return (functional.one_hot(target, classes).double() * n + 1) / (n + classes)


def calibration_facts(logits: Tensor, target: Tensor, how: str) -> dict[str, Any]:
    """Return four fields of `ClassifierFacts`: what is known from held-out images.

    Args:
        logits: (n, K) of held-out images.
        target: (n,) their columns; -1, which no answer can be, for a class without a column.
        how: what the temperature is fitted on, as the end of a sentence.
    """
    n, known = len(target), target >= 0
    right = float((logits.argmax(1) == target).double().mean()) if n else None
    if int(known.sum()) < LEAST_HELD_OUT:
        temperature = 1.0
        words = (
            f"the probabilities are not calibrated, because {int(known.sum())} labelled images"
            f" could be held out and {LEAST_HELD_OUT} are needed"
        )
    else:
        temperature = fit_temperature(logits[known], target[known])
        words = f"the temperature was fitted on {how}"
    return {
        "n_held_out": n,
        "held_out_accuracy": right,
        "temperature": temperature,
        "calibration": words,
    }


# --- The classifiers ------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Gallery:
    """The images of a table that are not of its test split, whose features exist only once here.

    Attributes:
        others: those images, (n,): first those with a label, then the others, each in the order of
            the table.
        rows: (n,) int64, their rows in the table.
        known: how many have a label.
    """

    others: Embeddings
    rows: NDArray[np.int64]
    known: int

    @staticmethod
    def of(table: Embeddings) -> "Gallery":
        """Return the gallery of a table."""
        known = learning_rows(table)
        unknown = np.flatnonzero((table.split != "test") & (table.labels.numpy() < 0))
        rows = np.concatenate([known, unknown])
        return Gallery(table.select(rows), rows, len(known))

    @property
    def labelled(self) -> Embeddings:
        """The images that a classifier may learn from."""
        return self.others.select(np.arange(self.known))  # neighbouring rows are not copied


def learning_rows(table: Embeddings) -> NDArray[np.int64]:
    """Return the rows (l,) of labelled images that a classifier may learn from: all but test's."""
    return np.flatnonzero((table.split != "test") & (table.labels.numpy() >= 0))


def fit_linear(table: Embeddings, source: str, seed: int = 0) -> tuple[Tensor, ClassifierFacts]:
    """Fit a linear probe on the labelled images of a table and calibrate it.

    The temperature is fitted on logits of labelled images that the probe did not learn from: five
    probes on four fifths of them, or one such probe where there are 5,000 labels or more. The
    images of a class with a single label are never held out.

    Args:
        table: the embeddings; labelled images of its test split are for testing alone.
        source: the name of the images, for error messages.
        seed: of the folds.

    Returns:
        Weight and bias for raw features, (f + 1, K) float64, the bias in the last row; and what is
        known of the classifier.

    Raises:
        UserError: there are no labelled images, or only one class.
    """
    rows = learning_rows(table)
    check_learning(table, rows, source)
    labels = table.labels[torch.from_numpy(rows)]

    def features(which: Tensor) -> Tensor:
        """Those of some of the rows: a copy, and so never kept."""
        return table.features[torch.from_numpy(rows)[which]]

    # One row suffices: the accuracy on rows that it learned from tells nothing
    some = torch.arange(len(rows)) < 1
    every = torch.ones_like(some)
    probe = linear_probe(features(every), labels, features(some), labels[some], seed=seed)
    logits, target = [], []
    target_of = torch.searchsorted(probe.classes, labels)
    fold = _folds(labels, seed)
    for k in range(1 if len(rows) >= ONE_FOLD_FROM else FOLDS):
        out = fold == k
        if out.any():
            part = linear_probe(
                features(~out),
                labels[~out],
                features(out),
                labels[out],
                strengths=[probe.strength],
            )
            logits.append(part.logits)
            target.append(target_of[out])
    calibration = calibration_facts(
        torch.cat(logits) if logits else torch.empty(0, len(probe.classes)),
        torch.cat(target) if target else target_of[:0],
        "a fifth of the labelled images, which was held out"
        if len(rows) >= ONE_FOLD_FROM
        else "the labelled images, each held out once (cross-validation in five parts)",
    )
    parameters = torch.cat([probe.weight, probe.bias[None]])
    tested = tested_in_parts(
        table, lambda part: probe.classes[_linear_logits(part.features, parameters).argmax(1)]
    )
    facts = ClassifierFacts(
        "linear",
        class_names(table, probe.classes),
        len(rows),
        **tested,
        **calibration,
    )
    return parameters, facts


def tested_in_parts(table: Embeddings, answer: Callable[[Embeddings], Tensor]) -> dict[str, Any]:
    """Return `_tested` of the labelled test images of a table, which are answered part by part.

    Args:
        table: the embeddings.
        answer: q of the images -> the class of each, (q,) int64 as in the table's labels.
    """
    rows = table.labelled_rows("test")
    parts = [rows[start : start + ROWS_AT_ONCE] for start in range(0, len(rows), ROWS_AT_ONCE)]
    answers = [answer(table.select(part)) for part in parts]
    labels = table.labels[torch.from_numpy(rows)]
    return _tested(torch.cat(answers) if answers else labels, labels)


def _tested(answers: Tensor, labels: Tensor) -> dict[str, Any]:
    """Return three fields of `ClassifierFacts`: what is known from test images.

    Args:
        answers: (m,) what the classifier answered.
        labels: (m,) the true classes, in the same numbers; one that it does not know is an error.
    """
    m, right = len(labels), int((answers == labels).sum())
    accuracy, interval = (right / m, wilson_interval(right, m)) if m else (None, None)
    return {"n_test": m, "accuracy": accuracy, "interval": interval}


def _folds(labels: Tensor, seed: int) -> Tensor:
    """Return the fold of each row, (n,) int64: classes are spread evenly; a single row has -1."""
    fold = torch.full((len(labels),), -1)
    generator = torch.Generator().manual_seed(seed)
    for label in labels.unique():
        rows = (labels == label).nonzero()[:, 0]
        if len(rows) > 1:
            order = rows[torch.randperm(len(rows), generator=generator)]
            fold[order] = torch.arange(len(rows)) % FOLDS
    return fold


def check_learning(table: Embeddings, rows: NDArray[np.int64], source: str) -> None:
    """Raise a UserError where no classifier can learn from the labelled images in these rows."""
    if len(rows) == 0:
        raise UserError(
            f"a classifier needs labelled images, and {source} has none that it may learn from;"
            " give a label file with labels=, or other labelled images with data=."
        )
    present = table.labels[torch.from_numpy(rows)].unique()
    if len(present) < 2:
        raise UserError(
            f"all {len(rows)} labelled images of {source} belong to the class"
            f" {table.classes[int(present[0])]!r}; label images of at least two classes."
        )
    parts = torch.from_numpy(rows).split(ROWS_AT_ONCE)
    if bad := sum(rows_not_finite(table.features[at]) for at in parts):
        raise UserError(
            f"features must be finite, and those of {bad} of {len(rows)} labelled images are not;"
            " check whether the encoder has diverged."
        )


def class_names(table: Embeddings, classes: Tensor) -> tuple[str, ...]:
    """Return the names of some of the classes of a table."""
    return tuple(table.classes[k] for k in classes.tolist())


def linear_classifier(parameters: Tensor, facts: ClassifierFacts) -> FittedClassifier:
    """Return the classifier of (f + 1, K) parameters, the bias in the last row."""
    return FittedClassifier(
        lambda images, table: torch.cat(
            [_linear_logits(rows, parameters) for rows in table.features.split(ROWS_AT_ONCE)]
        ),
        facts,
    )


def _linear_logits(features: Tensor, parameters: Tensor) -> Tensor:
    return features.double().cpu() @ parameters[:-1] + parameters[-1]


def knn_classifier(
    table: Embeddings,
    source: str,
    gallery: Gallery | None = None,
    unit: Unit = PLAIN,
) -> FittedClassifier:
    """Return the vote of the 20 nearest labelled images (Wu et al. 2018) with probabilities.

    Each neighbour has the weight exp(cosine / 0.1). The logits are the logarithms of the classes'
    shares of these weights, plus 0.03 for each class. The temperature is fitted on
    the labelled images (at most 5,000), each of which does not vote on itself.

    Args:
        table: the embeddings; labelled images of its test split are for testing alone.
        source: the name of the images, for error messages.
        gallery: that of the table, if it exists already.
        unit: what brings features to length 1 before they are compared, as in `neighbours.top_k`.

    Raises:
        UserError: there are no labelled images, or only one class.
    """
    check_learning(table, learning_rows(table), source)
    train = (gallery or Gallery.of(table)).labelled
    present, target = train.labels.unique(return_inverse=True)
    k = min(VOTERS, len(train))

    def logits(images: ImageSet | None, queries: Embeddings) -> Tensor:
        similarity, rows = top_k(queries.features, train.features, k, unit=unit)
        return vote_logits(similarity, target[rows], len(present))

    some = spread_rows(len(train))
    similarity, rows = neighbours_without(train.features[some], some, train.features, k, unit)
    calibration = calibration_facts(
        vote_logits(similarity, target[rows], len(present)),
        target[some],
        "labelled images that did not vote on themselves",
    )
    tested = tested_in_parts(table, lambda part: present[logits(None, part).argmax(1)])
    facts = ClassifierFacts("knn", class_names(table, present), len(train), **tested, **calibration)
    return FittedClassifier(logits, facts)


def vote_logits(similarity: Tensor, classes_of_neighbours: Tensor, classes: int) -> Tensor:
    """Return the logarithms of the shares of the votes, (n, classes) float64, plus the floor.

    Args:
        similarity: (n, k) cosines.
        classes_of_neighbours: (n, k) int64 in [0, classes).
        classes: how many there are.
    """
    if similarity.shape[1] == 0:
        return torch.zeros(len(similarity), classes, dtype=torch.float64)
    best = similarity.amax(1, keepdim=True)  # a factor common to a row, against overflow
    weight = torch.exp((similarity - best).double() / VOTE_TEMPERATURE)
    share = weight.new_zeros(len(similarity), classes)
    share.scatter_add_(1, classes_of_neighbours, weight / weight.sum(1, keepdim=True))
    return (share + VOTE_FLOOR).log()


def network_classifier(
    network: Network, images: ImageSet, table: Embeddings, name: str = "finetuned"
) -> FittedClassifier:
    """Return the classifier of a network that has learned already, such as a fine-tuned one.

    Its logits are the logarithms of its probabilities. The temperature is fitted on labelled test
    images (at most 5,000), which does not change the accuracy on them; without 20 of these the
    probabilities stay those of the network.

    Args:
        network: has `classes` and `probabilities(images)`.
        images: the run's images, with their labels.
        table: their embeddings.
        name: of the classifier.
    """

    def logits(part: ImageSet, _: Embeddings) -> Tensor:
        return network.probabilities(part).double().clamp(min=1e-12).log()

    rows = table.labelled_rows("test")
    test = images.select(rows[spread_rows(len(rows)).numpy()])
    scores, target = torch.empty(0, len(network.classes)), torch.empty(0, dtype=torch.int64)
    if len(test):
        column = {c: k for k, c in enumerate(network.classes)}
        columns = torch.tensor([column.get(c, -1) for c in images.classes], dtype=torch.int64)
        scores, target = logits(test, table), columns[test.labels]
    tested = _tested(scores.argmax(1), target)
    calibration = calibration_facts(scores, target, "labelled test images")
    record = getattr(network, "record", None)
    learned = int(getattr(record, "n_labels", 0))
    facts = ClassifierFacts(name, tuple(network.classes), learned, **tested, **calibration)
    return FittedClassifier(logits, facts, tempered_on_test=True)


# --- Neighbours -----------------------------------------------------------------------


def spread_rows(n: int, most: int = MOST_HELD_OUT) -> Tensor:
    """Return at most so many of n rows, evenly spread."""
    return torch.arange(n)[:: max(1, math.ceil(n / most))]


def neighbours_without(
    queries: Tensor,
    excluded: Tensor,
    keys: Tensor,
    k: int,
    unit: Unit = PLAIN,
) -> tuple[Tensor, Tensor]:
    """Return the nearest keys of each query, without one key that it must not find.

    Args:
        queries: (q, f).
        excluded: (q,) int64 row of the key, or -1.
        keys: (n, f).
        k: number of neighbours; fewer where there are not so many others.
        unit: as in `neighbours.top_k`.

    Returns:
        Cosine (q, j) and row (q, j) int64, best first, j = min(k, n), or min(k, n - 1) where a
        query must not find a key.
    """
    some_excluded = bool((excluded >= 0).any())
    wanted = min(k, len(keys) - some_excluded)
    if wanted < 1:
        return queries.new_empty(len(queries), 0), excluded.new_empty(len(queries), 0)
    if not some_excluded:
        return top_k(queries, keys, wanted, unit=unit)
    similarity, rows = top_k(queries, keys, wanted + 1, unit=unit)
    hit = rows == excluded[:, None]
    # The last one goes where the excluded key is not among them; a stable sort keeps the order
    hit[~hit.any(1), -1] = True
    order = hit.to(torch.uint8).sort(dim=1, stable=True).indices[:, :wanted]
    return similarity.gather(1, order), rows.gather(1, order)


def itself_among(features: Tensor, others: Tensor) -> Tensor:
    """Return which row of others (n, f) each row of features (q, f) is, up to rounding; else -1."""
    _, rows = neighbours_without(features, torch.full((len(features),), -1), others, 1)
    if rows.shape[1] == 0:
        return torch.full((len(features),), -1)
    distance, length = (  # float64, in which no square overflows
        torch.linalg.vector_norm(x, dim=1, dtype=torch.float64)
        for x in (features - others[rows[:, 0]], features)
    )
    return torch.where(distance <= SAME * length, rows[:, 0], -1)


# --- The classifier that is kept ------------------------------------------------------


@dataclass(frozen=True)
class KeptClassifier:
    """What classifiers/linear-ORIGIN.json in the run folder holds.

    Attributes:
        file: name of the file of the parameters, beside it.
        parameters_sha256: of that file.
        facts: what is known of the classifier.
        provenance: the checkpoint, images and labels that it was made of.
    """

    file: str
    parameters_sha256: str
    facts: ClassifierFacts
    provenance: Provenance


def kept_linear(session: "Session", *, again: bool = False) -> FittedClassifier:
    """Return the run's linear classifier: the kept one of the same origin, else a new one.

    It is kept as classifiers/linear-ORIGIN.json and .safetensors (one tensor `parameters`, weight
    above bias), where ORIGIN stands for the checkpoint, the images and the labels. Those of another
    checkpoint are deleted.

    Args:
        session: an open session, whose images and labels the classifier learns from.
        again: fit it anew in any case.

    Raises:
        UserError: there are no labelled images, or only one class.
    """
    provenance = replace(session.provenance(0.0), options={"method": METHOD})
    words = (METHOD, provenance.checkpoint, provenance.images, provenance.labels)
    origin = digest_of_bytes(json.dumps(words).encode())[:16]
    folder = session.run.results_folder / "classifiers"
    path = session.run.stored(f"classifiers/linear-{origin}.json")
    if not again and path.is_file():
        try:
            return _read_kept(path, provenance, session.inputs.table.features.shape[1])
        except (OSError, ValueError, KeyError, RecursionError) as error:
            reason = " ".join(str(error).split())
            session.progress.message(f"{path} cannot be used ({reason}); it is made anew.")
    session.progress.begin("Fitting the linear classifier", 1)
    try:
        parameters, facts = fit_linear(
            session.inputs.table, session.catalogue.name, session.run.config.seed
        )
    finally:
        session.progress.finish()
    if session.run.not_kept:
        return linear_classifier(parameters, facts)
    from safetensors.torch import save

    data = save({"parameters": parameters.contiguous()})
    kept = KeptClassifier(
        f"linear-{origin}.safetensors", hashlib.sha256(data).hexdigest(), facts, provenance
    )
    try:
        make_folder(folder)
        _delete_outdated(session, provenance.checkpoint)
        write_atomically(folder / kept.file, data)
        write_atomically(folder / path.name, json_bytes(sealed(kept, path.name)))
    except OSError as error:
        session.progress.message(
            f"The classifier could not be kept in {folder} ({why(error)}); it is used all the same."
        )
    return linear_classifier(parameters, facts)


def _read_kept(path: Path, provenance: Provenance, features: int) -> FittedClassifier:
    """Return a kept classifier of so many features.

    Raises:
        ValueError, KeyError, OSError: it is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    kept = _read_record(path)
    if not kept.provenance.same_origin(provenance):
        raise ValueError("it is of another origin than its name says")
    data = read_safetensors(path.with_suffix(".safetensors"))
    if hashlib.sha256(data).hexdigest() != kept.parameters_sha256:
        raise ValueError("its parameters do not match their sha256")
    try:
        parameters = load(data)["parameters"]
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    shape = (features + 1, len(kept.facts.classes))
    if (
        parameters.shape != shape
        or parameters.dtype != torch.float64
        or not parameters.isfinite().all()
    ):
        raise ValueError("its parameters have another shape or type, or are not finite")
    return linear_classifier(parameters, kept.facts)


def _read_record(path: Path) -> KeptClassifier:
    """Return what the JSON of a kept classifier holds; OSError or ValueError if it is damaged."""
    return from_json(KeptClassifier, unsealed(read_json(path), path.name))


def _delete_outdated(session: "Session", checkpoint: str) -> None:
    for old in (session.run.results_folder / "classifiers").glob("linear-*.json"):
        try:
            made = _read_record(old).provenance.checkpoint
        except (OSError, ValueError, RecursionError):
            made = ""
        if made != checkpoint:
            remove(old.with_suffix(".safetensors"))
            remove(old)
