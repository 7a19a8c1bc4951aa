"""linear: what it is measured on, against the probe called by hand on tensors that the test makes itself."""

import numpy as np
import pytest
import torch
from tiny import train

from sureclr.data.image_set import ImageSet
from sureclr.evaluation import evaluate
from sureclr.evaluation.linear_probe import linear_probe
from sureclr.evaluation.material import Material, material
from sureclr.models.embed import embed

N, TRAIN = 60, 40


def images() -> ImageSet:
    """60 squares of 8 pixels; the class is how bright, roughly; the first is not labelled."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(N) % 3
    pixels = (60 * labels[:, None, None, None] + torch.randint(0, 100, (N, 1, 8, 8), generator=generator)).to(torch.uint8)
    labels[0] = -1
    split = np.array(["train"] * TRAIN + ["test"] * (N - TRAIN))
    return ImageSet("mine", pixels, labels, ("a", "b", "c"), split, [str(i) for i in range(N)])


@pytest.fixture(scope="module", params=["sure", "nt-xent"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Material:
    return material(train(tmp_path_factory.mktemp("evaluate") / "run", loss=request.param), images())


def by_hand(x: torch.Tensor, made: Material) -> float:
    y = made.images.labels
    return linear_probe(x[1:TRAIN], y[1:TRAIN], x[TRAIN:], y[TRAIN:]).accuracy


def test_the_posterior_mean_is_probed_and_the_direction_where_there_is_no_radius(made: Material) -> None:
    found = evaluate.linear(made)["posterior_mean"]
    table = embed(made.run.model, made.images)
    if made.run.config.loss == "nt-xent":
        assert found["of"] == "direction" and found["accuracy"] == by_hand(table.direction, made)
    else:
        assert found["of"] == "u" and found["accuracy"] == by_hand(table.radius[:, None] * table.direction, made)
    low, high = found["interval"]
    assert low < found["accuracy"] < high or found["accuracy"] in (0, 1)
    assert (found["n_train"], found["n_test"], found["features"]) == (TRAIN - 1, N - TRAIN, 8)


def test_each_block_is_probed_in_order(made: Material) -> None:
    network = made.run.model.encoder.eval()
    x = network.stem((made.images.images / 255 - made.run.model.mean) / made.run.model.std)
    found = evaluate.linear(made)["blocks"]
    assert [(block["name"], block["features"]) for block in found] == [("layer1", 32), ("layer2", 64), ("layer3", 256)]
    for block in found:
        with torch.no_grad():
            x = getattr(network, block["name"])(x)
            assert block["accuracy"] == by_hand(x.mean((2, 3)), made)
        assert (block["n_train"], block["n_test"]) == (TRAIN - 1, N - TRAIN) and len(block["interval"]) == 2


def test_wide_encoders_are_probed_on_a_sample_of_the_training_images(made: Material, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "LEAST_TRAINING", 10)
    monkeypatch.setattr(evaluate, "BLOCK_NUMBERS", (32 + 64 + 256) * (N - TRAIN + 25))  # room for 25 beside the test images
    found = evaluate.block_probes(made)
    assert {(block["n_train"], block["n_test"]) for block in found} == {(25, N - TRAIN)}
    assert [block["accuracy"] for block in found] == [block["accuracy"] for block in evaluate.block_probes(made)]
    monkeypatch.setattr(evaluate, "BLOCK_NUMBERS", 1)
    assert {block["n_train"] for block in evaluate.block_probes(made)} == {10}
