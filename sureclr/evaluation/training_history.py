"""How a run learned: its snapshots of some fixed training images, epoch by epoch; no model runs.

Which negatives carry the gradient? NT-Xent pulls view i away from the negative j with the weight

    w_ij = exp(c_ij / tau) / sum_k exp(c_ik / tau)    (k: views of other images),

times 1 - P(partner). So the weights say which images the encoder works on separating, and
1 - P(partner) says how much is left to do. SURE has a_i c_ij in place of c_ij (`losses.sure`), or
a_i a_j c_ij, and then the weight of j has another factor a_j. Here the negatives are both views of
all other snapshot images, not those of a training batch, and the network is in evaluation mode. For
a loss without a temperature (or with one for each image) the weights are NT-Xent's at tau = 0.2.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sureclr.data.image_set import ImageSet
from sureclr.errors import UserError
from sureclr.evaluation.results import (
    ClassCertainty,
    GradientHistory,
    LearningResult,
    NegativeExample,
    Number,
)
from sureclr.evaluation.tables import finite_or_none
from sureclr.maths.losses import Softening, partners, relative, sharpness, without_own_image
from sureclr.progress import SILENT, Progress, report_progress
from sureclr.training.monitor import evidence_split
from sureclr.training.run_dir import read_checked_safetensors

if TYPE_CHECKING:
    from sureclr.evaluation.inputs import EvaluationInputs

# Of positives and negatives: the same for all runs and epochs, so that they can be compared
SPLIT_TEMPERATURE = 0.2
MONITORED = (
    *("alignment", "uniformity", "effective_rank", "cosine_different"),
    *("knn", "knn_directions", "radius"),
)
# The tensors that are read of a snapshot: hundreds of snapshots must fit into memory
NEEDED = (
    "index",
    "label",
    "first_direction",
    "second_direction",
    "certainty",
    "first_certainty",
    "second_certainty",
)
HARDEST = 0.01  # share of the negatives that count as the hardest
ANCHORS, NEGATIVES = 8, 6  # examples: anchors, and the heaviest negatives of each


def evaluate_learning(inputs: "EvaluationInputs") -> LearningResult:
    """Describe how the representation changed from snapshot to snapshot.

    Raises:
        UserError: the images are not those that the run was trained on, or there is no snapshot.
    """
    inputs.require_own_images("learning")
    objective = inputs.run.objective
    recorded = inputs.run.directory.checkpoint_numbers() or {}
    return describe_snapshots(
        inputs.run.directory.snapshots,
        inputs.catalogue,
        float(getattr(objective, "temperature", SPLIT_TEMPERATURE)),
        getattr(objective, "softening", "off"),
        inputs.progress,
        origins=recorded.get("origins", ()),
        expected=recorded.get("snapshots", ()),
    )


@dataclass(frozen=True)
class Logits:
    """What a loss makes of the cosines of views.

    Attributes:
        values: (2p, 2p) float64.
        of_column: (2p,) the factor by which a column's cosine enters them besides that of the row.
    """

    values: Tensor
    of_column: Tensor | float = 1.0


@dataclass(frozen=True)
class Snapshot:
    """One epoch of p fixed training images, as the monitor saved it.

    Attributes:
        epoch: its number.
        numbers: the monitor's, and the origin of the run.
        tensors: those of NEEDED that the file has.
    """

    epoch: int
    numbers: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def directions(self) -> Tensor:
        """(2p, d); rows i and i + p are the two views of image i."""
        return torch.cat([self.tensors["first_direction"], self.tensors["second_direction"]])

    def logits(self, temperature: float, softening: Softening) -> Logits:
        """Return the logits of the loss with this temperature and softening."""
        directions = self.directions.double()
        cosines = directions @ directions.T / temperature
        if softening == "off":
            return Logits(cosines)
        certainties = [self.tensors[f"{view}_certainty"] for view in ("first", "second")]
        # SURE's certainty is the length of the mean, by which its logits are softened
        radii = torch.cat(certainties).double()
        if softening == "anchors":
            return Logits(sharpness(radii)[:, None] * cosines)
        a = relative(radii)
        return Logits(torch.outer(a, a) * cosines, a)


def describe_snapshots(
    folder: Path,
    images: ImageSet,
    temperature: float,
    softening: Softening = "off",
    progress: Progress = SILENT,
    *,
    origins: Sequence[str] = (),
    expected: Sequence[int] = (),
) -> LearningResult:
    """Describe the snapshots in a folder as tuples over epochs.

    Args:
        folder: a run's `snapshots`.
        images: training and test images of the run, for row numbers and class names.
        temperature: of the gradient's weights, the run's own.
        softening: of the run's loss.
        progress: reports how far the work is, and names snapshots that are left out; it may raise
            to stop.
        origins: of the run's snapshots; others are left out.
        expected: epochs of the snapshots that the run has saved.

    Raises:
        UserError: no snapshot can be read.
    """
    snapshots, damaged = read_snapshots(folder, origins)
    for epoch in sorted({*expected} - {snapshot.epoch for snapshot in snapshots}):
        damaged.setdefault(f"epoch-{epoch:05d}.safetensors", "it is missing")
    if damaged:
        file, reason = next(iter(damaged.items()))
        number = f"{len(damaged)} of {len(damaged) + len(snapshots)}"
        progress.message(f"Of the snapshots in {folder}, {number} are left out: {file}, {reason}.")
    weightings = []
    with report_progress(progress, "Reading snapshots", len(snapshots)) as update:
        for done, snapshot in enumerate(snapshots, 1):
            logits = snapshot.logits(temperature, softening)
            weightings.append(weigh_negatives(logits, snapshot.tensors["label"]))
            update(done)
    rows = rows_among(snapshots[-1], images)
    gradient = GradientHistory(
        epochs=tuple(s.epoch for s in snapshots),
        temperature=temperature,
        effective_negatives=tuple(w.effective_negatives for w in weightings),
        top_share=tuple(w.top_share for w in weightings),
        same_class_share=tuple(w.same_class_share for w in weightings),
        remaining=tuple(w.remaining for w in weightings),
        examples=() if rows is None else heaviest_negatives(logits, rows),  # of the last snapshot
        chance_same_class=chance_of_same_class(snapshots[-1].tensors["label"]),
    )
    sides = [evidence_split(snapshot.directions, SPLIT_TEMPERATURE) for snapshot in snapshots]
    return LearningResult(
        epochs=gradient.epochs,
        images=len(snapshots[0].tensors["index"]),
        temperature=SPLIT_TEMPERATURE,
        **{name: numbers_over_epochs(snapshots, name) for name in MONITORED},
        positives=tuple(finite_or_none(side["positives"]) for side in sides),
        negatives=tuple(finite_or_none(side["negatives"]) for side in sides),
        per_class=certainty_per_class(snapshots, images.classes),
        gradient=gradient,
        damaged=damaged,
    )


def read_snapshots(
    folder: Path, origins: Sequence[str] = ()
) -> tuple[list[Snapshot], dict[str, str]]:
    """Read the snapshots in a folder by epoch, and the names of unusable files with the reasons.

    Args:
        folder: a run's `snapshots`.
        origins: that they may have; none: any. Those of older versions have none.

    Raises:
        UserError: no snapshot can be read.
    """
    snapshots, damaged = [], {}
    for file in sorted(folder.glob("epoch-*.safetensors")):
        snapshot = read_snapshot(file, origins)
        if isinstance(snapshot, Snapshot):
            snapshots.append(snapshot)
        else:
            damaged[file.name] = snapshot
    if not snapshots:
        detail = "".join(f" ({name}: {reason})" for name, reason in list(damaged.items())[:1])
        raise UserError(
            f"learning is read from snapshots, and {folder} has none that can be read{detail};"
            " train with snapshot_every above 0."
        )
    return snapshots, damaged


def read_snapshot(file: Path, origins: Sequence[str] = ()) -> Snapshot | str:
    """Return a snapshot, or the reason why it cannot be used; see `read_snapshots`."""
    try:
        content, numbers = read_checked_safetensors(file, "numbers")
        tensors = {name: content[name] for name in NEEDED if name in content}
        snapshot, p = Snapshot(int(numbers["epoch"]), numbers, tensors), len(tensors["index"])
        if (
            p < 2
            or any(len(rows) != p for rows in tensors.values())
            or not snapshot.directions.isfinite().all()
        ):
            return "its directions are not finite, or there are too few"
        if origins and numbers.get("origin", origins[0]) not in origins:
            return "it belongs to another run"
        if file.name != f"epoch-{snapshot.epoch:05d}.safetensors":
            return f"it is of epoch {snapshot.epoch}, which is not what its name says"
        return snapshot
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        return f"it cannot be read ({type(error).__name__}: {' '.join(str(error).split())[:120]})"


def numbers_over_epochs(snapshots: list[Snapshot], name: str) -> Any:
    """Return one of the monitor's numbers for each epoch, or None where no epoch has it."""
    numbers = tuple(finite_or_none(snapshot.numbers.get(name)) for snapshot in snapshots)
    return None if set(numbers) == {None} else numbers


def certainty_per_class(
    snapshots: list[Snapshot], classes: tuple[str, ...]
) -> ClassCertainty | None:
    """Return the mean certainty of the whole images of each class, by epoch.

    It is None without labels or without a certainty; a single number is None for a class without
    images.
    """
    labelled = bool((snapshots[-1].tensors["label"] >= 0).any())
    if not labelled or any("certainty" not in s.tensors for s in snapshots):
        return None
    means = tuple(
        tuple(
            finite_or_none(s.tensors["certainty"][s.tensors["label"] == k].double().mean())
            for s in snapshots
        )
        for k in range(len(classes))
    )
    return ClassCertainty(tuple(classes), means)


# --- Which negatives carry the gradient -----------------------------------------------


@dataclass(frozen=True)
class Weighting:
    """How the gradient of one epoch spreads over negatives: means over the 2p views.

    Attributes:
        effective_negatives: exp of the entropy of w_i, at most 2p - 2.
        top_share: weight on the hardest 1 % of the negatives, at least one of them.
        same_class_share: weight on negatives of the anchor's own class, among labelled views; None
            without labels.
        remaining: 1 - P(partner), the factor that all weights of an anchor share: 0 if its partner
            is separated from all other views.
    """

    effective_negatives: float
    top_share: float
    same_class_share: Number
    remaining: float


def weights(logits: Logits) -> Tensor:
    """Return w_ij, the shares of dL_i / dc_ij, (2p, 2p) float64.

    Rows sum to 1. An entry is 0 where row and column show the same image.
    """
    softmax = without_own_image(logits.values).softmax(1)
    return torch.nn.functional.normalize(softmax * logits.of_column, p=1, dim=1)


def weigh_negatives(logits: Logits, labels: Tensor) -> Weighting:
    """Summarise over how many negatives the weight spreads, and which of them have most of it.

    Args:
        logits: of the 2p views.
        labels: (p,) of the images, -1 where unknown.
    """
    w, views = weights(logits), len(logits.values)
    hardest = max(1, round(HARDEST * (views - 2)))
    others = logits.values.masked_fill(torch.eye(views, dtype=torch.bool), -torch.inf)
    return Weighting(
        effective_negatives=float((-torch.special.xlogy(w, w).sum(1)).exp().mean()),
        top_share=float(w.topk(hardest, dim=1).values.sum(1).mean()),
        same_class_share=same_class_share(w, labels.repeat(2)),
        remaining=float(-torch.expm1(partners(logits.values) - others.logsumexp(1)).mean()),
    )


def same_class_share(w: Tensor, labels: Tensor) -> float | None:
    """Return the weight on the own class as a share of that on labelled negatives.

    Args:
        w: (v, v) weights.
        labels: (v,) of the views.

    Returns:
        The mean over labelled anchors; None if there are none, or one has no labelled negative.
    """
    known = labels >= 0
    among = w[known][:, known]
    if not known.any() or bool((among.sum(1) == 0).any()):
        return None
    same = labels[known][:, None] == labels[known]
    return float(((among * same).sum(1) / among.sum(1)).mean())


def chance_of_same_class(labels: Tensor) -> float | None:
    """Return how often two different labelled images have one class; None below two images.

    That would be `same_class_share` if all negatives weighed the same.
    """
    known = labels[labels >= 0]
    if len(known) < 2:
        return None
    count = known.bincount().double()
    return float((count * (count - 1)).sum() / (len(known) * (len(known) - 1)))


def heaviest_negatives(logits: Logits, rows: Tensor) -> tuple[NegativeExample, ...]:
    """Return some anchors with the images that weigh most against them.

    Anchors are first views, evenly spread. An image's weight is that of its two views together.

    Args:
        logits: of the 2p views.
        rows: (p,) rows of the images, for the result.
    """
    p = len(rows)
    of_image = weights(logits)[:p].view(p, 2, p).sum(1)
    top = of_image.topk(min(NEGATIVES, p - 1), dim=1)
    return tuple(
        NegativeExample(
            int(rows[i]), tuple(rows[top.indices[i]].tolist()), tuple(top.values[i].tolist())
        )
        for i in range(0, p, max(1, p // ANCHORS))
    )[:ANCHORS]


def rows_among(snapshot: Snapshot, images: ImageSet) -> Tensor | None:
    """Return the (p,) rows of the snapshot's images among all images.

    None means that these are not the images that the run was trained on.
    """
    training = torch.from_numpy(images.rows("train", "unlabelled"))
    index = snapshot.tensors["index"]
    if int(index.max()) >= len(training):
        return None
    rows = training[index]
    return rows if torch.equal(images.labels[rows], snapshot.tensors["label"]) else None
