"""Planted certainties that read one known region: the map lights up exactly there, the sanity check
notices what is not learned.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from json_round_trip import read_back
from recording_progress import RecordingProgress
from tiny import train
from torch import Tensor
from torch.nn.functional import normalize

from sureclr.data.embeddings import Embeddings
from sureclr.data.image_set import ImageSet
from sureclr.data.user_images import as_image_set
from sureclr.errors import UserError
from sureclr.evaluation import explanations as e
from sureclr.evaluation import occlusion_maps as o
from sureclr.evaluation.inputs import EvaluationInputs, randomised_run
from sureclr.evaluation.scores import Embed
from sureclr.maths.sphere import evidence

SIDE = 16  # cells of 2 pixels, 8 x 8
GRID = o.Grid.of(SIDE)


def pictures(n: int = 30) -> ImageSet:
    pixels = torch.randint(
        0, 256, (n, 1, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    split = np.asarray(["test"] * (n - 4) + ["train"] * 4)
    return ImageSet(
        "pictures", pixels, torch.arange(n) % 3, ("a", "b", "c"), split, [str(i) for i in range(n)]
    )


def model(certainty: Callable[[Tensor], Tensor], radius: bool = True) -> Embed:
    """Directions are the pixels; the certainty is what is planted."""

    def embed(images: ImageSet) -> Embeddings:
        x = images.images.float()[:, 0] / 255
        h, sure = x.flatten(1) - 0.5, certainty(x)
        return Embeddings(
            h,
            normalize(h, dim=1),
            sure if radius else None,
            sure,
            images.labels,
            images.classes,
            images.split,
            images.paths,
            12.0,
        )

    return embed


def contrast_in(top: int, left: int, size: int = 4) -> Callable[[Tensor], Tensor]:
    """The standard deviation inside a square, in (0, 1): 0 where it is filled with one colour."""
    return lambda x: x[:, top : top + size, left : left + size].flatten(1).std(1)


def sure(image: ImageSet) -> o.Question:
    return o.Question(image, lambda embed: e.read_certainty)


@pytest.mark.parametrize(
    ("size", "cell", "g"), [(16, 2, 8), (8, 1, 8), (28, 4, 7), (30, 4, 8), (4, 1, 4)]
)
def test_windows_and_cells_by_loops(size: int, cell: int, g: int) -> None:
    grid = o.Grid.of(size)
    assert (grid.cell, grid.covers.shape) == (cell, ((g + 1) ** 2, g, g))
    windows = [
        [[a <= i < a + 2 and b <= j < b + 2 for j in range(g)] for i in range(g)]
        for a in range(-1, g)
        for b in range(-1, g)
    ]
    assert torch.equal(grid.covers, torch.tensor(windows))
    pixels = grid.pixels(grid.covers)
    assert pixels.shape[1:] == (size, size)
    places = [(k, y, x) for k in (0, 7) for y in range(size) for x in range(size)]
    assert all(
        bool(pixels[k, y, x]) == bool(grid.covers[k, y // cell, x // cell]) for k, y, x in places
    )


def test_a_cells_value_is_the_mean_over_its_windows() -> None:
    change = torch.arange(81.0)
    cell = [float(change[k]) for k in range(81) if GRID.covers[k, 3, 5]]
    assert len(cell) == 4 and float(GRID.mean_over_windows(change)[3, 5]) == pytest.approx(
        np.mean(cell)
    )


def test_the_map_lights_up_exactly_where_the_certainty_looks() -> None:
    """It looks at cells (2..3, 4..5): windows that touch them reach one cell further on each side,
    everything else is exactly 0.
    """
    image = pictures().select([0])
    m = o.occlude(model(contrast_in(4, 8)), sure(image), GRID)
    reached = torch.zeros(8, 8, dtype=torch.bool)
    reached[1:5, 3:7] = True
    assert bool((m[~reached] == 0).all()) and bool((m[2:4, 4:6] > 0).all())
    assert float(m[2:4, 4:6].min()) > float(m[reached].median())
    inverse = o.occlude(model(lambda x: 1 - contrast_in(4, 8)(x)), sure(image), GRID)
    assert torch.allclose(inverse, -m, atol=1e-6)


def test_what_is_covered_is_the_mask_and_nothing_else() -> None:
    image = pictures().select([3])
    mask = torch.zeros(2, SIDE, SIDE, dtype=torch.bool)
    mask[1, 2:5, 7:9] = True
    whole, holed = o.cover(image, o.mean_colour(image), mask).images
    assert torch.equal(whole, image.images[0])
    assert bool((holed[:, mask[1]] == round(float(image.images.float().mean()))).all())
    assert torch.equal(holed[:, ~mask[1]], whole[:, ~mask[1]])


def test_evidence_maps_cover_one_image_and_leave_the_other() -> None:
    images, embed = pictures(), model(lambda x: torch.full((len(x),), 0.9))
    table = embed(images)
    name, agree = e.agreement(table)
    value = float(agree(table.select(np.array([2])), table.select(np.array([5]))))
    m = o.occlude(embed, e.compare_with(images.select([2]), images.select([5]), agree), GRID)
    assert name == "evidence"
    one, other = table.select(np.array([2])).posterior, table.select(np.array([5])).posterior
    assert value == pytest.approx(float(evidence(one, other, 12.0)), abs=1e-5)
    image, changes = images.select([2]), []
    for window in GRID.pixels(GRID.covers):
        pixels = image.images.clone()
        pixels[0, 0][window] = int(o.mean_colour(image))
        changes.append(
            value - float(evidence(embed(replace(image, images=pixels)).posterior, other, 12.0))
        )
    assert torch.allclose(m, GRID.mean_over_windows(torch.tensor(changes)), atol=1e-4)


def test_pairs_are_of_the_kinds_they_say() -> None:
    images, embed = pictures(), model(contrast_in(4, 8))
    table = embed(images)
    found = e.choose_pairs(images, table, 0)
    assert [kind for kind, _, _ in found] == [
        "same image",
        "nearest neighbour",
        "same class",
        "different",
    ] * 3
    assert all(
        len({(min(i, j), max(i, j)) for k, i, j in found if k == kind}) == 3
        for kind in ("same class", "different")
    )
    unit = normalize(table.features.double(), dim=1)
    for kind, i, j in found:
        assert max(i, j) < 26 and (i == j) == (kind == "same image")  # test images
        if kind == "nearest neighbour":
            assert j == max(
                (k for k in range(26) if k != i), key=lambda k: float(unit[i] @ unit[k])
            )
        if kind in ("same class", "different"):
            assert bool(table.labels[i] == table.labels[j]) == (kind == "same class")
    unlabelled = replace(table, labels=torch.full((30,), -1))
    assert [kind for kind, _, _ in e.choose_pairs(images, unlabelled, 0)] == [
        "same image",
        "nearest neighbour",
        "different",
    ] * 3


def test_surest_least_sure_and_others_each_once() -> None:
    images, score = pictures(60), torch.rand(60, generator=torch.Generator().manual_seed(0))
    rows = e.choose_rows(images, score, 0)
    order = score[:56].argsort(descending=True)
    assert rows[:8].tolist() == order[:8].tolist() and rows[8:16].tolist() == order[-8:].tolist()
    assert len(rows) == len(set(rows.tolist())) == 24 and int(rows.max()) < 56
    assert sorted(e.choose_rows(pictures(9), torch.arange(9.0), 0).tolist()) == [0, 1, 2, 3, 4]
    with pytest.raises(UserError, match="three or more"):
        e.choose_rows(pictures(6), torch.arange(6.0), 0)


def test_sanity_passes_what_was_learned_and_fails_what_any_weights_show() -> None:
    images, learned = pictures(), model(contrast_in(4, 8, 6))
    other = model(contrast_in(0, 0, 6))
    found = e.explain(learned, other, images, learned(images))
    assert read_back(found) == found
    sanity = found.sanity
    assert (
        sanity.rank_correlation_repeat > 0.8
        and abs(sanity.rank_correlation_randomised) < 0.4
        and sanity.passed
    )
    assert np.mean(sanity.deletion.by_map) < np.mean(sanity.deletion.at_random)
    same = e.explain(learned, learned, images, learned(images)).sanity
    assert same.rank_correlation_randomised == pytest.approx(1) and not same.passed
    assert (found.score, found.patch, found.cell, found.grid) == (
        "radius",
        4,
        2,
        (8, 8),
    )


def test_cells_go_by_the_map_and_the_curves_meet_at_both_ends() -> None:
    m = torch.tensor([[0.1, 0.4], [0.3, 0.2]])
    cells = o.best_cells(m, torch.tensor([0, 0.25, 0.5, 1]))
    assert [[int(x) for x in c.flatten()] for c in cells] == [
        [0, 0, 0, 0],
        [0, 1, 0, 0],
        [0, 1, 1, 0],
        [1, 1, 1, 1],
    ]
    embed, questions = model(contrast_in(4, 8)), [sure(pictures(5).select([i])) for i in range(5)]
    maps = [o.occlude(embed, question, GRID) for question in questions]
    curve = o.delete_cells(embed, questions, maps, GRID, 0)
    whole = float(embed(pictures(5)).radius.double().mean())  # type: ignore[union-attr]
    for name in ("by_map", "at_random"):
        assert (
            getattr(curve, name)[0] == pytest.approx(whole)
            and getattr(curve, name)[-1] == pytest.approx(0)
            and len(getattr(curve, name)) == 9
        )
    assert curve.by_map[2] < curve.at_random[2]


def test_flat_maps_correlate_with_nothing() -> None:
    ramp = torch.arange(16.0).view(4, 4)
    found = o.rank_correlations([ramp, ramp, ramp], [ramp, -ramp, torch.zeros(4, 4)])
    assert found.tolist() == pytest.approx([1, -1, 0])


def test_the_evidence_has_a_check_of_its_own() -> None:
    images = pictures()

    def looking_at(top: int, left: int) -> Embed:
        """The direction is a square of the pixels, the certainty one number."""

        def embed(some: ImageSet) -> Embeddings:
            seen = model(lambda x: torch.full((len(x),), 0.9))(some)
            square = seen.features.view(-1, SIDE, SIDE)[:, top : top + 6, left : left + 6]
            return replace(seen, direction=normalize(square.flatten(1), dim=1))

        return embed

    embed, other = looking_at(4, 8), looking_at(0, 0)
    found = e.explain(embed, other, images, embed(images))
    assert not any(
        np.asarray(m)[6:].any() for pair in found.evidence for m in pair.maps
    )  # cells it does not see
    check, curves = found.sanity_evidence, found.sanity_evidence.deletion
    assert (found.evidence_score, check.n, check.passed) == (
        "evidence",
        21,
        True,
    )  # 12 pairs, 3 of them with itself
    assert (
        check.rank_correlation_repeat > 0.4 and not found.sanity.passed
    )  # a constant certainty has flat maps
    assert curves.by_map[0] == pytest.approx(curves.at_random[0]) and np.mean(
        curves.by_map
    ) < np.mean(curves.at_random)
    assert not e.explain(embed, embed, images, embed(images)).sanity_evidence.passed
    agree = e.agreement(embed(images))[1]
    for pair in found.evidence[1:4]:
        i, j = pair.rows
        for (one, two), m in zip(
            ((i, j), (j, i)), pair.maps, strict=True
        ):  # the map of either image, the other whole
            assert m == e.round_map(
                o.occlude(
                    embed, e.compare_with(images.select([one]), images.select([two]), agree), GRID
                )
            )


def test_maps_that_find_nothing_fail_however_well_they_repeat() -> None:
    images, learned, other = pictures(), model(contrast_in(4, 8, 6)), model(contrast_in(0, 0, 6))
    questions = [sure(images.select([i])) for i in range(6)]
    maps = [o.occlude(learned, question, GRID) for question in questions]
    assert o.check_maps(learned, other, questions, maps, GRID, 0).passed
    check = o.check_maps(learned, other, questions, maps, GRID, 0)
    numbers = (check.rank_correlation_randomised, check.rank_correlation_repeat)
    assert o.passes(*numbers, check.deletion.interval)
    wrong = o.check_maps(learned, other, questions, [-m for m in maps], GRID, 0)
    assert wrong.deletion.interval[1] < 0 and not wrong.passed


def test_the_area_between_the_curves_is_a_mean_over_images_with_its_interval() -> None:
    embed, questions = model(contrast_in(4, 8)), [sure(pictures(5).select([i])) for i in range(5)]
    maps = [o.occlude(embed, question, GRID) for question in questions]
    found = o.delete_cells(embed, questions, maps, GRID, 0)
    alone = [o.delete_cells(embed, [q], [m], GRID, 0) for q, m in zip(questions, maps, strict=True)]
    assert [one.interval for one in alone] == [None] * 5
    by_hand = np.mean(np.subtract(found.at_random, found.by_map))
    assert found.area == pytest.approx(by_hand) and found.area > 0
    assert np.mean([one.by_map for one in alone], 0) == pytest.approx(found.by_map)
    assert found.interval[0] < found.area < found.interval[1]


def test_the_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    generator, hits = torch.Generator().manual_seed(0), 0
    for seed in range(300):
        _, (low, high) = o.mean_and_interval(torch.randn(30, generator=generator), seed)
        hits += low <= 0 <= high
    assert 0.90 <= hits / 300 <= 0.98  # the percentile interval of 30 numbers is a little narrow


@pytest.mark.parametrize(
    ("randomised", "repeat", "lowest", "passed"),
    [
        (0.39, 0.8, 0.1, True),
        (-0.39, 0.8, 0.1, True),
        (0.4, 0.8, 0.1, False),  # half of the other is not below half
        (-0.41, 0.8, 0.1, False),  # maps that are turned round depend on the image as well
        (0.0, 0.0, 0.1, False),
        (0.39, 0.8, 0.0, False),  # as fast as at random is not faster
        (0.39, 0.8, -0.1, False),
    ],
)
def test_maps_pass_by_both_rules(
    randomised: float, repeat: float, lowest: float, passed: bool
) -> None:
    assert o.passes(randomised, repeat, (lowest, 0.5)) == passed
    assert not o.passes(randomised, repeat, None)


def test_without_radius_pairs_go_by_the_cosine_and_without_certainty_it_says_so() -> None:
    images, embed = pictures(), model(contrast_in(4, 8), radius=False)
    found = e.explain(embed, embed, images, embed(images))
    assert (found.score, found.evidence_score) == ("certainty", "cosine")

    def bare(some: ImageSet) -> Embeddings:
        return replace(embed(some), certainty=None)

    table = bare(images)
    found = e.explain(bare, bare, images, table)
    assert (found.score, found.certainty, found.sanity) == (None, (), None)
    assert 'loss="sure"' in found.certainty_skipped
    assert read_back(found) == found
    for pair in found.evidence:
        i, j = pair.rows
        assert pair.value == pytest.approx(float(table.direction[i] @ table.direction[j]), abs=1e-5)
        assert np.asarray(pair.maps).shape == (2, 8, 8)
    with pytest.raises(UserError, match="three or more"):
        e.explain(bare, bare, pictures(6), bare(pictures(6)))


def test_randomised_weights_are_another_network_with_maps_of_its_own(
    tmp_path: Path,
) -> None:
    run = train(tmp_path / "run")
    other, again = randomised_run(run), randomised_run(run)
    images = as_image_set(
        torch.randint(
            0, 256, (12, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
        )
    )
    mine, theirs, repeated = (one.embed(images) for one in (run, other, again))
    assert torch.equal(theirs.features, repeated.features) and not torch.allclose(
        mine.features, theirs.features
    )
    assert (
        theirs.radius is not None and float(theirs.radius.std()) > 0
    )  # not the constant 1/2 of the start of training
    progress = RecordingProgress()
    inputs = EvaluationInputs(run, images, mine, progress)
    found = e.explain(inputs.embed, inputs.embed_randomised, images, mine, each=1, anchors=1)
    assert (
        found.sanity.n == 3
        and progress.updates
        and np.asarray(found.certainty[0].map).shape == (8, 8)
    )
    assert torch.equal(inputs.embed_randomised(images).features, theirs.features)
    untrained = run.untrained().embed(images)
    assert not torch.allclose(untrained.features, theirs.features)  # another seed


def test_three_images_are_enough_and_maps_have_four_digits() -> None:
    assert len(e.choose_rows(pictures(7), torch.arange(7.0), 0)) == 3
    assert e.round_map(torch.tensor([[0.123456, -12345.6]])) == ((0.1235, -12350.0),)
