"""What is chosen where the right choice is known: clusters, an outlier, certain images and not."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from sureclr.data.embeddings import Embeddings
from sureclr.data.image_set import ImageSet
from sureclr.data.label_request import LabelFile
from sureclr.errors import UserError
from sureclr.evaluation.label_choice import (
    NEED_CERTAINTY,
    NEED_RADIUS,
    STRATEGIES,
    Limits,
    label_next,
    labelled_already,
    typicality,
)
from sureclr.maths.sphere import Posterior, evidence_matrix

CENTRES = torch.eye(6)[:4]
SIZES = (40, 30, 20, 10)
N = sum(SIZES)
NONE = np.zeros(N + 5, dtype=bool)


def world(loss: str = "sure") -> Embeddings:
    """Clusters of 40, 30, 20 and 10 images about four axes; certainty grows with the row; the last
    5 are test images.
    """
    generator = torch.Generator().manual_seed(0)
    about = CENTRES.repeat_interleave(torch.tensor(SIZES), 0)
    features = torch.cat([about + 0.15 * torch.randn(N, 6, generator=generator), torch.ones(5, 6)])
    radius = torch.linspace(0.5, 0.9, N + 5)
    labels = torch.cat(
        [torch.arange(4).repeat_interleave(torch.tensor(SIZES)), torch.zeros(5).long()]
    )
    split = np.array(["train"] * 50 + ["unlabelled"] * 50 + ["test"] * 5)
    has = {"sure": (radius, radius), "tau": (None, radius), "nt-xent": (None, None)}[loss]
    return Embeddings(
        features,
        normalize(features, dim=1),
        *has,
        labels,
        tuple("abcd"),
        split,
        [f"{i}.png" for i in range(N + 5)],
        6.0,
    )


def cluster(rows: np.ndarray) -> list[int]:
    return np.repeat(np.arange(5), (*SIZES, 5))[rows].tolist()


def choose(strategy: str, budget: int, seed: int = 0, labelled: np.ndarray = NONE) -> np.ndarray:
    return label_next(world(), labelled, budget, strategy, seed).rows


@pytest.mark.parametrize("strategy", list(STRATEGIES))
def test_the_choice_is_of_different_images_neither_test_nor_labelled_and_the_seeds(
    strategy: str,
) -> None:
    labelled = NONE.copy()
    labelled[[3, 50, 99]] = True
    found = label_next(world(), labelled, 25, strategy)
    assert len(set(found.rows.tolist())) == len(found.reasons) == 25 and found.rows.max() < N
    assert not {3, 50, 99} & set(found.rows.tolist()) and all(found.reasons)
    assert choose(strategy, 25, 0, labelled).tolist() == found.rows.tolist()
    assert sorted(choose(strategy, 97, 0, labelled)) == sorted(
        set(range(N)) - {3, 50, 99}
    )  # a budget of all is all
    if strategy in ("random", "k-center"):
        assert choose(strategy, 25, 1).tolist() != choose(strategy, 25).tolist()


@pytest.mark.parametrize(
    "strategy", [name for name in STRATEGIES if name not in ("random", "ball")]
)
def test_one_of_each_cluster_comes_first(strategy: str) -> None:
    assert sorted(cluster(choose(strategy, 4))) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "strategy", ["typical", "k-means", "certain", "uncertain", "certain-typical"]
)
def test_the_largest_cluster_comes_first_and_one_with_a_label_last(strategy: str) -> None:
    assert cluster(choose(strategy, 4)) == [0, 1, 2, 3]
    labelled = NONE.copy()
    labelled[[0, 45]] = True  # of clusters 0 and 1
    assert cluster(choose(strategy, 2, 0, labelled)) == [2, 3]


@pytest.mark.parametrize("strategy", ["k-center", "facility", "evidence", "evidence-equal"])
def test_what_is_labelled_already_need_not_be_covered(strategy: str) -> None:
    labelled = NONE.copy()
    labelled[[5, 45]] = True  # one of cluster 0 and one of cluster 1
    assert sorted(cluster(choose(strategy, 2, 0, labelled))) == [2, 3]


def test_of_each_cluster_the_image_that_the_strategy_names() -> None:
    """Certainty grows with the row, so the surest of a cluster is its last; the most typical by its
    definition, as loops.
    """
    ends = np.cumsum(SIZES)
    assert sorted(choose("certain", 4)) == (ends - 1).tolist()
    assert sorted(choose("uncertain", 4)) == (ends - SIZES).tolist()
    unit = normalize(world().features[:N], dim=1)
    density = [
        1
        / float(
            torch.stack([(unit[i] - unit[j]).norm() for j in range(N) if j != i])
            .sort()
            .values[:20]
            .mean()
        )
        for i in range(N)
    ]
    assert torch.allclose(typicality(unit), torch.tensor(density), rtol=1e-4)
    assert sorted(choose("typical", 4)) == [
        int(s + np.argmax(density[s:e])) for s, e in zip(ends - SIZES, ends, strict=True)
    ]
    nearest = [
        int(s + (unit[s:e] - unit[s:e].mean(0)).norm(dim=1).argmin())
        for s, e in zip(ends - SIZES, ends, strict=True)
    ]
    assert sorted(choose("k-means", 4)) == nearest


def test_more_labels_than_clusters_go_round() -> None:
    found = label_next(world(), NONE, 9, "certain", limits=Limits(clusters=4))
    assert cluster(found.rows) == [0, 1, 2, 3, 0, 1, 2, 3, 0]
    assert (
        found.rows[[0, 4, 8]].tolist() == [39, 38, 37]
        and "number 3" in found.reasons[8]
        and "40 images" in found.reasons[0]
    )


def test_k_center_is_the_farthest_point_each_time() -> None:
    unit, rows = normalize(world().features, dim=1), choose("k-center", 10)
    for i in range(1, 10):
        nearest = (unit[:N] @ unit[rows[:i]].T).amax(1)
        assert float(nearest[rows[i]]) == pytest.approx(float(nearest.min()), abs=1e-6)


@pytest.mark.parametrize("strategy", ["facility", "evidence", "evidence-equal"])
def test_coverage_raises_its_mean_above_any_choice_by_chance(strategy: str) -> None:
    """The sums written out; chance has 50 tries."""
    table = world().select(np.arange(N))
    equal = Posterior(table.direction, torch.full((N,), float(table.radius.mean())))
    near = {
        "facility": (
            table.direction @ table.direction.T
        ),  # this world's directions are its features'
        "evidence": evidence_matrix(table.posterior, table.posterior, 6.0),
        "evidence-equal": evidence_matrix(equal, equal, 6.0),
    }[strategy]

    def served(rows: np.ndarray) -> float:
        return float(near[rows].amax(0).clamp_min(0).mean())

    found = label_next(world(), NONE, 6, strategy)
    assert served(found.rows) > max(served(choose("random", 6, seed)) for seed in range(50))
    gains = [
        float(reason.split(" nats")[0].split()[-1]) for reason in found.reasons
    ]  # the number of each phrase
    assert sum(gains) == pytest.approx(served(found.rows), rel=0.02)


def test_an_unsure_image_stands_for_few() -> None:
    """The same directions, and of every second image nothing is known: none of those is taken,
    unless certainty is left out.
    """
    table, unsure = world(), torch.arange(N + 5) % 2 == 0
    table.radius[unsure], table.radius[~unsure] = 0.01, 0.9
    assert not unsure[torch.from_numpy(label_next(table, NONE, 10, "evidence").rows)].any()
    equal = label_next(table, NONE, 10, "evidence-equal").rows
    assert unsure[torch.from_numpy(equal)].any()
    table.radius[:] = 0.455
    assert label_next(table, NONE, 10, "evidence").rows.tolist() == equal.tolist()


def test_the_first_ball_is_the_fullest_of_those_that_hold_a_kth_on_average() -> None:
    unit = normalize(world().features[:N], dim=1)
    first = int(label_next(world(), NONE, 8, "ball").rows[0])
    cosine = (unit @ unit.T).fill_diagonal_(-torch.inf)
    least = cosine[cosine.isfinite()].sort().values[round(N * (N - 1) * 7 / 8) - 1]
    held = (cosine >= least).sum(1)
    assert (
        float(held.double().mean()) == pytest.approx((N - 1) / 8, rel=0.01)
        and held[first] == held.max()
    )


@pytest.mark.parametrize(("budget", "candidates"), [(4, 20), (10, 20), (11, 22), (40, 80)])
def test_the_pool_is_a_sample_of_twice_the_budget_at_least(budget: int, candidates: int) -> None:
    """With one cluster for all, the reason of the first choice counts the images of the pool."""
    limits = Limits(candidates=20, clusters=1)
    found = label_next(world(), NONE, budget, "k-means", limits=limits)
    assert found.reasons[0].endswith(f"of a cluster of {candidates} images")


def test_coverage_is_measured_on_a_sample_of_the_pool() -> None:
    found = label_next(world(), NONE, 12, "facility", limits=Limits(witnesses=10))
    assert len(set(found.rows.tolist())) == 12
    witnesses = torch.randperm(N, generator=torch.Generator().manual_seed(0))[:10]
    unit = normalize(world().features, dim=1)
    nearest = (unit[witnesses] @ unit[torch.from_numpy(found.rows)].T).amax(1)
    gains = [float(reason.split()[-1]) for reason in found.reasons]
    assert sum(gains) == pytest.approx(float(nearest.mean()), rel=0.02)
    every = label_next(world(), NONE, 12, "facility")
    assert every.rows.tolist() != found.rows.tolist()


@pytest.mark.parametrize("strategy", list(STRATEGIES))
def test_equal_images_do_not_break_any_strategy(strategy: str) -> None:
    table = world()
    table.features[:], table.direction[:] = table.features[0], table.direction[0]
    assert len(set(label_next(table, NONE, 30, strategy).rows.tolist())) == 30


@pytest.mark.parametrize("strategy", list(STRATEGIES))
def test_one_image_is_chosen_if_there_is_one(strategy: str) -> None:
    labelled = np.ones(N + 5, dtype=bool)
    labelled[7] = False
    assert choose(strategy, 1, 0, labelled).tolist() == [7]


@pytest.mark.parametrize(
    ("loss", "strategy", "budget", "words"),
    [
        ("sure", "typicle", 3, ["unknown strategy 'typicle'", "did you mean typical"]),
        ("sure", "typical", 0, ["1 or more, not 0"]),
        ("sure", "typical", 101, ["101 labels", "the 100 training images"]),
        ("tau", "evidence", 3, ["evidence needs the radius", 'loss="sure"']),
        ("nt-xent", "certain", 3, ["certain needs the certainty", 'strategy="k-means"']),
    ],
)
def test_bad_input_is_one_sentence(loss: str, strategy: str, budget: int, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        label_next(world(loss), NONE, budget, strategy)
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


def test_nothing_is_left_to_choose() -> None:
    with pytest.raises(UserError, match="every training image has a label already"):
        choose("k-means", 1, 0, np.ones(N + 5, dtype=bool))


@pytest.mark.parametrize("strategy", sorted(STRATEGIES.keys() - {*NEED_CERTAINTY, *NEED_RADIUS}))
def test_strategies_that_need_no_certainty_do_without(strategy: str) -> None:
    assert len(label_next(world("nt-xent"), NONE, 3, strategy).rows) == 3


def test_a_certainty_is_enough_where_no_radius_is_needed() -> None:
    assert len(label_next(world("tau"), NONE, 3, "certain").rows) == 3


# Which are labelled already


def images(labels: list[int]) -> ImageSet:
    n = len(labels)
    split = np.array(["train"] * (n - 2) + ["test"] * 2)
    pixels = torch.zeros(n, 1, 2, 2, dtype=torch.uint8)
    return ImageSet(
        "mine", pixels, torch.tensor(labels), ("a", "b"), split, [f"{i}.png" for i in range(n)]
    )


def test_without_a_file_the_sets_own_labels_count_unless_all_have_one(tmp_path: Path) -> None:
    assert labelled_already(images([0, -1, 1, 0, 0]), None) == (pytest.approx([1, 0, 1, 0, 0]), "")
    labelled, note = labelled_already(images([0, 1, 1, 0, 0]), None)
    assert not labelled.any() and "Every training image of mine has a label" in note


def test_a_file_says_which_whatever_the_set_says_and_needs_no_class_complete(
    tmp_path: Path,
) -> None:
    """A row that is not filled in yet does not count."""
    (tmp_path / "known.csv").write_text("path,label\n1.png,a\n2.png,\n")
    file = LabelFile(tmp_path / "known.csv")
    labelled, note = labelled_already(images([0, -1, 1, 0, 0]), file)
    assert labelled.tolist() == [False, True, False, False, False] and note == ""


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("path,label\nx.png,a\n", ["names no image of mine", "such as 'x.png'", "'0.png'"]),
        ("", ["empty"]),
        (None, ["there is no file of labels"]),
    ],
)
def test_a_bad_file_is_one_sentence(content: str | None, words: list[str], tmp_path: Path) -> None:
    file = tmp_path / "known.csv"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError) as caught:
        labelled_already(images([-1, -1, -1, 0, 0]), LabelFile(file))
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


def test_labels_that_exist_already_count_in_the_size_of_a_ball() -> None:
    """With 4 labels and 4 more to come a ball holds an eighth of the images."""
    labelled = NONE.copy()
    labelled[[3, 50, 75, 99]] = True
    found = label_next(world(), labelled, 4, "ball")
    unit = normalize(world().features[:N], dim=1)
    free = torch.from_numpy(np.flatnonzero(~labelled[:N]))
    cosine = unit[free] @ unit[free].T
    pairs = cosine.clone().fill_diagonal_(-torch.inf)
    pairs = pairs[pairs.isfinite()].sort().values
    least = pairs[round(len(pairs) * 7 / 8) - 1]
    covered = (unit[free] @ unit[torch.from_numpy(np.flatnonzero(labelled))].T >= least).any(1)
    gains = ((cosine >= least) & ~covered).sum(1) / len(free)
    assert float(found.reasons[0].split()[2]) == pytest.approx(float(gains.max()), rel=0.06)
    assert float(gains[free == int(found.rows[0])]) == pytest.approx(float(gains.max()))
