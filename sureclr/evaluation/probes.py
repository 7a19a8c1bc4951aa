"""The linear probe: logistic regression on frozen features (linear evaluation).

The strength of its penalty is chosen on a split of the training images, never on test images.
Features are standardised with the mean and the deviation of the training rows. Objective and solver
are those of maths/logistic.py.

Strengths are tried from the strongest to the weakest, each fit starting where the one before ended.
Weaker ones are left out once two strengths in a row have not brought a better accuracy on the
held-out rows and the loss there has risen with both: the probe begins to learn by heart. That
cannot happen before the best accuracy is above that of always naming the commonest class by two of
its standard errors: below it, the penalty may still hide what there is to see. A rule that stopped
after either of the two signs cost 0.15 points of test accuracy on synthetic tables whose classes
lie in directions of small variance (the mean of 103; 3.3 in the worst).

Where fewer than LEAST_HELD_OUT rows are held out, all strengths are tried: on so few rows an
accuracy rests by chance, and that rule would lose 3.2 points there (the mean of 75 tables).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from sureclr.config import check_seed
from sureclr.data.counter_rng import sample_rows
from sureclr.data.embeddings import Embeddings
from sureclr.errors import UserError
from sureclr.evaluation.results import (
    BaselineIntervals,
    Baselines,
    BlockProbe,
    Interval,
    LinearResult,
    PosteriorProbe,
)
from sureclr.evaluation.tables import class_numbers, finite_or_none, labelled_split
from sureclr.maths.inputs import above, check_tensor, checked_count, rows_not_finite
from sureclr.maths.logistic import (
    LogisticObjective,
    Solution,
    blocks_of_rows,
    check_penalty,
    minimise,
    standardisation,
)
from sureclr.maths.metrics import wilson_interval
from sureclr.maths.sphere import at_least_float32

if TYPE_CHECKING:
    from sureclr.evaluation.inputs import EvaluationInputs

STRENGTHS = tuple(10.0**p for p in range(-6, 2))
LEAST_HELD_OUT = 150  # rows; with fewer, every strength is tried
BLOCK_NUMBERS = 1 << 28  # outputs of all blocks that exist at once: 1 GiB in float32
LEAST_TRAINING = 1000  # training images of a sample, however wide the encoder


@dataclass(frozen=True)
class ProbeResult:
    """A linear probe and its only evaluation on the test rows.

    Attributes:
        accuracy: share of the test rows whose class it names.
        interval: its 95 % interval, Wilson's.
        strength: of the penalty, chosen on a split of the training rows.
        strengths: those that were tried, ascending, with their accuracy on the held-out training
            rows; NaN if no class had two rows to split, and then the middle strength is used.
        not_tried: why weaker strengths were left out, or "".
        iterations: of the last fit, on all training rows, as the next three (see `Solution`).
        converged: whether that fit reached its tolerance.
        gradient: norm of its gradient, relative to the start.
        objective: its value in nats.
        classes: (K,) int64, the label of each column.
        logits: (m, K) float64, of the test rows.
        weight: (f, K), for raw features: logits = features @ weight + bias.
        bias: (K,).
        n_train: number of training rows.
    """

    accuracy: float
    interval: Interval
    strength: float
    strengths: tuple[tuple[float, float], ...]
    not_tried: str
    iterations: int
    converged: bool
    gradient: float
    objective: float
    classes: Tensor
    logits: Tensor
    weight: Tensor
    bias: Tensor
    n_train: int

    @property
    def probabilities(self) -> Tensor:
        """(m, K), the softmax of the test logits."""
        return self.logits.softmax(1)

    @property
    def predictions(self) -> Tensor:
        """(m,) int64, the most likely label of each test row."""
        return self.classes[self.logits.argmax(1)]

    def cpu(self) -> "ProbeResult":
        """Return the same probe in main memory."""
        tensors = {n: getattr(self, n).cpu() for n in ("classes", "logits", "weight", "bias")}
        return replace(self, **tensors)

    def numbers(self) -> dict[str, Any]:
        """Return the fields of a `ProbeScore`."""
        return {
            "accuracy": self.accuracy,
            "interval": self.interval,
            "strength": self.strength,
            "strengths": tuple((s, finite_or_none(value)) for s, value in self.strengths),
            "not_tried": self.not_tried,
            "converged": self.converged,
            "n_train": self.n_train,
            "n_test": len(self.logits),
            "features": len(self.weight),
        }


def linear_probe(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    *,
    strengths: Sequence[float] = STRENGTHS,
    seed: int = 0,
    validation: float = 0.2,
    tolerance: float = 1e-4,
    max_iterations: int = 500,
) -> ProbeResult:
    """Fit a linear probe and evaluate it once on the test rows.

    The strength of the penalty is chosen on a stratified split of the training rows; then the probe
    is fitted on all of them. Test rows of a class without a training row count as wrong, because
    the probe cannot name it.

    Args:
        train_x: (n, f), any type of numbers, on the device that does the work.
        train_y: (n,) int64 labels, 0 or more.
        test_x: (m, f), on the same device.
        test_y: (m,) int64 labels, 0 or more.
        strengths: of the penalty, to choose from; the strongest of equally accurate ones is chosen.
            A single one is used as it is. The module's docstring says when weaker ones are left
            out.
        seed: of the split.
        validation: share of each class that is held out, between 0 and 1.
        tolerance: on the norm of the gradient, relative to its start.
        max_iterations: of L-BFGS, in each fit.

    Raises:
        UserError: a row has no label or features that are not finite, there is only one class, or
            a strength is not above 0.
    """
    tensors = {"train_x": train_x, "train_y": train_y, "test_x": test_x, "test_y": test_y}
    for name, x in tensors.items():
        check_tensor(name, x)
    train_x, test_x = _on_wide_device(train_x), _on_wide_device(test_x)
    train_y, test_y = train_y.to(train_x.device), test_y.to(test_x.device)
    check_rows(train_x, train_y, test_x, test_y)
    check_penalty(strengths)
    above("tolerance", tolerance, 0)
    checked_count("max_iterations", max_iterations)
    if not 0 < validation < 1:
        raise UserError(f"validation must lie between 0 and 1, not {validation}; try 0.2.")
    check_seed(seed)
    classes, target = train_y.unique(return_inverse=True)
    x = torch.empty_like(train_x)  # the only copy of the features
    grid = Grid(tuple(sorted(strengths)), tolerance, max_iterations)
    generator = torch.Generator().manual_seed(seed)
    end = grid.walk(x, train_x, target, stratified_split(target, validation, generator))
    mean, scale = standardise(x.copy_(train_x), len(x))
    fit = minimise(
        LogisticObjective(x, target, [end.strength]),
        tolerance,
        max_iterations,
        end.start(mean, scale),
    )
    weight, bias = for_raw_features(fit, mean, scale)
    logits = _logits(test_x, weight, bias)
    correct = int((classes[logits.argmax(1)] == test_y).sum())
    return ProbeResult(
        accuracy=correct / len(test_y),
        interval=wilson_interval(correct, len(test_y)),
        strength=end.strength,
        strengths=end.tried,
        not_tried=end.not_tried,
        iterations=fit.iterations,
        converged=bool(fit.converged[0]),
        gradient=float(fit.gradient[0]),
        objective=float(fit.objective[0]),
        classes=classes,
        logits=logits,
        weight=weight,
        bias=bias,
        n_train=len(train_x),
    )


def stratified_split(target: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Return which rows are held out, (n,) bool.

    From each class it is the rounded share, at least one row and never all; a class of one row
    gives none.

    Args:
        target: (n,) int64 classes.
        share: of each class.
        generator: of the choice, on the CPU.
    """
    held_out = torch.zeros(len(target), dtype=torch.bool)
    for label in target.cpu().unique():
        rows = (target.cpu() == label).nonzero().squeeze(1)
        count = min(max(round(share * len(rows)), 1), len(rows) - 1)
        held_out[rows[torch.randperm(len(rows), generator=generator)[:count]]] = True
    return held_out.to(target.device)


def _on_wide_device(features: Tensor) -> Tensor:
    # Apple's GPU has no float64
    return at_least_float32(features.cpu() if features.device.type == "mps" else features)


def _logits(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.cat([rows.double() @ weight + bias for rows in blocks_of_rows(features)])


def standardise(x: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Standardise all rows (m, f) in place by the first n; return mean and deviation, (f,) each."""
    mean, scale = standardisation(x[:n])
    x.sub_(mean).div_(scale)
    return mean, scale


def for_raw_features(fit: Solution, mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight (f, K) and bias (K,) for features before they were standardised with these."""
    weight = fit.weight[0] / scale.double()[:, None]
    return weight, fit.bias[0] - mean.double() @ weight


# --- The grid of strengths ------------------------------------------------------------


@dataclass(frozen=True)
class WalkEnd:
    """Where a walk over the strengths ended.

    Attributes:
        strength: the chosen one.
        tried: see `ProbeResult.strengths`.
        not_tried: see `ProbeResult.not_tried`.
        weight: (f, K) of the fit at the chosen strength, for raw features; None: there was none.
        bias: (K,) of it.
    """

    strength: float
    tried: tuple[tuple[float, float], ...]
    not_tried: str = ""
    weight: Tensor | None = None
    bias: Tensor | None = None

    def start(self, mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return weight and bias for features that are standardised with these, or None."""
        if self.weight is None or self.bias is None:
            return None
        return self.weight * scale.double()[:, None], self.bias + mean.double() @ self.weight


@dataclass(frozen=True)
class Grid:
    """Strengths to choose from, ascending, and how exactly each is fitted."""

    strengths: tuple[float, ...]
    tolerance: float
    max_iterations: int

    def walk(self, room: Tensor, features: Tensor, target: Tensor, held_out: Tensor) -> WalkEnd:
        """Fit strength after strength on the rows that are not held out, and choose one.

        Args:
            room: (n, f), for the standardised features; it is overwritten.
            features: (n, f).
            target: (n,) classes from 0.
            held_out: (n,) bool.
        """
        if len(self.strengths) == 1 or not held_out.any():
            nothing = tuple((strength, math.nan) for strength in self.strengths)
            return WalkEnd(choose_strength(*zip(*nothing, strict=True)), nothing)
        order = held_out.long().argsort(stable=True)  # held-out rows come last
        torch.index_select(features, 0, order, out=room)
        n, target = len(order) - int(held_out.sum()), target[order]
        mean, scale = standardise(room, n)
        truth, why = target[n:], ""
        tried: list[tuple[float, float, float]] = []
        fits: list[Solution] = []
        commonest = float((truth == target[:n].bincount().argmax()).double().mean())
        chance = commonest + 2 * math.sqrt(commonest * (1 - commonest) / len(truth))
        objective = LogisticObjective(room[:n], target[:n], self.strengths[-1:])
        for strength in reversed(self.strengths):
            start = (fits[-1].weight[0], fits[-1].bias[0]) if fits else None
            at = objective.with_strengths([strength])
            fits.append(minimise(at, self.tolerance, self.max_iterations, start))
            logits = _logits(room[n:], fits[-1].weight[0], fits[-1].bias[0])
            accuracy = float((logits.argmax(1) == truth).double().mean())
            tried.append((strength, accuracy, float(cross_entropy(logits, truth))))
            if len(truth) >= LEAST_HELD_OUT and (why := nothing_to_gain(tried, chance)):
                break
        scores = tuple((strength, accuracy) for strength, accuracy, _ in reversed(tried))
        chosen = choose_strength(*zip(*scores, strict=True))
        fit = fits[[strength for strength, _, _ in tried].index(chosen)]
        weight, bias = for_raw_features(fit, mean, scale)
        return WalkEnd(
            chosen, scores, why if len(tried) < len(self.strengths) else "", weight, bias
        )


def nothing_to_gain(tried: Sequence[tuple[float, float, float]], chance: float) -> str:
    """Return why strengths that are weaker than those tried have nothing to gain, or "".

    Args:
        tried: strength, accuracy and loss (nats) on the held-out rows, the strongest first.
        chance: accuracy up to which a fit may be no better than naming the commonest class.
    """
    accuracies = [accuracy for _, accuracy, _ in tried]
    lost = len(tried) - 1 - accuracies.index(max(accuracies))  # since the best, nothing was gained
    losses = [loss for _, _, loss in tried]
    if lost < 2 or max(accuracies) <= chance or not losses[-3] < losses[-2] < losses[-1]:
        return ""
    return (
        "weaker penalties were not tried, because accuracy on held-out training images had not"
        " risen twice in a row and their loss had"
    )


def choose_strength(strengths: tuple[float, ...], accuracies: tuple[float, ...]) -> float:
    """Return the strength with the best accuracy, the strongest of equal ones.

    It is the middle one if the accuracies are NaN, because nothing was held out.

    Args:
        strengths: ascending.
        accuracies: on held-out rows.
    """
    if math.isnan(accuracies[0]):
        return strengths[len(strengths) // 2]
    return max(zip(accuracies, strengths, strict=True))[1]


def check_rows(train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor) -> None:
    """Raise a UserError that names the rule which the rows or labels break.

    Args:
        train_x: (n, f) features.
        train_y: (n,) labels.
        test_x: (m, f) features.
        test_y: (m,) labels.
    """
    for name, x, y in (("training", train_x, train_y), ("test", test_x, test_y)):
        if x.ndim != 2 or x.shape[1] != train_x.shape[-1] or y.is_floating_point():
            raise UserError(
                "a linear probe needs features (n, f), as wide in training and test, and whole"
                f" numbers as labels (n,); its {name} rows are {tuple(x.shape)} and {y.dtype}."
            )
        if len(x) != len(y) or len(y) == 0:
            raise UserError(
                f"a linear probe needs one label for each of its {name} rows, and there are"
                f" {len(x)} rows and {len(y)} labels; add the missing ones."
            )
        if (y < 0).any():
            raise UserError(
                f"a linear probe needs labels, and {int((y < 0).sum())} of {len(y)} {name} rows"
                " have none; drop those rows."
            )
        if bad := rows_not_finite(x):
            raise UserError(
                f"features must be finite, and those of {bad} of {len(x)} {name} rows are not;"
                " check whether the encoder has diverged."
            )
    if len(train_y.unique()) < 2:
        raise UserError(
            f"all labelled training images belong to one class (label {int(train_y[0])}); label"
            " images of at least two classes."
        )


# --- The evaluation -------------------------------------------------------------------


def evaluate_linear(inputs: "EvaluationInputs") -> LinearResult:
    """Fit linear probes on the features, on the head's output and on each block of the encoder.

    The baselines are the raw pixels and the encoder before the first step (untrained, or a
    pretrained backbone as it came); they and the blocks are absent where the images cannot be read.
    The head's output is u = rho mu, whose linear read-out is averaged over the posterior (theory
    1), or the direction where the loss has no radius.

    Raises:
        UserError: there are no labelled training or test images, or only one class.
    """
    table, name, fit = inputs.table, inputs.catalogue.name, inputs.probes
    features, head = (probe_table(each, name, fit) for each in (table, head_output(table)))
    train, test = table.labelled("train"), table.labelled("test")
    result = LinearResult(
        **features.numbers(),
        posterior_mean=PosteriorProbe(
            **head.numbers(), of="direction" if table.radius is None else "u"
        ),
        blocks=(),
        baselines=None,
        baseline_intervals=None,
        by_class=class_numbers(train.labels, test.labels, features.predictions, table.classes),
        no_pixels=inputs.no_pixels,
        first_encoder=inputs.run.config.first_encoder,
    )
    if inputs.no_pixels:
        return result
    raw, untrained = (probe_table(each, name, fit) for each in (inputs.raw, inputs.untrained))
    return replace(
        result,
        blocks=probe_blocks(inputs),
        baselines=Baselines(raw.accuracy, untrained.accuracy),
        baseline_intervals=BaselineIntervals(raw.interval, untrained.interval),
    )


def head_output(table: Embeddings) -> Embeddings:
    """Return the table with u = rho mu as features; the direction where there is no radius."""
    output = table.direction if table.radius is None else table.posterior.mean
    return replace(table, features=output)


def probe_table(
    table: Embeddings, source: str = "the table", fit: Callable[..., ProbeResult] = linear_probe
) -> ProbeResult:
    """Fit a probe on the labelled training rows of a table and evaluate it on the test rows.

    Args:
        table: the embeddings.
        source: the name of the images, for error messages.
        fit: `linear_probe`, or a function that remembers what it fitted.

    Raises:
        UserError: there are no labelled training or test images, or only one class.
    """
    train, test = labelled_split(table, "linear", source)
    return fit(train.features, train.labels, test.features, test.labels)


def probe_blocks(
    inputs: "EvaluationInputs", numbers: int = BLOCK_NUMBERS, least: int = LEAST_TRAINING
) -> tuple[BlockProbe, ...]:
    """Fit a linear probe on each block of the encoder: where do classes become linearly separable?

    Args:
        inputs: the run and its images.
        numbers: outputs of all blocks that may exist at once. If there would be more, the training
            images are a sample.
        least: training images of such a sample at least.
    """
    table = inputs.table
    train, test = (
        np.flatnonzero((table.split == split) & (table.labels.numpy() >= 0))
        for split in ("train", "test")
    )
    width = sum(output.shape[1] for output in inputs.embed_blocks(np.array([0])).values())
    room = max(numbers // max(width, 1) - len(test), least)
    train = sample_rows(torch.from_numpy(train), room, 0).numpy()
    outputs = inputs.embed_blocks(np.concatenate([train, test]))
    train_y, test_y = (table.labels[torch.from_numpy(rows)] for rows in (train, test))
    n = len(train)
    return tuple(
        BlockProbe(**inputs.probes(rows[:n], train_y, rows[n:], test_y).numbers(), name=name)
        for name, rows in outputs.items()
    )
