"""Blocked cosine top-k against torch's whole similarity matrix and scikit-learn's brute force.

    python -m benchmarks.knn

The answers are compared first. CPU times are medians over interleaved rounds. Memory is the peak of
a fresh process for each, less that of a process that only makes the data. The peak is Linux's
VmHWM, because a child's ru_maxrss starts with that of its parent. The floor is the matrix product
alone.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sureclr.maths.neighbours import top_k

QUERIES, KEYS, DIMENSION, K, ROUNDS = 5000, 40000, 128, 20, 3


def data() -> tuple[Tensor, Tensor]:
    """Return random queries and keys."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(QUERIES, DIMENSION, generator=generator), torch.randn(
        KEYS, DIMENSION, generator=generator
    )


def whole_matrix(queries: Tensor, keys: Tensor) -> Tensor:
    """Return the cosines of the k nearest keys, from all similarities at once."""
    return (normalize(queries, dim=1) @ normalize(keys, dim=1).T).topk(K).values


def sklearn(queries: Tensor, keys: Tensor) -> Tensor:
    """Return the same cosines by scikit-learn's brute force."""
    from sklearn.neighbors import NearestNeighbors

    model = NearestNeighbors(n_neighbors=K, metric="cosine", algorithm="brute").fit(keys.numpy())
    return 1 - torch.from_numpy(model.kneighbors(queries.numpy())[0])


def product_only(queries: Tensor, keys: Tensor) -> Tensor:
    """Multiply the matrices and do nothing else, the least that any way needs."""
    for rows in queries.split(1000):
        rows @ keys.T
    return queries


def ours(queries: Tensor, keys: Tensor) -> Tensor:
    """Return the same cosines by `top_k`."""
    return top_k(queries, keys, K)[0]


WAYS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ours": ours,
    "whole matrix": whole_matrix,
    "scikit-learn": sklearn,
    "floor": product_only,
}


def seconds(way: Callable[[Tensor, Tensor], Tensor], queries: Tensor, keys: Tensor) -> float:
    """Return the CPU seconds of one way."""
    start = time.process_time()
    way(queries, keys)
    return time.process_time() - start


def peak(name: str) -> int:
    """Return the peak memory in MiB of a fresh process that makes the data and runs one way.

    The name "none" only makes the data.
    """
    return int(
        subprocess.run(
            [sys.executable, "-m", "benchmarks.knn", name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )


def main() -> None:
    """Compare the answers, then print times and memory."""
    torch.set_num_threads(1)
    queries, keys = data()
    if len(sys.argv) > 1:
        if sys.argv[1] in WAYS:
            WAYS[sys.argv[1]](queries, keys)
        status = Path("/proc/self/status").read_text()
        print(int(status.split("VmHWM:")[1].split()[0]) // 1024)
        return
    reference = whole_matrix(queries, keys)
    for name in ("ours", "scikit-learn"):  # also the first call, which is dropped
        print(
            f"largest difference of {name} from the whole matrix:"
            f" {(WAYS[name](queries, keys) - reference).abs().max():.1e}"
        )
    rounds = [
        {name: seconds(way, queries, keys) for name, way in WAYS.items()} for _ in range(ROUNDS)
    ]
    times = {name: median(r[name] for r in rounds) for name in WAYS}
    base = peak("none")
    print(f"{QUERIES} queries, {KEYS} keys, d {DIMENSION}, k {K}, 1 thread; medians of {ROUNDS}")
    for name, value in times.items():
        print(
            f"  {name:14s} {value:6.2f} CPU s  {value / times['ours']:5.2f} x ours "
            f" {peak(name) - base:6d} MiB over the data"
        )


if __name__ == "__main__":
    main()
