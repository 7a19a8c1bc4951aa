"""Exact nearest neighbours by cosine, in blocks of bounded memory, and the weighted vote of Wu et
al. (2018).

A block of similarities never exceeds QUERY_BLOCK x KEY_BLOCK entries (64 MiB in float32), whatever
the size of the two sets. Equal similarities go to the lowest index, so that a result does not
depend on the sorting routine of a device.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

QUERY_BLOCK, KEY_BLOCK = 1024, 16384


def top_k(
    queries: Tensor, keys: Tensor, k: int, exclude_self: bool = False
) -> tuple[Tensor, Tensor]:
    """The k keys with the highest cosine to each query, best first; exact; the lower index first
    where cosines are equal.

    Args:
        queries: (q, d), any length (normalised here; a row of zeros has cosine 0 with everything);
            half precision is widened.
        keys: (n, d), on the same device.
        k: 1 <= k <= n (n - 1 with exclude_self).
        exclude_self: query i *is* key i and must not find itself (leave-one-out); then q = n.

    Returns:
        (similarity (q, k), index (q, k) int64).

    Raises:
        ValueError: k out of range, or exclude_self with different numbers of queries and keys.
    """
    available = len(keys) - exclude_self
    if not 1 <= k <= available:
        raise ValueError(
            f"k = {k} neighbours need 1 <= k <= {available}, the number of"
            f" keys{' but itself' * exclude_self}"
        )
    if exclude_self and len(queries) != len(keys):
        raise ValueError(
            f"exclude_self needs queries and keys to be the same rows, got {len(queries)} and"
            f" {len(keys)}"
        )
    queries, keys = _unit(queries), _unit(keys)
    starts = range(0, len(queries), QUERY_BLOCK)
    rows = [
        _best_of_all(queries[i : i + QUERY_BLOCK], keys, k, i if exclude_self else None)
        for i in starts
    ]
    if not rows:
        return queries.new_empty(0, k), torch.empty(0, k, dtype=torch.int64, device=queries.device)
    return torch.cat([s for s, _ in rows]), torch.cat([i for _, i in rows])


def vote(
    similarity: Tensor, labels_of_neighbours: Tensor, classes: int, temperature: float = 0.1
) -> Tensor:
    """The class with the largest sum of exp(similarity / temperature) over the neighbours (Wu et
    al. 2018, eq. in section 3.4).

    Args:
        similarity: (q, k) cosines. labels_of_neighbours: (q, k) int64 in [0, classes). temperature:
            > 0.

    Returns:
        (q,) int64; the lowest class where votes are equal.
    """
    best = similarity.amax(
        1, keepdim=True
    )  # a factor common to a row changes no vote, and none overflows
    weight = torch.exp((similarity - best).double() / temperature)
    votes = weight.new_zeros(len(similarity), classes)
    for j in range(
        similarity.shape[1]
    ):  # one neighbour at a time: no two additions meet, so a GPU gives the same sum every time
        votes.scatter_add_(1, labels_of_neighbours[:, j : j + 1], weight[:, j : j + 1])
    return votes.argmax(1)


def _unit(rows: Tensor) -> Tensor:
    return normalize(rows if rows.dtype == torch.float64 else rows.float(), dim=1)


def _best_of_all(queries: Tensor, keys: Tensor, k: int, own: int | None) -> tuple[Tensor, Tensor]:
    """One block of queries against every block of keys. `own` is the index among the keys of the
    first query, or None.
    """
    similarity, index = (
        queries.new_empty(len(queries), 0),
        torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device),
    )
    for start in range(0, len(keys), KEY_BLOCK):
        block = queries @ keys[start : start + KEY_BLOCK].T  # (b, up to KEY_BLOCK)
        if own is not None:
            block.diagonal(own - start).fill_(
                -torch.inf
            )  # empty where the block does not meet the diagonal
        found, where = _best_of_block(block, k)
        # What was found before has lower indices, so a stable sort of (before, now) keeps the rule
        # for equal similarities.
        similarity, order = torch.cat([similarity, found], 1).sort(
            dim=1, descending=True, stable=True
        )
        similarity = similarity[:, :k]
        index = torch.cat([index, where + start], 1).gather(1, order)[:, :k]
    return similarity, index


def _best_of_block(block: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row, largest first, equal values by index. topk leaves equal values to
    chance: it is right as a set unless the last place is shared with an entry left out, and those
    rare rows are sorted in full.
    """
    if k >= block.shape[1]:
        return block.sort(dim=1, descending=True, stable=True)
    value, where = block.topk(k + 1)
    shared = value[:, k - 1] == value[:, k]
    where, order = where[:, :k].sort(1)
    value, order = value[:, :k].gather(1, order).sort(dim=1, descending=True, stable=True)
    where = where.gather(1, order)
    if shared.any():
        full = block[shared].sort(dim=1, descending=True, stable=True)
        value[shared], where[shared] = full.values[:, :k], full.indices[:, :k]
    return value, where
