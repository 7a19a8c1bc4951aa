"""Random numbers without a state: each one is a hash of (seed, stream, draw).

So the numbers of an image do not depend on the batch around it. The hash is SplitMix64 (Steele, Lea
and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014): a Weyl sequence, then a
bijective mixer. It is computed in int64, whose products wrap modulo 2^64 on every device, so the
numbers are the same everywhere.
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
    """Return x ^ (x >>> bits); torch shifts int64 arithmetically, and the mask makes it logical."""
    return x ^ ((x >> bits) & ((1 << (64 - bits)) - 1))


def mix(x: Tensor) -> Tensor:
    """Apply SplitMix64's finaliser, a bijection of the 64-bit words.

    Args:
        x: int64, any shape.
    """
    return _xor_shift(_xor_shift(_xor_shift(x, 30) * _FIRST, 27) * _SECOND, 31)


def hashed(seeds: Tensor, stream: int, count: int) -> Tensor:
    """Return random words, uniform over all 2^64.

    Args:
        seeds: (n,) int64.
        stream: words of different streams are independent.
        count: words a seed.

    Returns:
        (n, count) int64.
    """
    # Seeds may be 0, 1, 2, ...: they are hashed before the stream is added, and after
    state = mix(mix(seeds + GOLDEN) + _signed(stream * GOLDEN % (1 << 64)))
    steps = torch.arange(1, count + 1, device=seeds.device) * GOLDEN  # modulo 2^64
    return mix(state[:, None] + steps)


def uniform_numbers(seeds: Tensor, stream: int, count: int) -> Tensor:
    """Return random numbers, uniform in [0, 1): the upper 53 bits of `hashed`.

    Args:
        seeds: (n,) int64.
        stream: numbers of different streams are independent.
        count: numbers a seed.

    Returns:
        (n, count) float64, multiples of 2^-53.
    """
    return ((hashed(seeds, stream, count) >> 11) & ((1 << 53) - 1)).double() * 2.0**-53


def two_of(seeds: Tensor, stream: int, count: int) -> tuple[Tensor, Tensor]:
    """Return two different numbers from 0 to count - 1 for each seed; all pairs are equally likely.

    Args:
        seeds: (n,) int64.
        stream: numbers of different streams are independent.
        count: at least 2.

    Returns:
        (n,) and (n,) int64.
    """
    words = (hashed(seeds, stream, 2) >> 1) & ((1 << 62) - 1)  # not negative
    first = words[:, 0] % count
    return first, (first + 1 + words[:, 1] % (count - 1)) % count


def shuffled(rows: Tensor, stream: int, seed: int = 0) -> Tensor:
    """Return the rows in a random order that depends on each row's own number alone.

    Without some of the rows, the others keep their order.

    Args:
        rows: (n,) int64.
        stream: another stream gives another order.
        seed: another seed gives another order.
    """
    return rows[hashed(rows + (seed << 32), stream, 1)[:, 0].argsort()]


def sample_rows(rows: Tensor, most: int, stream: int, seed: int = 0) -> Tensor:
    """Return at most `most` of the rows, in ascending order: the first ones of `shuffled`.

    Args:
        rows: (n,) int64.
        most: number of rows, where there are so many.
        stream: another stream gives another choice.
        seed: another seed gives another choice.
    """
    return shuffled(rows, stream, seed)[:most].sort().values
