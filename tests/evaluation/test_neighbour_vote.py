"""The kNN vote against scikit-learn's with the same weights, and every rule that data can break."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor
from torch.nn.functional import normalize

from sureclr.data.embeddings import Embeddings
from sureclr.errors import UserError
from sureclr.evaluation.neighbour_vote import evaluate_knn, knn_accuracy, vote_on_table
from sureclr.maths import clustered_search
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
    votes = knn_accuracy(x, y, tx, ty, k, temperature)
    assert votes.predictions.tolist() == witness.predict(normalize(tx, dim=1).numpy()).tolist()
    right = int((votes.predictions == ty).sum())
    assert 0.4 < votes.accuracy < 0.95  # neither trivial nor hopeless
    assert votes.accuracy == right / 150 and votes.interval == wilson_interval(right, 150)
    assert (votes.k, votes.temperature, votes.n_train) == (k, temperature, 200)


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
        ({"train_features": torch.full((4, 2), math.nan)}, "those of 4 of 4 rows"),
        ({"test_features": torch.full((3, 2), math.inf)}, "those of 3 of 3 rows"),
        ({"k": 5}, "choose 1 <= k <= 4"),
        ({"k": 0}, "choose 1 <= k <= 4"),
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


def table(labels: Tensor, split: list[str]) -> Embeddings:
    features = torch.randn(len(labels), 3, generator=torch.Generator().manual_seed(5))
    paths = [str(i) for i in range(len(labels))]
    unit = normalize(features, dim=1)
    return Embeddings(
        features, unit, None, None, labels, ("a", "b"), np.asarray(split), paths, None
    )


def test_labelled_training_images_of_a_table_vote_on_its_labelled_test_images() -> None:
    labels = torch.tensor([0, 1, 0, -1, 1, 0, -1, 1])
    t = table(labels, ["train"] * 4 + ["test"] * 4)
    votes = vote_on_table(t)
    train, test = t.features[:3], t.features[[4, 5, 7]]
    expected = knn_accuracy(train, labels[:3], test, labels[[4, 5, 7]], 3)
    assert votes.predictions.tolist() == expected.predictions.tolist()
    assert (votes.k, votes.n_train, votes.accuracy) == (3, 3, expected.accuracy)  # all three vote
    assert vote_on_table(t, k=2).k == 2


def test_a_search_that_is_not_exact_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The vote on what the clusters hold is, here, the vote of the exact search."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (1000,), generator=generator)
    t = table(labels, ["train"] * 700 + ["test"] * 300)
    said = []
    inputs = SimpleNamespace(
        table=t,
        catalogue=SimpleNamespace(name="mine"),
        run=SimpleNamespace(
            model=SimpleNamespace(device=torch.device("cpu")),
            config=SimpleNamespace(first_encoder="untrained"),
        ),
        progress=SimpleNamespace(message=said.append),
        no_pixels="gone",
    )
    exact = evaluate_knn(inputs)
    assert said == [] and vote_on_table(t).search == "exact"
    monkeypatch.setattr(clustered_search, "MOST_EXACT", 500)
    monkeypatch.setattr(clustered_search, "FEWEST_QUERIES", 100)
    with monkeypatch.context() as without:
        without.setitem(__import__("sys").modules, "faiss", None)
        assert evaluate_knn(inputs) == exact
    assert len(said) == 1 and "700 training images" in said[0]
    assert "all of them, which took" in said[0] and 'pip install "sureclr[index]"' in said[0]
    pytest.importorskip("faiss")
    assert evaluate_knn(inputs) == exact
    assert len(said) == 2 and "with those in the nearest" in said[1] and "256 clusters" in said[1]
    assert exact.by_class.classes[0].n_train == int((labels[:700] == 0).sum())


@pytest.mark.parametrize(
    ("labels", "part"), [([-1, -1, 0, 1], "training"), ([0, 1, -1, -1], "test")]
)
def test_a_part_without_labels_is_named(labels: list[int], part: str) -> None:
    t = table(torch.tensor(labels), ["train", "train", "test", "test"])
    with pytest.raises(UserError, match=f"mine has no labelled {part} images.* data="):
        vote_on_table(t, "mine")
