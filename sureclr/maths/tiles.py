"""NT-Xent and SURE in tiles: memory linear in n, the gradient computed in the forward pass (issue
6).

The (2n, 2n) matrix of cosines is symmetric, so only the tiles (I, J) of its upper triangle are
computed; each serves its rows and its columns. A row's normaliser is known only once the whole row
has been seen, and the gradient needs those of both ends,

    dL/dmu_i = 1 / (2n tau) ( sum_j (p_ij + p_ji) mu_j - 2 mu_p(i) ),      p_ij = exp(l_ij) / sum_{k != i} exp(l_ik),

or with a temperature tau / a_i a row, sum_j (a_i p_ij + a_j p_ji) mu_j - (a_i + a_p(i)) mu_p(i) in
the brackets,
so there are two sweeps: normalisers, then gradient. With N = 2n, the cosines cost N^2 d flops a
    sweep and the gradient 2 N^2 d:
4 N^2 d in all, 3 N^2 d where the first sweep's tiles were kept (``KEPT``). Whole rows in one sweep,
or a matrix with autograd, would be 6 N^2 d.

Everything is in bits (on a CPU exp2 costs a third of exp), and in nats at the end. Where 1/tau <=
``FLAT``, exp(l) of unit vectors neither overflows nor underflows, and the sums need no maximum. At
lower temperatures float32 cosines are too coarse (an error of 6e-8 / tau): float64, and log-sum-exp
tile by tile. The operator is opaque to torch.compile, and runs on any device.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from sureclr.maths import losses
from sureclr.maths.losses import above, full_precision, pairs
from sureclr.maths.sphere import wide

# Rows and columns; 1 MiB in float32 stays in the second-level cache: 100 GF/s a core for 88 at 1024
# (EPYC, AVX-512)
TILE = 512
KEPT = (
    2**24
)  # bytes of tiles kept from the first sweep for the second: all of them up to about n = 1024
FLAT = 60.0  # nats: exp(+-60), times rows, times rows again, are normal float32 numbers
BITS = 1 / math.log(2)  # in a nat

Entries = Callable[[slice, slice], Tensor]


@full_precision
def nt_xent(directions: Tensor, temperature: float, sharpness: Tensor | None = None) -> Tensor:
    """``losses.nt_xent`` in tiles, the same number and gradient: (2n, d) unit vectors -> scalar,
    nats, mean over 2n views.

    Without need of a gradient the second sweep is skipped. No second derivatives (asking for them
    raises).

    Raises:
        UserError: an odd number of rows, fewer than two pairs, or a temperature that is not a
            positive number.
    """
    pairs(directions)
    needed = torch.is_grad_enabled() and directions.requires_grad
    own = None if sharpness is None else sharpness.detach()
    loss, _ = nt_xent_and_gradient(directions, above("temperature", temperature, 0), needed, own)
    return loss


sure = partial(losses.sure, nt_xent=nt_xent)  # L_sure costs O(n), so L_what alone needs tiles


# The operator


def in_tiles(
    directions: Tensor, temperature: float, gradient: bool, sharpness: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """NT-Xent in nats, and its gradient (2n, d) with respect to the directions, or an empty tensor
    if it is not wanted.
    """
    flat = 1 / temperature <= FLAT
    mu = directions.detach() if flat else wide(directions.detach())
    a = mu.new_ones(len(mu)) if sharpness is None else sharpness.to(mu)
    rows = Sums(mu) if flat and sharpness is None else LogSums(mu, a)
    entries = similarities(mu, BITS / temperature, rows)
    kept: list[Tensor] = []
    for i, j, entry in sweep(
        len(mu), entries, kept, KEPT // (TILE**2 * mu.element_size()) if gradient else 0
    ):
        rows.add(entry, i, j)
    loss = mean_loss(mu, rows.logarithm(), temperature, a).to(directions.dtype)
    if not gradient:
        return loss, directions.new_empty(0)
    pull = partner(mu).mul_(-(a + partner(a))[:, None])
    for i, j, entry in sweep(len(mu), entries, kept):
        attract(pull, mu, rows.probabilities(entry, i, j), i, j)
    return loss, pull.div_(len(mu) * temperature).to(directions.dtype)


nt_xent_and_gradient = torch.library.custom_op("sureclr::nt_xent", in_tiles, mutates_args=())


@nt_xent_and_gradient.register_fake
def _(
    directions: Tensor, temperature: float, gradient: bool, sharpness: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    return directions.new_empty(()), (
        torch.empty_like(directions) if gradient else directions.new_empty(0)
    )


def _keep_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)  # so that an output nobody used has the gradient None
    ctx.save_for_backward(output[1])


def _scale_gradient(
    ctx: Any, of_loss: Tensor | None, of_gradient: Tensor | None
) -> tuple[Tensor, None, None, None]:
    if of_loss is None or of_gradient is not None:  # the gradient itself was differentiated
        raise RuntimeError(
            "NT-Xent in tiles has no second derivative; use sureclr.maths.losses.nt_xent for it."
        )
    return of_loss * ctx.saved_tensors[0], None, None, None


nt_xent_and_gradient.register_autograd(_scale_gradient, setup_context=_keep_gradient)


# Tiles


def partner(mu: Tensor) -> Tensor:
    """(2n, ...): row p(i) in place of row i, a copy."""
    return mu.roll(len(mu) // 2, 0)


def mean_loss(mu: Tensor, logarithm: Tensor, temperature: float, sharpness: Tensor) -> Tensor:
    """mean_i ( log sum_{j != i} exp(l_ij) - l_ip(i) ), nats, of the logarithms (2n,) in bits."""
    return logarithm.mean() / BITS - (sharpness * (mu * partner(mu)).sum(1)).mean() / temperature


def upper_tiles(rows: int) -> Iterator[tuple[slice, slice]]:
    """The tiles on and above the diagonal of a (rows, rows) matrix."""
    blocks = [slice(start, min(start + TILE, rows)) for start in range(0, rows, TILE)]
    for k, i in enumerate(blocks):
        yield from ((i, j) for j in blocks[k:])


def similarities(mu: Tensor, scale: float, rows: "Rows") -> Entries:
    """What the sums need of a tile: a function of (I, J) that returns scale * mu_I mu_J^T, i = j
    hidden, as ``rows`` wants it.
    """
    scaled, room = mu * scale, mu.new_empty(TILE * TILE)

    def entries(i: slice, j: slice) -> Tensor:
        shape = (i.stop - i.start, j.stop - j.start)
        tile = torch.mm(scaled[i], mu[j].T, out=room[: math.prod(shape)].view(shape))
        return rows.entry(tile.fill_diagonal_(-math.inf) if i == j else tile)

    return entries


def sweep(
    rows: int, entries: Entries, kept: list[Tensor], limit: int = 0
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Each upper tile once, from ``kept`` or computed anew; the first ``limit`` are kept."""
    for index, (i, j) in enumerate(upper_tiles(rows)):
        tile = kept[index] if index < len(kept) else entries(i, j)
        if len(kept) <= index < limit:
            kept.append(tile.clone())
        yield i, j, tile


def attract(pull: Tensor, mu: Tensor, weights: Tensor, i: slice, j: slice) -> None:
    """pull_I += W mu_J and, off the diagonal, pull_J += W^T mu_I."""
    pull[i].addmm_(weights, mu[j])
    if i != j:
        pull[j].addmm_(weights.T, mu[i])


# Sums over rows


class Rows(Protocol):
    """The normalisers of all rows, collected tile by tile, and the probabilities that follow."""

    def entry(self, logits: Tensor) -> Tensor:
        """What is kept of a tile's logits (bits)."""

    def add(self, entry: Tensor, i: slice, j: slice) -> None:
        """Add a tile to its rows and, off the diagonal, to its columns."""

    def logarithm(self) -> Tensor:
        """(2n,), log2 sum_{j != i} 2^l_ij."""

    def probabilities(self, entry: Tensor, i: slice, j: slice) -> Tensor:
        """a_i p_ij + a_j p_ji of a tile; all rows must have been added."""


class Sums:
    """Plain sums of exponentials, for |l| <= FLAT."""

    def __init__(self, mu: Tensor) -> None:
        self.total, self.room = mu.new_zeros(len(mu)), mu.new_empty(TILE * TILE)

    def entry(self, logits: Tensor) -> Tensor:
        return logits.exp2_()

    def add(self, entry: Tensor, i: slice, j: slice) -> None:
        self.total[i] += entry.sum(1)
        if i != j:
            self.total[j] += entry.sum(0)

    def logarithm(self) -> Tensor:
        return self.total.log2()

    def probabilities(self, entry: Tensor, i: slice, j: slice) -> Tensor:
        out = self.room[: entry.numel()].view(entry.shape)
        return torch.add(1 / self.total[i, None], 1 / self.total[j], out=out).mul_(entry)


class LogSums:
    """Logarithms of sums, for any temperature, or one a row: tau / sharpness (2n,)."""

    def __init__(self, mu: Tensor, sharpness: Tensor) -> None:
        self.total, self.sharpness = mu.new_full((len(mu),), -math.inf), sharpness

    def entry(self, logits: Tensor) -> Tensor:
        return logits

    def add(self, entry: Tensor, i: slice, j: slice) -> None:
        self.total[i] = torch.logaddexp2(
            self.total[i], log_sum_exp2(entry * self.sharpness[i, None], 1)
        )
        if i != j:
            self.total[j] = torch.logaddexp2(
                self.total[j], log_sum_exp2(entry * self.sharpness[j], 0)
            )

    def logarithm(self) -> Tensor:
        return self.total

    def probabilities(self, entry: Tensor, i: slice, j: slice) -> Tensor:
        of_row, of_column = self.sharpness[i, None], self.sharpness[j]
        return (
            (entry * of_row - self.total[i, None])
            .exp2_()
            .mul_(of_row)
            .add_((entry * of_column - self.total[j]).exp2_().mul_(of_column))
        )


def log_sum_exp2(x: Tensor, dim: int) -> Tensor:
    """log2 sum 2^x; -inf where there is nothing to sum (a single row's own tile)."""
    largest = x.amax(dim, keepdim=True).clamp(min=torch.finfo(x.dtype).min)
    return (x - largest).exp2_().sum(dim).log2_() + largest.squeeze(dim)
