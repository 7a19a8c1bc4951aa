"""Main directions against scikit-learn's PCA; neighbours, votes and purity by loops; the map's
rows; a planted direction.
"""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from json_round_trip import read_back
from pyarrow import parquet
from recording_progress import RecordingProgress, StoppingProgress
from scipy import stats
from torch.nn.functional import normalize

from sureclr.data.embeddings import Embeddings
from sureclr.data.map_file import MapOrigin, read_map, save_map
from sureclr.errors import UserError
from sureclr.evaluation import feature_space as g
from sureclr.evaluation.neighbour_vote import knn_accuracy
from sureclr.evaluation.results import Clustering
from sureclr.maths.sphere import evidence

N, F, CLASSES = 140, 12, 3


def table(n: int = N, labelled: bool = True, radius: bool = True) -> Embeddings:
    """Three clusters; rows 0, 3, 6 ... are test images; every fifth image has no label."""
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 7 % CLASSES
    features = torch.randn(n, F, generator=random) + 2.5 * torch.eye(F)[labels]
    rho = torch.rand(n, generator=random) * 0.8 if radius else None
    labels = torch.where(torch.arange(n) % 5 == 4, -1, labels) if labelled else torch.full((n,), -1)
    split = np.asarray(["test" if i % 3 == 0 else "train" for i in range(n)])
    return Embeddings(
        features,
        normalize(torch.randn(n, 6, generator=random), dim=1),
        rho,
        rho,
        labels,
        tuple("abc") if labelled else (),
        split,
        [str(i) for i in range(n)],
        5.0 if radius else None,
    )


def test_axes_and_shares_are_scikit_learns() -> None:
    from sklearn.decomposition import PCA

    features = table().features
    share, axes = g.principal_axes(features)
    theirs = PCA(n_components=F, svd_solver="full").fit(features.double().numpy())
    assert np.allclose(share, theirs.explained_variance_ratio_) and float(
        share.sum()
    ) == pytest.approx(1)
    assert np.allclose(
        (axes.numpy() * theirs.components_).sum(1),
        np.sign((axes.numpy() * theirs.components_).sum(1)),
    )
    position = g.project(features, axes[:3]).numpy()
    assert np.allclose(np.abs(position), np.abs(theirs.transform(features.double().numpy())[:, :3]))
    assert bool((axes.gather(1, axes.abs().argmax(1, keepdim=True)) > 0).all())


def test_a_planted_direction_is_found_with_its_ends_its_certainty_and_its_class() -> None:
    t = table()
    height = torch.linspace(-40, 40, N)[
        torch.randperm(N, generator=torch.Generator().manual_seed(1))
    ]
    features = t.features.clone()
    features[:, 7] = height
    found, _ = g.describe_geometry(
        replace(t, features=features, certainty=-height, labels=(height > 0).long())
    )
    first = found.directions[0]
    assert (
        list(first.low) == height.argsort()[:8].tolist()
        and list(first.high) == height.argsort(descending=True)[:8].tolist()
    )
    assert (
        first.certainty_correlation == pytest.approx(-1, abs=1e-3)
        and first.share == found.explained[0] > 0.9
    )
    assert first.class_eta2 == pytest.approx(0.75, abs=0.02)  # of a uniform variable cut in half
    assert found.directions[1].class_eta2 < 0.1


def test_variance_between_classes_by_its_definition() -> None:
    values, labels = (
        torch.randn(60, generator=torch.Generator().manual_seed(2)).double(),
        torch.arange(60) % 4 - 1,
    )
    known = labels >= 0
    groups = [values[labels == k].numpy() for k in range(3)]
    f = stats.f_oneway(*groups).statistic  # eta2 = F (k - 1) / (F (k - 1) + n - k)
    assert g.share_between_classes(values, labels) == pytest.approx(
        2 * f / (2 * f + int(known.sum()) - 3)
    )
    assert g.share_between_classes(values, labels.clamp(max=0)) is None


def test_map_neighbours_and_evidence_by_loops() -> None:
    t = table()
    _, columns = g.describe_geometry(t)
    rows = columns["row"]
    assert rows.tolist() == list(range(N))
    unit = normalize(t.features.double(), dim=1)
    for i in (0, 17, 139):
        expected = sorted((j for j in range(N) if j != i), key=lambda j: -float(unit[i] @ unit[j]))[
            :10
        ]
        assert columns["neighbours"][i].tolist() == expected
        assert columns["similarity"][i] == pytest.approx(
            [float(unit[i] @ unit[j]) for j in expected], abs=1e-6
        )
        one = t.select(np.array([i]))
        s = [
            float(evidence(one.posterior, t.select(np.array([j])).posterior, 5.0)) for j in expected
        ]
        assert columns["evidence"][i] == pytest.approx(s, abs=1e-4)


def test_predictions_are_the_knn_evaluations_and_an_image_has_no_vote_on_itself() -> None:
    t = table()
    _, columns = g.describe_geometry(t)
    train, test = t.labelled("train"), t.labelled("test")
    theirs = knn_accuracy(train.features, train.labels, test.features, test.labels, k=20)
    judged = (t.split == "test") & (t.labels.numpy() >= 0)
    assert columns["predicted"][judged].tolist() == theirs.predictions.tolist()
    assert np.mean(columns["correct"][judged].astype(bool)) == theirs.accuracy
    assert [c is None for c in columns["correct"]] == (t.labels < 0).tolist()
    for i in np.flatnonzero((t.split == "train") & (t.labels.numpy() >= 0))[:12]:
        rest = t.select(np.array([j for j in range(N) if j != i])).labelled("train")
        one = t.select(np.array([i]))
        assert columns["predicted"][i] == int(
            knn_accuracy(rest.features, rest.labels, one.features, one.labels, k=20).predictions
        )


def test_an_image_among_copies_of_itself_is_left_out_once() -> None:
    similarity, index = (
        torch.arange(8).view(2, 4).float(),
        torch.tensor([[5, 3, 1, 2], [5, 3, 1, 2]]),
    )
    kept, where = g.leave_out(torch.tensor([3, 9]), similarity, index)
    assert where.tolist() == [[5, 1, 2], [5, 3, 1]] and kept.tolist() == [[0, 2, 3], [4, 5, 6]]


def test_test_images_come_first_then_training_images_by_seed() -> None:
    t = table(300)
    test = set(np.flatnonzero(t.split == "test").tolist())
    rows, other = (g.map_rows(t, seed, most=150) for seed in (0, 1))
    assert len(rows) == 150 and test < set(rows.tolist()) and (np.diff(rows) > 0).all()
    assert set(rows.tolist()) != set(other.tolist()) and np.array_equal(
        rows, g.map_rows(t, 0, most=150)
    )
    assert set(g.map_rows(t, 0, most=40).tolist()) < test


def test_purity_by_loops_and_the_clusters_of_separated_classes() -> None:
    cluster, labels = torch.tensor([0, 0, 0, 1, 1, 2, 2]), torch.tensor([2, 2, 1, 0, -1, 1, 1])
    found = g.describe_clusters(cluster, labels)
    majority = [
        Counter(
            int(y) for c, y in zip(cluster, labels, strict=True) if c == k and y >= 0
        ).most_common(1)[0][1]
        for k in range(3)
    ]
    assert found == Clustering(3, (3, 2, 2), sum(majority) / 6, 0.5)
    t = table()
    far = replace(t, features=t.features + 50 * torch.eye(F)[torch.arange(N) % 7 % CLASSES])
    assert g.describe_geometry(far)[0].clusters.purity == 1
    assert g.describe_clusters(cluster, torch.full((7,), -1)).purity is None


def test_map_file_holds_the_columns(tmp_path: Path) -> None:
    result, columns = g.describe_geometry(table())
    origin = MapOrigin("checkpoint a images b", "c")
    save_map(tmp_path / "map.parquet", columns, origin)
    again, made_of = read_map(tmp_path / "map.parquet")
    assert made_of == origin and again["row"].tolist() == columns["row"].tolist()
    read = parquet.read_table(tmp_path / "map.parquet")
    kinds = {field.name: str(field.type) for field in read.schema}
    assert kinds == {
        "row": "int32",
        "pca_x": "float",
        "pca_y": "float",
        "cluster": "int16",
        "predicted": "int16",
        "correct": "bool",
        "neighbours": "list<element: int32>",
        "similarity": "list<element: float>",
        "evidence": "list<element: float>",
    }
    assert (
        read["neighbours"].to_pylist() == columns["neighbours"].tolist()
        and read["correct"].null_count == 28
    )
    assert result.map_rows == len(read) and [p.name for p in tmp_path.iterdir()] == ["map.parquet"]


def test_umap_is_used_when_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    class UMAP:
        def __init__(self, **options: Any) -> None:
            asked.update(options)

        def fit_transform(self, x: Any) -> Any:
            return x[:, :2] * 3

    module = ModuleType("umap")
    module.UMAP = UMAP  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, "umap", module)
    t = table()
    result, columns = g.describe_geometry(t, seed=4)
    assert result.umap_skipped == "" and asked["random_state"] == 4 and asked["n_neighbors"] == 15
    assert np.array_equal(columns["umap_y"], t.features[:, 1].numpy() * 3)
    unit = t.features.double() / t.features.double().norm(dim=1, keepdim=True)
    distance = (1 - unit @ unit.T).fill_diagonal_(
        -1
    )  # each point is its own nearest, whatever rounding says
    expected = distance.sort(dim=1, stable=True)
    index, by = asked["precomputed_knn"]
    assert np.array_equal(index, expected.indices[:, :15].numpy())
    np.testing.assert_allclose(by, expected.values[:, :15].clamp(min=0).numpy(), atol=1e-6)
    monkeypatch.setitem(__import__("sys").modules, "umap", None)
    assert "install umap-learn" in g.describe_geometry(t)[0].umap_skipped


def test_what_is_missing_is_absent_and_few_images_are_enough() -> None:
    result, columns = g.describe_geometry(table(6, labelled=False, radius=False))
    assert read_back(result) == result
    assert (
        "evidence" not in columns
        and "correct" not in columns
        and set(columns["predicted"].tolist()) == {-1}
    )
    assert columns["neighbours"].shape == (6, 5) and result.clusters.purity is None
    assert all(
        d.certainty_correlation is None and d.class_eta2 is None and len(d.low) == 3
        for d in result.directions
    )
    constant = replace(table(6), features=torch.ones(6, F))
    assert g.describe_geometry(constant)[0].clusters.k == 1
    with pytest.raises(UserError, match="at least 3"):
        g.describe_geometry(table(2))
    with pytest.raises(UserError, match="finite"):
        g.describe_geometry(replace(table(6), features=torch.full((6, F), torch.nan)))


def test_it_can_be_stopped() -> None:
    with pytest.raises(KeyboardInterrupt):
        g.describe_geometry(table(), progress=StoppingProgress())


def test_it_reports_two_tasks_to_their_end() -> None:
    progress = RecordingProgress()
    g.describe_geometry(table(), progress=progress)
    assert progress.tasks == ["Predicting classes", "Searching neighbours"]
    assert progress.updates == [(N, N), (N, N)]


def test_there_are_as_many_clusters_as_classes() -> None:
    assert g.describe_geometry(table())[0].clusters.k == CLASSES
    assert g.describe_geometry(table(labelled=False))[0].clusters.k == 10
    t = table(130)
    many = replace(t, labels=torch.arange(130) % 60, classes=tuple(map(str, range(60))))
    assert g.describe_geometry(many)[0].clusters.k == 50


def test_three_images_are_enough_and_umap_needs_five(monkeypatch: pytest.MonkeyPatch) -> None:
    assert g.describe_geometry(table(3))[0].map_rows == 3
    module = ModuleType("umap")
    module.UMAP = lambda **_: SimpleNamespace(fit_transform=lambda x: x[:, :2])  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, "umap", module)
    assert "at least 5 images, and there are 4" in g.describe_geometry(table(4))[0].umap_skipped
    result, columns = g.describe_geometry(table(5))
    assert result.umap_skipped == "" and columns["umap_x"].shape == (5,)
