"""Nearest neighbours among very many keys: only the clusters nearest to a query are searched.

Up to MOST_EXACT keys the search is exact. Beyond them, where the package faiss is installed (the
extra `index`; Johnson, Douze and Jégou 2019), it puts the keys into clusters, and each query is
compared with the keys of its nearest clusters. What share of the true neighbours that finds is
measured every time on some of the queries, and where it is too small, more clusters are searched,
at last all keys.
"""

import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sureclr.maths.inputs import check_table
from sureclr.maths.neighbours import KEY_BLOCK, PLAIN, QUERY_BLOCK, Unit, top_k

EXACT = "exact"  # how all keys are searched
MOST_EXACT = 300_000  # keys up to which the search is always exact
FEWEST_QUERIES = 2000  # below which making the clusters saves less than half of the time
CLUSTERS = 256
FITTED = 1 << 16  # keys that k-means sees
PROBES = (16, 32, 64)  # clusters that are searched for each query: the first that finds enough
CHECKED = 256  # queries for which all keys are searched too
LEAST_RECALL = 0.995
ROUNDING = 1e-6  # of a cosine in faiss
FOUND_BLOCK = 1 << 22  # numbers in a block of keys that were found (16 MiB in float32)


@dataclass(frozen=True)
class Neighbours:
    """The nearest keys of q queries, best first; of equal cosines the lower index comes first.

    Attributes:
        similarity: (q, k) cosines, of those keys that were found exact.
        index: (q, k) int64.
        search: EXACT, or words that end "each query is compared with": part of the keys, and what
            share of the nearest ones that finds; or all, what that took, and what is quicker.
    """

    similarity: Tensor
    index: Tensor
    search: str


def find_neighbours(
    queries: Tensor,
    keys: Tensor,
    k: int,
    device: torch.device | None = None,
    unit: Unit = PLAIN,
) -> Neighbours:
    """Find the k keys with the highest cosine to each query, exactly or nearly so.

    The search is exact up to MOST_EXACT keys, for few queries, on a GPU, and without faiss; else by
    clusters, which find at least LEAST_RECALL of the true neighbours of CHECKED queries. It is the
    same every time with the same number of threads, those of PyTorch.

    Faiss is used on Linux alone: elsewhere its OpenMP and PyTorch's end the process
    (https://github.com/faiss-wheels/faiss-wheels/issues/73).

    Args:
        queries: (q, d), as `top_k` takes them.
        keys: (n, d).
        k: 1 <= k <= n.
        device: as in `top_k`.
        unit: as in `top_k`.

    Raises:
        UserError: as `top_k`.
    """
    on_cpu = (queries.device if device is None else device).type == "cpu"
    small = len(keys) <= MOST_EXACT or len(queries) < FEWEST_QUERIES
    if small or not on_cpu or sys.platform != "linux":
        return Neighbours(*top_k(queries, keys, k, device=device, unit=unit), EXACT)
    try:
        import faiss
    except ImportError:
        start = time.process_time()
        found = top_k(queries, keys, k, unit=unit)
        words = (
            f"all of them, which took {time.process_time() - start:,.0f} s of CPU time;"
            ' pip install "sureclr[index]" makes it quicker'
        )
        return Neighbours(*found, words)
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(torch.get_num_threads())
    try:
        return _by_clusters(faiss, queries, keys, k, unit)
    finally:
        faiss.omp_set_num_threads(threads)


def _by_clusters(faiss: Any, queries: Tensor, keys: Tensor, k: int, unit: Unit) -> Neighbours:
    """Search the fewest clusters that find enough, or all keys where none of PROBES does."""
    check_table("queries", queries)
    some = queries[torch.linspace(0, len(queries) - 1, CHECKED).long()]
    wanted = top_k(some, keys, k, unit=unit)[1]
    clusters = _clusters_of(faiss, keys, unit)
    for probes in PROBES:
        clusters.nprobe = probes
        found = _search(clusters, some, keys, k, unit)[1]
        recall = float((found[:, :, None] == wanted[:, None]).any(2).double().mean())
        if recall >= LEAST_RECALL:
            words = (
                f"those in the nearest {probes} of {CLUSTERS} clusters, which hold {recall:.2%} of"
                f" the {k} nearest neighbours (measured on {CHECKED} of them)"
            )
            return Neighbours(*_search(clusters, queries, keys, k, unit), words)
    return Neighbours(*top_k(queries, keys, k, unit=unit), EXACT)


def _clusters_of(faiss: Any, keys: Tensor, unit: Unit) -> Any:
    """An index of faiss: spherical k-means on some of the keys, and all keys in half precision."""
    width = keys.shape[1]
    index = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(width),
        width,
        CLUSTERS,
        faiss.ScalarQuantizer.QT_fp16,  # half the memory and the time; `_search` takes more keys
        faiss.METRIC_INNER_PRODUCT,
    )
    index.by_residual, index.cp.seed = False, 0
    index.cp.min_points_per_centroid = 1  # else it prints a warning where there are few keys
    generator = torch.Generator().manual_seed(0)
    index.train(_rows(unit(keys[torch.randperm(len(keys), generator=generator)[:FITTED]])))
    blocks = keys.split(KEY_BLOCK)
    homes = [_nearest_cluster(index, unit(block)) for block in blocks]
    for number, size in enumerate(torch.cat(homes).bincount(minlength=CLUSTERS).tolist()):
        # Room is made at once: lists that grow take half as much memory again
        index.invlists.resize(number, size)
        index.invlists.resize(number, 0)
    for block, home in zip(blocks, homes, strict=True):
        rows, lists = _rows(unit(block)), home.numpy()
        index.add_core(len(rows), faiss.swig_ptr(rows), None, faiss.swig_ptr(lists))
    return index


def _rows(x: Tensor) -> Any:
    """What faiss takes of rows of length 1: float32."""
    return x.float().numpy()


def _nearest_cluster(index: Any, rows: Tensor) -> Tensor:
    """(n,) int64, the cluster whose centre is nearest to each row."""
    return torch.from_numpy(index.quantizer.assign(_rows(rows), 1)).flatten()


def _search(index: Any, queries: Tensor, keys: Tensor, k: int, unit: Unit) -> tuple[Tensor, Tensor]:
    """The best keys in each query's nearest clusters: similarity and index (q, k)."""
    similarity = torch.empty(len(queries), k, dtype=unit(queries[:1]).dtype)
    numbers = torch.empty(len(queries), k, dtype=torch.int64)
    doubtful = []
    # Queries of one cluster follow each other, so that its keys stay in the processor's cache
    homes = torch.cat([_nearest_cluster(index, unit(some)) for some in queries.split(KEY_BLOCK)])
    size = max(1, min(QUERY_BLOCK, FOUND_BLOCK // (2 * k * keys.shape[1])))
    for rows in homes.argsort(stable=True).split(size):
        some = unit(queries[rows])
        # Twice as many as wanted: the order in half precision is nearly right
        rough, found = map(torch.from_numpy, index.search(_rows(some), 2 * k))
        last = rough[:, -1:] + ROUNDING
        # By index first, so that the stable sort leaves equal cosines in that order
        found, places = found.sort(1)
        cosine = (some[:, None] * unit(keys[found])).sum(2)
        cosine, best = cosine.sort(dim=1, descending=True, stable=True)
        best = best[:, :k]
        similarity[rows], numbers[rows] = cosine[:, :k], found.gather(1, best)
        # Their clusters hold too few keys, or a key that was left out may equal one that was taken
        tied = (rough.gather(1, places).gather(1, best) <= last).any(1)
        doubtful.append(rows[(found < 0).any(1) | tied])
    again = torch.cat(doubtful)
    if len(again):
        similarity[again], numbers[again] = top_k(queries[again], keys, k, unit=unit)
    return similarity, numbers
