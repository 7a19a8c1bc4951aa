"""Witness: scikit-learn's nearest neighbours with the same weights; and every rule a user's data
can break.
"""

import math

import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor
from torch.nn.functional import normalize

from sureclr.errors import UserError
from sureclr.evaluation.neighbour_vote import knn_accuracy, knn_leave_one_out
from sureclr.maths.metrics import wilson_interval


def blobs(n: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (n,), generator=generator)
    centres = torch.randn(4, 5, generator=torch.Generator().manual_seed(99))
    return centres[labels] + torch.randn(n, 5, generator=generator), labels


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.1), (10, 0.1), (25, 0.5)])
def test_equals_scikit_learn_with_the_same_weights(k: int, temperature: float) -> None:
    (x, y), (tx, ty) = blobs(200, 0), blobs(150, 1)
    # On unit vectors |a - b|^2 = 2 - 2 cos, so exp(cos / T) is exp(-|a - b|^2 / (2 T)) up to a
    # constant.
    witness = KNeighborsClassifier(
        k, weights=lambda d: torch.exp(-(torch.from_numpy(d) ** 2) / (2 * temperature)).numpy()
    )
    witness.fit(normalize(x, dim=1).numpy(), y.numpy())
    found = knn_accuracy(x, y, tx, ty, k, temperature)
    assert found.predictions.tolist() == witness.predict(normalize(tx, dim=1).numpy()).tolist()
    right = int((found.predictions == ty).sum())
    assert 0.4 < found.accuracy < 0.95  # neither trivial nor hopeless
    assert found.accuracy == right / 150 and found.interval == wilson_interval(right, 150)
    assert (found.k, found.temperature) == (k, temperature)


def test_leave_one_out_equals_leaving_each_out() -> None:
    x, y = blobs(60, 2)
    others = [torch.arange(60) != i for i in range(60)]
    expected = [
        knn_accuracy(x[o], y[o], x[i : i + 1], y[i : i + 1], 7).predictions.item()
        for i, o in enumerate(others)
    ]
    assert knn_leave_one_out(x, y, 7).predictions.tolist() == expected


def test_leave_one_out_does_not_see_the_row_itself() -> None:
    """Each point's only near neighbour has the other class: right with itself, wrong without."""
    x, y = torch.eye(3).repeat_interleave(2, 0), torch.tensor([0, 1] * 3)
    assert knn_accuracy(x, y, x[::2], y[::2], 1).accuracy == 1
    assert knn_leave_one_out(x, y, 1).accuracy == 0


def test_a_class_absent_from_training_is_wrong_not_an_error() -> None:
    assert (
        knn_accuracy(
            torch.eye(2), torch.tensor([0, 1]), torch.eye(2), torch.tensor([0, 7]), 1
        ).accuracy
        == 0.5
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_labels": torch.tensor([0, 1, -1, 1])}, "1 of 4 rows have none"),
        ({"test_labels": torch.tensor([0, 1])}, "a label for each row"),
        (
            {"test_features": torch.empty(0, 2), "test_labels": torch.empty(0, dtype=torch.int64)},
            "a label for each row",
        ),
        ({"train_features": torch.full((4, 2), math.nan)}, "must be finite, 4 of 4"),
        ({"test_features": torch.full((3, 2), math.inf)}, "must be finite, 3 of 3"),
        ({"k": 5}, "take 1 <= k <= 4"),
        ({"k": 0}, "take 1 <= k <= 4"),
        ({"temperature": 0.0}, "above 0"),
    ],
)
def test_bad_input_is_one_sentence(change: dict, message: str) -> None:
    good = {
        "train_features": torch.rand(4, 2),
        "train_labels": torch.tensor([0, 1, 0, 1]),
        "test_features": torch.rand(3, 2),
        "test_labels": torch.tensor([0, 1, 0]),
        "k": 2,
    }
    knn_accuracy(**good)
    with pytest.raises(UserError, match=message) as error:
        knn_accuracy(**{**good, **change})
    assert "\n" not in str(error.value)


def test_leave_one_out_has_one_neighbour_fewer() -> None:
    with pytest.raises(UserError, match="take 1 <= k <= 3"):
        knn_leave_one_out(torch.rand(4, 2), torch.tensor([0, 1, 0, 1]), 4)
