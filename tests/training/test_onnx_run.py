"""A run whose encoder is the network of an ONNX file: the same as with the network in torch."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_frozen import BACKBONE, LABELS, K  # a network of small-10 with grey images of 8 pixels
from tiny import CONFIG, IMAGES, Messages, equal, weights

import sureclr
from sureclr.errors import UserError
from sureclr.progress import SILENT


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("file") / "network.onnx"
    free = {"x": {0: "n", 2: "h", 3: "w"}}
    example = torch.zeros(2, 1, 8, 8)
    BACKBONE.eval()
    torch.onnx.export(
        BACKBONE, (example,), path, dynamo=False, input_names=["x"], dynamic_axes=free
    )
    return path


def frozen(out: Path, file: Path | None, **options: Any) -> sureclr.Run:
    """Heads on the file, or on the same network as a module of torch."""
    images = sureclr.as_image_set(IMAGES, size=8, channels=1)
    images = replace(images, labels=LABELS, classes=("a", "b", "c"))
    known = {name: options.pop(name) for name in list(options) if hasattr(CONFIG, name)}
    first = {"freeze": "backbone"} if file is None else {"init": str(file)}
    statistics = {"pixel_mean": (0.5,), "pixel_std": (0.25,)}
    config = replace(CONFIG, size=8, cached_views=K, **{**first, **statistics, **known})
    module = {"encoder": BACKBONE} if file is None else {}
    arguments = {"out": out, "device": "cpu", "progress": SILENT, **module, **options}
    return sureclr.pretrain(config, images, **arguments)


@pytest.fixture(scope="module")
def run(file: Path, tmp_path_factory: pytest.TempPathFactory) -> sureclr.Run:
    return frozen(tmp_path_factory.mktemp("onnx") / "run", file)


def test_features_and_heads_are_those_of_the_same_network_in_torch(
    run: sureclr.Run, tmp_path: Path
) -> None:
    torch_run = frozen(tmp_path / "torch", None)
    ours, theirs = run.embed(IMAGES), torch_run.embed(IMAGES)
    assert theirs.features.std() > 0.01
    torch.testing.assert_close(ours.features, theirs.features, atol=1e-4, rtol=1e-4)
    # the heads began alike, and took the same steps on features that float16 rounds
    torch.testing.assert_close(ours.direction, theirs.direction, atol=0.02, rtol=0)
    untrained = run.untrained().embed(IMAGES)
    torch.testing.assert_close(untrained.features, ours.features)
    assert (untrained.direction - ours.direction).abs().max() > 0.1
    assert run.config.encoder == "onnx" and run.config.freeze == "backbone"
    assert not (run.path / "encoder.safetensors").exists()
    assert not any("backbone" in name for name in weights(run.path))  # heads alone


def test_a_run_can_be_moved_without_its_file(run: sureclr.Run, file: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(run.path, moved)
    config = (moved / "config.yaml").read_text()
    assert str(file) in config
    file.rename(file.with_suffix(".away"))
    try:
        loaded = sureclr.load(moved, device="cpu")
        for name in ("features", "direction", "radius"):
            assert torch.equal(
                getattr(loaded.embed(IMAGES), name), getattr(run.embed(IMAGES), name)
            )
    finally:
        file.with_suffix(".away").rename(file)


def test_a_run_that_goes_on_ends_as_one_that_was_never_stopped(file: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone.onnx"
    shutil.copy(file, gone)
    whole = frozen(tmp_path / "whole", gone)
    shutil.copytree(whole.path, tmp_path / "stopped")
    for late in sorted((tmp_path / "stopped" / "checkpoints").glob("step-*"))[1:]:
        shutil.rmtree(late)
    gone.unlink()
    frozen(tmp_path / "stopped", gone, resume=True)
    assert equal(tmp_path / "stopped", whole.path)


def test_another_network_in_its_place_is_refused(run: sureclr.Run, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(run.path, other)
    redrawn = run.model.encoder.backbone.redrawn(1)
    (other / "backbone.onnx").write_bytes(redrawn.data)
    with pytest.raises(UserError, match="backbone.onnx is another one than that with which"):
        sureclr.load(other, device="cpu")
    with pytest.raises(UserError, match="backbone.onnx is another one than that with which"):
        frozen(other, Path(run.config.init), resume=True)
    (other / "backbone.onnx").unlink()
    with pytest.raises(UserError, match="backbone.onnx cannot be read"):
        sureclr.load(other, device="cpu")


def test_what_cannot_be_done_with_it_says_so(run: sureclr.Run, file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be trained; `linear` evaluates"):
        sureclr.finetune(run, labels=20)
    with pytest.raises(UserError, match="cannot be trained, not even its last stage"):
        frozen(tmp_path / "stages", file, freeze="stages")
    assert not (tmp_path / "stages").exists()
    with pytest.raises(UserError, match="takes images of 1 channels"):
        frozen(tmp_path / "colour", file, channels=3, pixel_mean=None, pixel_std=None)
    assert not (tmp_path / "colour").exists()


def test_a_redrawn_run_has_another_network(run: sureclr.Run) -> None:
    one, other = run.redrawn(1).embed(IMAGES), run.redrawn(2).embed(IMAGES)
    assert torch.equal(one.features, run.redrawn(1).embed(IMAGES).features)
    for table in (other, run.embed(IMAGES)):
        assert not torch.allclose(one.features, table.features)


def test_what_the_file_does_not_say_is_said(file: Path, tmp_path: Path) -> None:
    progress = Messages()
    frozen(tmp_path / "said", file, progress=progress, epochs=1)
    said = next(text for text in progress.messages if "takes the place of the encoder" in text)
    for words in (str(file), "80 features", "(0.5,) and (0.25,)", "pixel_mean", "freeze"):
        assert words in said
