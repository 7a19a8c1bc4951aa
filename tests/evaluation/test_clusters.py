"""k-means on the unit sphere, beside scikit-learn on a plain copy of the points."""

import numpy as np
import pytest
import torch
from memory import bytes_of, counted
from sklearn.cluster import KMeans
from torch import Tensor

from sureclr.evaluation.clusters import cluster_points, count_distinct, unit_points
from sureclr.maths.sphere import unit_rows


def features(n: int, width: int = 16) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(0))


def test_unit_points_are_unit_rows_of_some_rows_and_nothing_else_of_their_size() -> None:
    x, rows = features(12_000), np.arange(0, 12_000, 2)[::-1].copy()
    with counted() as memory:
        points = unit_points(x, rows)
    assert torch.equal(points, unit_rows(x[torch.from_numpy(rows)]))
    assert memory.peak < 1.7 * bytes_of(points)  # and blocks of 1,024 of the 6,000 rows
    assert torch.equal(unit_points(x), unit_rows(x))


@pytest.mark.parametrize("most", [4, 50])
def test_clusters_are_those_of_scikit_learn(most: int) -> None:
    points = unit_rows(features(400)).repeat_interleave(2, 0)
    plain = KMeans(most, n_init=2, max_iter=20, random_state=1).fit(points.numpy().copy())
    labels, centres = cluster_points(points.clone(), most, seed=1, starts=2, steps=20)
    assert np.array_equal(labels.numpy(), plain.labels_)
    assert np.array_equal(centres.numpy(), plain.cluster_centers_)


def test_there_are_no_more_clusters_than_different_points() -> None:
    points = torch.tensor([[0.0, 1.0], [-0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    assert count_distinct(points, 10) == len(np.unique(points.numpy(), axis=0)) == 2
    assert count_distinct(points, 1) == 1
    labels, centres = cluster_points(points, 3, seed=0)
    assert centres.shape == (2, 2) and labels[0] == labels[1] == labels[3] != labels[2]
