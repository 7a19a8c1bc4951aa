"""Images with few labels, quick settings and a recording progress for the tests of fine-tuning."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sureclr.data.image_set import ImageSet
from sureclr.finetuning.config import FinetuneConfig
from sureclr.finetuning.protocol import run_finetuning
from sureclr.finetuning.results import FinetuningResult
from sureclr.schema import to_json
from sureclr.training.run import Run

QUICK = FinetuneConfig(labels="18", seeds=2, epochs=2, batch_size=6, learning_rates=(0.02, 0.1))
ONE_RATE = replace(QUICK, learning_rates=(0.1,))
ONE_TRAINING = replace(ONE_RATE, seeds=1, epochs=1)  # of each network


def labelled_set(seed: int = 0) -> ImageSet:
    """3 classes, each bright in other rows: 60 training images, 12 of them without a label, 4 never
    meant to have one, 30 test images.
    """
    generator = torch.Generator().manual_seed(seed)
    kind = torch.arange(94) % 3
    pixels = torch.randint(0, 120, (94, 1, 8, 8), dtype=torch.uint8, generator=generator)
    for k in range(3):
        pixels[kind == k, :, 2 * k : 2 * k + 3] += 70
    split = np.array(["train"] * 60 + ["unlabelled"] * 4 + ["test"] * 30)
    labels = kind.clone()
    labels[48:64] = -1
    return ImageSet(
        "made",
        pixels,
        labels,
        ("ant", "bee", "cow"),
        split,
        [f"{i:02d}.png" for i in range(94)],
        folds=torch.stack([torch.arange(0, 18), torch.arange(18, 36)]),
    )


IMAGES = labelled_set()


def inverted(rows: Tensor | slice) -> ImageSet:
    """IMAGES with other pixels in these rows."""
    pixels = IMAGES.images.clone()
    pixels[rows] = 255 - pixels[rows]
    return replace(IMAGES, images=pixels)


def tune(
    run: Run, config: FinetuneConfig = QUICK, images: ImageSet = IMAGES, **options: Any
) -> FinetuningResult:
    return run_finetuning(run, images, config, **options)


def timeless(value: Any) -> Any:
    """A result as JSON without what depends on the clock."""
    if isinstance(value, dict):
        return {key: timeless(entry) for key, entry in value.items() if "seconds" not in key}
    if isinstance(value, list):
        return [timeless(entry) for entry in value]
    return value if isinstance(value, str | int | float | None) else timeless(to_json(value))


def states(run: Run) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in run.model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(tensor, other[name]) for name, tensor in one.items()
    )


class Halt(Exception):
    """Raised by a progress to stop the work."""


class Recorder:
    """A progress that records what is reported, and raises `Halt` at an update.

    Args:
        halt_at: number of the update, counted from 1; 0 for never.
    """

    def __init__(self, halt_at: int = 0) -> None:
        self.tasks: list[tuple[str, int]] = []
        self.updates: list[tuple[int, dict[str, float] | None]] = []
        self.messages: list[str] = []
        self.open, self.halt_at = 0, halt_at

    def begin(self, task: str, total: int, done: int = 0) -> None:
        self.open += 1
        self.tasks.append((task, total))

    def update(self, done: int, numbers: Mapping[str, float] | None = None) -> None:
        self.updates.append((done, None if numbers is None else dict(numbers)))
        if len(self.updates) == self.halt_at:
            raise Halt

    def message(self, text: str) -> None:
        self.messages.append(text)

    def finish(self) -> None:
        self.open -= 1
