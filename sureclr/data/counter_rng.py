"""Random numbers without a state: each is a hash of (seed, stream, draw), so an image's numbers do
not depend on its batch.

The hash is SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
OOPSLA 2014): a Weyl sequence through a bijective mixer. In int64, whose products wrap modulo 2^64
on every device, so the numbers are the same everywhere.
"""

import torch
from torch import Tensor


def _signed(word: int) -> int:
    """The int64 that has the bits of an unsigned 64-bit word."""
    return word - (1 << 64) if word >> 63 else word


GOLDEN = _signed(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, odd: the step of the Weyl sequence
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


def _xor_shift(x: Tensor, bits: int) -> Tensor:
    """x ^ (x >>> bits): torch shifts int64 arithmetically, the mask makes it logical."""
    return x ^ ((x >> bits) & ((1 << (64 - bits)) - 1))


def mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser, a bijection of the 64-bit words. x: int64, any shape."""
    return _xor_shift(_xor_shift(_xor_shift(x, 30) * _FIRST, 27) * _SECOND, 31)


def hashed(seeds: Tensor, stream: int, count: int) -> Tensor:
    """(n, count) int64 words, uniform over all 2^64, from seeds (n,) int64. Another stream gives
    independent words.
    """
    state = mix(
        mix(seeds + GOLDEN) + _signed(stream * GOLDEN % (1 << 64))
    )  # seeds may be 0, 1, 2...: hashed before and after
    steps = torch.tensor(
        [_signed((draw + 1) * GOLDEN % (1 << 64)) for draw in range(count)], device=seeds.device
    )
    return mix(state[:, None] + steps)


def uniform(seeds: Tensor, stream: int, count: int) -> Tensor:
    """(n, count) float64 in [0, 1): the upper 53 bits of `hashed`, multiples of 2^-53."""
    return ((hashed(seeds, stream, count) >> 11) & ((1 << 53) - 1)).double() * 2.0**-53


def shuffled(rows: Tensor, stream: int, seed: int = 0) -> Tensor:
    """The rows (n,) int64 in an order that each row's own number decides: without some of them, the
    others keep their order.
    """
    return rows[hashed(rows + (seed << 32), stream, 1)[:, 0].argsort()]


def sample(rows: Tensor, most: int, stream: int, seed: int = 0) -> Tensor:
    """At most so many of the rows (n,) int64, ascending, always the same ones."""
    return shuffled(rows, stream, seed)[:most].sort().values
