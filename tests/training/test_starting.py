"""What a run starts from: a file of weights, or the encoder of another run.

The witness is the first state of the encoder as the run itself stores it, and the run or the file
from which it came.
"""

import json
import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sureclr.cli.flags import resolve
from sureclr.config import PretrainConfig
from sureclr.errors import UserError
from sureclr.models.encoders import encoder
from sureclr.training.images import as_begun
from sureclr.training.pretraining import check_pretraining, pretrain
from sureclr.training.run import load
from tests.tiny import CONFIG, IMAGES, Interrupting, Messages, equal, train, weights

COLOUR = torch.randint(
    0, 256, (48, 3, 10, 10), dtype=torch.uint8, generator=torch.Generator().manual_seed(3)
)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one epoch."""
    return train(tmp_path_factory.mktemp("first") / "run", epochs=1).path


def copy_of(run: Path, place: Path) -> Path:
    return Path(shutil.copytree(run, place / "copy"))


def initial(run: Path) -> dict[str, Tensor]:
    found = load_file(run / "initial.safetensors")
    return {name.removeprefix("encoder."): value for name, value in found.items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def test_a_run_starts_from_the_encoder_of_another_run(first: Path, tmp_path: Path) -> None:
    """Also its size, channels and normalisation; the images are others."""
    run = train(tmp_path / "run", COLOUR, init=str(first), stem="auto", epochs=1)
    before = load(first)
    assert same(initial(run.path), load_file(first / "encoder.safetensors"))
    assert (run.size, run.channels, run.config.stem) == (8, 1, "imagenet")
    assert torch.equal(run.model.encoder.mean, before.model.encoder.mean)
    assert torch.equal(run.model.encoder.std, before.model.encoder.std)
    images = IMAGES[:4] / 255
    assert torch.equal(run.untrained().encoder(images), before.encoder(images))
    assert not torch.equal(run.encoder(images), before.encoder(images))
    written = json.loads((run.path / "environment.json").read_text())["init"]
    digest = sha256((first / "encoder.safetensors").read_bytes()).hexdigest()
    assert written == {"path": str(first), "sha256": digest}


def test_an_unfinished_run_gives_the_encoder_of_its_newest_checkpoint(
    first: Path, tmp_path: Path
) -> None:
    unfinished = copy_of(first, tmp_path)
    (unfinished / "encoder.safetensors").unlink()
    run = train(tmp_path / "run", init=str(unfinished), epochs=1)
    assert same(initial(run.path), load_file(first / "encoder.safetensors"))


def test_the_original_is_needed_only_at_the_start(first: Path, tmp_path: Path) -> None:
    """Resuming, loading and the baseline work without it, and change nothing."""
    origin = copy_of(first, tmp_path)
    whole = train(tmp_path / "whole", init=str(origin), epochs=2).path

    class Break(Exception):
        pass

    def stop() -> None:
        raise Break

    with pytest.raises(Break):
        train(tmp_path / "broken", init=str(origin), epochs=2, progress=Interrupting(4, stop))
    shutil.rmtree(origin)
    run = train(tmp_path / "broken", init=str(origin), resume=True, epochs=2)
    assert equal(whole, run.path)
    assert load(run.path).untrained().path == run.path


def test_a_run_that_was_stopped_before_its_first_checkpoint_needs_no_original(
    first: Path, tmp_path: Path
) -> None:
    origin = copy_of(first, tmp_path)
    run = train(tmp_path / "run", init=str(origin), epochs=1).path
    before = weights(run)
    for folder in (origin, run / "checkpoints"):
        shutil.rmtree(folder)
    for name in ("encoder.safetensors", "metrics.jsonl"):
        (run / name).unlink()
    train(run, init=str(origin), resume=True, epochs=1)
    assert same(weights(run), before)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"encoder": "small-11"}, "encoder is small-11, and the run .* has encoder small-10"),
        ({"stem": "cifar"}, "stem is cifar, and the run .* has stem imagenet"),
        ({"channels": 3}, "channels is 3, and the run .* has channels 1"),
    ],
)
def test_another_network_than_that_of_the_run_is_refused(
    changes: dict[str, Any], words: str, first: Path
) -> None:
    config = replace(CONFIG, init=str(first), **changes)
    with pytest.raises(UserError, match=words):
        as_begun(config, Messages())


@pytest.mark.parametrize("place", ["", "encoder.safetensors"])
def test_a_run_is_not_replaced_by_one_that_starts_from_it(
    place: str, first: Path, tmp_path: Path
) -> None:
    run = copy_of(first, tmp_path / "run")
    before = sorted(path.name for path in run.rglob("*"))
    config = replace(CONFIG, init=str(run / place))
    for images in (IMAGES, None):
        with pytest.raises(UserError, match="which the new run would replace; give another out="):
            if images is None:
                check_pretraining(config, out=run, overwrite=True, device="cpu")
            else:
                pretrain(config, images, out=run, overwrite=True, device="cpu")
    assert sorted(path.name for path in run.rglob("*")) == before


@pytest.mark.parametrize("name", ["encoder.safetensors", "checkpoints"])
def test_a_damaged_run_is_refused(name: str, first: Path, tmp_path: Path) -> None:
    run = copy_of(first, tmp_path)
    file = run / name
    if name == "checkpoints":
        (run / "encoder.safetensors").unlink()
        (file,) = file.glob("*/model.safetensors")
    data = bytearray(file.read_bytes())
    data[-5] ^= 1  # of a weight: the file still loads
    file.write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        as_begun(replace(CONFIG, init=str(run)), Messages())


def test_an_encoder_of_the_users_own_has_no_code_to_start_from(tmp_path: Path) -> None:
    own = nn.Sequential(nn.Conv2d(1, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    options: dict[str, Any] = {"device": "cpu", "progress": Messages()}
    config = replace(CONFIG, epochs=1)
    run = pretrain(config, IMAGES, encoder=own, out=tmp_path / "own", **options)
    with pytest.raises(UserError, match=r"encoder=sureclr\.load\(.*\)\.encoder\.backbone"):
        as_begun(replace(CONFIG, init=str(run.path)), Messages())
    as_advised = load(run.path, encoder=own).encoder.backbone
    again = pretrain(config, IMAGES, encoder=as_advised, out=tmp_path / "again", **options)
    assert same(initial(again.path), load_file(run.path / "encoder.safetensors"))


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_a_path_to_nothing_names_what_there_could_be(kind: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    words = {"missing": "`random`, `timm` .* run folder or a file", "folder": "without a run"}
    with pytest.raises(UserError, match=words[kind]):
        as_begun(replace(CONFIG, init=str(tmp_path / kind)), Messages())


def test_bad_weights_are_refused_before_images_are_read(tmp_path: Path) -> None:
    torch.save(encoder("small-5").state_dict(), tmp_path / "other.pth")
    config = PretrainConfig(
        f"folder:{tmp_path / 'absent'}", encoder="small-4", init=str(tmp_path / "other.pth")
    )
    with pytest.raises(UserError, match="do not fit the encoder"):
        check_pretraining(config)


def test_a_file_is_recorded_with_its_place_and_its_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = encoder("small-10").state_dict()
    torch.save({f"{i}.{n.split('.')[-1]}": t for i, (n, t) in enumerate(state.items())}, "w.pth")
    said = Messages()
    monkeypatch.setenv("HOME", str(tmp_path))
    run = train(
        tmp_path / "run",
        COLOUR,
        init="~/w.pth",
        init_by_order=True,
        channels=3,
        progress=said,
        epochs=1,
    )
    path = tmp_path / "w.pth"
    assert run.config.init == str(path)
    assert any("are taken by their order" in text for text in said.messages)
    written = json.loads((run.path / "environment.json").read_text())["init"]
    assert written == {"path": str(path), "sha256": sha256(path.read_bytes()).hexdigest()}
    assert same(initial(run.path), state)


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_file_of_a_timm_encoder_brings_timms_form_of_images(tmp_path: Path) -> None:
    """Size, normalisation, crop and filter, but for what the user chose."""
    torch.save(encoder("tf_efficientnet_lite0").state_dict(), tmp_path / "w.pth")
    named = PretrainConfig("mine", encoder="tf_efficientnet_lite0", init=str(tmp_path / "w.pth"))
    config = as_begun(named, Messages())
    assert (config.size, config.channels) == (224, 3)
    assert (config.pixel_mean, config.pixel_std) == ((0.5,) * 3, (0.5,) * 3)
    assert (config.centre_share, config.interpolation) == (0.875, "bicubic")
    chosen = replace(named, size=64, interpolation="bilinear", channels=1)
    config = as_begun(chosen, said := Messages())
    assert (config.size, config.channels, config.interpolation) == (64, 1, "bilinear")
    assert config.pixel_mean == (0.5,)
    assert "summed over its three" in said.messages[0]


def test_the_command_takes_the_encoder_of_the_run_where_the_user_names_none(first: Path) -> None:
    def resolved(**given: Any) -> tuple[str, str]:
        config = resolve("digits", None, None, {"init": str(first), **given}, {})
        return config.encoder, config.stem

    assert resolved() == ("small-10", "imagenet")  # and not those of the recipe digits
    assert resolved(encoder="small-12")[0] == "small-12"  # which is refused before the images
