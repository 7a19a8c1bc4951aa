"""Views of all images together, the form for an accelerator, against those of a CPU; nothing waits.

The accelerator is torch's meta device: it has shapes and no numbers, so whatever reads a number
from it, or mixes its tensors with the CPU's, raises or is seen.
"""

import math
from collections import Counter
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sureclr.config import ViewConfig
from sureclr.data import crops
from sureclr.data.pictures import Pictures
from sureclr.data.view_parameters import COLUMNS, ViewPlan, plan_views
from sureclr.data.views import two_views, views_of

DEFAULT = ViewConfig()
# Operators that only describe the same numbers in another way; a device does nothing for them
FREE = {
    *("alias", "detach", "expand", "narrow", "select", "slice", "split", "split_with_sizes"),
    *("squeeze", "transpose", "unbind", "unsqueeze", "view", "_unsafe_view"),
}


def noise(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def oblong(channels: int = 3) -> Pictures:
    """Pictures of four sizes, one of them twice, in one flat array."""
    images = [noise(channels, *sides) for sides in ((40, 60), (97, 31), (1, 50), (70, 90))]
    lengths = torch.tensor([image.numel() for image in images])
    rows = torch.tensor([3, 0, 2, 1, 0])
    height, width = (torch.tensor([i.shape[axis] for i in images])[rows] for axis in (1, 2))
    start = (lengths.cumsum(0) - lengths)[rows]
    return Pictures(torch.cat([i.flatten() for i in images]), start, height, width, channels)


def a_plan(pictures: Pictures, size: int, config: ViewConfig = DEFAULT) -> ViewPlan:
    return plan_views(pictures, torch.arange(len(pictures)) * 7, (0, 1), size, size, config)


def made(plan: ViewPlan) -> Tensor:
    return views_of(plan.pictures.values, plan.packed(), plan.form)


def difference(x: Tensor, y: Tensor) -> float:
    return float((x - y).abs().max())


class Seen(TorchDispatchMode):
    """Counts the operators of a device, and the tensors that cross from one device to another."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device
        self.operators: Counter[str] = Counter()
        self.crossings: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)]
        devices = {t.device.type for t in tensors}
        name = function._schema.name.removeprefix("aten::")
        if self.device in devices:
            self.operators[name] += 1
        if len(devices) > 1:
            self.crossings.append(name)
        assert name not in ("_local_scalar_dense", "nonzero") or devices == {"cpu"}
        by_mask = name.startswith("index") and {torch.bool, torch.uint8} & {
            t.dtype for t in tree_leaves(args[1:]) if isinstance(t, Tensor)
        }
        assert not by_mask or devices == {"cpu"}
        return result

    def kernels(self, free: Iterable[str] = FREE) -> int:
        return self.operators.total() - sum(self.operators[name] for name in free)


# ---- the views are those of the CPU


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (5, 24, 40), (3, 48, 48)])
def test_views_of_all_images_together_are_the_cpus(shape: tuple[int, int, int]) -> None:
    """Also of some rows of a larger array, of a part of the plan, and of one view alone."""
    images, seeds = noise(24, *shape), torch.arange(24) * 7
    rows_form = two_views(images, seeds, DEFAULT)
    pictures = Pictures.of_array(images)
    plan = plan_views(pictures, seeds, (0, 1), *shape[1:], DEFAULT)
    assert plan.form.largest is None
    assert difference(made(plan), rows_form) < 2e-6
    some = torch.tensor([17, 3, 20, 4])
    both = torch.cat([some, some + 24])
    few = plan_views(pictures.select(some), seeds[some], (0, 1), *shape[1:], DEFAULT)
    assert difference(made(few), rows_form[both]) < 2e-6
    part = views_of(images.view(-1), plan.packed()[5:9], plan.form)
    assert difference(part, rows_form.view(2, 24, *shape)[:, 5:9].flatten(0, 1)) < 2e-6
    second = plan_views(pictures, seeds, (1,), *shape[1:], DEFAULT)
    assert difference(made(second), rows_form[24:]) < 2e-6


@pytest.mark.parametrize("channels", [1, 3, 6])
def test_views_of_whole_pictures_together_are_the_cpus(channels: int) -> None:
    pictures = oblong(channels)
    plan = a_plan(pictures, 24)
    assert plan.form.largest is not None
    assert difference(made(plan), two_views(pictures, torch.arange(5) * 7, DEFAULT, 24)) < 1e-5


@pytest.mark.parametrize("gap", [5, 32])
@pytest.mark.parametrize("wide", [32, 64])
def test_pixels_that_are_no_lines_of_the_views_are_read_as_pictures(gap: int, wide: int) -> None:
    """Pictures of the views' height: some are wider, or they do not begin where a line begins."""
    width = torch.tensor([32, wide, 32, wide])
    length = 3 * 32 * width
    values = noise(int(length.sum()) + 64)
    start = gap + length.cumsum(0) - length
    pictures = Pictures(values, start, torch.full((4,), 32), width, 3)
    plan = a_plan(pictures, 32)
    assert (plan.form.largest is None) == (gap == wide == 32)
    assert difference(made(plan), two_views(pictures, torch.arange(4) * 7, DEFAULT, 32)) < 1e-5


@pytest.mark.parametrize(
    "change",
    [{"flip": 0}, {"jitter_p": 0}, {"grey_p": 0}, {"blur_p": 0}, {"jitter_p": 1, "strength": 2.5}],
)
def test_what_no_view_has_is_left_out(change: dict[str, float]) -> None:
    images, config = noise(12, 3, 32, 32), ViewConfig(**change)  # type: ignore[arg-type]
    plan = a_plan(Pictures.of_array(images), 32, config)
    assert difference(made(plan), two_views(images, torch.arange(12) * 7, config)) < 2e-6


def test_images_that_are_not_blurred_are_not_touched_by_the_blur() -> None:
    images = noise(6, 3, 96, 96)
    off = ViewConfig(crop_area=(1, 1), crop_aspect=(1, 1), flip=0, jitter_p=0, grey_p=0, blur_p=0.5)
    plan = a_plan(Pictures.of_array(images), 96, off)
    sharp = torch.cat([view.sigma for view in plan.parameters]) == 0
    assert sharp.any() and not sharp.all()
    same = (made(plan) == torch.cat([images, images]).float() / 255).flatten(1).all(1)
    assert same.tolist() == sharp.tolist()


def test_weights_of_crops_exist_for_as_many_images_as_their_pixels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With crops of 2,000 pixels, those of 1,024 views of 224 pixels would fill 2 GB each."""
    plan, largest = a_plan(oblong(), 24, ViewConfig(jitter_p=0, grey_p=0, blur_p=0)), 0
    whole = made(plan)

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            if "div" in function.__name__ and out.ndim == 3:  # weights that sum to 1
                largest = max(largest, len(out))
            return out

    monkeypatch.setattr(crops, "PIXELS_AT_ONCE", 2 * 3 * math.prod(plan.form.largest or ()))
    with Sizes():
        by_two = made(plan)
    assert largest == 2 and torch.equal(by_two, whole)


# ---- packing


def test_a_place_beyond_32_bits_is_kept() -> None:
    """The pixels of the image lie behind 6 GB that are never touched."""
    image = noise(1, 3, 32, 32)
    start = 2 * 2**31 + 2**31 - 3072
    values = torch.empty(start + 3072, dtype=torch.uint8)
    values[start:] = image.flatten()
    far = Pictures(values, torch.tensor([start]), torch.tensor([32]), torch.tensor([32]), 3)
    near = made(a_plan(Pictures.of_array(image), 32))
    assert torch.equal(made(a_plan(far, 32)), near)
    place = a_plan(far, 32).packed()[0, 0, : COLUMNS["place"]].tolist()
    assert (place[0] << 31) + place[1] == start


def test_packed_numbers_are_one_tensor_that_can_be_sent_at_once() -> None:
    packed = a_plan(Pictures.of_array(noise(5, 3, 32, 32)), 32).packed()
    assert packed.shape == (5, 2, sum(COLUMNS.values())) and packed.dtype == torch.int32
    assert packed.is_contiguous() and packed.nbytes < 200 * 5


# ---- nothing waits, and there is little to launch


@pytest.mark.parametrize(("size", "most"), [(32, 310), (96, 325)])
def test_views_on_an_accelerator_take_few_operators_and_one_copy(size: int, most: int) -> None:
    """Measured: 303 and 315; the form of rows has 798 and 822, and copies 45 times."""
    images = torch.empty(16, 3, size, size, dtype=torch.uint8, device="meta")
    with Seen("meta") as seen:
        views = two_views(images, torch.arange(16), DEFAULT)
    assert views.shape == (32, 3, size, size) and views.device.type == "meta"
    assert seen.crossings == ["_to_copy"]
    assert 100 < seen.kernels() <= most


def test_views_of_whole_pictures_on_an_accelerator_take_one_copy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # meta has none
    pictures = oblong()
    there = Pictures(pictures.values.to("meta"), pictures.start, pictures.height, pictures.width, 3)
    with Seen("meta") as seen:
        views = two_views(there, torch.arange(5), DEFAULT, 24)
    assert views.shape == (10, 3, 24, 24) and views.device.type == "meta"
    assert seen.crossings == ["_to_copy"]
    assert 100 < seen.kernels() <= 325


@pytest.mark.parametrize("whole", [False, True])
def test_autocast_does_not_lower_the_precision_of_views(whole: bool) -> None:
    pictures = oblong() if whole else Pictures.of_array(noise(6, 3, 32, 32))
    plan = a_plan(pictures, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        views = made(plan)
    assert views.dtype == torch.float32 and torch.equal(views, made(plan))


def test_a_compiler_sees_one_graph() -> None:
    """Without a break; the CPU's compiler makes 15 to 20 kernels of it (benchmarks.views)."""
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    plan = a_plan(Pictures.of_array(noise(4, 3, 32, 32)), 32)
    compiled = torch.compile(views_of, backend=keep, fullgraph=True)
    assert torch.equal(compiled(plan.pictures.values, plan.packed(), plan.form), made(plan))
    assert len(graphs) == 1
