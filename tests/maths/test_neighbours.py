"""Witness: the definition in Python loops (float64 products, sorted by (-cosine, index))."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sureclr.errors import UserError
from sureclr.maths import neighbours
from sureclr.maths.neighbours import top_k, vote
from sureclr.maths.sphere import unit_rows


def by_loops(
    queries: Tensor, keys: Tensor, k: int, exclude_self: bool
) -> tuple[list[list[float]], list[list[int]]]:
    def unit(row: list[float]) -> list[float]:
        length = math.sqrt(sum(v * v for v in row))
        return [v / length if length else 0.0 for v in row]

    unit_keys, similarity, index = [unit(r) for r in keys.tolist()], [], []
    for q, row in enumerate(unit(r) for r in queries.tolist()):
        found = [
            (-sum(a * b for a, b in zip(row, key, strict=True)), j)
            for j, key in enumerate(unit_keys)
        ]
        best = sorted(pair for pair in found if not (exclude_self and pair[1] == q))[:k]
        similarity.append([-s for s, _ in best])
        index.append([j for _, j in best])
    return similarity, index


@pytest.mark.parametrize("exclude_self", [False, True])
@pytest.mark.parametrize("k", [1, 5, 11, 30])
def test_equals_the_definition_across_blocks(k: int, exclude_self: bool) -> None:
    keys = torch.randn(40, 6, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
    queries = (
        keys
        if exclude_self
        else torch.randn(23, 6, generator=torch.Generator().manual_seed(k + 1), dtype=torch.float64)
    )
    similarity, index = top_k(queries, keys, k, exclude_self, query_block=7, key_block=11)
    expected = by_loops(queries, keys, k, exclude_self)
    assert index.tolist() == expected[1]
    assert torch.allclose(
        similarity, torch.tensor(expected[0], dtype=torch.float64), rtol=0, atol=1e-14
    )


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(1, 12), exclude_self=st.booleans())
def test_equal_cosines_go_to_the_lowest_index(seed: int, k: int, exclude_self: bool) -> None:
    """Rows are signed unit vectors, so cosines are exactly -1, 0 or 1 and most are equal."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.cat([torch.eye(3), -torch.eye(3)])
    keys = axes[torch.randint(6, (30,), generator=generator)]
    index = top_k(keys, keys, k, exclude_self, query_block=4, key_block=9)[1]
    assert index.tolist() == by_loops(keys, keys, k, exclude_self)[1]


def test_a_collapsed_set_finds_the_first_rows() -> None:
    assert top_k(torch.ones(3, 4), torch.ones(50, 4), 2)[1].tolist() == [[0, 1]] * 3
    assert (
        top_k(torch.zeros(2, 4), torch.ones(50, 4), 2)[0].tolist() == [[0, 0]] * 2
    )  # a row of zeros has no direction


def test_length_does_not_matter_and_half_precision_is_widened() -> None:
    keys = torch.randn(30, 5, generator=torch.Generator().manual_seed(0)).half()
    scale = torch.logspace(-2, 2, 30)[:, None]
    assert torch.equal(top_k(keys.float() * scale, keys, 4)[1], top_k(keys, keys, 4)[1])
    assert top_k(keys, keys, 4)[0].dtype == torch.float32


class Largest(TorchDispatchMode):
    """Records the entries of each matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        if function.overloadpacket is torch.ops.aten.mm:
            self.shapes.append(tuple(result.shape))
        return result


def test_no_block_is_larger_than_promised() -> None:
    with Largest() as products:
        top_k(torch.randn(20, 3), torch.randn(50, 3), 5, query_block=7, key_block=11)
    assert len(products.shapes) == 3 * 5
    assert max(products.shapes) == (7, 11)


def test_rows_are_normalised_block_by_block() -> None:
    """Whole normalised tables would take as much memory as the tables themselves."""
    generator = torch.Generator().manual_seed(0)
    queries, keys = (10 * torch.randn(n, 48, generator=generator) for n in (20, 50))
    whole = top_k(unit_rows(queries), unit_rows(keys), 5)
    sizes = []

    def watched(rows: Tensor) -> Tensor:
        sizes.append(len(rows))
        return unit_rows(rows)

    similarity, index = top_k(queries, keys, 5, query_block=7, key_block=11, unit=watched)
    assert set(sizes) == {7, 6, 11} and sizes.count(11) == 4
    assert torch.equal(index, whole[1]) and torch.allclose(similarity, whole[0], atol=1e-6)


def test_the_default_blocks_take_64_mib() -> None:
    assert neighbours.QUERY_BLOCK * neighbours.KEY_BLOCK * 4 == 64 * 2**20


@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_neighbours_of_huge_and_tiny_rows(scale: float) -> None:
    keys = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(top_k(keys * scale, keys, 4)[1], top_k(keys, keys, 4)[1])


def test_no_queries_give_empty_answers() -> None:
    similarity, index = top_k(torch.empty(0, 3), torch.randn(5, 3), 2)
    assert similarity.shape == index.shape == (0, 2) and index.dtype == torch.int64


@pytest.mark.parametrize(("k", "exclude_self"), [(1, False), (5, False), (4, True)])
def test_k_at_the_edge_of_its_range(k: int, exclude_self: bool) -> None:
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    assert top_k(x, x, k, exclude_self)[1].shape == (5, k)


@pytest.mark.parametrize(
    ("s", "winner"), [(0.9 - 0.095 * math.log(2), 1), (0.9 - 0.105 * math.log(2), 0)]
)
def test_the_default_temperature_of_the_vote(s: float, winner: int) -> None:
    """exp(0.9/T) and 2 exp(s/T) are equal at T = (0.9 - s) / log 2, just below and above 0.1."""
    labels = torch.tensor([[0, 1, 1]])
    assert vote(torch.tensor([[0.9, s, s]]), labels, 2).item() == winner


@pytest.mark.parametrize(("k", "exclude_self"), [(0, False), (6, False), (5, True)])
def test_k_out_of_range(k: int, exclude_self: bool) -> None:
    with pytest.raises(UserError, match="neighbours need"):
        top_k(torch.randn(5, 3), torch.randn(5, 3), k, exclude_self)


def test_exclude_self_needs_the_same_rows() -> None:
    with pytest.raises(UserError, match="same rows"):
        top_k(torch.randn(4, 3), torch.randn(5, 3), 1, exclude_self=True)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), temperature=st.sampled_from([0.05, 0.1, 1.0, 10.0]))
def test_vote_equals_the_sum_of_weights_in_loops(seed: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    similarity, labels = (
        torch.rand(10, 7, generator=generator).double() * 2 - 1,
        torch.randint(4, (10, 7), generator=generator),
    )
    expected = []
    for row, names in zip(similarity.tolist(), labels.tolist(), strict=True):
        votes = [
            sum(math.exp(s / temperature) for s, c in zip(row, names, strict=True) if c == label)
            for label in range(4)
        ]
        expected.append(votes.index(max(votes)))
    assert vote(similarity, labels, 4, temperature).tolist() == expected


def test_temperature_decides_between_one_near_and_two_far() -> None:
    """exp(0.9/T) against 2 exp(0.8/T): equal at T = 0.1 / log 2 = 0.144."""
    similarity, labels = torch.tensor([[0.9, 0.8, 0.8]]), torch.tensor([[0, 1, 1]])
    assert vote(similarity, labels, 2, 0.14).item() == 0
    assert vote(similarity, labels, 2, 0.15).item() == 1


def test_vote_does_not_overflow_and_gives_equal_votes_to_the_lowest_class() -> None:
    assert vote(
        torch.tensor([[1.0, 1.0], [0.9, 1.0]]), torch.tensor([[2, 1], [0, 1]]), 3, 1e-4
    ).tolist() == [1, 1]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["queries", "keys"])
def test_numbers_must_be_finite(name: str, value: float) -> None:
    rows = {"queries": torch.ones(2, 3), "keys": torch.ones(4, 3)}
    rows[name][1, 2] = value
    with pytest.raises(UserError, match=f"{name} must be finite, and 1 of {len(rows[name])} rows"):
        top_k(**rows, k=1)
