"""Numbers that say how good directions and certainties are. Tensors in, numbers out; means over all rows unless said otherwise."""

import math


def wilson_interval(successes: int, trials: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's (1927) interval of a rate, 95 % by default; inside [0, 1], and of use at 0 and at 1. Raises ValueError for no trials."""
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"a rate needs 0 <= successes <= trials and a trial, got {successes} of {trials}")
    rate, shrink = successes / trials, 1 + z * z / trials
    middle = (rate + z * z / (2 * trials)) / shrink
    half = z / shrink * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    return max(0.0, middle - half), min(1.0, middle + half)
