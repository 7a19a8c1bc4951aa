"""The inputs of evaluations, and linear evaluation against probes fitted by hand."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import FEATURES, WIDTH, train
from torch.nn import functional as F

from sureclr.config import PretrainConfig
from sureclr.data.embeddings import Embeddings
from sureclr.data.image_set import ImageSet
from sureclr.evaluation.inputs import EvaluationInputs, ProbeCache, evaluation_inputs
from sureclr.evaluation.neighbour_vote import vote_on_table
from sureclr.evaluation.probes import ProbeResult, evaluate_linear, linear_probe, probe_blocks
from sureclr.evaluation.results import BaselineIntervals, Baselines
from sureclr.evaluation.session import EVALUATIONS
from sureclr.models.embedding import embed

N, TRAIN = 60, 40


def images() -> ImageSet:
    """60 squares of 8 pixels; the class is how bright, roughly; the first is not labelled."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(N) % 3
    pixels = (
        60 * labels[:, None, None, None] + torch.randint(0, 100, (N, 1, 8, 8), generator=generator)
    ).to(torch.uint8)
    labels[0] = -1
    split = np.array(["train"] * TRAIN + ["test"] * (N - TRAIN))
    return ImageSet("mine", pixels, labels, ("a", "b", "c"), split, [str(i) for i in range(N)])


@pytest.fixture(scope="module", params=["sure", "nt-xent"])
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> EvaluationInputs:
    return evaluation_inputs(
        train(tmp_path_factory.mktemp("evaluate") / "run", loss=request.param), images()
    )


def by_hand(x: torch.Tensor, made: EvaluationInputs) -> float:
    y = made.images.labels
    return linear_probe(x[1:TRAIN], y[1:TRAIN], x[TRAIN:], y[TRAIN:]).accuracy


def test_the_posterior_mean_is_probed_and_the_direction_where_there_is_no_radius(
    made: EvaluationInputs,
) -> None:
    found = evaluate_linear(made).posterior_mean
    table = embed(made.run.model, made.images)
    if made.run.config.loss == "nt-xent":
        assert found.of == "direction" and found.accuracy == by_hand(table.direction, made)
    else:
        assert found.of == "u" and found.accuracy == by_hand(
            table.radius[:, None] * table.direction, made
        )
    low, high = found.interval
    assert low < found.accuracy < high or found.accuracy in (0, 1)
    assert (found.n_train, found.n_test, found.features) == (TRAIN - 1, N - TRAIN, 8)


def test_features_and_baselines_are_probed(made: EvaluationInputs) -> None:
    found = evaluate_linear(made)
    table = embed(made.run.model, made.images)
    assert found.accuracy == by_hand(table.features, made)
    assert found.baselines.raw_pixels == by_hand(made.images.images.flatten(1) / 255, made)
    untrained = embed(made.run.untrained().model, made.images)
    assert found.baselines.untrained == by_hand(untrained.features, made)
    votes = EVALUATIONS["knn"](made)
    assert votes.k == 20 and (votes.n_train, votes.n_test) == (TRAIN - 1, N - TRAIN)
    assert votes.accuracy == vote_on_table(made.table).accuracy
    assert votes.interval == vote_on_table(made.table).interval
    raw, first = vote_on_table(made.raw), vote_on_table(made.untrained)
    assert votes.baselines == Baselines(raw.accuracy, first.accuracy)
    assert votes.baseline_intervals == BaselineIntervals(raw.interval, first.interval)


def test_each_block_is_probed_in_order(made: EvaluationInputs) -> None:
    network = made.run.model.encoder.backbone.eval()
    x = network.stem((made.images.images / 255 - made.run.model.mean) / made.run.model.std)
    found = evaluate_linear(made).blocks
    assert [(block.name, block.features) for block in found] == [
        ("layer1", WIDTH),
        ("layer2", 2 * WIDTH),
        ("layer3", FEATURES),
    ]
    for block in found:
        with torch.no_grad():
            x = getattr(network, block.name)(x)
            assert block.accuracy == by_hand(x.mean((2, 3)), made)
        assert (block.n_train, block.n_test) == (TRAIN - 1, N - TRAIN) and len(block.interval) == 2


def test_wide_encoders_are_probed_on_a_sample_of_the_training_images(
    made: EvaluationInputs,
) -> None:
    numbers = (WIDTH + 2 * WIDTH + FEATURES) * (
        N - TRAIN + 25
    )  # room for 25 besides the test images
    found = probe_blocks(made, numbers, least=10)
    assert {(block.n_train, block.n_test) for block in found} == {(25, N - TRAIN)}
    assert [block.accuracy for block in found] == [
        block.accuracy for block in probe_blocks(made, numbers, least=10)
    ]
    assert {block.n_train for block in probe_blocks(made, 1, least=10)} == {10}


def test_the_same_probe_is_fitted_once_for_all_evaluations(
    made: EvaluationInputs,
) -> None:
    fitted: list[tuple[int, ...]] = []

    def counted(train_x: torch.Tensor, *rest: torch.Tensor) -> ProbeResult:
        fitted.append(tuple(train_x.shape))
        return linear_probe(train_x, *rest)

    fresh = evaluation_inputs(made.run, made.images)
    fresh.probes = ProbeCache(counted)
    found = [EVALUATIONS[name](fresh) for name in ("linear", "uncertainty", "ood")]
    # raw pixels 64; the features, the untrained network's, and the last block where it is not bit
    # by bit the features; 2 blocks; u
    assert sorted(width for _, width in fitted) in [
        sorted([64, FEATURES, FEATURES, WIDTH, 2 * WIDTH, 8, *last]) for last in ([], [FEATURES])
    ]
    assert (
        found[0].accuracy
        == by_hand(fresh.table.features, made)
        == 1 - found[1].selective["linear"].error
    )


def test_a_remembered_probe_is_that_of_the_same_numbers_alone(made: EvaluationInputs) -> None:
    probes, x, y = ProbeCache(), made.table.features, made.images.labels
    rows = (x[1:TRAIN], y[1:TRAIN], x[TRAIN:], y[TRAIN:])
    first = probes(*rows)
    assert probes(*(part.clone() for part in rows)) is first
    assert all(
        probes(*(part.flip(0) if i == j else part for i, part in enumerate(rows))) is not first
        for j in range(4)
    )
    assert probes(rows[0].double(), rows[1], rows[2].double(), rows[3]) is not first
    fewer = (rows[0][rows[1] > 0], rows[1][rows[1] > 0], *rows[2:])
    assert probes(*fewer) is probes(*fewer) is not first


@pytest.mark.parametrize(
    ("size", "channels", "side"), [(28, 1, 28), (64, 1, 32), (32, 3, 18), (16, 3, 16)]
)
def test_raw_pixels_are_at_most_1024_numbers(size: int, channels: int, side: int) -> None:
    pixels = torch.randint(0, 256, (4, channels, size, size), dtype=torch.uint8)
    given = ImageSet(
        "mine", pixels, torch.zeros(4).long(), ("a",), np.array(["train"] * 4), list("abcd")
    )
    unused = torch.zeros(4, 1)
    table = Embeddings(unused, unused, None, None, given.labels, ("a",), given.split, given.paths)
    found = EvaluationInputs(
        SimpleNamespace(size=size, channels=channels, config=PretrainConfig("digits")), given, table
    ).raw.features
    assert found.shape == (4, channels * side * side) and found.max() <= 1
    expected = (
        F.interpolate(pixels.float(), (side, side), mode="bilinear", antialias=True)
        .round()
        .clamp(0, 255)
        .flatten(1)
        / 255
    )
    torch.testing.assert_close(found, expected)


def test_images_are_brought_to_the_runs_size_and_a_table_of_other_images_is_not_used(
    made: EvaluationInputs,
) -> None:
    large = replace(images(), images=torch.zeros(N, 3, 11, 13, dtype=torch.uint8))
    inputs = evaluation_inputs(made.run, large, made.table)
    assert inputs.images.images.shape == (N, 1, 8, 8) and inputs.table is made.table
    other = evaluation_inputs(made.run, images().select(list(range(30))), made.table)
    assert other.table is not made.table and len(other.table) == 30
    assert torch.equal(other.table.features, made.run.embed(other.images).features)
