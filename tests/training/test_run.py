"""Opening a run: the same model comes back, the untrained one is the one before its first step, and
edits are noticed.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import CONFIG, IMAGES, train

from sureclr.data.user_images import as_image_set
from sureclr.errors import UserError
from sureclr.training.run import Run, build, environment, load, pixel_statistics


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(tmp_path_factory.mktemp("runs") / "run")


def test_what_is_loaded_is_what_was_trained(run: Run) -> None:
    opened = load(run.path, "cpu")
    assert (
        opened.config == CONFIG
        and (opened.size, opened.channels) == (8, 1)
        and not opened.model.training
    )
    mine, other = run.embed(IMAGES), opened.embed(IMAGES)
    assert torch.equal(mine.features, other.features) and torch.equal(mine.radius, other.radius)
    assert opened.kernel_dimension == run.kernel_dimension and 1 < run.kernel_dimension <= 8


def test_loading_leaves_the_folder_alone(run: Run) -> None:
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    load(run.path, "cpu").embed(IMAGES)
    assert before == {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}


def test_untrained_is_the_network_before_its_first_step(run: Run) -> None:
    fresh = build(CONFIG, 1, run.model.mean, run.model.std)[0].state_dict()
    untrained = load(run.path, "cpu").untrained().model.state_dict()
    assert all(torch.equal(value, untrained[name]) for name, value in fresh.items())
    assert not torch.equal(
        untrained["encoder.layer1.body.0.weight"],
        run.model.state_dict()["encoder.layer1.body.0.weight"],
    )


def test_pixels_are_standardised_by_the_training_images(run: Run) -> None:
    pixels = IMAGES.double() / 255
    assert float(run.model.mean) == pytest.approx(float(pixels.mean()), rel=1e-5)
    assert float(run.model.std) == pytest.approx(float(pixels.std()), rel=1e-4)
    flat = as_image_set(torch.zeros(4, 1, 8, 8, dtype=torch.uint8))
    assert all(
        bool(t.isfinite().all()) and float(t.min()) >= 0 for t in pixel_statistics(flat, CONFIG)
    )
    assert float(pixel_statistics(flat, CONFIG)[1]) > 0


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("projection_dim: 8", "projection_dim: 9"),
        ("encoder: small", "encoder: resnet18"),
        ("loss: sure", "loss: nt-xent"),
        ("projection_layers: 2", "projection_layers: 3"),
        ("stem: imagenet", "stem: cifar"),
        ("temperature: null", "temperature: 0.9"),
    ],
)
def test_an_edited_configuration_is_noticed(
    run: Run, tmp_path: Path, before: str, after: str
) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    text = (tmp_path / "run" / "config.yaml").read_text()
    assert before in text
    (tmp_path / "run" / "config.yaml").write_text(text.replace(before, after))
    with pytest.raises(UserError, match="was the configuration edited"):
        load(tmp_path / "run", "cpu")


def test_what_is_no_run_is_told(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match="is not a run folder"):
            load(path)
    (tmp_path / "config.yaml").write_text("source: digits\n")
    with pytest.raises(UserError, match="no undamaged checkpoint"):
        load(tmp_path)


def test_embedding_brings_images_to_the_runs_size_and_colours(run: Run) -> None:
    large = np.random.default_rng(0).integers(0, 256, (3, 20, 16, 3), dtype=np.uint8)
    table = run.embed([Image.fromarray(image) for image in large])
    assert table.features.shape == (3, 256) and table.labels.tolist() == [-1, -1, -1]


def test_environment_names_the_versions() -> None:
    known = environment()
    assert known["torch"] == torch.__version__ and known["python"] and "gpu" in known
