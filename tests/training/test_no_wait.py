"""No step waits for an accelerator, on a device that has no numbers (torch's `meta`).

Whatever a step reads there, or makes a shape of, raises an error; every operator between that
device and the CPU is seen. What does not exist on `meta` is replaced: autocast, generators, and
pinned memory, of which the test knows who asked for it.
"""

import contextlib
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sureclr.config import PretrainConfig
from sureclr.data import pictures
from sureclr.data.image_set import ImageSet, convert
from sureclr.data.user_images import as_image_set
from sureclr.training import accumulate
from sureclr.training.records import StepLines
from sureclr.training.setup import new_trainer
from sureclr.training.trainer import Trainer

META = torch.device("meta")
CONFIG = PretrainConfig("own", encoder="small-4", stem="cifar", batch_size=8, epochs=2)
NULLS = {"presence": "on", "null_fraction": 0.5}
# Beside the optimizer's; the views are 306 of 676, the loss 177 and the network, both ways, 193
MOST_OPERATORS = 700


def noise(width: int) -> ImageSet:
    """Images of 24 pixels; wider ones have whole pictures from which views are cropped."""
    return convert(as_image_set(torch.randint(256, (16, 3, 24, width), dtype=torch.uint8)), 24)


def computes(operator: Any) -> bool:
    """Whether an operator does more than describe the memory of its argument anew, as a view."""
    aliases = [one.alias_info for one in operator._schema.returns]
    return all(alias is None or alias.is_write for alias in aliases)


class Watching(TorchDispatchMode):
    """Counts the operators that compute on the device, and keeps those that see the CPU, too."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.crossing: list[tuple[str, Tensor, dict[str, Any]]] = []

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = operator(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
        devices = {tensor.device.type for tensor in tensors}
        if "meta" in devices and computes(operator):
            self.names[operator.name()] += 1
        if len(devices) == 2:
            self.crossing.append((operator.name(), tensors[0], kwargs))
        return out


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The addresses of what was pinned; the device `meta` behaves as an accelerator."""
    asked: set[int] = set()

    def pin(tensor: Tensor) -> Tensor:
        asked.add(tensor.data_ptr())
        return tensor

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    monkeypatch.setattr(pictures, "PINNING", ("meta",))
    monkeypatch.setattr(torch, "autocast", lambda *given, **options: contextlib.nullcontext())
    monkeypatch.setattr(accumulate, "_random_states", lambda device: [torch.get_rng_state()])
    monkeypatch.setattr(Trainer, "_generator", lambda trainer: None)
    return asked


def on_meta(images: ImageSet, **changes: Any) -> StepLines:
    trainer = new_trainer(replace(CONFIG, **changes), images, torch.device("cpu"))
    trainer.ahead = True
    trainer.model.to(META)
    trainer.objective.to(META)
    return StepLines(trainer, {})


@pytest.mark.parametrize(
    ("where", "changes", "copies"),
    [
        ("sent", {}, 2),
        ("resident", {"optimizer": "sgd", "loss": "nt-xent"}, 2),
        ("pictures", {"optimizer": "lars", "kernel_dimension": "measured", "micro_batch": 4}, 2),
        ("sent", NULLS, 6),
        ("resident", {**NULLS, "null_kinds": ("tiles",)}, 5),
        ("pictures", {**NULLS, "micro_batch": 4}, 6),
    ],
    ids=["sent", "resident", "pictures-accumulated", *("nulls", "tiles", "nulls-accumulated")],
)
def test_a_step_waits_for_nothing(
    pinned: set[int], where: str, changes: dict[str, Any], copies: int
) -> None:
    images = noise(40 if where == "pictures" else 24)
    lines = on_meta(images, **changes)
    if where == "resident":
        lines.trainer.images = replace(images, images=images.images.to(META))
    lines.step()  # which also prepares the second one
    with Watching() as seen:
        lines.step()
    # Pixels (or their rows) and parameters go to the device, pinned, and nothing comes back; for
    # null views noise goes there, the same of the images for tiles, and the order of the tiles
    assert len(seen.crossing) == copies
    for name, source, options in seen.crossing:
        assert name == "aten::_to_copy" and options["non_blocking"]
        assert source.device.type == "cpu" and source.data_ptr() in pinned
    assert not {"aten::_local_scalar_dense", "aten::nonzero", "aten::lift_fresh"} & set(seen.names)
    with pytest.raises(NotImplementedError, match="meta"):  # the one wait, for all lines together
        next(lines.read())


def test_a_gradient_is_a_few_hundred_operators(pinned: set[int]) -> None:
    """On a GPU each takes about as long to start as a small one takes to run."""
    trainer = on_meta(noise(24)).trainer
    with Watching() as seen:
        trainer.gradient()
    assert 300 < sum(seen.names.values()) < MOST_OPERATORS
