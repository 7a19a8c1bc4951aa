"""Witness: the exact search, on clustered rows with the limits lowered."""

from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor

from sureclr.errors import UserError
from sureclr.maths import clustered_search
from sureclr.maths.clustered_search import EXACT, find_neighbours
from sureclr.maths.neighbours import top_k
from sureclr.maths.sphere import unit_rows
from sureclr.maths.whitening import principal_axes


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


@pytest.fixture
def faiss(low_limits: pytest.MonkeyPatch) -> ModuleType:
    return pytest.importorskip("faiss")


def recall(found: Tensor, wanted: Tensor) -> float:
    pairs = zip(found.tolist(), wanted.tolist(), strict=True)
    return sum(len(set(a) & set(b)) for a, b in pairs) / wanted.numel()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_many_rows_are_found_as_by_the_exact_search(faiss: ModuleType, dtype: torch.dtype) -> None:
    keys, queries = clustered(20_000, 0).to(dtype), clustered(500, 1).to(dtype)
    found, index = find_neighbours(queries, keys, 10), top_k(queries, keys, 10)[1]
    assert found.search.startswith("those in the nearest 16 of 256 clusters, which hold ")
    assert recall(found.index, index) >= 0.999
    cosine = (unit_rows(queries)[:, None] * unit_rows(keys)[found.index]).sum(2)
    assert torch.allclose(found.similarity, cosine, rtol=0, atol=2 * torch.finfo(cosine.dtype).eps)
    assert (found.similarity.diff(dim=1) <= 0).all() and found.index.dtype == torch.int64
    again = find_neighbours(queries, keys, 10)
    assert torch.equal(again.index, found.index) and again.search == found.search


def test_whitened_rows_are_found_as_if_they_had_been_whitened_before(faiss: ModuleType) -> None:
    keys, queries = clustered(3000, 0), clustered(40, 1)
    axes = principal_axes(keys)
    found = find_neighbours(queries, keys, 5, unit=axes.whitening(0.5))
    before = find_neighbours(axes.whitened(queries, 0.5), axes.whitened(keys, 0.5), 5)
    assert found.search == before.search != EXACT
    assert recall(found.index, before.index) >= 0.99
    assert torch.allclose(found.similarity, before.similarity, atol=1e-5)
    assert recall(found.index, find_neighbours(queries, keys, 5).index) < 0.99


def test_equal_cosines_go_to_the_lowest_index(faiss: ModuleType) -> None:
    """Signed axes, each often: cosines are -1, 0 and 1; a cluster holds one axis."""
    axes = torch.cat([torch.eye(16), -torch.eye(16)])
    keys = axes[torch.randint(32, (2000,), generator=torch.Generator().manual_seed(0))]
    found = find_neighbours(axes, keys, 9)
    assert found.search != EXACT
    assert torch.equal(found.index, top_k(axes, keys, 9)[1])


def test_keys_that_occur_three_times_come_in_their_order(faiss: ModuleType) -> None:
    """Ten neighbours are three keys, all three times, and the first of a fourth."""
    keys, queries = clustered(7000, 0).repeat(3, 1), clustered(40, 1)
    found = find_neighbours(queries, keys, 10)
    assert found.search != EXACT
    single = top_k(queries, keys[:7000], 4)[1]
    thrice = single[:, :, None] + torch.tensor([0, 7000, 14000])
    assert torch.equal(found.index, thrice.flatten(1)[:, :10])


def test_the_first_of_many_equal_keys_are_kept_when_better_ones_follow(faiss: ModuleType) -> None:
    """The better keys would push the first of the equal ones out of what faiss has found."""
    queries = clustered(12, 1)
    worse = queries + 0.3 * torch.randn(12, 16, generator=torch.Generator().manual_seed(2))
    keys = torch.cat([worse.repeat(40, 1), queries.repeat(5, 1), clustered(2000, 0)])
    found = find_neighbours(queries, keys, 10)
    assert found.search != EXACT
    copies = 12 * torch.tensor([40, 41, 42, 43, 44, 0, 1, 2, 3, 4])
    assert torch.equal(found.index, torch.arange(12)[:, None] + copies)


def test_rows_without_clusters_are_searched_exactly(faiss: ModuleType) -> None:
    """Neighbours in 200 dimensions without any structure lie in all clusters."""
    generator = torch.Generator().manual_seed(0)
    keys, queries = (torch.randn(n, 200, generator=generator) for n in (1500, 12))
    found, wanted = find_neighbours(queries, keys, 5), top_k(queries, keys, 5)
    assert found.search == EXACT
    assert torch.equal(found.index, wanted[1]) and torch.equal(found.similarity, wanted[0])


def test_a_query_whose_clusters_hold_too_few_keys_gets_k(
    faiss: ModuleType, low_limits: pytest.MonkeyPatch
) -> None:
    """Sixteen clusters of 2,000 keys hold fewer than 300."""
    keys, queries = clustered(2000, 0), clustered(12, 1)
    low_limits.setattr(clustered_search, "LEAST_RECALL", 0.0)
    found, wanted = find_neighbours(queries, keys, 300), top_k(queries, keys, 300)
    assert found.search != EXACT
    assert torch.equal(found.index, wanted[1])


def test_nothing_is_printed(faiss: ModuleType, capfd: pytest.CaptureFixture[str]) -> None:
    """By default faiss warns of fewer than 39 keys for each cluster."""
    assert find_neighbours(clustered(20, 1), clustered(2000, 0), 3).search != EXACT
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("bad", [False, True])
def test_faiss_gets_our_threads_and_its_own_back(
    faiss: ModuleType, low_limits: pytest.MonkeyPatch, bad: bool
) -> None:
    numbers: list[int] = []
    low_limits.setattr(faiss, "omp_get_max_threads", lambda: 7)
    low_limits.setattr(faiss, "omp_set_num_threads", numbers.append)
    low_limits.setattr(torch, "get_num_threads", lambda: 3)
    keys, queries = clustered(1200, 0), clustered(20, 1)
    if bad:
        queries[3, 2] = torch.nan
        with pytest.raises(UserError, match="queries must be finite, and 1 of 20 rows"):
            find_neighbours(queries, keys, 3)
    else:
        find_neighbours(queries, keys, 3)
    assert numbers == [3, 7]


def test_without_faiss_the_search_is_exact_and_told(low_limits: pytest.MonkeyPatch) -> None:
    low_limits.setitem(__import__("sys").modules, "faiss", None)
    ticks = iter([2.0, 1236.0])
    low_limits.setattr(clustered_search, "time", SimpleNamespace(process_time=ticks.__next__))
    keys, queries = clustered(1200, 0), clustered(20, 1)
    found, wanted = find_neighbours(queries, keys, 3), top_k(queries, keys, 3)
    assert found.search == (
        'all of them, which took 1,234 s of CPU time; pip install "sureclr[index]" makes it quicker'
    )
    assert torch.equal(found.index, wanted[1]) and torch.equal(found.similarity, wanted[0])


@pytest.mark.parametrize(
    ("keys", "queries", "platform"),
    [(1000, 20, "linux"), (1001, 9, "linux"), (1001, 20, "darwin"), (1001, 20, "win32")],
    ids=["few keys", "few queries", "macOS", "Windows"],
)
def test_other_searches_are_exact(
    keys: int, queries: int, platform: str, low_limits: pytest.MonkeyPatch
) -> None:
    low_limits.setattr(clustered_search, "LEAST_RECALL", 0.0)
    low_limits.setattr(clustered_search, "sys", SimpleNamespace(platform=platform))
    x, y = clustered(keys, 0), clustered(queries, 1)
    assert find_neighbours(y, x, 3).search == EXACT
