"""Witness: the exact search, on clustered rows with the limits lowered."""

import pytest
import torch
from torch import Tensor

from sureclr.errors import UserError
from sureclr.maths import clustered_search
from sureclr.maths.clustered_search import EXACT, find_neighbours
from sureclr.maths.neighbours import top_k
from sureclr.maths.sphere import unit_rows


def clustered(n: int, seed: int, d: int = 16) -> Tensor:
    """Rows around 300 centres."""
    generator = torch.Generator().manual_seed(seed)
    centres = 3 * torch.randn(300, d, generator=torch.Generator().manual_seed(9))
    kinds = torch.randint(300, (n,), generator=generator)
    return centres[kinds] + torch.randn(n, d, generator=generator)


@pytest.fixture
def low_limits(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(clustered_search, "MOST_EXACT", 1000)
    monkeypatch.setattr(clustered_search, "FEWEST_QUERIES", 10)
    monkeypatch.setattr(clustered_search, "FITTED", 4096)
    return monkeypatch


def recall(found: Tensor, wanted: Tensor) -> float:
    pairs = zip(found.tolist(), wanted.tolist(), strict=True)
    return sum(len(set(a) & set(b)) for a, b in pairs) / wanted.numel()


def test_fifty_thousand_rows_are_found_as_by_the_exact_search(
    low_limits: pytest.MonkeyPatch,
) -> None:
    keys, queries = clustered(50_000, 0), clustered(500, 1)
    found, index = find_neighbours(queries, keys, 10), top_k(queries, keys, 10)[1]
    assert found.search.startswith("the nearest 16 of 256 clusters, which hold ")
    assert recall(found.index, index) >= 0.999
    cosine = (unit_rows(queries)[:, None] * unit_rows(keys)[found.index]).sum(2)
    assert torch.allclose(found.similarity, cosine, atol=1e-6)
    assert (found.similarity.diff(dim=1) <= 0).all() and found.index.dtype == torch.int64
    again = find_neighbours(queries, keys, 10)
    assert torch.equal(again.index, found.index) and again.search == found.search


def test_equal_cosines_go_to_the_lowest_index(low_limits: pytest.MonkeyPatch) -> None:
    """Signed axes, each often: cosines are -1, 0 and 1; a cluster holds one axis."""
    axes = torch.cat([torch.eye(16), -torch.eye(16)])
    keys = axes[torch.randint(32, (2000,), generator=torch.Generator().manual_seed(0))]
    found = find_neighbours(axes, keys, 9)
    assert found.search != EXACT
    assert torch.equal(found.index, top_k(axes, keys, 9)[1])


def test_rows_without_clusters_are_searched_exactly(low_limits: pytest.MonkeyPatch) -> None:
    """Neighbours in 200 dimensions without any structure lie in all clusters."""
    generator = torch.Generator().manual_seed(0)
    keys, queries = (torch.randn(n, 200, generator=generator) for n in (1500, 12))
    found, wanted = find_neighbours(queries, keys, 5), top_k(queries, keys, 5)
    assert found.search == EXACT
    assert torch.equal(found.index, wanted[1]) and torch.equal(found.similarity, wanted[0])


def test_a_query_whose_clusters_hold_too_few_keys_gets_k(low_limits: pytest.MonkeyPatch) -> None:
    """Sixteen clusters of 2,000 keys hold fewer than 300."""
    keys, queries = clustered(2000, 0), clustered(12, 1)
    low_limits.setattr(clustered_search, "LEAST_RECALL", 0.0)
    found, wanted = find_neighbours(queries, keys, 300), top_k(queries, keys, 300)
    assert found.search != EXACT
    assert torch.equal(found.index, wanted[1])


@pytest.mark.parametrize(
    ("keys", "queries"), [(1000, 20), (1001, 9)], ids=["few keys", "few queries"]
)
def test_small_searches_are_exact(keys: int, queries: int, low_limits: pytest.MonkeyPatch) -> None:
    low_limits.setattr(clustered_search, "LEAST_RECALL", 0.0)
    x, y = clustered(keys, 0), clustered(queries, 1)
    assert find_neighbours(y, x, 3).search == EXACT


def test_what_top_k_refuses_is_refused(low_limits: pytest.MonkeyPatch) -> None:
    keys, queries = clustered(1200, 0), clustered(20, 1)
    queries[3, 2] = torch.nan
    with pytest.raises(UserError, match="queries must be finite, and 1 of 20 rows"):
        find_neighbours(queries, keys, 3)
