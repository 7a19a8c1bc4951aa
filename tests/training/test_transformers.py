"""A vision transformer from its first step to its evaluations, and what it refuses before."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tiny import CONFIG, Interrupting, equal, lines, train, write_photos

import sureclr
from sureclr.data.user_images import as_image_set
from sureclr.errors import UserError
from sureclr.models.encoders import encoder, encoder_blocks, pooled
from sureclr.progress import SILENT
from sureclr.stopping import Stopped

# 24 images of noise, of which the second half is darker
PIXELS = torch.randint(
    0, 256, (24, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
PIXELS[12:] //= 2
LABELS = torch.arange(24) // 12
VIT: dict[str, Any] = {
    "encoder": "vit_tiny_patch16_224",
    "epochs": 1,
    "batch_size": 8,
    "warmup_epochs": 0,
}
SHORT: dict[str, Any] = {
    "monitor_every": 0,
    "snapshot_every": 0,
    "checkpoint_every": 0,
    "layer_decay": 0.75,
}


@pytest.fixture(scope="module")
def vit_tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of three steps that pools the patches."""
    out = tmp_path_factory.mktemp("vit") / "run"
    train(out, PIXELS, **{**VIT, **SHORT, "pool": "avg", "optimizer": "sgd"})
    return out


SMALLEST = {**VIT, **SHORT, "encoder": "test_vit", "pool": "avg", "snapshot_every": 1}


@pytest.fixture(scope="module")
def smallest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of timm's smallest one, in whose optimizer each block has moments."""
    out = tmp_path_factory.mktemp("smallest") / "run"
    train(out, PIXELS, **SMALLEST)
    return out


def test_a_resumed_vit_ends_bit_for_bit_as_one_without_a_break(
    smallest: Path, tmp_path: Path
) -> None:
    with pytest.raises(Stopped):
        train(tmp_path / "broken", PIXELS, progress=Interrupting(2, terminate), **SMALLEST)
    train(tmp_path / "broken", PIXELS, resume=True, **SMALLEST)
    assert equal(smallest, tmp_path / "broken") and len(lines(smallest)) == 3


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_the_features_are_the_mean_of_the_normalised_patches(vit_tiny: Path) -> None:
    """Of a loaded run, from what its last block puts out: 1 class token and 4 patches."""
    run, seen = sureclr.load(vit_tiny), {}
    backbone = run.encoder.backbone
    for name, block in encoder_blocks(backbone):
        block.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
    table = run.embed(PIXELS)
    assert list(seen) == [f"blocks.{i}" for i in range(12)]
    tokens = seen["blocks.11"]
    assert tokens.shape == (24, 5, 192)
    patches = backbone.norm(tokens)[:, 1:]
    torch.testing.assert_close(table.features, sum(patches.unbind(1)) / 4, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pooled(backbone, tokens), sum(tokens[:, 1:].unbind(1)) / 4)


def test_the_file_of_the_encoder_says_how_it_pools(vit_tiny: Path) -> None:
    """So that the features can be had again from that file alone."""
    import json

    path = vit_tiny / "encoder.safetensors"
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["sureclr"])
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert about["pool"] == "avg"
    network = encoder(about["encoder"], about["stem"], about["channels"], pool=about["pool"])
    network.load_state_dict(state)
    mean, std = (torch.tensor(about[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        features = network.eval()((PIXELS / 255 - mean) / std)
    expected = sureclr.load(vit_tiny).embed(PIXELS).features
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)


def test_a_vit_is_evaluated_block_by_block(smallest: Path, tmp_path: Path) -> None:
    images = as_image_set(PIXELS, labels=LABELS.tolist())
    results = sureclr.evaluate(smallest, "linear", images, out=tmp_path, progress=SILENT)
    names = [probe.name for probe in results["linear"].blocks]
    depth = len(sureclr.load(smallest).encoder.backbone.blocks)
    assert depth > 2 and names == [f"blocks.{i}" for i in range(depth)]


def test_the_pooling_is_fixed_within_a_run(vit_tiny: Path) -> None:
    options = {**VIT, **SHORT, "optimizer": "sgd", "resume": True, "accept_changes": True}
    for change, words in (
        ({"pool": "token"}, "pool was avg and is now token"),
        ({"pool": "avg", "layer_decay": 1.0}, "layer_decay was 0.75 and is now 1.0"),
    ):
        with pytest.raises(UserError, match=words):
            train(vit_tiny, PIXELS, **{**options, **change})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size": 40}, "40 is no multiple of 16; set size=32 or size=48"),
        ({"size": 8}, "8 pixels are less than one; set size=16"),
        ({"encoder": "resnet18", "pool": "token"}, "resnet18 has no such choice"),
        ({"encoder": "small", "pool": "avg"}, "small has no such choice"),
        ({"encoder": "resnet18.none"}, "unknown weights of resnet18 'none'"),
    ],
)
def test_what_no_image_can_mend_is_refused_before_images_are_read(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    """There are no images at this place, which would be the error otherwise."""
    config = replace(CONFIG, **{**VIT, "source": f"folder:{tmp_path / 'none'}", **changes})
    with pytest.raises(UserError, match=words):
        sureclr.pretrain(config, out=tmp_path / "run", progress=SILENT)
    assert not (tmp_path / "run").exists()


def test_a_pooling_cannot_be_chosen_for_a_network_of_ones_own(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 4))
    config = replace(CONFIG, pool="token")
    with pytest.raises(UserError, match="custom:Sequential has no such choice"):
        sureclr.pretrain(config, PIXELS, encoder=network, out=tmp_path / "run", progress=SILENT)


def test_a_size_that_the_images_decide_is_checked_as_well(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="16 pixels, and 8 pixels are less than one"):
        train(tmp_path / "run", **VIT)


def test_pictures_get_whole_patches_where_the_size_is_open(tmp_path: Path) -> None:
    from sureclr.training.images import as_begun

    config = replace(CONFIG, source=f"folder:{write_photos(tmp_path / 'photos')}")
    for name, size in (("vit_small_patch14_dinov2", 84), ("test_vit", None), ("small", None)):
        assert as_begun(replace(config, encoder=name), SILENT).size == size
