"""Signs of quality while a run trains, from training images alone; test images are never used.

They are kNN on held-out training images, alignment and uniformity (Wang and Isola 2020), effective
rank (RankMe), and a warning if the representation collapses. Where the encoder is frozen its
features never change: then kNN and effective rank are those of the directions, and the features of
the images are computed once and held in memory.
"""

import json
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sureclr.config import ViewConfig
from sureclr.data.counter_rng import hashed
from sureclr.data.image_set import ImageSet
from sureclr.files import digest_of_bytes
from sureclr.maths import losses, metrics, neighbours
from sureclr.models.simclr import SimCLR
from sureclr.training.monitored_images import HeldFeatures, embedded, embedded_views
from sureclr.training.run_dir import Monitored, RunDir, recorded_monitor, recorded_step
from sureclr.training.step_views import FeatureViews

PROBES = 1024  # fixed training images that are followed
BANK = 4096  # labelled training images among which held-out ones find their neighbours
NEIGHBOURS = 20  # that vote
KNN_WORDS = {"knn": "kNN accuracy", "knn_directions": "kNN accuracy of directions"}
COLLAPSED_COSINE = 0.95  # mean cosine of different images above which directions have collapsed


@dataclass(frozen=True)
class Monitor:
    """The fixed training images with which a run is monitored.

    Attributes:
        images: the training images.
        probes: (p,) rows of the images whose views, features and posteriors are followed.
        queries: (q,) rows of labelled images that are held out.
        bank: (b,) rows of other labelled images, among which the queries find their neighbours.
        seed: of the probes' views.
        precision: in which the network runs.
        held: the features of all these images, where the encoder is frozen; else None.
    """

    images: ImageSet
    probes: Tensor
    queries: Tensor
    bank: Tensor
    seed: int
    precision: torch.dtype = torch.float32
    held: HeldFeatures | None = None

    @staticmethod
    def of(
        images: ImageSet,
        seed: int,
        precision: torch.dtype = torch.float32,
        features: FeatureViews | None = None,
    ) -> "Monitor":
        """Choose the images at random, by the seed.

        Args:
            images: the training images.
            seed: of the run.
            precision: in which the network runs.
            features: of the frozen encoder, of which those of the chosen images are read now; None:
                the images pass through the network at each measurement.
        """
        order = hashed(torch.arange(len(images)), stream=seed, count=1)[:, 0].argsort()
        labelled = order[images.labels[order] >= 0]
        queries = labelled[: min(PROBES, len(labelled) // 5)]
        bank = labelled[len(queries) :][:BANK]
        probes, held = order[:PROBES], None
        if features is not None:
            held = HeldFeatures.of(features, torch.cat([probes, queries, bank]), probes)
        return Monitor(images, probes, queries, bank, seed, precision, held)

    @property
    def accuracy(self) -> str:
        """Return the name of the accuracy that is followed: that of features, or of directions."""
        return "knn" if self.held is None else "knn_directions"

    def measure(
        self, model: SimCLR, views: ViewConfig
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Measure a model, without changing it or any random generator.

        Args:
            model: the network, in any mode.
            views: how the probes' views are made.

        Returns:
            Numbers for metrics.jsonl, and the probes' tensors for a snapshot. The numbers are knn
            (accuracy), alignment, uniformity, effective_rank, cosine_different (mean cosine of
            views of different images), positives and negatives (see `evidence_split`), and the
            means radius and presence if there are any. Where the encoder is frozen, knn_directions
            stands in for knn, and the effective rank is that of the views' directions.

        Raises:
            FloatingPointError: a feature is NaN or infinite, which finite weights can cause, too.
        """
        how = self.precision, self.held
        first, second, features = embedded_views(
            model, self.images, self.probes, self.seed, views, *how
        )
        clean = embedded(model, self.images, self.probes, *how)
        _check_finite(features, first.direction, second.direction, clean.features, clean.direction)
        numbers = {
            **self.knn(model),
            "alignment": float(metrics.alignment(first.direction, second.direction)),
            "uniformity": float(metrics.uniformity(first.direction)),
            "effective_rank": float(
                metrics.effective_rank(features if self.held is None else first.direction)
            ),
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
        for name, values in (("radius", clean.radius), ("presence", clean.presence)):
            if values is not None:
                numbers[name] = float(values.mean())
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

    def data(self, images: str) -> str:
        """Return a digest of the images and labels by which accuracies are measured.

        Args:
            images: digest of the training images.
        """
        rows = torch.cat([self.queries, self.bank])
        labels = self.images.labels[rows].cpu().numpy().tobytes()
        names = json.dumps(list(self.images.classes)).encode()
        return digest_of_bytes(images.encode(), rows.numpy().tobytes(), labels, names)[:16]

    def knn(self, model: SimCLR) -> dict[str, float]:
        """Return the accuracy of a vote of the 20 nearest neighbours; {} without labels.

        It has the name `accuracy`. Where the encoder is frozen, directions decide who is near.

        Raises:
            FloatingPointError: a feature is NaN or infinite.
        """
        if len(self.queries) == 0 or len(self.bank) == 0:
            return {}
        return {self.accuracy: self._knn(model, by_features=self.held is None)}

    def knn_untrained(self, model: SimCLR) -> dict[str, float]:
        """Return the accuracies before the first step, with "_untrained" behind their names.

        Where the encoder is frozen that of its features is there too, which stays as it is.

        Raises:
            FloatingPointError: a feature is NaN or infinite.
        """
        found = self.knn(model)
        if found and self.held is not None:
            found["knn"] = self._knn(model, by_features=True)
        return {f"{name}_untrained": value for name, value in found.items()}

    def _knn(self, model: SimCLR, by_features: bool) -> float:
        """Return the accuracy of the vote of neighbours by features, or by directions."""
        bank, queries = (
            embedded(model, self.images, rows, self.precision, self.held)
            for rows in (self.bank, self.queries)
        )
        known, asked = (
            table.features if by_features else table.direction for table in (bank, queries)
        )
        _check_finite(known, asked)
        similarity, index = neighbours.top_k(asked, known, min(NEIGHBOURS, len(bank)))
        voted = neighbours.vote(similarity, bank.labels[index], len(bank.classes))
        return float((voted == queries.labels).float().mean())


def _check_finite(*tensors: Tensor) -> None:
    if not all(bool(tensor.isfinite().all()) for tensor in tensors):
        raise FloatingPointError("a feature of a training image is not finite")


@dataclass
class BestSoFar:
    """The checkpoint with the highest kNN accuracy so far.

    Attributes:
        per_epoch: steps of an epoch.
        accuracy: measured on held-out training images; below 0: none was measured yet.
        queries: their number.
        step: after which it was measured.
        warned: the accuracy of the last warning.
        name: of the accuracy, see `Monitor.accuracy`.
    """

    per_epoch: int
    accuracy: float = -1.0
    queries: int = 0
    step: int = 0
    warned: float = 1.0
    name: str = "knn"

    @staticmethod
    def of(directory: RunDir, per_epoch: int, data: str, name: str = "knn") -> "BestSoFar":
        """Return what the checkpoints of a run folder say.

        Args:
            directory: of the run.
            per_epoch: steps of an epoch.
            data: digest of the images and labels by which accuracies are measured now; those
                measured on others cannot be compared with these.
            name: of the accuracy.
        """
        found = BestSoFar(per_epoch, name=name)
        best = directory.best()
        monitor = None if best is None else recorded_monitor(best)
        if best is not None and monitor is not None and monitor.data == data:
            found.takes(monitor, recorded_step(best) or 0)
        return found

    def takes(self, measured: Monitored, step: int) -> bool:
        """Return whether an accuracy is a new best, and remember it if so."""
        if measured.knn <= self.accuracy:
            return False
        self.accuracy, self.queries, self.step = measured.knn, measured.queries, step
        self.warned = 1.0
        return True

    def warning(self, accuracy: float, complete: bool) -> str | None:
        """Return a sentence if an accuracy lies below the 95 % interval of the best one.

        While the run goes on, it is said again only of an accuracy that is lower still.

        Args:
            accuracy: that was measured now.
            complete: whether the run ends here.
        """
        low, high = metrics.wilson_interval(round(self.accuracy * self.queries), self.queries)
        if accuracy >= low or not (complete or accuracy < self.warned):
            return None
        self.warned = accuracy
        when, epoch = "at the end" if complete else "now", self.step // self.per_epoch
        part = "encoder" if self.name == "knn" else "projection head"
        return (
            f"The {part} got worse: {KNN_WORDS[self.name]} on held-out training images was"
            f" {self.accuracy:.3f} (95 % interval {low:.3f} to {high:.3f}) after epoch {epoch} and"
            f" is {accuracy:.3f} {when}. A lower learning_rate may help. The checkpoint of epoch"
            f" {epoch} is kept: use it with checkpoint=best."
        )


def mean_cosine_of_different(first: Tensor, second: Tensor | None = None) -> float:
    """Return the mean of first_i . second_j over i != j, in O(n), from the sums of the rows.

    Args:
        first: (n, d) unit vectors, one an image.
        second: (n, d) unit vectors of the same images, of another view; None: `first`.
    """
    other, n = first if second is None else second, len(first)
    same = (first * other).sum()
    return float(((first.sum(0) * other.sum(0)).sum() - same) / (n * (n - 1)))


def evidence_split(directions: Tensor, temperature: float = 0.2) -> dict[str, float]:
    """Split NT-Xent into what it says of positives and of negatives.

    Positives pull the views of an image together, negatives spread the images. Their difference,
    minus log(2n - 2) and a small correction for the positive in the denominator, is minus the loss.

    Args:
        directions: (2n, d) unit vectors; rows i and i + n are the views of image i.
        temperature: tau; fixed, so that runs can be compared.

    Returns:
        `positives`, the mean logit of positives, and `negatives`, the mean over views of the
        log-mean-exp of the logits of negatives; both in nats.
    """
    logits = directions @ directions.T / temperature
    positives = losses.partners(logits)
    negatives = losses.without_own_image(logits).logsumexp(1) - math.log(len(directions) - 2)
    return {"positives": float(positives.mean()), "negatives": float(negatives.mean())}


def collapse_warning(numbers: dict[str, float]) -> str | None:
    """Return one sentence with the remedy if the directions have collapsed, else None."""
    if numbers.get("cosine_different", 0.0) > COLLAPSED_COSINE:
        return (
            "the representation is collapsing: different images have mean cosine"
            f" {numbers['cosine_different']:.3f}; lower the learning rate, raise the batch size, or"
            " check that the images differ."
        )
    return None


def monitor_text(epoch: int, numbers: dict[str, float]) -> str:
    """Describe the numbers of `Monitor.measure` in one line.

    >>> monitor_text(5, {"knn": 0.953, "effective_rank": 31.4, "positives": 4.1})
    'after epoch 5: kNN accuracy 0.953 (higher is better), effective rank 31.400 (higher is better)'
    """
    better = {
        "knn": "higher",
        "knn_directions": "higher",
        "alignment": "lower",
        "uniformity": "lower",
        "effective_rank": "higher",
    }
    texts = [
        f"{KNN_WORDS.get(name, name.replace('_', ' '))} {numbers[name]:.3f} ({direction} is better)"
        for name, direction in better.items()
        if name in numbers
    ]
    return f"after epoch {epoch}: {', '.join(texts)}"
