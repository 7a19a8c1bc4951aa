"""k-means on the unit sphere, with no second copy of its points."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sureclr.maths.sphere import at_least_float32, unit_rows

ROWS_AT_ONCE = 1024  # whose lengths are taken together


def unit_points(features: Tensor, rows: NDArray[np.int64] | None = None) -> Tensor:
    """Return `unit_rows` of some rows, (m, f), with nothing else of that size on the way.

    Args:
        features: (n, f).
        rows: (m,) of them; None: all.
    """
    m = len(features) if rows is None else len(rows)
    kind = at_least_float32(features[:0]).dtype
    points = torch.empty(m, features.shape[1], dtype=kind)
    for start in range(0, m, ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        chosen = features[part] if rows is None else features[torch.from_numpy(rows[part])]
        points[part] = unit_rows(chosen)
    return points


def cluster_points(
    points: Tensor, most: int, *, seed: int, starts: int = 1, steps: int = 300
) -> tuple[Tensor, Tensor]:
    """Return the k-means cluster of each point, (n,) int64, and the centres (k, f).

    The time is that of n k f numbers, `steps` times at most.

    Args:
        points: (n, f). They are centred while this runs, and put back with an error of rounding,
            which spares a copy.
        most: k, or less where fewer points differ.
        seed: of the starting centres.
        starts: how often it begins anew; the best result counts.
        steps: of Lloyd's algorithm at most.
    """
    from sklearn.cluster import KMeans  # only here, since it takes 1.4 s

    k = max(1, count_distinct(points, most))
    fit = KMeans(k, n_init=starts, max_iter=steps, random_state=seed, copy_x=False)
    labels = fit.fit_predict(points.numpy())
    return torch.from_numpy(labels).long(), torch.from_numpy(fit.cluster_centers_)


def count_distinct(points: Tensor, most: int) -> int:
    """Return the number of different rows, or `most` if there are so many."""
    seen: set[bytes] = set()
    for row in points.numpy():
        if len(seen) >= most:
            break
        seen.add((row + 0.0).tobytes())  # -0.0 becomes 0.0, which it equals
    return len(seen)
