"""How it learned: what the snapshots of some fixed training images tell, epoch by epoch; no model
runs.

Which negatives carry the gradient: NT-Xent pulls view i away from the negative j with the weight

    w_ij = exp(c_ij / tau) / sum_k exp(c_ik / tau)        over the views of other images, times 1 - P(partner)

so the weights say which images the encoder works on telling apart, and 1 - P(partner) how much
there is left to do. SURE has a_i c_ij in place of c_ij (``losses.sure``), or a_i a_j c_ij, and then
the weight of j another factor a_j. Here the negatives are both views of all other snapshot images,
not those of a training batch, and the network is in evaluation mode. A loss without tau (or with
one an image) is looked at through NT-Xent's weights at tau = 0.2.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sureclr.data.image_set import ImageSet
from sureclr.files import json_able
from sureclr.maths.losses import Softening, partners, relative, sharpness, without_own_image
from sureclr.progress import SILENT, Progress, reporting
from sureclr.training.monitor import evidence_split

Result = dict[str, Any]

NUMBERS = (
    "alignment",
    "uniformity",
    "effective_rank",
    "cosine_different",
    "knn",
    "radius",
)  # of a snapshot's metadata
SPLIT_TEMPERATURE = (
    0.2  # of positives and negatives: one for all runs and epochs, so that they compare
)
# read of a snapshot: hundreds must fit into memory
NEEDED = (
    "index",
    "label",
    "first_direction",
    "second_direction",
    "certainty",
    "first_certainty",
    "second_certainty",
)
HARDEST = 0.01  # the share of the negatives whose share of the weight is told
EXAMPLES, SHOWN = 8, 6  # anchors, and their heaviest negatives


@dataclass(frozen=True)
class Logits:
    """(2p, 2p) float64, and the factor (2p,) by which a column's cosine enters them, beside that of
    the row.
    """

    values: Tensor
    of_column: Tensor | float = 1.0


@dataclass(frozen=True)
class Snapshot:
    """One epoch: its number, the monitor's numbers, and the tensors of p fixed training images
    (`Monitor.look`).
    """

    epoch: int
    numbers: dict[str, float]
    tensors: dict[str, Tensor]

    @property
    def views(self) -> Tensor:
        """(2p, d) directions; rows i and i + p are the two views of image i."""
        return torch.cat([self.tensors["first_direction"], self.tensors["second_direction"]])

    def logits(self, temperature: float, softening: Softening) -> Logits:
        """What the loss makes of the views."""
        views = self.views.double()
        cosines = views @ views.T / temperature
        if softening == "off":
            return Logits(cosines)
        radii = torch.cat(
            [self.tensors["first_certainty"], self.tensors["second_certainty"]]
        ).double()  # SURE's certainty is the radius
        if softening == "anchors":
            return Logits(sharpness(radii)[:, None] * cosines)
        a = relative(radii)
        return Logits(torch.outer(a, a) * cosines, a)


def learning(
    folder: Path,
    images: ImageSet,
    temperature: float,
    softening: Softening = "off",
    progress: Progress = SILENT,
) -> Result:
    """The snapshots of a run's folder `snapshots` as lists over epochs; {"skipped": why} where
    there is none. JSON-able.

    Args:
        images: what the run was trained on with its test images, for row numbers and class names.
        temperature, softening: of the gradient's weights, the run's own.
        progress: reports how far the work is; may raise to stop.
    """
    files = sorted(folder.glob("epoch-*.safetensors"))
    read = [read_snapshot(file) for file in files]
    taken = [snapshot for snapshot in read if isinstance(snapshot, Snapshot)]
    damaged = {
        file.name: why for file, why in zip(files, read, strict=True) if isinstance(why, str)
    }
    if not taken:
        return {
            "skipped": "there is no readable snapshot: train with --snapshot-every above 0.",
            "damaged": damaged,
        }
    looks = []
    with reporting(progress, "Reading snapshots", len(taken)) as update:
        for done, snapshot in enumerate(taken, 1):
            logits = snapshot.logits(temperature, softening)
            looks.append(negatives(logits, snapshot.tensors["label"]))
            update(done)
    rows = table_rows(taken[-1], images)
    gradient = {name: [look[name] for look in looks] for name in looks[0]}
    shown = [] if rows is None else examples(logits, rows)  # of the last snapshot
    return json_able(
        {
            **over_epochs(taken),
            "images": len(taken[0].tensors["index"]),
            "per_class": per_class(taken, images.classes),
            "damaged": damaged,
            "gradient": {
                "epochs": [s.epoch for s in taken],
                "temperature": temperature,
                **gradient,
                "examples": shown,
                "chance_same_class": chance_of_same_class(taken[-1].tensors["label"]),
            },
        }
    )


def read_snapshot(file: Path) -> Snapshot | str:
    """A snapshot, or why it is left out."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            numbers = json.loads((opened.metadata() or {})["numbers"])
            tensors = {name: opened.get_tensor(name) for name in set(NEEDED) & set(opened.keys())}
        snapshot, p = Snapshot(int(numbers["epoch"]), numbers, tensors), len(tensors["index"])
        if (
            p < 2
            or any(len(rows) != p for rows in tensors.values())
            or not snapshot.views.isfinite().all()
        ):
            return "its directions are not finite, or too few"
        return snapshot
    except (OSError, SafetensorError, ValueError, TypeError, KeyError, RuntimeError) as error:
        return f"it cannot be read ({type(error).__name__}: {' '.join(str(error).split())[:120]})"


def over_epochs(taken: list[Snapshot]) -> Result:
    """The monitor's numbers, a list each (None where an epoch has no such number), and the two
    sides of the loss.
    """
    sides = [evidence_split(snapshot.views, SPLIT_TEMPERATURE) for snapshot in taken]
    lists = {name: [snapshot.numbers.get(name) for snapshot in taken] for name in NUMBERS}
    return {
        "epochs": [s.epoch for s in taken],
        "temperature": SPLIT_TEMPERATURE,
        **{name: None if set(v) == {None} else v for name, v in lists.items()},
        **{name: [side[name] for side in sides] for name in ("positives", "negatives")},
    }


def per_class(taken: list[Snapshot], classes: tuple[str, ...]) -> Result | None:
    """Mean certainty of the whole images of each class, by epoch (None: no image of it). None
    without labels or without certainty.
    """
    if any("certainty" not in s.tensors for s in taken) or not bool(
        (taken[-1].tensors["label"] >= 0).any()
    ):
        return None
    means = [
        [float(s.tensors["certainty"][s.tensors["label"] == k].double().mean()) for s in taken]
        for k in range(len(classes))
    ]
    return {"classes": list(classes), "certainty": means}


# --- Which negatives carry the gradient -----------------------------------------------


def weights(logits: Logits) -> Tensor:
    """(2p, 2p) w_ij, float64, the shares of dL_i / dc_ij: rows sum to 1; 0 where row and column
    show the same image.
    """
    return torch.nn.functional.normalize(
        without_own_image(logits.values).softmax(1) * logits.of_column, p=1, dim=1
    )


def negatives(logits: Logits, labels: Tensor) -> Result:
    """Means over the 2p views: over how many negatives the weight spreads, and on whom it lies.

    effective_negatives   exp of the entropy of w_i, of at most 2p - 2
    top_share             weight on the hardest 1 % of the negatives (one at least)
    same_class_share      weight on negatives of the anchor's own class, among labelled views; None without labels
    remaining             1 - P(partner), the factor that all weights of an anchor have: 0 where the pair is told apart from all
    """
    w, views = weights(logits), len(logits.values)
    hardest = max(1, round(HARDEST * (views - 2)))
    all_others = logits.values.masked_fill(
        torch.eye(views, dtype=torch.bool), -torch.inf
    ).logsumexp(1)
    return {
        "effective_negatives": float((-torch.special.xlogy(w, w).sum(1)).exp().mean()),
        "top_share": float(w.topk(hardest, dim=1).values.sum(1).mean()),
        "same_class_share": same_class_share(w, labels.repeat(2)),
        "remaining": float(-torch.expm1(partners(logits.values) - all_others).mean()),
    }


def same_class_share(w: Tensor, labels: Tensor) -> float | None:
    """Weight on the own class as a share of the weight on labelled negatives, mean over labelled
    anchors.
    """
    known = labels >= 0
    among = w[known][:, known]
    if not known.any() or bool((among.sum(1) == 0).any()):
        return None
    same = labels[known][:, None] == labels[known]
    return float(((among * same).sum(1) / among.sum(1)).mean())


def chance_of_same_class(labels: Tensor) -> float | None:
    """The same share if all negatives weighed alike: how often two different labelled images have
    one class.
    """
    known = labels[labels >= 0]
    count = known.bincount().double()
    return (
        float((count * (count - 1)).sum() / (len(known) * (len(known) - 1)))
        if len(known) > 1
        else None
    )


def examples(logits: Logits, rows: Tensor) -> list[Result]:
    """Some anchors (first views, evenly spread) with the images that weigh most against them; a
    weight is that of an image's two views.
    """
    p = len(rows)
    of_image = weights(logits)[:p].view(p, 2, p).sum(1)
    top = of_image.topk(min(SHOWN, p - 1), dim=1)
    return [
        {
            "anchor": int(rows[i]),
            "negatives": rows[top.indices[i]].tolist(),
            "weights": top.values[i].tolist(),
        }
        for i in range(0, p, max(1, p // EXAMPLES))
    ][:EXAMPLES]


def table_rows(snapshot: Snapshot, images: ImageSet) -> Tensor | None:
    """(p,) rows of the snapshot's images among all images; None where these are not the images that
    the run was trained on.
    """
    training, index = (
        torch.from_numpy(images.rows("train", "unlabelled")),
        snapshot.tensors["index"],
    )
    if int(index.max()) >= len(training):
        return None
    rows = training[index]
    return rows if torch.equal(images.labels[rows], snapshot.tensors["label"]) else None
