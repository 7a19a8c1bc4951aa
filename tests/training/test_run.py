"""Opening a run: the same model comes back, the untrained one is the one before its first step, and
edits are noticed.
"""

import hashlib
import json
import os
import resource
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import CONFIG, FEATURES, IMAGES, train

from sureclr.config import to_yaml
from sureclr.data.user_images import as_image_set
from sureclr.errors import UserError
from sureclr.files import sealed
from sureclr.training import building
from sureclr.training.building import build, pixel_statistics
from sureclr.training.records import environment
from sureclr.training.run import Run, load
from sureclr.training.run_dir import RunDir


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(tmp_path_factory.mktemp("runs") / "run")


def test_what_is_loaded_is_what_was_trained(run: Run) -> None:
    opened = load(run.path, "cpu")
    assert (
        opened.config == replace(CONFIG, size=8, channels=1, presence="off", null_fraction=0.0)
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
        untrained["encoder.backbone.layer1.body.0.weight"],
        run.model.state_dict()["encoder.backbone.layer1.body.0.weight"],
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


@pytest.mark.parametrize(("count", "at_once"), [(48, 1000), (48, 7), (11, 2), (5, 3)])
def test_statistics_are_those_of_every_so_many_images_in_any_blocks(
    count: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against NumPy in float64 over the same images at once."""
    monkeypatch.setattr(building, "STATISTICS_IMAGES", count)
    monkeypatch.setattr(building, "IMAGES_AT_ONCE", at_once)
    pixels = IMAGES.expand(-1, 3, -1, -1) // torch.tensor([1, 2, 255]).view(3, 1, 1)
    some = (pixels[:: 48 // count].double() / 255).numpy()
    mean, std = pixel_statistics(as_image_set(pixels.contiguous().to(torch.uint8)), CONFIG)
    assert mean.tolist() == pytest.approx(some.mean((0, 2, 3)), rel=1e-6)
    wanted = some.std((0, 2, 3), ddof=1).clip(1e-3)
    assert std.tolist() == pytest.approx(wanted, rel=1e-6)
    assert mean.dtype == std.dtype == torch.float32


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


@pytest.mark.parametrize("name", ["", "none"])
def test_what_is_no_run_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        load(tmp_path / name)


def test_a_run_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("source: digits\n")
    with pytest.raises(UserError, match="no undamaged checkpoint"):
        load(tmp_path)


def signed(run: Path, **changes: Any) -> None:
    """Change a checkpoint's description as a stranger would: the manifest fits."""
    for path in RunDir(run).saved():
        numbers = json.loads((path / "state.json").read_text())
        for name, value in changes.items():
            place = numbers if name in numbers else numbers["configuration"]
            place[name] = value
        data = json.dumps(numbers).encode()
        manifest = json.loads((path / "manifest.json").read_text())
        manifest["state.json"] = hashlib.sha256(data).hexdigest()
        (path / "state.json").write_bytes(data)
        (path / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("step", "9"),
        ("step", -1),
        ("size", None),
        ("channels", [3]),
        ("source", 5.0),
        ("configuration", 7),
        ("encoder", ["small"]),
        ("views", {"flip": "yes"}),
        ("epochs", 10**30),
    ],
)
def test_a_strangers_description_is_one_sentence(
    run: Run, tmp_path: Path, name: str, value: Any
) -> None:
    """Whatever state.json says, with a manifest that fits it: for opening and for resuming."""
    shutil.copytree(run.path, tmp_path / "run")
    signed(tmp_path / "run", **{name: value})
    for act in (
        lambda: load(tmp_path / "run", "cpu"),
        lambda: train(tmp_path / "run", resume=True),
    ):
        with pytest.raises(UserError) as caught:
            act()
        assert "\n" not in str(caught.value)


def test_a_network_larger_than_its_weights_takes_no_memory(run: Run, tmp_path: Path) -> None:
    """R8: both config.yaml and the checkpoint claim a head of 16 GiB; the weights are small."""
    shutil.copytree(run.path, tmp_path / "run")
    shape = {"projection_dim": 1 << 13, "projection_hidden": 1 << 13, "projection_layers": 4}
    signed(tmp_path / "run", **shape)
    (tmp_path / "run" / "config.yaml").write_text(to_yaml(replace(run.config, **shape)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="does not fit its config.yaml"):
        load(tmp_path / "run", "cpu")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


@pytest.mark.parametrize("kind", ["pipe", "huge", "deep", "folder", "link"])
def test_any_file_of_a_run_may_be_something_else(run: Run, tmp_path: Path, kind: str) -> None:
    """R7: no file is waited for or read without end: it is refused, or the one before is used."""
    files = [path.relative_to(run.path) for path in run.path.rglob("*") if path.is_file()]
    for file in files:
        shutil.copytree(run.path, tmp_path / "run")
        path = tmp_path / "run" / file
        path.unlink()
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "huge":
            path.touch()
            os.truncate(path, 1 << 36)
        elif kind == "deep":
            path.write_text("[" * 20_000)  # deeper than any parser goes
        elif kind == "folder":
            path.mkdir()
        else:
            path.symlink_to("/dev/zero")
        for act in (
            lambda: load(tmp_path / "run", "cpu").checkpoint,
            lambda: train(tmp_path / "run", resume=True).checkpoint,
        ):
            try:
                assert len(act()) == 64
            except UserError as error:
                assert "\n" not in str(error)
        shutil.rmtree(tmp_path / "run")


def test_embedding_brings_images_to_the_runs_size_and_colours(run: Run) -> None:
    large = np.random.default_rng(0).integers(0, 256, (3, 20, 16, 3), dtype=np.uint8)
    table = run.embed([Image.fromarray(image) for image in large])
    assert table.features.shape == (3, FEATURES) and table.labels.tolist() == [-1, -1, -1]


def test_environment_names_the_versions() -> None:
    known = environment()
    assert known["torch"] == torch.__version__ and known["python"] and "gpu" in known


# --- The encoder ----------------------------------------------------------------------


def test_the_encoder_takes_pixels_in_0_1_and_gives_the_features_of_the_table(run: Run) -> None:
    opened = load(run.path, "cpu")
    features = opened.embed(IMAGES).features
    assert torch.allclose(opened.encoder(IMAGES / 255), features, rtol=1e-6, atol=1e-6)
    assert not opened.encoder.training and opened.encoder.num_features == FEATURES
    by_hand = (IMAGES / 255 - IMAGES.float().mean() / 255) / (IMAGES.float().std() / 255)
    assert torch.allclose(opened.encoder.backbone(by_hand), features, atol=1e-3)
    assert not torch.allclose(opened.encoder.backbone(IMAGES / 255), features, atol=1e-1)


def test_the_checkpoint_is_that_of_the_weights(run: Run, tmp_path: Path) -> None:
    (newest,) = [path for path in run.directory.saved() if path.name == "step-000000012"]
    expected = hashlib.sha256((newest / "manifest.json").read_bytes()).hexdigest()
    assert run.checkpoint == load(run.path, "cpu").checkpoint == expected
    assert run.directory.checkpoint_digest() == expected
    assert run.untrained().checkpoint == run.redrawn(1).checkpoint == ""
    shutil.copytree(run.path, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / newest.name / "state.json").write_text("{}")
    older = load(tmp_path / "run", "cpu")
    assert older.checkpoint == older.directory.checkpoint_digest() != expected


def test_redrawn_weights_are_those_of_the_other_seed(run: Run) -> None:
    expected = build(replace(CONFIG, seed=7), 1, run.model.mean, run.model.std)[0].state_dict()
    redrawn = run.redrawn(7)
    state = redrawn.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in expected.items())
    assert redrawn.config.seed == 7 and not redrawn.model.training


# --- How a run describes itself -------------------------------------------------------


def test_a_run_describes_itself_in_one_line(run: Run, tmp_path: Path) -> None:
    assert repr(run).startswith("<Run ") and "small-10, sure on images" in repr(run)
    assert str(run.path)[-20:] in repr(run)
    deep = replace(
        run,
        directory=RunDir(tmp_path / ("x" * 200)),
        config=replace(run.config, encoder="vit_small_patch16_224.augreg_in21k_ft_in1k"),
        source="folder:/a/very/long/path/to/some/images",
    )
    for some in (run, deep, replace(run, directory=RunDir(Path("runs/a")))):
        assert len(repr(some)) <= 100 and "\n" not in repr(some)
    assert len(repr(deep)) > 90  # long names are cut, and not too much
    assert (
        repr(replace(run, directory=RunDir(Path("runs/a"))))
        == "<Run runs/a: small-10, sure on images>"
    )


@pytest.fixture
def opened(run: Run, tmp_path: Path) -> Run:
    shutil.copytree(run.path, tmp_path / "run")
    return replace(load(tmp_path / "run", "cpu"), source="<cats & dogs>")


@pytest.mark.parametrize(
    "content", ["{", "[1]", '{"linear": null, "knn": {"accuracy": 1}}', '{"linear": {"a": 1}}']
)
def test_a_notebook_shows_no_damaged_results(opened: Run, content: str) -> None:
    page = opened._repr_html_()
    assert "&lt;cats &amp; dogs&gt;" in page and "<cats" not in page and "accuracy" not in page
    opened.directory.results.write_text(content)
    again = opened._repr_html_()
    assert "accuracy" not in again and (again == page) is ("linear" not in content)
    assert ("the stored result is damaged" in again) is ("linear" in content)


def test_a_notebook_shows_the_accuracies(opened: Run) -> None:
    made = {"provenance": {"checkpoint": opened.checkpoint}}
    linear = {"accuracy": 0.98765, "interval": [0.97, 0.99], "x": 1, **made}
    content: dict[str, Any] = {"linear": linear, "knn": {"accuracy": "?", "interval": [0, 1]}}
    stored = opened.directory.results

    def shown(schema: int) -> str:
        stored.write_text(json.dumps({"schema": schema, **content}))
        return opened._repr_html_()

    words = "0.988 (95 % interval 0.970 to 0.990)"
    page = shown(1)
    assert "linear probe" in page and words in page and "nearest neighbours" not in page
    assert words not in shown(3) and "linear probe</th><td>the stored result is damaged" in shown(3)
    content["linear"] = sealed(linear, "linear")
    assert words in shown(3)
    content["linear"] = sealed({**linear, "provenance": {"checkpoint": "other"}}, "linear")
    assert "linear probe" not in shown(3)  # of other weights
