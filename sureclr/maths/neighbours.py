"""Exact nearest neighbours by cosine in bounded memory, and the weighted vote of Wu et al. 2018.

A block of similarities never exceeds QUERY_BLOCK x KEY_BLOCK entries (64 MiB in float32), whatever
the size of the two sets, and rows are normalised block by block. Of equal similarities the lowest
index comes first, so a result does not depend on the sorting routine of a device.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from sureclr.errors import UserError
from sureclr.maths.inputs import above, check_classes, check_table, is_whole
from sureclr.maths.sphere import unit_rows

QUERY_BLOCK, KEY_BLOCK = 1024, 16384
Unit = Callable[[Tensor], Tensor]  # rows (n, d) -> rows of length 1, whose cosines are compared
PLAIN: Unit = unit_rows  # for the cosine of the rows themselves
Best = tuple[Tensor, Tensor]  # similarity (q, k) and index (q, k) of the best keys so far


def top_k(
    queries: Tensor,
    keys: Tensor,
    k: int,
    exclude_self: bool = False,
    query_block: int = QUERY_BLOCK,
    key_block: int = KEY_BLOCK,
    device: torch.device | None = None,
    unit: Unit = PLAIN,
) -> tuple[Tensor, Tensor]:
    """Return the k keys with the highest cosine to each query, best first.

    The search is exact; of equal cosines the lower index comes first.

    Args:
        queries: (q, d), of any length (normalised here; a row of zeros has cosine 0 with
            everything). Half precision is raised to float32.
        keys: (n, d), on the same device.
        k: 1 <= k <= n (n - 1 with exclude_self).
        exclude_self: query i *is* key i and must not find itself (leave-one-out); then q = n.
        query_block: queries in a block of similarities. It changes memory, not the result.
        key_block: keys in a block of similarities.
        device: where blocks are computed, to which they are copied one by one; None: where the
            rows are.
        unit: what brings rows to length 1, block by block: PLAIN, or `PrincipalAxes.whitening` of
            both tables. A row of zeros stays zeros.

    Returns:
        the similarity (q, k), and the index (q, k) int64, on the device of the queries.

    Raises:
        UserError: k is out of range, the rows are not tables of the same width, a number is not
            finite, or exclude_self is given with different numbers of queries and keys.
    """
    check_table("queries", queries, 0)
    check_table("keys", keys, 0)
    if queries.shape[1] != keys.shape[1]:
        raise UserError(
            f"queries and keys must have as many columns, and have {queries.shape[1]} and"
            f" {keys.shape[1]}; take both from the same encoder."
        )
    available = len(keys) - exclude_self
    if not is_whole(k) or not 1 <= k <= available:
        raise UserError(
            f"k = {k} neighbours need a whole number with 1 <= k <= {max(0, available)}, the number"
            f" of keys{' but itself' * exclude_self}; choose another k."
        )
    if exclude_self and len(queries) != len(keys):
        raise UserError(
            f"exclude_self needs queries and keys to be the same rows, but there are {len(queries)}"
            f" queries and {len(keys)} keys; leave it out, or pass the same rows twice."
        )
    device = queries.device if device is None else device
    blocks, kind = queries.split(query_block), torch.promote_types(queries.dtype, torch.float32)
    best = [
        (
            torch.empty(len(block), 0, dtype=kind, device=device),
            torch.empty(len(block), 0, dtype=torch.int64, device=device),
        )
        for block in blocks
    ]
    for start in range(0, len(keys), key_block):
        # Normalised block by block: a copy of a whole table does not fit beside it
        some = unit(keys[start : start + key_block].to(device))
        for i, block in enumerate(blocks):
            own = i * query_block - start if exclude_self else None
            best[i] = _with_block(best[i], unit(block.to(device)), some, k, start, own)
    similarity, index = zip(*best, strict=True)
    return torch.cat(similarity).to(queries.device), torch.cat(index).to(queries.device)


def vote(
    similarity: Tensor, labels_of_neighbours: Tensor, classes: int, temperature: float = 0.1
) -> Tensor:
    """Return the class with the largest sum of exp(similarity / temperature) over the neighbours.

    Wu et al. 2018, the equation in section 3.4.

    Args:
        similarity: (q, k) cosines.
        labels_of_neighbours: (q, k) int64 in [0, classes).
        classes: how many there are.
        temperature: above 0. (Not the temperature of a loss.)

    Returns:
        (q,) int64; the lowest class where votes are equal.

    Raises:
        UserError: shapes differ, a similarity is not finite, or a number lies outside its range.
    """
    above("temperature", temperature, 0)
    check_table("similarity", similarity, 0)
    if similarity.shape != labels_of_neighbours.shape:
        raise UserError(
            f"there must be a label for each neighbour, (q, k), and there are similarities of"
            f" {tuple(similarity.shape)} and labels of {tuple(labels_of_neighbours.shape)}."
        )
    check_classes("labels_of_neighbours", labels_of_neighbours, classes)
    # Subtracting the maximum is a factor common to a row: it changes no vote, and none overflows
    best = similarity.amax(1, keepdim=True)
    weight = torch.exp((similarity - best).double() / temperature)
    votes = weight.new_zeros(len(similarity), classes)
    # One neighbour at a time: no two additions meet, so a GPU gives the same sum every time
    for j in range(similarity.shape[1]):
        votes.scatter_add_(1, labels_of_neighbours[:, j : j + 1], weight[:, j : j + 1])
    return votes.argmax(1)


def _with_block(
    best: Best, queries: Tensor, keys: Tensor, k: int, start: int, own: int | None
) -> Best:
    """The best of those found so far and of another block of keys.

    Args:
        best: similarity and index of the best among the keys before this block.
        queries: (q, d) of length 1.
        keys: (b, d) of length 1.
        k: how many are wanted.
        start: index of the first key of the block.
        own: number of the block's key that is the first query, which may lie outside the block;
            None: no query is a key.
    """
    block = queries @ keys.T
    if own is not None:  # the diagonal is empty where the block does not meet it
        block.diagonal(own).fill_(-torch.inf)
    similarity, where = _best_of_block(block, k)
    # The results of earlier blocks have lower indices, so a stable sort of (before, now) keeps the
    # rule for equal similarities
    both = torch.cat([best[0], similarity], 1).sort(dim=1, descending=True, stable=True)
    index = torch.cat([best[1], where + start], 1).gather(1, both.indices)
    return both.values[:, :k].contiguous(), index[:, :k].contiguous()


def _best_of_block(block: Tensor, k: int) -> Best:
    """The k largest of each row, largest first, equal values by index.

    topk leaves equal values to chance: it is right as a set unless the last place is shared with an
    entry that was left out, and those rare rows are sorted in full.
    """
    if k >= block.shape[1]:
        whole = block.sort(dim=1, descending=True, stable=True)
        return whole.values, whole.indices
    value, where = block.topk(k + 1)
    shared = value[:, k - 1] == value[:, k]
    where, order = where[:, :k].sort(1)
    value, order = value[:, :k].gather(1, order).sort(dim=1, descending=True, stable=True)
    where = where.gather(1, order)
    if shared.any():
        full = block[shared].sort(dim=1, descending=True, stable=True)
        value[shared], where[shared] = full.values[:, :k], full.indices[:, :k]
    return value, where
