"""NT-Xent in two Triton kernels: logarithms of the normalisers, then the gradient.

    import sureclr.maths.triton_tiles as triton_tiles
    triton_tiles.switch_on()        # from here on tiles.nt_xent runs them on NVIDIA and AMD GPUs

No (2n, 2n) matrix reaches memory. A program owns a block of rows and walks over all columns, so
nothing is written twice and the result does not depend on timing (no atomics). The price is that
the symmetry is not used: 2 N^2 d flops, then 4 N^2 d, for 4 N^2 d in tiles.py.

Status: the arithmetic is tested in Triton's interpreter (TRITON_INTERPRET=1) against float64, and
both kernels compile for NVIDIA's capabilities 7.5, 8.0 and 9.0 (up to 128 coordinates at most 16
bytes a thread spilled, 24 KiB shared). **They have never run on a GPU**, since none was available;
that is why nothing switches them on by itself. Without them tiles.py runs on GPUs as it is.
"""

from __future__ import annotations  # where triton is missing, tl.constexpr must not be evaluated

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sureclr.errors import UserError
from sureclr.maths import tiles

try:
    import triton
    import triton.language as tl
except ModuleNotFoundError:  # then the module can be imported (by doctest, documentation), not used
    triton = None

ROWS, COLUMNS, WARPS = 64, 32, 8  # of a block
CHUNK = 32  # coordinates at a time; whole-width products spill 4 to 7 KiB a thread
WIDEST = 256  # coordinates


jit: Callable[[Any], Any] = triton.jit if triton else lambda kernel: kernel


@jit
def cosines(
    mu: tl.tensor,
    i: tl.tensor,
    j: tl.tensor,
    rows: int,
    width: int,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
) -> tl.tensor:
    """mu_I mu_J^T, (ROWS, COLUMNS), with -inf for a view with itself and beyond the last column."""
    cosine = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, WIDTH, CHUNK):
        axis = start + tl.arange(0, CHUNK)
        mine = tl.load(
            mu + i[:, None] * width + axis[None, :],
            mask=(i[:, None] < rows) & (axis[None, :] < width),
            other=0.0,
        )
        theirs = tl.load(
            mu + axis[:, None] + j[None, :] * width,
            mask=(axis[:, None] < width) & (j[None, :] < rows),
            other=0.0,
        )
        cosine = tl.dot(mine, theirs, cosine, input_precision="ieee")
    return tl.where((i[:, None] == j[None, :]) | (j[None, :] >= rows), float("-inf"), cosine)


@jit
def scaled_logits(scale: tl.tensor, cosine: tl.tensor) -> tl.tensor:
    """The product scale * cosine, with -inf where the cosine is -inf, also at a scale of 0."""
    return tl.where(cosine == float("-inf"), cosine, scale * cosine)


@jit
def logarithms(
    mu: tl.tensor,
    logarithm: tl.tensor,
    rows: int,
    width: int,
    scale: tl.tensor,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
) -> None:
    """log2 sum_{j != i} 2^(scale_i c_ij) of a block of rows, with a running maximum."""
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    scale_i = tl.load(scale + i, mask=i < rows, other=1.0)
    # Finite: a block of columns may contain nothing but the row itself
    largest = tl.full([ROWS], -1e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    for start in range(0, rows, COLUMNS):
        j = start + tl.arange(0, COLUMNS)
        cosine = cosines(mu, i, j, rows, width, ROWS, COLUMNS, WIDTH, CHUNK)
        logits = scaled_logits(scale_i[:, None], cosine)
        risen = tl.maximum(largest, tl.max(logits, 1))
        total = total * tl.exp2(largest - risen) + tl.sum(tl.exp2(logits - risen[:, None]), 1)
        largest = risen
    tl.store(logarithm + i, largest + tl.log2(total), mask=i < rows)


@jit
def pulls(
    mu: tl.tensor,
    logarithm: tl.tensor,
    pull: tl.tensor,
    rows: int,
    width: int,
    scale: tl.tensor,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
) -> None:
    """sum_j (scale_i p_ij + scale_j p_ji) mu_j of a block of rows."""
    i, axis = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    of_row, scale_i = (
        tl.load(logarithm + i, mask=i < rows, other=0.0),
        tl.load(scale + i, mask=i < rows, other=1.0),
    )
    total = tl.zeros([ROWS, WIDTH], tl.float32)
    for start in range(0, rows, COLUMNS):
        j = start + tl.arange(0, COLUMNS)
        cosine = cosines(mu, i, j, rows, width, ROWS, COLUMNS, WIDTH, CHUNK)
        of_column, scale_j = (
            tl.load(logarithm + j, mask=j < rows, other=0.0),
            tl.load(scale + j, mask=j < rows, other=1.0),
        )
        both = scale_i[:, None] * tl.exp2(scaled_logits(scale_i[:, None], cosine) - of_row[:, None])
        both += scale_j[None, :] * tl.exp2(
            scaled_logits(scale_j[None, :], cosine) - of_column[None, :]
        )
        theirs = tl.load(
            mu + j[:, None] * width + axis[None, :],
            mask=(j[:, None] < rows) & (axis[None, :] < width),
            other=0.0,
        )
        total = tl.dot(both, theirs, total, input_precision="ieee")
    tl.store(
        pull + i[:, None] * width + axis[None, :],
        total,
        mask=(i[:, None] < rows) & (axis[None, :] < width),
    )


def fits(directions: Tensor, temperature: float) -> bool:
    """Return whether the kernels can be used.

    They need float32, a temperature that needs no float64 cosines, and at most WIDEST coordinates.
    """
    return (
        directions.dtype == torch.float32
        and 1 / temperature <= tiles.FLAT
        and directions.shape[1] <= WIDEST
    )


def nt_xent_and_gradient(
    directions: Tensor,
    temperature: float,
    gradient: bool,
    sharpness: Tensor | None = None,
    tile: int = tiles.TILE,
    cache_bytes: int = tiles.CACHE_BYTES,
) -> tuple[Tensor, Tensor]:
    """Return `tiles.in_tiles` by the kernels, or by tiles where the kernels cannot be used.

    The kernels ignore `tile` and `cache_bytes`.
    """
    if not fits(directions, temperature):
        return tiles.in_tiles(directions, temperature, gradient, sharpness, tile, cache_bytes)
    mu = directions.detach().contiguous()
    a = mu.new_ones(len(mu)) if sharpness is None else sharpness.to(mu)
    (rows, width), scale = mu.shape, (a * (tiles.BITS / temperature)).contiguous()
    blocks = dict(
        ROWS=ROWS,
        COLUMNS=COLUMNS,
        WIDTH=max(CHUNK, triton.next_power_of_2(width)),
        CHUNK=CHUNK,
        num_warps=WARPS,
    )
    grid, logarithm = (triton.cdiv(rows, ROWS),), mu.new_empty(rows)
    logarithms[grid](mu, logarithm, rows, width, scale, **blocks)
    loss = tiles.mean_loss(mu, logarithm, temperature, a)
    if not gradient:
        return loss, mu.new_empty(0)
    pull = torch.empty_like(mu)
    pulls[grid](mu, logarithm, pull, rows, width, scale, **blocks)
    pull.mul_(temperature / tiles.BITS).sub_((a + tiles.partner(a))[:, None] * tiles.partner(mu))
    return loss, pull.div_(rows * temperature)


def switch_on() -> None:
    """Let `tiles.nt_xent` use the kernels on GPUs, in this process.

    Raises:
        UserError: triton is not installed.
    """
    if triton is None:
        raise UserError(
            "the GPU kernels of NT-Xent need triton, which is not installed; pip install triton."
        )
    tiles.nt_xent_and_gradient.register_kernel("cuda", nt_xent_and_gradient)
