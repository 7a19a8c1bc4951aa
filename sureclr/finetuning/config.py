"""Everything that decides a fine-tuning. Apart from finetune.py because the command line reads it,
which imports no torch.
"""

import math
from dataclasses import dataclass, fields
from typing import Any, Literal

from sureclr.config import as_field_types
from sureclr.data.label_request import LabelRequest
from sureclr.errors import UserError


@dataclass(frozen=True)
class FinetuneConfig:
    """Fine-tuning with few labels: the pretrained encoder and the one from scratch are trained and
    searched alike.
    """

    labels: str | None = None
    """A share of the labelled training images (10%), a count (500), or a CSV file path,label;
    default: 10%, of a fold 100%.
    """
    fold: int | None | Literal["all"] = None  # noqa: RUF036  (config.as_field_types tries them in this order)
    """Choose among the images of this fold of the data set's own (stl10: 0 to 9); all: one fold a
    seed, as many as there are.
    """
    seeds: int = 5
    """Repetitions, seeds 0, 1, ...: of the choice of labels, the split, the order, the crops and
    the weights of the scratch encoder.
    """

    epochs: int = 30
    """Passes over the labels; the epoch that is best on the held-out labels is kept."""
    batch_size: int = 64
    """Images a step, at most the number of labels."""
    lr: tuple[float, ...] = (0.01, 0.03, 0.1)
    """Peak learning rates of the encoder to choose from, on held-out labels."""
    classifier_lr: float | None = None
    """Peak learning rate of the classifier; default: the encoder's."""
    tune: Literal["every", "first"] = "every"
    """Search the learning rates for every seed, or for the first alone, whose choice then serves
    the others.
    """
    validation: float = 0.2
    """Share of the labels of each class that is held out to choose learning rate and epoch. The
    test set is not looked at.
    """
    momentum: float = 0.9
    """Nesterov momentum of SGD."""
    weight_decay: float = 1e-4
    """L2 on weight matrices (biases and norms are left alone)."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate after the warm-up: half a cosine to zero, or constant."""
    warmup_epochs: float = 1.0
    """Linear warm-up; at most half of the epochs is used."""
    bn: Literal["train", "frozen"] = "train"
    """frozen: BN keeps the statistics of pretraining (scratch, which has none, trains them)."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 autocast on GPUs that have it, else float32."""

    def __post_init__(self) -> None:
        as_field_types(
            type(self), {f.name: getattr(self, f.name) for f in fields(self) if f.name != "lr"}
        )
        LabelRequest.of(self.asked)
        for rule, holds, value in self._rules():
            if not holds:
                raise UserError(f"{rule}; got {value}.")

    def _rules(self) -> list[tuple[str, bool, Any]]:
        return [
            ("seeds must be at least 1", self.seeds >= 1, self.seeds),
            (
                "fold must be 0 or more, or all",
                not isinstance(self.fold, int) or self.fold >= 0,
                self.fold,
            ),
            ("epochs must be at least 1", self.epochs >= 1, self.epochs),
            (
                "batch_size must be at least 2 (BN needs more than one image)",
                self.batch_size >= 2,
                self.batch_size,
            ),
            (
                "lr must be one or more different positive numbers",
                bool(self.lr)
                and all(map(_positive, self.lr))
                and len(set(self.lr)) == len(self.lr),
                self.lr,
            ),
            (
                "classifier_lr must be a positive number or left out",
                self.classifier_lr is None or _positive(self.classifier_lr),
                self.classifier_lr,
            ),
            ("validation must lie between 0 and 1", 0 < self.validation < 1, self.validation),
            (
                "momentum must be above 0 (Nesterov's needs some) and below 1",
                0 < self.momentum < 1,
                self.momentum,
            ),
            (
                "weight_decay must not be negative",
                0 <= self.weight_decay < math.inf,
                self.weight_decay,
            ),
            (
                "warmup_epochs must not be negative, and finite",
                0 <= self.warmup_epochs < math.inf,
                self.warmup_epochs,
            ),
        ]

    @property
    def asked(self) -> str:
        """The labels asked for, with the default filled in."""
        return self.labels if self.labels is not None else "10%" if self.fold is None else "100%"


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
