"""The settings of a fine-tuning.

This module imports no torch, because the command line reads it before it shows its help. The
docstring of a field is also the help text of its option.
"""

import math
from dataclasses import dataclass, fields
from typing import Any, Literal

from sureclr.config import LARGEST, LARGEST_NUMBER, Rule, as_field_types, check_largest, check_rules
from sureclr.data.label_request import LabelRequest


@dataclass(frozen=True)
class FinetuneConfig:
    """Settings of a fine-tuning, for the pretrained encoder and the one from scratch alike."""

    labels: str | None = None
    """Labels to train on: a share of the labelled training images (10%), a count (500), or a file
    of labels (CSV, JSON or Parquet, one image a row). Default: 10%; with a fold, all of its labels.
    """
    image_column: str | None = None
    """Column of the label file that names the images, by its name or its number from 1. Default: it
    is found by its name and its content.
    """
    label_column: str | None = None
    """Column of the label file with the labels, likewise. Default: it is found by its name."""
    fold: int | None | Literal["all"] = None  # noqa: RUF036  (config.typed tries them in this order)
    """Take the labels from one of the data set's official folds (stl10: 0 to 9). all: every fold in
    turn, one a seed. Default: from all training images.
    """
    seeds: int | tuple[int, ...] = 5
    """Number of repetitions (5: seeds 0 to 4), or the seeds themselves (0,1,2). Each draws its own
    labels, held-out labels, order of the images, crops, and first weights of the network from
    scratch. More seeds take longer and give narrower intervals.
    """

    epochs: int = 30
    """Number of passes over the labelled images. The epoch that is best on the held-out labels is
    used, so a larger number costs time and does little harm.
    """
    batch_size: int = 64
    """Number of images in a training step, at most the number of labels. Lower it where few labels
    would leave only a step or two an epoch.
    """
    learning_rates: tuple[float, ...] = (0.01, 0.03, 0.1)
    """Highest learning rates of the encoder to try. The one that is best on the held-out labels is
    used; a single one needs no search. Add smaller ones if training diverges.
    """
    classifier_learning_rate: float | None = None
    """Highest learning rate of the classifier, the linear layer on top. Default: that of the
    encoder. Raise it where the classifier learns more slowly than the encoder changes.
    """
    tune: Literal["every", "first"] = "every"
    """Seeds that search the learning rates. every (default): each seed for itself. first: the first
    seed chooses for all, which is faster.
    """
    validation: float = 0.2
    """Share of the labels of each class that is held out to choose learning rate and epoch, between
    0 and 1. Test images are never used to choose.
    """
    momentum: float = 0.9
    """Nesterov momentum of SGD, above 0 and below 1."""
    weight_decay: float = 1e-4
    """Strength of the L2 penalty on weight matrices; biases and norms have none. Raise it if the
    held-out accuracy falls while the loss does, too.
    """
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate after the warm-up. cosine (default): it falls to zero along half a cosine.
    constant: it stays.
    """
    warmup_epochs: float = 1.0
    """Epochs in which the learning rate rises to its highest value, at most half of all epochs.
    Raise it if training diverges at the start.
    """
    bn: Literal["train", "frozen"] = "train"
    """Batch normalisation. train (default): statistics are updated. frozen: those of pretraining
    are kept; try it with small batches. The network from scratch always updates its own.
    """
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the network in training: float32, bfloat16 (faster on GPUs and CPUs with
    instructions for it), or auto, which chooses. Accuracies are always computed in float32.
    """

    def __post_init__(self) -> None:
        """Refuse values that cannot be used.

        Raises:
            UserError: a value of another type or out of range; the sentence names its field.
        """
        for name in ("learning_rates", "seeds"):
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))
        own_rules = ("learning_rates", "seeds")
        names = (field.name for field in fields(self) if field.name not in own_rules)
        as_field_types(type(self), {name: getattr(self, name) for name in names})
        LabelRequest.of(self.label_request)
        check_rules(self._rules())
        check_largest(self)

    def _rules(self) -> list[Rule]:
        """(The rule in words, whether it holds, the value) of each rule about one field."""
        rates, classifier_rate = self.learning_rates, self.classifier_learning_rate
        return [
            (
                "seeds must be a number from 1 on, or different whole numbers from 0 on such as"
                f" 0,1,2, at most {LARGEST['seeds']:,} of them",
                _are_seeds(self.seeds),
                self.seeds,
            ),
            (
                "fold must be a number from 0 on, or all",
                not isinstance(self.fold, int) or self.fold >= 0,
                self.fold,
            ),
            ("epochs must be at least 1", self.epochs >= 1, self.epochs),
            (
                "batch_size must be at least 2, because batch normalisation needs two images",
                self.batch_size >= 2,
                self.batch_size,
            ),
            (
                "learning_rates must be different positive numbers up to"
                f" {LARGEST_NUMBER['learning_rate']:g}, for example (0.01, 0.1)",
                isinstance(rates, tuple)
                and bool(rates)
                and all(
                    _is_positive(rate) and rate <= LARGEST_NUMBER["learning_rate"] for rate in rates
                )
                and len(set(rates)) == len(rates),
                rates,
            ),
            (
                "classifier_learning_rate must be a positive number, or None for the encoder's",
                classifier_rate is None or _is_positive(classifier_rate),
                classifier_rate,
            ),
            ("validation must lie between 0 and 1", 0 < self.validation < 1, self.validation),
            (
                "momentum must be above 0 (Nesterov's needs some) and below 1",
                0 < self.momentum < 1,
                self.momentum,
            ),
            (
                "weight_decay must be 0 or a positive number",
                0 <= self.weight_decay < math.inf,
                self.weight_decay,
            ),
            (
                "warmup_epochs must be 0 or a positive number",
                0 <= self.warmup_epochs < math.inf,
                self.warmup_epochs,
            ),
        ]

    @property
    def seed_numbers(self) -> tuple[int, ...]:
        """The seed of each repetition."""
        return tuple(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds

    @property
    def label_request(self) -> str:
        """The labels to train on, with the default filled in."""
        if self.labels is not None:
            return self.labels
        return "10%" if self.fold is None else "100%"


def _are_seeds(value: Any) -> bool:
    """Whether it is a number of repetitions, or a tuple of different seeds."""
    if isinstance(value, tuple):
        whole = all(type(seed) is int and 0 <= seed < 2**31 for seed in value)
        return whole and 0 < len(set(value)) == len(value) <= LARGEST["seeds"]
    return type(value) is int and value >= 1


def _is_positive(value: Any) -> bool:
    """Whether it is a finite number above 0."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
