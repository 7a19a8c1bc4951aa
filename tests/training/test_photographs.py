"""The recipe `photos`: what it takes from the number of pictures and the weights at hand."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import Messages, write_photos
from weight_cache import put_weights

import sureclr
from sureclr.errors import UserError
from sureclr.recipes import image_folder, photos
from sureclr.training import photographs


@pytest.fixture
def source(tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """24 pictures, and weights of test_resnet, which stand for those that are looked for."""
    monkeypatch.setattr(photographs, "PHOTO_ENCODERS", ("resnet18", "test_resnet"))
    put_weights(empty_cache, "test_resnet")
    return f"folder:{write_photos(tmp_path / 'photos')}"


def chosen(source: str, **given: Any) -> tuple[sureclr.PretrainConfig, list[str]]:
    config = sureclr.recipe_for_pictures(source, given, log := Messages())
    return config, log.messages


def test_few_pictures_leave_the_encoder_as_it_is(source: str) -> None:
    config, said = chosen(source)
    assert (config.encoder, config.init, config.freeze) == ("test_resnet", "timm", "backbone")
    assert config.epochs == 60 and config.batch_size == 8  # about 19 of 24 are trained on
    assert "24 pictures, fewer than 20,000; freeze=off trains" in said[0] and len(said) == 2
    assert "init=random" in said[0] and "encoder=NAME" in said[0] and "A batch has 8" in said[1]


def test_many_pictures_train_it_on(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for fewest, freeze in ((25, "backbone"), (24, "off")):
        monkeypatch.setattr(photographs, "FEW_PICTURES", fewest)
        config, said = chosen(source)
        assert config.freeze == freeze and config.init == "timm"
        assert (config.layer_decay < 1) == (freeze == "off")
    assert "layer_decay=0.75, because there are 24 pictures, at least 24" in said[0]
    assert "freeze=backbone" in said[0]


def test_what_the_user_chose_stands(source: str, tmp_path: Path) -> None:
    config, said = chosen(source, freeze="off", batch_size=4)
    assert (config.init, config.freeze) == ("timm", "off") and "because" not in said[0]
    assert len(said) == 1
    config, said = chosen(source, init="random")
    assert (config, len(said)) == (photos(images=19), 1)
    config, said = chosen(source, encoder="resnet18")
    assert not config.pretrained
    assert "no pretrained weights of resnet18 are on this machine; with init=timm they" in said[0]
    config, said = chosen(source, encoder="small-4")
    assert not config.pretrained and "small-4 begins with random weights; there are no" in said[0]
    config, said = chosen(source, init="timm")
    assert (config.encoder, config.freeze, len(said)) == ("test_resnet", "backbone", 1)
    config, said = chosen(source, init="weights.pth", encoder="resnet34")
    assert (config.encoder, config.freeze) == ("resnet34", "backbone")
    config, said = chosen(source, init=str(tmp_path), encoder="resnet34")  # as of a run
    assert (config.encoder, config.freeze) == ("resnet34", "off")


def test_without_weights_it_is_the_recipe_of_folders(tmp_path: Path, empty_cache: Path) -> None:
    config, said = chosen(f"folder:{write_photos(tmp_path / 'photos')}", batch_size=8)
    assert config == photos(images=19) and config.epochs == image_folder().epochs
    (line,) = said
    assert "no pretrained weights are on this machine; with init=timm encoder=vit_small" in line


def test_dinov2_gets_smaller_images_than_those_it_was_trained_on(source: str) -> None:
    config, _ = chosen(source, encoder="vit_small_patch14_dinov2", init="timm")
    assert config.size == 224
    assert chosen(source)[0].size is None  # the encoder's own


@pytest.mark.parametrize("source", ["digits", "folder:"])
def test_other_sources_have_their_own_recipes(source: str) -> None:
    with pytest.raises(UserError, match="photos is for picture files"):
        sureclr.recipe_for_pictures(source)


@pytest.mark.parametrize("images", [2, 3, 4, 19, 511, 512, 10**6])
def test_a_batch_is_a_power_of_two_and_at_most_half_of_the_images(images: int) -> None:
    size = photos(images=images).batch_size
    assert size & (size - 1) == 0 and 2 <= size <= max(images / 2, 2) and size <= 256
    assert size == 256 or size * 4 > images  # the largest such


def test_weights_of_the_cache_become_a_run_without_a_network(source: str, tmp_path: Path) -> None:
    """From the words of a command to features, which are those of the file that was put there."""
    from safetensors.torch import load_file

    from sureclr.cli import main

    out = tmp_path / "run"
    words = [*("--size", "32", "--epochs", "1", "--cached-views", "2", "--monitor-every", "0")]
    with pytest.raises(SystemExit) as ended:
        main(["pretrain", source, *words, "--device", "cpu", "--out", str(out), "--pool", "avg"])
    assert ended.value.code == 2 and not out.exists()
    main(["pretrain", source, *words, "--device", "cpu", "--out", str(out)])
    run = sureclr.load(out)
    assert (run.config.freeze, run.config.encoder) == ("backbone", "test_resnet")
    (file,) = (tmp_path / "huggingface").rglob("model.safetensors")
    state = load_file(file)
    own = run.encoder.backbone.state_dict()
    assert own and all(torch.equal(value, state[name]) for name, value in own.items())
