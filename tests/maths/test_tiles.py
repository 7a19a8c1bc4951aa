"""The losses in tiles against the whole matrix in float64 with autograd, and what tiles alone can
get wrong.
"""

import math
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from memory import counted
from torch import Tensor
from torch.nn.functional import normalize
from torch.profiler import profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from sureclr.errors import UserError
from sureclr.maths import losses, tiles
from sureclr.maths.objectives import OBJECTIVES, objective

TEMPERATURES = (1e-3, 3e-3, 0.016, 0.017, 0.05, 0.2, 1.0, 30.0, 1e3)  # both sides of 1 / FLAT


TILE = 32  # so that a small batch has many tiles


def in_tiles(
    x: Tensor,
    temperature: float,
    sharpness: Tensor | None = None,
    tile: int = TILE,
    cache_bytes: int = 0,
) -> Tensor:
    return tiles.nt_xent(x, temperature, sharpness, tile, cache_bytes)


def views(n: int, d: int = 16, noise: float = 0.5, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    latent, blur = (torch.randn(k * n, d, generator=generator, dtype=torch.float64) for k in (1, 2))
    return normalize(latent.repeat(2, 1) + noise * blur, dim=1).to(dtype).requires_grad_()


def with_gradient(loss: Tensor, *inputs: Tensor) -> tuple[float, list[Tensor]]:
    return loss.item(), [g.double() for g in torch.autograd.grad(loss, inputs)]


def whole(directions: Tensor, temperature: float) -> tuple[float, Tensor]:
    """The witness: the plain loss and its autograd gradient, float64, on the same numbers."""
    exact = directions.detach().double().requires_grad_()
    loss, (gradient,) = with_gradient(losses.nt_xent(exact, temperature), exact)
    return loss, gradient


def relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("noise", [0.3, 0.8, 10.0])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_float32_is_within_1e_5_of_float64_from_temperature_1e_3_to_1e3(
    temperature: float, noise: float
) -> None:
    x = views(77, noise=noise)
    expected, slope = whole(x, temperature)
    loss, (gradient,) = with_gradient(in_tiles(x, temperature), x)
    assert abs(loss - expected) < 1e-5 * max(1, expected)
    # where the loss is nearly solved, the pulls on a row cancel: an error in units of a single
    # pull, 1 / (2n tau)
    assert (gradient - slope).norm(dim=1).max() < 1e-5 * max(
        slope.norm(dim=1).max().item(), 1 / (len(x) * temperature)
    )


@pytest.mark.parametrize(
    "n", [2, 3, 15, 16, 17, 31, 32, 33, 80]
)  # around, at and at no multiple of the tile
@pytest.mark.parametrize("temperature", [0.005, 0.2])
def test_float64_equals_the_whole_matrix_at_any_batch(n: int, temperature: float) -> None:
    x = views(n, noise=3, dtype=torch.float64)
    expected, slope = whole(x, temperature)
    loss, (gradient,) = with_gradient(in_tiles(x, temperature), x)
    assert loss == pytest.approx(expected, rel=1e-13)
    assert gradient.dtype == torch.float64 and relative(gradient, slope) < 1e-11


@pytest.mark.parametrize("temperature", [0.005, 0.2])
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_the_tile_does_not_matter(size: int, temperature: float) -> None:
    x = views(9, noise=3, dtype=torch.float64)
    expected, slope = whole(x, temperature)
    loss, (gradient,) = with_gradient(in_tiles(x, temperature, tile=size), x)
    assert loss == pytest.approx(expected, rel=1e-13) and relative(gradient, slope) < 1e-11


@pytest.mark.parametrize("temperature", [0.005, 0.2])
@pytest.mark.parametrize("tiles_kept", [0, 1, 3, 100])
def test_kept_tiles_do_not_matter(tiles_kept: int, temperature: float) -> None:
    x = views(50, noise=3, dtype=torch.float64)
    _, slope = whole(x, temperature)
    kept = tiles_kept * TILE * TILE * 8
    _, (gradient,) = with_gradient(in_tiles(x, temperature, cache_bytes=kept), x)
    assert relative(gradient, slope) < 1e-12


def of_row(n: int) -> Tensor:
    return (
        torch.rand(2 * n, generator=torch.Generator().manual_seed(n), dtype=torch.float64) * 1.8
        + 0.1
    )


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("n", [3, 16, 77])
def test_a_temperature_a_row(n: int, temperature: float) -> None:
    """float64 exactly, at any batch; float32 as near as with one temperature, in units of a single
    pull.
    """
    x, a = views(n, noise=3, dtype=torch.float64), of_row(n)
    expected, (slope,) = with_gradient(losses.nt_xent(x, temperature, a), x)
    loss, (gradient,) = with_gradient(in_tiles(x, temperature, a), x)
    assert loss == pytest.approx(expected, rel=1e-13) and relative(gradient, slope) < 1e-11
    single = x.detach().float().requires_grad_()
    exact = single.detach().double().requires_grad_()
    expected, (slope,) = with_gradient(losses.nt_xent(exact, temperature, a), exact)
    loss, (gradient,) = with_gradient(in_tiles(single, temperature, a.float()), single)
    assert abs(loss - expected) < 1e-5 * max(1, expected)
    assert (gradient - slope).norm(dim=1).max() < 1e-5 * max(
        slope.norm(dim=1).max().item(), 1 / (len(x) * temperature)
    )


@pytest.mark.parametrize("size, kept", [(1, 0), (7, 3), (1000, 100)])
def test_neither_tiles_nor_those_kept_matter_to_a_temperature_a_row(size: int, kept: int) -> None:
    x, a = views(9, noise=3, dtype=torch.float64), of_row(9)
    expected, (slope,) = with_gradient(losses.nt_xent(x, 0.2, a), x)
    loss, (gradient,) = with_gradient(in_tiles(x, 0.2, a, size, kept * size * size * 8), x)
    assert loss == pytest.approx(expected, rel=1e-13) and relative(gradient, slope) < 1e-11


def test_a_sharpness_has_no_gradient_and_ones_change_nothing() -> None:
    x, a = views(20), torch.ones(40, requires_grad=True)
    loss, (slope,) = with_gradient(in_tiles(x, 0.2), x)
    same = in_tiles(x, 0.2, a)
    same.backward()
    assert same.item() == pytest.approx(loss, rel=1e-6) and a.grad is None
    assert x.grad is not None and relative(x.grad.double(), slope) < 1e-5


@pytest.mark.parametrize(("rows", "tile"), [(77, 32), (64, 32), (65, 32), (5, 1)])
def test_each_pair_of_rows_is_computed_once(rows: int, tile: int) -> None:
    count = torch.zeros(rows, rows)
    for i, j in tiles.upper_tiles(rows, tile):
        count[i, j] += 1
        assert max(i.stop - i.start, j.stop - j.start) <= tile
    assert count.max() == 1 and (count + count.T).min() == 1


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_opposite_and_equal_views_are_finite_at_every_temperature(
    temperature: float, sign: float
) -> None:
    """The extremes of a logit, -1/tau and 1/tau, whole rows of them."""
    one = normalize(torch.ones(1, 8), dim=1)
    x = torch.cat([one.repeat(20, 1), sign * one.repeat(20, 1)]).requires_grad_()
    expected, slope = whole(x, temperature)
    loss, (gradient,) = with_gradient(in_tiles(x, temperature), x)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert (gradient - slope).abs().max() < 1e-5 / (len(x) * temperature)


@pytest.mark.parametrize("zeros", [[0], [3, 20], list(range(18))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [0.005, 0.2])
def test_a_sharpness_of_zero_is_a_row_without_preference(
    temperature: float, dtype: torch.dtype, zeros: list[int]
) -> None:
    """Such a row has the loss log(2n - 1), from the whole matrix and by hand."""
    x, a = views(18, dtype=dtype), of_row(18)
    a[zeros] = 0
    exact = x.detach().double().requires_grad_()
    expected, (slope,) = with_gradient(losses.nt_xent(exact, temperature, a), exact)
    loss, (gradient,) = with_gradient(in_tiles(x, temperature, a.to(dtype), tile=8), x)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-11
    assert loss == pytest.approx(expected, rel=tolerance)
    assert relative(gradient, slope) < tolerance
    rows = losses.per_view_nt_xent(exact, temperature, a)[zeros]
    assert rows.tolist() == pytest.approx([math.log(35)] * len(zeros))


@pytest.mark.parametrize("zeros", [1, 40, 80])
def test_radii_of_zero_in_sure_by_tiles(zeros: int) -> None:
    x, radii = views(40), torch.rand(80, generator=torch.Generator().manual_seed(0)) * 0.9
    radii[:zeros] = 0
    radii.requires_grad_()
    loss, ours = with_gradient(tiles.sure(x, radii), x, radii)
    expected, plain = with_gradient(losses.sure(x, radii), x, radii)
    assert math.isfinite(loss) and loss == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-6)


def test_directions_that_are_not_numbers_are_not_hidden() -> None:
    x = views(20).detach()
    x[3, 0] = math.nan
    a = of_row(20).float()
    for given in (None, a):
        with pytest.raises(UserError, match="directions must be rows of length 1"):
            tiles.nt_xent(x, 0.2, given)
        loss, _ = tiles.in_tiles(x, 0.2, False, given, TILE, 0)  # as on a GPU, which is not asked
        assert loss.isnan()


@pytest.mark.parametrize("softening", ["off", "anchors", "means"])
def test_sure_is_the_plain_one_in_value_and_in_both_gradients(softening: losses.Softening) -> None:
    x, radii = (
        views(40, dtype=torch.float64),
        torch.rand(80, dtype=torch.float64).mul(0.9).requires_grad_(),
    )
    options = dict(
        temperature=0.2,
        weight=0.7,
        dimension=5.5,
        gaps=1 - radii.detach() * 0.99,
        empirical_prior=0.4,
        softening=softening,
    )
    loss, ours = with_gradient(tiles.sure(x, radii, **options), x, radii)
    expected, plain = with_gradient(losses.sure(x, radii, **options), x, radii)
    assert loss == pytest.approx(expected, rel=1e-13)
    assert all(relative(a, b) < 1e-11 for a, b in zip(ours, plain, strict=True))


def test_the_gradient_scales_with_what_follows_and_half_precision_is_raised() -> None:
    x = views(40)
    _, (once,) = with_gradient(in_tiles(x, 0.2), x)
    _, (tripled,) = with_gradient(3 * in_tiles(x, 0.2), x)
    assert relative(tripled, 3 * once) < 1e-6
    half = x.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = in_tiles(half, 0.2)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(
        whole(half, 0.2)[0], abs=1e-5
    )
    loss.backward()
    assert half.grad is not None and half.grad.dtype == torch.bfloat16


class Recorder(TorchDispatchMode):
    """Records whether the operator was called for a gradient, and with which tile."""

    def __init__(self) -> None:
        super().__init__()
        self.wanted, self.tiles = list[bool](), list[int]()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if "sureclr::nt_xent" in function.name():
            self.wanted.append(args[2])
            self.tiles.append(args[4])
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("tracked", "enabled"), [(True, True), (True, False), (False, True)])
def test_a_gradient_is_computed_only_where_it_is_needed(tracked: bool, enabled: bool) -> None:
    x = views(40).detach().requires_grad_(tracked)
    with Recorder() as recorder, torch.set_grad_enabled(enabled):
        loss = tiles.nt_xent(x, 0.2)
    assert loss.item() == pytest.approx(whole(x, 0.2)[0], rel=1e-6)
    assert recorder.wanted == [loss.requires_grad] == [tracked and enabled]


def test_without_a_gradient_there_is_no_second_sweep() -> None:
    """Witness: torch's own count of the products."""
    x, counts = views(40).detach(), []
    for gradient in (False, True):
        with FlopCounterMode(display=False) as counter:
            _, result = tiles.in_tiles(x, 0.2, gradient, None, TILE, 0)
        counts.append(counter.get_total_flops())
        assert result.shape == ((80, 16) if gradient else (0,))
    assert 0 < 2 * counts[0] <= counts[1]


def test_a_second_derivative_is_refused_not_wrong() -> None:
    x = views(4)
    (gradient,) = torch.autograd.grad(in_tiles(x, 0.2), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.square().sum().backward()


def test_the_operator_keeps_its_promises() -> None:
    x = views(20)
    for wanted in (True, False):
        checks = ("test_schema", "test_autograd_registration", "test_faketensor")
        arguments = (x, 0.2, wanted, None, TILE, 0)
        torch.library.opcheck(tiles.nt_xent_and_gradient, arguments, test_utils=checks)


def test_a_compiled_loss_is_one_graph_and_runs_the_operator_once_a_step() -> None:
    """The whole objective, with its running mean; witness: the eager loss."""
    x, k = views(20), torch.randn(40, generator=torch.Generator().manual_seed(0)).requires_grad_()
    sure = objective("sure")

    def step(raw: Tensor, k: Tensor) -> Tensor:
        return sure(3 * raw, k)

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    loss, gradients = with_gradient(compiled(x, k), x, k)
    expected, plain = with_gradient(step(x, k), x, k)
    assert loss == pytest.approx(expected, rel=1e-6)
    assert all(relative(a, b) < 1e-6 for a, b in zip(gradients, plain, strict=True))
    with profile() as run:
        compiled(x, k).backward()
    assert [e.count for e in run.key_averages() if e.key == "sureclr::nt_xent"] == [1]


@pytest.mark.parametrize(
    "rows, temperature", [(2, 0.2), (5, 0.2), (8, 0.0), (8, -1.0), (8, math.nan), (8, math.inf)]
)
def test_bad_input_is_refused(rows: int, temperature: float) -> None:
    with pytest.raises(UserError):
        tiles.nt_xent(torch.eye(8)[:rows], temperature)


# Plain sums where they are exact


@pytest.mark.parametrize(("largest", "plain"), [(59.9, True), (60.1, False), (1e3, False)])
def test_plain_sums_are_for_the_sharpness_that_they_can_take(largest: float, plain: bool) -> None:
    """Opposite views at the largest sharpness have the logits -largest and largest, in nats."""
    one = normalize(torch.ones(1, 8), dim=1)
    x = torch.cat([views(8, 8).detach(), one, -one, -one, one]).roll(8, 0).requires_grad_()
    a = torch.rand(20, generator=torch.Generator().manual_seed(0)) * 2
    a[::3] = largest * 0.2
    exact = x.detach().double().requires_grad_()
    expected, (slope,) = with_gradient(losses.nt_xent(exact, 0.2, a.double()), exact)
    loss, (gradient,) = with_gradient(in_tiles(x, 0.2, a, 8), x)
    assert loss == pytest.approx(expected, rel=1e-5)
    pull = largest / len(x)  # of a single one
    assert (gradient - slope).norm(dim=1).max() < 1e-5 * pull
    kind = type(tiles.normalisers(x, 0.2, a, torch.empty(64)))
    assert kind is (tiles.SharpSums if plain else tiles.LogSums)


# Memory, and waiting for a GPU


class Waits(TorchDispatchMode):
    """Counts operators, and records those that need a value or a number of values on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.waits = 0, list[str]()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += 1
        if any(word in function.name() for word in ("_local_scalar_dense", "nonzero", "item")):
            self.waits.append(function.name())
        return function(*args, **(kwargs or {}))


@pytest.fixture
def on_meta(monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor]:
    """Rows and radii on the meta device: not a CPU, as a GPU, and without values to wait for."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # it has none on meta
    x = torch.empty(600, 128, device="meta", requires_grad=True)
    return x, torch.empty(600, device="meta", requires_grad=True)


@pytest.mark.parametrize("temperature", [0.2, 0.001])
@pytest.mark.parametrize("sharp", [False, True])
def test_the_operator_does_not_wait_for_a_gpu(
    on_meta: tuple[Tensor, Tensor], temperature: float, sharp: bool
) -> None:
    x, a = (tensor.detach() for tensor in on_meta)
    with Waits() as run:
        tiles.in_tiles(x, temperature, True, a if sharp else None, 256, tiles.CACHE_BYTES)
    assert run.count > 30 and not run.waits


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "mc-infonce"])
def test_losses_do_not_wait_for_a_gpu(on_meta: tuple[Tensor, Tensor], name: str) -> None:
    """All but mc-infonce, which samples by rejection."""
    options: list[dict[str, Any]] = [{}]
    if name == "sure":
        options += [{"dimension": "measured"}, {"empirical_prior": 0.5}, {"softening": "means"}]
    for chosen in options:
        loss = objective(name, **chosen).to("meta")
        with Waits() as run:
            loss(*on_meta).backward()
        assert run.count > 30 and not run.waits
        assert on_meta[0].grad is not None


def test_the_tile_is_that_of_the_device(on_meta: tuple[Tensor, Tensor]) -> None:
    """A CPU has one that its caches hold; anything else one that makes few launches."""
    for x, size in ((views(4), 256), (on_meta[0], 8192)):
        with Recorder() as recorder:
            tiles.nt_xent(x)
        assert recorder.tiles == [size]


def test_no_matrix_is_ever_in_memory() -> None:
    """Of 2,048 views it would take 16 MiB; 1 MiB, or 4 tiles, may be kept for the second sweep."""
    kept, x, radii = 2**20, views(1024), torch.rand(2048, requires_grad=True)
    peaks = []
    for sharpness in (None, radii.detach()):
        for temperature in (0.1, 0.001):  # the second one in float64
            with counted() as memory:
                tiles.in_tiles(x.detach(), temperature, True, sharpness, 256, kept)
            peaks.append(memory.peak)
    with counted() as memory:  # what the loss does beside the operator, which is opaque
        tiles.sure(x, radii).backward()
    assert kept < min(peaks) and max(*peaks, memory.peak) < 8 * kept
