"""CKA against its definitions by loops, its invariances and its limits; two runs that are one,
turned, or unrelated.
"""

from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from json_round_trip import read_back
from tiny import IMAGES, train
from torch import Tensor
from torch.nn.functional import normalize

from sureclr.data.embeddings import Embeddings
from sureclr.data.user_images import as_image_set
from sureclr.errors import UserError
from sureclr.evaluation.similarity import (
    cka,
    compare_blocks,
    compare_runs,
    compare_tables,
    hsic,
    neighbour_overlap,
    rows_to_compare,
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def turned(x: Tensor, seed: int = 9) -> Tensor:
    q, _ = torch.linalg.qr(random(x.shape[1], x.shape[1], seed=seed))
    return x @ q


def test_hsic_is_the_mean_over_four_different_images() -> None:
    """E over distinct i, j, q, r of K_ij (L_ij + L_qr - 2 L_iq): HSIC's definition as a U-statistic
    (Song et al. 2012, theorem 3).
    """
    x, y = random(7, 3), random(7, 4, seed=1)
    k, el = (x @ x.T).numpy(), (y @ y.T).numpy()
    terms = [
        k[i, j] * (el[i, j] + el[q, r] - 2 * el[i, q]) for i, j, q, r in permutations(range(7), 4)
    ]
    assert hsic(x, y) == pytest.approx(np.mean(terms), rel=1e-10)


def test_cka_is_kornbliths_for_many_images() -> None:
    """The plain estimate, tr(K H L H) / sqrt(...) with centred Gram matrices by loops, which the
    unbiased one approaches as n grows.
    """
    x = random(400, 3)
    y = torch.cat([x[:, :2] * 2, random(400, 2, seed=1)], 1)

    def centred(rows: Tensor) -> np.ndarray:
        n, gram = len(rows), [[float(a @ b) for b in rows.unbind()] for a in rows.unbind()]
        row = [sum(line) / n for line in gram]
        every = sum(row) / n
        return np.array(
            [[gram[i][j] - row[i] - row[j] + every for j in range(n)] for i in range(n)]
        )

    k, el = centred(x[:120]), centred(y[:120])
    plain = (k * el).sum() / np.sqrt((k * k).sum() * (el * el).sum())
    assert 0.3 < plain < 0.95
    assert cka(x[:120], y[:120]) == pytest.approx(plain, abs=0.02)


def test_rotation_shift_and_scale_change_nothing_a_linear_map_does() -> None:
    x = random(50, 6) * torch.arange(1.0, 7.0)
    y = x[:, :4] + 0.5 * random(50, 4, seed=2)
    same = cka(x, y)
    assert (
        cka(x, x) == pytest.approx(1)
        and cka(x, turned(x)) == pytest.approx(1)
        and cka(-3 * x + 5, x) == pytest.approx(1)
    )
    assert (
        cka(turned(x) + 100, 0.1 * turned(y, 8)) == pytest.approx(same) == pytest.approx(cka(y, x))
    )
    assert abs(cka(x / torch.arange(1.0, 7.0) ** 2, y) - same) > 0.01


def test_unrelated_representations_of_high_dimension_have_none() -> None:
    """Where the plain estimate is near 1: 60 images, 2,000 numbers each."""
    values = [cka(random(60, 2000, seed=2 * s), random(60, 2000, seed=2 * s + 1)) for s in range(8)]
    assert abs(np.mean(values)) < 0.03
    x, y = (rows - rows.mean(0) for rows in (random(60, 2000), random(60, 2000, seed=1)))
    assert float((x.T @ y).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())) > 0.9
    assert np.isnan(cka(torch.ones(9, 3), random(9, 3)))


def test_neighbour_overlap_by_sets() -> None:
    x, y = random(30, 4), random(30, 4) + 0.7 * random(30, 4, seed=3)

    def near(rows: Tensor, i: int) -> set[int]:
        unit = normalize(rows, dim=1)
        return set(
            sorted((j for j in range(30) if j != i), key=lambda j: -float(unit[i] @ unit[j]))[:10]
        )

    expected = np.mean([len(near(x, i) & near(y, i)) / 10 for i in range(30)])
    assert 0.3 < expected < 0.95 and neighbour_overlap(x, y) == pytest.approx(expected)


# --- Tables and runs ------------------------------------------------------------------


def table(n: int = 90, seed: int = 0) -> Embeddings:
    labels = torch.arange(n) % 3
    features = random(n, 8, seed=seed).float() + 2 * torch.eye(8)[labels]
    rho = torch.rand(n, generator=torch.Generator().manual_seed(seed))
    split = np.asarray(["test" if i % 2 else "train" for i in range(n)])
    return Embeddings(
        features,
        normalize(features, dim=1),
        rho,
        rho,
        labels,
        ("a", "b", "c"),
        split,
        [str(i) for i in range(n)],
    )


def test_one_run_turned_is_the_same_and_another_is_not() -> None:
    a = table()
    b = replace(a, features=turned(a.features.double()).float(), certainty=a.certainty.square())  # type: ignore[union-attr]
    found = compare_tables(a, b, ("a", "b"))
    assert read_back(found) == found
    assert found.cka_features == pytest.approx(1, abs=1e-5) == found.cka_directions
    assert (
        found.certainty_spearman == pytest.approx(1)
        and found.agreement_knn == 1
        and found.neighbour_overlap > 0.99
    )
    assert found.n == 45 and found.cka_blocks is None
    other = compare_tables(a, table(seed=5), ("a", "b"))
    assert (
        other.cka_features < 0.9
        and abs(other.certainty_spearman) < 0.5
        and other.neighbour_overlap < 0.9
    )


def test_what_one_of_the_two_has_not_is_none_and_other_images_are_refused() -> None:
    a = table()
    found = compare_tables(
        a, replace(a, certainty=None, labels=torch.full((90,), -1), classes=()), ("a", "b")
    )
    assert found.certainty_spearman is None and found.cka_features == pytest.approx(1)
    bare = replace(a, labels=torch.full((90,), -1), classes=())
    assert compare_tables(bare, bare, ("a", "b")).agreement_knn is None
    with pytest.raises(UserError, match="the same images"):
        compare_tables(a, table(80), ("a", "b"))
    with pytest.raises(UserError, match="4 images or more"):
        compare_tables(table(3), table(3), ("a", "b"))


def test_agreement_by_a_loop_and_none_where_either_has_no_labels() -> None:
    a, b = table(), table(seed=5)

    def vote(t: Embeddings, i: int) -> int:
        unit = normalize(t.features.double(), dim=1)
        near = sorted((j for j in range(0, 90, 2)), key=lambda j: -float(unit[i] @ unit[j]))[:20]
        weight = [
            sum(np.exp(float(unit[i] @ unit[j]) / 0.1) for j in near if t.labels[j] == k)
            for k in range(3)
        ]
        return int(np.argmax(weight))

    expected = np.mean([vote(a, i) == vote(b, i) for i in range(1, 90, 2)])
    assert 0.5 < expected < 1 and compare_tables(a, b, ("a", "b")).agreement_knn == pytest.approx(
        expected
    )
    bare = replace(a, labels=torch.full((90,), -1), classes=())
    assert (
        compare_tables(bare, a, ("a", "b")).agreement_knn
        is compare_tables(a, bare, ("a", "b")).agreement_knn
        is None
    )


def test_two_data_sets_whose_images_have_the_same_names_are_refused() -> None:
    """MNIST and Fashion-MNIST are both train/00000 to test/09999."""
    a = table()
    for b in (replace(a, labels=a.labels.roll(1)), replace(a, classes=("x", "y", "z"))):
        with pytest.raises(UserError, match="paths or labels"):
            compare_tables(a, b, ("a", "b"))
    fewer = a.labels.clone()
    fewer[::4] = -1
    assert compare_tables(a, replace(a, labels=fewer), ("a", "b")).n == 45


def test_other_splits_are_compared_where_neither_trained_and_many_images_by_a_sample() -> None:
    a = table()
    b = replace(a, split=np.asarray(["test" if i % 3 == 0 else "train" for i in range(90)]))
    assert rows_to_compare(a, b).tolist() == [i for i in range(90) if i % 2 and i % 3 == 0]
    assert compare_tables(a, replace(a, split=np.full(90, "train")), ("a", "b")).n == 90
    some = rows_to_compare(a, a, most=20)
    assert len(some) == 20 and (some % 2 == 1).all() and (some.diff() > 0).all()


def test_the_matrix_of_blocks_is_cka_of_each_pair() -> None:
    a = {"first": random(40, 3), "second": random(40, 5, seed=1)}
    b = {
        "only": a["first"] @ random(3, 4, seed=2),
        "other": random(40, 2, seed=3),
        "constant": torch.ones(40, 2),
    }
    found = compare_blocks(a, b)
    expected = [[cka(x, y) for y in b.values()] for x in a.values()]
    assert (
        found is not None
        and (found.names_a, found.names_b) == (tuple(a), tuple(b))
        and expected[0][0] > 0.5
    )
    assert (
        np.allclose(np.array(found.matrix, dtype=float), expected, equal_nan=True)
        and compare_blocks({}, b) is None
    )


def test_random_neighbours_overlap_by_chance() -> None:
    x = [random(200, 5, seed=s) for s in range(6)]
    found = np.mean([neighbour_overlap(x[i], x[j]) for i in range(6) for j in range(i)])
    assert found == pytest.approx(
        compare_tables(table(400), table(400), ("a", "b")).neighbour_overlap_chance, abs=0.01
    )  # of 200 test images


def test_blocks_of_two_runs(tmp_path: Path) -> None:
    run, other = train(tmp_path / "one"), train(tmp_path / "two", seed=3)
    images = as_image_set(IMAGES)
    tables = [one.embed(images) for one in (run, other)]
    found = compare_runs(run, other, images, *tables)
    itself = compare_runs(run, run, images, tables[0], tables[0])
    assert found.runs == ("one", "two") and list(found.cka_blocks.names_a) == [
        "layer1",
        "layer2",
        "layer3",
    ]
    assert np.diag(itself.cka_blocks.matrix) == pytest.approx([1, 1, 1], abs=1e-5)
    last = found.cka_blocks.matrix[2][2]  # the last block, averaged over positions, is the features
    assert last == pytest.approx(found.cka_features, abs=1e-4) and last < 0.999


@pytest.mark.parametrize(("shared", "compared"), [(4, 4), (3, 90)])
def test_four_shared_test_images_are_enough(shared: int, compared: int) -> None:
    split = np.asarray(["test" if i < shared else "train" for i in range(90)])
    a = replace(table(), split=split)
    assert len(rows_to_compare(a, a)) == compared
    assert compare_tables(a, a, ("a", "b")).n == compared


def test_chance_is_the_share_of_the_others_that_are_neighbours() -> None:
    assert compare_tables(table(), table(), ("a", "b")).neighbour_overlap_chance == 10 / 44


def test_runs_on_different_data_are_refused_before_anything_is_embedded(tmp_path: Path) -> None:
    """A stranger compared digits with a folder and met a traceback."""
    run = train(tmp_path / "run", epochs=1)
    images = as_image_set(IMAGES)
    few = run.embed(images.select(range(10)))
    with pytest.raises(UserError, match="48 and 10 images"):
        compare_runs(run, run, images, run.embed(images), few)
