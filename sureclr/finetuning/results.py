"""What a fine-tuning returns, as frozen dataclasses.

Accuracies are shares of the test images in [0, 1], intervals are 95 %, times are in seconds. The
three classifiers that are compared are called `finetune` (the pretrained encoder, trained on),
`scratch` (the same network with random first weights) and `linear` (a linear probe on the frozen
features of the pretrained encoder). All three have the same labels.
"""

from dataclasses import dataclass
from typing import Any

from sureclr.config import Interpolation, ReadOptions
from sureclr.evaluation.results import RESULT_TYPES, ClassNumbers, Interval, Number
from sureclr.files import unsealed
from sureclr.finetuning.config import FinetuneConfig
from sureclr.maths.metrics import Verdict
from sureclr.schema import from_json


@dataclass(frozen=True)
class Attempt:
    """One training of the search.

    Attributes:
        learning_rate: highest one of the encoder.
        epoch: the best one on the held-out labels, counted from 1; 0 if training diverged before
            the first was over.
        validation: accuracy of that epoch on the held-out labels; None where none were held out, or
            where the epoch is 0.
    """

    learning_rate: float
    epoch: int
    validation: Number


@dataclass(frozen=True)
class TrainedScore:
    """A trained network: what was chosen on held-out labels, and its accuracy on the test images.

    Attributes:
        accuracy: share of the test images whose class it names; None where there are none.
        learning_rate: that was chosen.
        epoch: that was chosen, counted from 1.
        validation: accuracy of this choice on the held-out labels; None where none were held out.
        tried: every training of the search.
        seconds: wall-clock time of search and test.
        cpu_seconds: processor time of the same.
        balanced_accuracy: mean accuracy of the classes that have test images; None in a file of
            schema 1, as the next.
        macro_f1: mean F1 of the classes that have test images or are given to one.
        by_class: class by class; None in a file of schema 1.
    """

    accuracy: Number
    learning_rate: float
    epoch: int
    validation: Number
    tried: tuple[Attempt, ...]
    seconds: float
    cpu_seconds: float
    balanced_accuracy: Number = None
    macro_f1: Number = None
    by_class: ClassNumbers | None = None


@dataclass(frozen=True)
class ProbeScore:
    """A linear probe on the frozen features.

    Attributes:
        accuracy: share of the test images whose class it names.
        strength: of its penalty.
        balanced_accuracy: as of a `TrainedScore`.
        macro_f1: as of a `TrainedScore`.
    """

    accuracy: float
    strength: float
    balanced_accuracy: Number = None
    macro_f1: Number = None


@dataclass(frozen=True)
class SeedResult:
    """One repetition.

    Attributes:
        seed: of everything random in it.
        fold: of the data set, or None.
        n_labels: labels, held-out ones included.
        n_validation: held-out labels.
        n_test: test images.
        labels_sha256: digest of the labelled images and their classes.
        test_sha256: digest of the test images and their classes.
        labels_differing: labels of a user's file that are not those of the data set.
        finetune: the pretrained encoder.
        scratch: the same network from scratch; None where nothing is tested.
        linear: the probe, which is fitted on all labels; None where nothing is tested.
    """

    seed: int
    fold: int | None
    n_labels: int
    n_validation: int
    n_test: int
    labels_sha256: str
    test_sha256: str
    labels_differing: int
    finetune: TrainedScore
    scratch: TrainedScore | None
    linear: ProbeScore | None


@dataclass(frozen=True)
class Rivals:
    """Mean over seeds of what fine-tuning is compared with."""

    scratch: float
    linear: float


@dataclass(frozen=True)
class RivalIntervals:
    """The intervals of `Rivals`."""

    scratch: Interval
    linear: Interval


@dataclass(frozen=True)
class RivalAccuracies:
    """The accuracy of each seed behind `Rivals`."""

    scratch: tuple[float, ...]
    linear: tuple[float, ...]


@dataclass(frozen=True)
class Gain:
    """Accuracy of the fine-tuned network minus that of the same network from scratch.

    Attributes:
        mean: over seeds, each of which gives both networks the same labels.
        interval: of this mean, Student's t; None for a single seed.
        outside_both_intervals: whether the intervals of the two accuracies do not overlap.
        verdict: "better" or "worse" where they do not overlap, else "no difference found".
    """

    mean: float
    interval: Interval | None
    outside_both_intervals: bool
    verdict: Verdict


@dataclass(frozen=True)
class ClassMeans:
    """Means over seeds of numbers in which every class weighs the same.

    Attributes:
        balanced_accuracy: of the fine-tuned network.
        macro_f1: of the fine-tuned network.
        baseline_balanced_accuracy: of its rivals.
        baseline_macro_f1: of its rivals.
        majority_class: the commonest class of the first seed's labels.
        majority_baseline: accuracy of always naming the commonest class of a seed's labels.
    """

    balanced_accuracy: float
    macro_f1: float
    baseline_balanced_accuracy: Rivals
    baseline_macro_f1: Rivals
    majority_class: str
    majority_baseline: float


@dataclass(frozen=True)
class SavedWeights:
    """The file in the run folder with the best classifier, its sha256, and the seed it is of."""

    file: str
    sha256: str
    seed: int


@dataclass(frozen=True)
class FinetuningResult:
    """Is a pretrained encoder worth more than the same network from scratch, with few labels?

    Attributes:
        accuracy: mean over seeds of the fine-tuned network. It is None where there is no test
            image, and so is everything that is computed from accuracies.
        interval: of this mean.
        interval_of: how the intervals of the accuracies were computed.
        accuracies: of each seed; empty where nothing is tested.
        n_labels: of the first seed, held-out ones included.
        n_test: test images.
        baselines: the same mean of the network from scratch and of the linear probe.
        baseline_intervals: their intervals.
        baseline_accuracies: their accuracy of each seed.
        gain: fine-tuned minus from scratch.
        seeds: repetitions that are finished.
        complete: whether these are all that the configuration asks for.
        weights: of the seed that is best on its held-out labels.
        cpu_seconds: processor time of all trainings.
        configuration: all settings.
        per_seed: what each seed chose and reached.
        not_tested: why there is no test image, as a sentence; "" where there are some.
        class_means: None where a seed is of a file of schema 1.
    """

    accuracy: Number
    interval: Interval | None
    interval_of: str
    accuracies: tuple[float, ...]
    n_labels: int
    n_test: int
    baselines: Rivals | None
    baseline_intervals: RivalIntervals | None
    baseline_accuracies: RivalAccuracies | None
    gain: Gain | None
    seeds: int
    complete: bool
    weights: SavedWeights
    cpu_seconds: float
    configuration: FinetuneConfig
    per_seed: tuple[SeedResult, ...]
    not_tested: str = ""
    class_means: ClassMeans | None = None

    @property
    def by_class(self) -> ClassNumbers | None:
        """The saved classifier class by class: that of the seed in `weights`."""
        seeds = [seed for seed in self.per_seed if seed.seed == self.weights.seed]
        return seeds[0].finetune.by_class if seeds else None


RESULT_TYPES["finetune"] = FinetuningResult


@dataclass(frozen=True)
class ClassifierRecord:
    """What finetuned/NAME.json holds.

    Attributes:
        key: of the result in results.json.
        file: with the weights, beside the JSON.
        weights_sha256: of that file.
        classes: names of the outputs, in order.
        encoder: name of the network.
        stem: its first layers.
        channels: of the images that it takes.
        size: their side in pixels.
        seed: of the fine-tuning.
        fold: from which its labels came, or None.
        n_labels: labels, held-out ones included.
        learning_rate: that was chosen on the held-out labels.
        epoch: that was chosen.
        validation: accuracy on the held-out labels; None where none were held out.
        accuracy: on the test images; None where there were none.
        checkpoint: digest of the checkpoint whose encoder was fine-tuned; "" in older files, like
            the next two.
        images: digest of pixels, paths and splits.
        labels: digest of labels and class names.
        centre_share: of the squares that it takes, as in `ReadOptions`, like the next.
        interpolation: filter that resizes them.
        pool: how the encoder pools, see `PretrainConfig`.
    """

    key: str
    file: str
    weights_sha256: str
    classes: tuple[str, ...]
    encoder: str
    stem: str
    channels: int
    size: int
    seed: int
    fold: int | None
    n_labels: int
    learning_rate: float
    epoch: int
    validation: float | None
    accuracy: float | None
    checkpoint: str = ""
    images: str = ""
    labels: str = ""
    centre_share: float | None = None
    interpolation: Interpolation = "bilinear"
    pool: str = "auto"

    @property
    def read_options(self) -> ReadOptions:
        """Return how pictures become the images that the classifier takes."""
        return ReadOptions(
            self.size,
            self.channels,
            centre_share=self.centre_share,
            interpolation=self.interpolation,
        )

    @staticmethod
    def of(content: Any) -> "ClassifierRecord":
        """Return the record in parsed JSON.

        Raises:
            ValueError: it does not match its sha256, or has another form.
        """
        if isinstance(content, dict) and "weights_sha256" not in content:  # of an older version
            content = {**content, "weights_sha256": content.get("sha256"), "sha256": None}
        return from_json(ClassifierRecord, unsealed(content, required=False))
