"""Nearest neighbours among very many keys: only the clusters nearest to a query are searched.

Up to MOST_EXACT keys the search is exact. Beyond them, keys are put into clusters by spherical
k-means (the inverted lists of Sivic and Zisserman 2003), and each query is compared with the keys
of its nearest clusters. What share of the true neighbours that finds is measured every time on some
of the queries, and where it is too small, more clusters are searched, at last all keys.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sureclr.maths.inputs import check_table
from sureclr.maths.neighbours import KEY_BLOCK, QUERY_BLOCK, best_of_block, top_k
from sureclr.maths.sphere import unit_rows

EXACT = "exact"  # how all keys are searched
MOST_EXACT = 300_000  # keys up to which the search is always exact
FEWEST_QUERIES = 2000  # below which making the clusters costs more than they save
CLUSTERS = 256
FITTED = 1 << 16  # keys that k-means sees
ROUNDS = 10  # of k-means
PROBES = (16, 32, 64)  # clusters that are searched for each query: the first that finds enough
CHECKED = 256  # queries for which all keys are searched too
LEAST_RECALL = 0.995


@dataclass(frozen=True)
class Neighbours:
    """The nearest keys of q queries, best first; of equal cosines the lower index comes first.

    Attributes:
        similarity: (q, k) cosines, of those keys that were found exact.
        index: (q, k) int64.
        search: how they were found, in words: "exact", or which part of the keys was searched and
            what share of the nearest ones that finds.
    """

    similarity: Tensor
    index: Tensor
    search: str


@dataclass(frozen=True)
class _Clusters:
    """Keys in clusters: the centres (CLUSTERS, d) of length 1, and the keys of each, ascending."""

    centres: Tensor
    members: tuple[Tensor, ...]


def find_neighbours(
    queries: Tensor, keys: Tensor, k: int, device: torch.device | None = None
) -> Neighbours:
    """Find the k keys with the highest cosine to each query, exactly or nearly so.

    The search is exact up to MOST_EXACT keys, for few queries, and on a GPU; else by clusters,
    which find at least LEAST_RECALL of the true neighbours of CHECKED queries. It is the same every
    time.

    Args:
        queries: (q, d), as `top_k` takes them.
        keys: (n, d).
        k: 1 <= k <= n.
        device: as in `top_k`.

    Raises:
        UserError: as `top_k`.
    """
    on_cpu = (queries.device if device is None else device).type == "cpu"
    if len(keys) <= MOST_EXACT or len(queries) < FEWEST_QUERIES or not on_cpu:
        return Neighbours(*top_k(queries, keys, k, device=device), EXACT)
    check_table("queries", queries)
    some = queries[torch.linspace(0, len(queries) - 1, CHECKED).long()]
    wanted = top_k(some, keys, k)[1]
    clusters, recall = _clusters_of(keys), 0.0
    for probes in PROBES:
        found = _search(some, keys, k, clusters, probes)[1]
        recall = float((found[:, :, None] == wanted[:, None]).any(2).double().mean())
        if recall >= LEAST_RECALL:
            similarity, index = _search(queries, keys, k, clusters, probes)
            words = (
                f"the nearest {probes} of {CLUSTERS} clusters, which hold {recall:.2%} of the"
                f" {k} nearest neighbours (measured on {CHECKED} of them)"
            )
            return Neighbours(similarity, index, words)
    return Neighbours(*top_k(queries, keys, k), EXACT)


def _clusters_of(keys: Tensor) -> _Clusters:
    """Spherical k-means on some of the keys, and the cluster of every key."""
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(keys), generator=generator)[:FITTED]
    fitted = unit_rows(keys[chosen])
    centres = fitted[:CLUSTERS]
    for _ in range(ROUNDS):
        nearest = _nearest(fitted, centres, 1)[:, 0]
        sums = torch.zeros_like(centres).index_add_(0, nearest, fitted)
        kept = nearest.bincount(minlength=CLUSTERS) > 0  # an empty cluster keeps its centre
        centres = torch.where(kept[:, None], unit_rows(sums), centres)
    nearest = _nearest(keys, centres, 1)[:, 0]
    return _Clusters(centres, _places(nearest))


def _nearest(rows: Tensor, centres: Tensor, count: int) -> Tensor:
    """(n, count) int64, the clusters that are nearest to each row."""
    parts = [(unit_rows(part) @ centres.T).topk(count).indices for part in rows.split(KEY_BLOCK)]
    return torch.cat(parts)


def _places(clusters: Tensor) -> tuple[Tensor, ...]:
    """Where each cluster stands in a vector of clusters, ascending."""
    counts = clusters.bincount(minlength=CLUSTERS)
    lists: tuple[Tensor, ...] = clusters.argsort(stable=True).split(counts.tolist())
    return lists


def _search(
    queries: Tensor, keys: Tensor, k: int, clusters: _Clusters, probes: int
) -> tuple[Tensor, Tensor]:
    """The best keys among those in each query's nearest clusters: similarity and index (q, k)."""
    similarity = torch.full((len(queries), k), -torch.inf, dtype=clusters.centres.dtype)
    index = torch.full((len(queries), k), len(keys))
    visitors = _places(_nearest(queries, clusters.centres, probes).flatten())
    for members, visits in zip(clusters.members, visitors, strict=True):
        for rows in members.split(KEY_BLOCK):
            some = unit_rows(keys[rows])
            for who in (visits // probes).split(QUERY_BLOCK):
                block = unit_rows(queries[who]) @ some.T
                value, where = best_of_block(block, min(k, len(rows)))
                both = torch.cat([similarity[who], value], 1)
                numbers, order = torch.cat([index[who], rows[where]], 1).sort(1)
                # By index first, so that the stable sort leaves equal cosines in that order
                both, best = both.gather(1, order).sort(dim=1, descending=True, stable=True)
                similarity[who], index[who] = both[:, :k], numbers.gather(1, best)[:, :k]
    short = (index == len(keys)).any(1).nonzero()[:, 0]  # their clusters hold fewer than k keys
    if len(short):
        similarity[short], index[short] = top_k(queries[short], keys, k)
    return similarity, index
