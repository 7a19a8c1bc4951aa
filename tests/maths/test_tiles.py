"""The losses in tiles against the whole matrix in float64 with autograd, and what tiles alone can
get wrong.
"""

import importlib
import math
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from sureclr.errors import UserError
from sureclr.maths import losses, tiles

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
        assert tiles.in_tiles(x, 0.2, False, given)[0].isnan()  # as on a GPU, which is not asked


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
    """Records whether the operator was called for a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.wanted: list[bool] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if "sureclr::nt_xent" in function.name():
            self.wanted.append(args[2])
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


def test_the_operator_keeps_its_promises_and_compiles_without_a_graph_break() -> None:
    x, radii = views(20), torch.rand(40).mul(0.9).requires_grad_()
    for wanted in (True, False):
        checks = ("test_schema", "test_autograd_registration", "test_faketensor")
        arguments = (x, 0.2, wanted, None, TILE, 0)
        torch.library.opcheck(tiles.nt_xent_and_gradient, arguments, test_utils=checks)

    def step(raw: Tensor, radii: Tensor) -> Tensor:
        return tiles.sure(normalize(raw, dim=1), radii, 0.2)

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    loss, gradients = with_gradient(compiled(2 * x, radii), x, radii)
    expected, plain = with_gradient(step(2 * x, radii), x, radii)
    assert loss == pytest.approx(expected, rel=1e-6)
    assert all(relative(a, b) < 1e-6 for a, b in zip(gradients, plain, strict=True))


@pytest.mark.parametrize(
    "rows, temperature", [(2, 0.2), (5, 0.2), (8, 0.0), (8, -1.0), (8, math.nan), (8, math.inf)]
)
def test_bad_input_is_refused(rows: int, temperature: float) -> None:
    with pytest.raises(UserError):
        tiles.nt_xent(torch.eye(8)[:rows], temperature)


def fresh_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        check=False,
    )


STEP = """
import torch
from pathlib import Path
from sureclr.maths import tiles

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024

torch.set_num_threads(1)
x = torch.nn.functional.normalize(torch.randn(8192, 32), dim=1).requires_grad_()
tiles.nt_xent(x[:8], 0.2).backward()
before = peak()
tiles.nt_xent(x, 0.2).backward()
print(peak() - before, flush=True)
"""


# The Triton kernels: in the interpreter, which is chosen when triton is imported, so in a process
# of their own

INTERPRETED = """
import torch
from sureclr.maths import losses, triton_tiles
for n, d, temperature in ((2, 3, 0.2), (33, 17, 1e3), (40, 130, 0.05), (50, 40, 0.017)):
    generator = torch.Generator().manual_seed(n)
    latent, blur = (torch.randn(k * n, d, generator=generator) for k in (1, 2))
    x = torch.nn.functional.normalize(latent.repeat(2, 1) + 3 * blur, dim=1)
    exact, own = x.double().requires_grad_(), torch.rand(2 * n, generator=generator) * 1.8 + 0.1
    own[0] = 0
    for a in (None, own):
        expected = losses.nt_xent(exact, temperature, None if a is None else a.double())
        slope, = torch.autograd.grad(expected, exact)
        loss, gradient = triton_tiles.nt_xent_and_gradient(x, temperature, True, a)
        alone, nothing = triton_tiles.nt_xent_and_gradient(x, temperature, False, a)
        assert abs(loss - expected) < 1e-5 * max(1, expected), (n, loss, expected)
        assert alone == loss and nothing.numel() == 0
        error = (gradient - slope).norm() / slope.norm()
        assert error < 1e-5, (n, error)
"""

COMPILED = """
import torch, triton
from triton.backends.compiler import GPUTarget
from sureclr.maths import tiles, triton_tiles
x = torch.nn.functional.normalize(torch.randn(8, 4), dim=1)
before = tiles.nt_xent(x, 0.2)
triton_tiles.switch_on()
assert tiles.nt_xent(x, 0.2) == before
assert torch._C._dispatch_has_kernel_for_dispatch_key("sureclr::nt_xent", "CUDA")
sizes = {name: getattr(triton_tiles, name) for name in ("ROWS", "COLUMNS", "CHUNK")}
sizes["WIDTH"] = 128
kinds = dict(mu="*fp32", logarithm="*fp32", pull="*fp32", rows="i32", width="i32", scale="*fp32")
for kernel in (triton_tiles.logarithms, triton_tiles.pulls):
    names = kernel.arg_names
    signature = {name: kinds.get(name, "constexpr") for name in names}
    constants = {(names.index(name),): size for name, size in sizes.items()}
    source = triton.compiler.ASTSource(kernel, signature, constants)
    options = dict(num_warps=triton_tiles.WARPS)
    binary = triton.compile(source, GPUTarget("cuda", 80, 32), options=options)
    assert binary.metadata.shared <= 48 * 1024 and binary.asm["cubin"], binary.metadata
"""

HAS_TRITON = find_spec("triton") is not None
needs_triton = pytest.mark.skipif(
    not HAS_TRITON, reason="triton is not installed (pip install --no-deps triton)"
)
HAS_PROC = Path("/proc/self/status").exists()
needs_proc = pytest.mark.skipif(not HAS_PROC, reason="the peak is read from Linux's /proc")


@needs_triton
def test_triton_kernels_equal_float64_in_the_interpreter() -> None:
    run = fresh_process(INTERPRETED, TRITON_INTERPRET="1")
    assert run.returncode == 0, run.stderr


@pytest.fixture(scope="module")
def step_and_compilation(
    tmp_path_factory: pytest.TempPathFactory,
) -> subprocess.CompletedProcess[str]:
    """One process for both, because importing torch takes longer than either.

    It prints the memory of the step before it compiles.
    """
    parts = [STEP] * HAS_PROC + [COMPILED] * HAS_TRITON
    cache = str(tmp_path_factory.mktemp("triton"))
    return fresh_process("\n".join(parts), TRITON_INTERPRET="0", TRITON_CACHE_DIR=cache)


@needs_proc
def test_no_matrix_is_ever_in_memory(
    step_and_compilation: subprocess.CompletedProcess[str],
) -> None:
    """A fresh process, where the peak is that of one step: 256 MiB would be one matrix of 8,192
    views.

    Not by ru_maxrss: a process that was started by a large one (pytest) inherits its peak.
    """
    assert step_and_compilation.stdout, step_and_compilation.stderr
    assert 1 < float(step_and_compilation.stdout) < 60


@needs_triton
def test_triton_kernels_are_for_gpus_alone_and_compile_in_the_shared_memory_of_any(
    step_and_compilation: subprocess.CompletedProcess[str],
) -> None:
    assert step_and_compilation.returncode == 0, step_and_compilation.stderr


def test_without_triton_the_module_imports_and_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "sureclr.maths.triton_tiles", raising=False)
    module = importlib.import_module("sureclr.maths.triton_tiles")
    monkeypatch.delitem(sys.modules, "sureclr.maths.triton_tiles")
    with pytest.raises(UserError, match="pip install triton"):
        module.switch_on()
