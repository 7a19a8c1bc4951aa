"""NT-Xent and SURE in tiles: memory linear in n, and the gradient computed in the forward pass.

The (2n, 2n) matrix of cosines is symmetric, so only the tiles (I, J) of its upper triangle are
computed; each serves its rows and its columns. A row's normaliser is known only once the whole row
has been computed, and the gradient needs those of both ends,

    dL/dmu_i = 1 / (2n tau) ( sum_j (p_ij + p_ji) mu_j - 2 mu_p(i) ),
    p_ij = exp(l_ij) / sum_{k != i} exp(l_ik),

or with a temperature tau / a_i a row, sum_j (a_i p_ij + a_j p_ji) mu_j - (a_i + a_p(i)) mu_p(i) in
the brackets. So there are two sweeps: normalisers, then gradient. With N = 2n, the cosines cost
N^2 d flops a sweep and the gradient 2 N^2 d: 4 N^2 d in all, 3 N^2 d where the first sweep's tiles
are cached (`CACHE_BYTES`). Whole rows in one sweep, or a matrix with autograd, would be 6 N^2 d.

Everything is in bits (on a CPU exp2 costs a third of exp), and in nats at the end. Where
a_i / tau <= `FLAT`, exp(l) of unit vectors neither overflows nor underflows, and the sums need no
maximum. At lower temperatures float32 cosines are too coarse (an error of 6e-8 / tau), so float64
and log-sum-exp tile by tile take over. The operator is opaque to torch.compile and runs on any
device.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from inspect import unwrap
from typing import Any, Protocol

import torch
from torch import Tensor

from sureclr.errors import UserError
from sureclr.maths import losses
from sureclr.maths.inputs import checked_temperature
from sureclr.maths.losses import TEMPERATURE, loss_of_views
from sureclr.maths.sphere import wide

# Rows and columns of a tile, by the type of the device. On a CPU 1 MiB in float32 stays in the
# caches (100 GF/s a core, and 88 at 1024; EPYC, AVX-512). On a GPU every operator is a launch, and
# 256 MiB keep it busy (not measured: none was available).
TILES: Mapping[str, int] = {"cpu": 256}
TILE_OF_GPU = 8192
# Memory for tiles of the first sweep that the second uses again: all tiles up to about n = 1024
CACHE_BYTES = 2**24
FLAT = 60.0  # nats: exp(+-60), times rows, times rows again, are normal float32 numbers
BITS = 1 / math.log(2)  # in a nat

Entries = Callable[[slice, slice, Tensor], Tensor]


@loss_of_views
def nt_xent(
    directions: Tensor,
    temperature: float = TEMPERATURE,
    sharpness: Tensor | None = None,
    tile: int | None = None,
    cache_bytes: int = CACHE_BYTES,
) -> Tensor:
    """Return `losses.nt_xent` in tiles: the same number and gradient, with memory linear in n.

    The second sweep is skipped where no gradient is needed. There are no second derivatives (asking
    for them raises a RuntimeError).

    Args:
        directions: (2n, d), unit vectors.
        temperature: tau, above 0.
        sharpness: (2n,), from 0 on: view i has the temperature tau / sharpness_i. Not given: 1. No
            gradient reaches it.
        tile: rows and columns of a tile. It changes speed and memory, not the result. Default: that
            of the device, `TILES`.
        cache_bytes: memory for tiles of the first sweep that the second uses again. It changes
            speed and memory.

    Returns:
        a scalar in nats, the mean over all 2n views.

    Raises:
        UserError: a tensor or the temperature does not fit, or the temperature needs a gradient.
    """
    if isinstance(temperature, Tensor) and temperature.requires_grad:
        raise UserError(
            "temperature gets no gradient from NT-Xent in tiles; use sureclr.maths.losses.nt_xent,"
            " or pass temperature.item()."
        )
    needed = torch.is_grad_enabled() and directions.requires_grad
    own = None if sharpness is None else sharpness.detach()
    size = tile or TILES.get(directions.device.type, TILE_OF_GPU)
    result = nt_xent_and_gradient(
        directions, checked_temperature(temperature), needed, own, size, cache_bytes
    )
    loss: Tensor = result[0]
    return loss


# L_sure costs O(n), so L_what alone needs tiles; `losses.sure` has checked the views
sure = partial(losses.sure, nt_xent=unwrap(nt_xent))


# The operator


def in_tiles(
    directions: Tensor,
    temperature: float,
    gradient: bool,
    sharpness: Tensor | None,
    tile: int,
    cache_bytes: int,
) -> tuple[Tensor, Tensor]:
    """Return NT-Xent in nats and its gradient with respect to the directions, (2n, d).

    The second is an empty tensor if `gradient` is False. Other arguments as for `nt_xent`.
    """
    mu = directions.detach() if 1 / temperature <= FLAT else wide(directions.detach())
    a = None if sharpness is None else sharpness.to(mu)
    tile = min(tile, len(mu))
    count = len(list(upper_tiles(len(mu), tile)))
    kept = min(count, cache_bytes // (tile**2 * mu.element_size())) if gradient else 0
    # One allocation: the kept tiles, the one in work, and one for `rows`
    memory = mu.new_empty(kept + 2, tile**2)
    rows = normalisers(mu, temperature, a, memory[-1])
    entries = similarities(mu, BITS / temperature, rows)
    for i, j, entry in sweep(len(mu), tile, entries, memory[:-1]):
        rows.add(entry, i, j)
    loss = mean_loss(mu, rows.logarithm(), temperature, a).to(directions.dtype)
    if not gradient:
        return loss, directions.new_empty(0)
    pull = partner(mu).mul_(-2 if a is None else -(a + partner(a))[:, None])
    for i, j, entry in sweep(len(mu), tile, entries, memory[:-1], kept):
        attract(pull, mu, rows.probabilities(entry, i, j), i, j)
    return loss, pull.div_(len(mu) * temperature).to(directions.dtype)


nt_xent_and_gradient = torch.library.custom_op("sureclr::nt_xent", in_tiles, mutates_args=())


@nt_xent_and_gradient.register_fake
def _(
    directions: Tensor,
    temperature: float,
    gradient: bool,
    sharpness: Tensor | None,
    tile: int,
    cache_bytes: int,
) -> tuple[Tensor, Tensor]:
    return directions.new_empty(()), (
        torch.empty_like(directions) if gradient else directions.new_empty(0)
    )


def _keep_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)  # so that an output nobody used has the gradient None
    ctx.save_for_backward(output[1])


def _scale_gradient(
    ctx: Any, of_loss: Tensor | None, of_gradient: Tensor | None
) -> tuple[Tensor, None, None, None, None, None]:
    if of_loss is None or of_gradient is not None:  # the gradient itself was differentiated
        raise RuntimeError(
            "NT-Xent in tiles has no second derivative; use sureclr.maths.losses.nt_xent for it."
        )
    return of_loss * ctx.saved_tensors[0], None, None, None, None, None


nt_xent_and_gradient.register_autograd(_scale_gradient, setup_context=_keep_gradient)


# Tiles


def partner(mu: Tensor) -> Tensor:
    """Return a copy of (2n, ...) with row p(i) in place of row i."""
    return mu.roll(len(mu) // 2, 0)


def mean_loss(
    mu: Tensor, logarithm: Tensor, temperature: float, sharpness: Tensor | None
) -> Tensor:
    """Return mean_i ( log sum_{j != i} exp(l_ij) - l_ip(i) ) in nats.

    Args:
        mu: (2n, d), unit vectors.
        logarithm: (2n,), log2 sum_{j != i} 2^(l_ij in bits).
        temperature: tau.
        sharpness: (2n,); None is 1.
    """
    first, second = mu.chunk(2)
    cosine = (first * second).sum(1).repeat(2)
    logits = cosine if sharpness is None else cosine.mul_(sharpness)
    return logarithm.mean() / BITS - logits.mean() / temperature


def upper_tiles(rows: int, tile: int) -> Iterator[tuple[slice, slice]]:
    """Yield the tiles on and above the diagonal of a (rows, rows) matrix."""
    blocks = [slice(start, min(start + tile, rows)) for start in range(0, rows, tile)]
    for k, i in enumerate(blocks):
        yield from ((i, j) for j in blocks[k:])


def similarities(mu: Tensor, scale: float, rows: "Rows") -> Entries:
    """Return a function of (I, J, out) that computes scale * mu_I mu_J^T as `rows` needs it."""
    scaled = mu * scale
    return lambda i, j, out: rows.entry(torch.mm(scaled[i], mu[j].T, out=out), i == j)


def sweep(
    rows: int, tile: int, entries: Entries, memory: Tensor, known: int = 0
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield each upper tile once, in its row of the memory or, beyond these, all in the last row.

    Args:
        rows: of the matrix.
        tile: rows and columns of a tile.
        entries: computes a tile.
        memory: (tiles, tile^2).
        known: number of rows of the memory that have their tile from an earlier sweep.
    """
    for index, (i, j) in enumerate(upper_tiles(rows, tile)):
        out = shaped(memory[min(index, len(memory) - 1)], i, j)
        yield i, j, out if index < known else entries(i, j, out)


def shaped(room: Tensor, i: slice, j: slice) -> Tensor:
    """Return the start of a tile's memory as a matrix of the rows I and the columns J."""
    rows, columns = i.stop - i.start, j.stop - j.start
    return room[: rows * columns].view(rows, columns)


def attract(pull: Tensor, mu: Tensor, weights: Tensor, i: slice, j: slice) -> None:
    """Add W mu_J to pull_I and, off the diagonal, W^T mu_I to pull_J."""
    pull[i].addmm_(weights, mu[j])
    if i != j:
        pull[j].addmm_(weights.T, mu[i])


# Sums over rows


class Rows(Protocol):
    """The normalisers of all rows, collected tile by tile, and the probabilities that follow."""

    def entry(self, logits: Tensor, diagonal: bool) -> Tensor:
        """Return what `add` and `probabilities` need of a tile's logits (bits), in place."""

    def add(self, entry: Tensor, i: slice, j: slice) -> None:
        """Add a tile to its rows and, off the diagonal, to its columns."""

    def logarithm(self) -> Tensor:
        """Return log2 sum_{j != i} 2^l_ij, (2n,)."""

    def probabilities(self, entry: Tensor, i: slice, j: slice) -> Tensor:
        """Return a_i p_ij + a_j p_ji of a tile; all rows must have been added."""


def normalisers(mu: Tensor, temperature: float, sharpness: Tensor | None, room: Tensor) -> Rows:
    """Return empty normalisers of the cheapest kind that is exact.

    Whether plain sums are exact depends on the largest sharpness, which a CPU alone is asked for: a
    GPU would have to be waited for.
    """
    if 1 / temperature > FLAT:
        return LogSums(mu, mu.new_ones(len(mu)) if sharpness is None else sharpness, room)
    if sharpness is None:
        return Sums(mu, room)
    plain = mu.device.type == "cpu" and float(sharpness.max()) / temperature <= FLAT
    return SharpSums(mu, sharpness, room) if plain else LogSums(mu, sharpness, room)


class Sums:
    """Plain sums of exponentials, for |l| <= FLAT and one temperature."""

    def __init__(self, mu: Tensor, room: Tensor) -> None:
        """Start from sums of 0 for the rows of mu; the room is a tile's memory."""
        self.total, self.room = mu.new_zeros(len(mu)), room

    def entry(self, logits: Tensor, diagonal: bool) -> Tensor:
        """Return the exponentials, in place, and 0 for a view with itself."""
        logits.exp2_()
        return logits.fill_diagonal_(0) if diagonal else logits

    def add(self, entry: Tensor, i: slice, j: slice) -> None:
        """Add a tile to its rows and, off the diagonal, to its columns."""
        self.total[i] += entry.sum(1)
        if i != j:
            self.total[j] += entry.sum(0)

    def logarithm(self) -> Tensor:
        """Return log2 sum_{j != i} 2^l_ij, (2n,)."""
        return self.total.log2()

    def probabilities(self, entry: Tensor, i: slice, j: slice) -> Tensor:
        """Return p_ij + p_ji of a tile, in the room."""
        out = shaped(self.room, i, j)
        return torch.add(1 / self.total[i, None], 1 / self.total[j], out=out).mul_(entry)


class SharpSums:
    """Plain sums of exponentials, for |a_i l| <= FLAT at the temperatures tau / a_i."""

    def __init__(self, mu: Tensor, sharpness: Tensor, room: Tensor) -> None:
        """Start from sums of 0 for the rows of mu; the room is a tile's memory."""
        self.total, self.sharpness, self.room = mu.new_zeros(len(mu)), sharpness, room

    def entry(self, logits: Tensor, diagonal: bool) -> Tensor:
        """Return the logits unchanged."""
        return logits

    def add(self, entry: Tensor, i: slice, j: slice) -> None:
        """Add a tile to its rows and, off the diagonal, to its columns."""
        out = shaped(self.room, i, j)
        by_row = torch.mul(entry, self.sharpness[i, None], out=out).exp2_()
        if i == j:
            by_row.fill_diagonal_(0)
        self.total[i] += by_row.sum(1)
        if i != j:
            self.total[j] += torch.mul(entry, self.sharpness[j], out=out).exp2_().sum(0)

    def logarithm(self) -> Tensor:
        """Return log2 sum_{j != i} 2^(a_i l_ij), (2n,)."""
        return self.total.log2()

    def probabilities(self, entry: Tensor, i: slice, j: slice) -> Tensor:
        """Return a_i p_ij + a_j p_ji of a tile, in the memory of the tile."""
        share = self.sharpness / self.total
        by_column = torch.mul(entry, self.sharpness[j], out=shaped(self.room, i, j)).exp2_()
        by_row = entry.mul_(self.sharpness[i, None]).exp2_().mul_(share[i, None])
        weights = by_row.addcmul_(by_column, share[j])
        return weights.fill_diagonal_(0) if i == j else weights


class LogSums:
    """Logarithms of sums, for any temperature, or for one a row, tau / sharpness (2n,)."""

    def __init__(self, mu: Tensor, sharpness: Tensor, room: Tensor) -> None:
        """Start from sums of 0 for the rows of mu; the room is a tile's memory."""
        self.total, self.sharpness, self.room = mu.new_full((len(mu),), -math.inf), sharpness, room

    def entry(self, logits: Tensor, diagonal: bool) -> Tensor:
        """Return the logits unchanged."""
        return logits

    def add(self, entry: Tensor, i: slice, j: slice) -> None:
        """Add a tile to its rows and, off the diagonal, to its columns."""
        out = shaped(self.room, i, j)
        by_row = torch.mul(entry, self.sharpness[i, None], out=out)
        if i == j:
            by_row.fill_diagonal_(-math.inf)
        self.total[i] = torch.logaddexp2(self.total[i], log_sum_exp2_(by_row, 1))
        if i != j:
            by_column = torch.mul(entry, self.sharpness[j], out=out)
            self.total[j] = torch.logaddexp2(self.total[j], log_sum_exp2_(by_column, 0))

    def logarithm(self) -> Tensor:
        """Return log2 sum_{j != i} 2^(a_i l_ij), (2n,)."""
        return self.total

    def probabilities(self, entry: Tensor, i: slice, j: slice) -> Tensor:
        """Return a_i p_ij + a_j p_ji of a tile, in the memory of the tile."""
        a, total = self.sharpness, self.total
        by_column = torch.mul(entry, a[j], out=shaped(self.room, i, j)).sub_(total[j]).exp2_()
        by_row = entry.mul_(a[i, None]).sub_(total[i, None]).exp2_().mul_(a[i, None])
        weights = by_row.addcmul_(by_column, a[j])
        return weights.fill_diagonal_(0) if i == j else weights


def log_sum_exp2_(x: Tensor, dim: int) -> Tensor:
    """Return log2 sum 2^x over a dimension; -inf for a sum of nothing (a tile of one row).

    x is overwritten.
    """
    largest = x.amax(dim, keepdim=True).clamp(min=torch.finfo(x.dtype).min)
    return x.sub_(largest).exp2_().sum(dim).log2_() + largest.squeeze(dim)
