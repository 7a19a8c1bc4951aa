"""Encoders: published sizes, shapes at every image size, one training step, and what is refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from sureclr.errors import UserError
from sureclr.models.encoders import (
    Residual,
    SmallResNet,
    check_side,
    encoder,
    encoder_blocks,
    fitting_side,
    pooled,
)
from sureclr.models.simclr import StandardisedEncoder


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def weights(inputs: int, outputs: int, kernel: int) -> int:
    """Of a convolution without bias and its BN."""
    return inputs * outputs * kernel * kernel + 2 * outputs


def bottleneck_resnet(stages: tuple[int, ...], stem: int, channels: int) -> int:
    """Parameters of a bottleneck ResNet without classifier, from He et al. 2016, table 1."""
    total, inputs = weights(channels, 64, stem), 64
    for stage, count in enumerate(stages):
        width = 64 * 2**stage
        for block in range(count):
            total += (
                weights(inputs, width, 1) + weights(width, width, 3) + weights(width, 4 * width, 1)
            )
            total += weights(inputs, 4 * width, 1) if block == 0 else 0
            inputs = 4 * width
    return total


def basic_resnet(stages: tuple[int, ...], stem: int, channels: int) -> int:
    total, inputs = weights(channels, 64, stem), 64
    for stage, count in enumerate(stages):
        width = 64 * 2**stage
        for _ in range(count):
            total += (
                weights(inputs, width, 3)
                + weights(width, width, 3)
                + (weights(inputs, width, 1) if inputs != width else 0)
            )
            inputs = width
    return total


@pytest.mark.parametrize(
    ("name", "features", "counted"),
    [
        ("resnet50", 2048, bottleneck_resnet((3, 4, 6, 3), stem=3, channels=3)),
        ("resnet18", 512, basic_resnet((2, 2, 2, 2), 3, 3)),
    ],
)
def test_cifar_resnet_has_the_papers_size_and_trains(
    name: str, features: int, counted: int
) -> None:
    torch.manual_seed(0)
    network = encoder(name, stem="cifar").train()
    assert parameters(network) == counted
    assert name != "resnet50" or counted == 23_500_352
    # timm starts the last norm of each block at zero: the first step reaches the stem and the
    # shortcuts
    followed = ("conv1.weight", "layer2.0.downsample.0.weight", "layer4.0.downsample.0.weight")
    before = {key: network.get_parameter(key).clone() for key in followed}
    h = network(torch.rand(2, 3, 32, 32))
    assert h.shape == (2, features) == (2, network.num_features)
    h.square().mean().backward()
    torch.optim.SGD(network.parameters(), lr=0.1).step()
    assert all(p.grad is not None for p in network.parameters())
    assert not any(torch.equal(before[key], network.get_parameter(key)) for key in followed)


def test_the_cifar_stem_keeps_the_resolution_and_the_imagenet_stem_quarters_it() -> None:
    sides = {}
    for stem in ("cifar", "imagenet"):
        network = encoder("resnet18", stem=stem).eval()
        network.layer1.register_forward_hook(
            lambda _, inputs, __, stem=stem: sides.update({stem: inputs[0].shape[-1]})
        )
        network(torch.rand(2, 3, 32, 32))
    assert sides == {"cifar": 32, "imagenet": 8}


def test_grey_images_need_a_third_of_the_stem() -> None:
    grey, colour = (
        encoder("resnet18", "cifar", channels=1),
        encoder("resnet18", "cifar", channels=3),
    )
    assert parameters(colour) - parameters(grey) == 2 * 64 * 9
    assert grey.eval()(torch.rand(2, 1, 32, 32)).shape == (2, 512)


@pytest.mark.parametrize(("stem", "side", "last"), [("cifar", 8, 2), ("imagenet", 28, 4)])
def test_small_encoder_shapes(stem: str, side: int, last: int) -> None:
    network = encoder("small", stem, channels=1)
    maps = {}
    network.layer3.register_forward_hook(lambda _, __, output: maps.update(last=output.shape))
    h = network(torch.rand(5, 1, side, side))
    assert maps["last"] == (5, 256, last, last)  # strides: stem 1 or 2, layer2 2, layer3 2
    assert h.shape == (5, 256) == (5, network.num_features)


def test_the_small_encoder_can_be_narrower() -> None:
    """By hand: convolutions and norms of widths w, w, 2w, 8w, the last two stages with a shortcut
    of one pixel.
    """
    w = 24
    norms = 2 * (w + 2 * w + 3 * 2 * w + 3 * 8 * w)
    weights = 9 * w * (1 + 2 * w + 2 * w + 4 * w + 16 * w + 64 * w) + 2 * w * w + 16 * w * w
    assert parameters(encoder("small-24", channels=1)) == weights + norms
    assert parameters(encoder("small-32")) == parameters(encoder("small"))
    assert encoder("small-24").num_features == 192


def test_residual_adds_its_input() -> None:
    """With the last norm of every body at zero the block is its shortcut, and layer1's shortcut is
    the identity.
    """
    block = SmallResNet(channels=3).eval().layer1
    nn.init.zeros_(block.body[4].weight)
    x = torch.rand(2, 32, 6, 6)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("small", ["layer1", "layer2", "layer3"]),
        ("resnet18", ["layer1", "layer2", "layer3", "layer4"]),
        ("convnext_atto", [f"stages.{i}" for i in range(4)]),
        ("vit_tiny_patch16_224", [f"blocks.{i}" for i in range(12)]),
        ("regnetx_002", ["s1", "s2", "s3", "s4"]),
        (
            "vgg11",
            [f"features.{i}" for i in (1, 4, 9, 14, 19, 20)],
        ),  # names no stage: timm's feature maps
    ],
)
def test_blocks_have_names_in_order(name: str, names: list[str]) -> None:
    with torch.device("meta"):
        network = encoder(name)
    assert [name for name, _ in encoder_blocks(network)] == names
    assert all(network.get_submodule(name) is block for name, block in encoder_blocks(network))


def test_nothing_is_a_block_where_nobody_names_one() -> None:
    assert list(encoder_blocks(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))) == []


def test_pooling_averages_every_position_of_maps_and_of_patches_alone() -> None:
    """A block's output, whatever its layout, is n vectors a position: their plain mean, written out
    as a loop.
    """
    vectors = torch.rand(2, 6, 5)  # 2 images, 6 positions, 5 channels
    mean = torch.stack([sum(image) / 6 for image in vectors])
    network = nn.Identity()
    assert torch.allclose(pooled(network, vectors.mT.unflatten(2, (2, 3))), mean)  # (n, c, h, w)
    assert torch.allclose(
        pooled(network, (vectors, torch.rand(1))), mean
    )  # (n, t, c), the first of several outputs
    network.output_fmt = "NHWC"
    assert torch.allclose(pooled(network, vectors.unflatten(1, (2, 3))), mean)
    network.num_prefix_tokens = 2
    assert torch.allclose(pooled(network, torch.cat([torch.rand(2, 2, 5), vectors], 1)), mean)
    assert torch.equal(pooled(network, mean), mean)


@pytest.mark.parametrize(("name", "last"), [("resnet18", "layer4"), ("small", "layer3")])
def test_the_last_block_of_a_resnet_pooled_is_its_features(name: str, last: str) -> None:
    network, seen = encoder(name, channels=1).eval(), {}
    for block, module in encoder_blocks(network):
        module.register_forward_hook(
            lambda _, __, output, block=block: seen.update({block: output})
        )
    h = network(torch.rand(2, 1, 32, 32))
    assert list(seen)[-1] == last and torch.allclose(pooled(network, seen[last]), h, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "widths"),
    [("swin_tiny_patch4_window7_224", [96, 192, 384, 768]), ("vit_tiny_patch16_224", [192] * 12)],
)
def test_swin_and_vit_pool_to_their_channels(name: str, widths: list[int]) -> None:
    """Their layouts are not the convolutions': the number of channels says whether the right axes
    were averaged.
    """
    network, found = encoder(name, channels=1).eval(), []
    for _, module in encoder_blocks(network):
        module.register_forward_hook(
            lambda _, __, output, f=found, n=network: f.append(pooled(n, output).shape)
        )
    network(torch.rand(2, 1, 64, 64))
    assert found == [(2, width) for width in widths]


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "convnext_atto", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("side", [32, 48])
def test_timm_families_say_their_true_width_at_any_size(name: str, side: int) -> None:
    """MobileNet has a layer behind the pooling; by default a ViT takes 224 pixels only."""
    network = encoder(name, channels=1).eval()
    assert network(torch.rand(2, 1, side, side)).shape == (2, network.num_features)


TINY = ("test_vit", "test_vit2", "test_vit3", "test_vit4")  # of timm, with 0.4 to 0.9 M weights


@pytest.mark.parametrize(
    ("name", "pool"),
    [("test_vit", "token"), ("test_vit", "avg"), *((name, "avg") for name in TINY[1:])],
)
def test_a_vision_transformer_pools_as_it_is_told(name: str, pool: str) -> None:
    """By hand, from the output of the last block: the model's own last norm of every token, then
    the class token, or the mean over the patches. test_vit2 and test_vit4 were made with the norm
    behind the mean, and keep it there; test_vit3 was made with attention in place of the mean.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = encoder(name, channels=1, pool=pool).eval()
        images = torch.rand(2, 1, 48, 48)
    for norm in (network.norm, network.fc_norm):  # as if it had been trained
        for parameter in norm.parameters():
            nn.init.uniform_(parameter, 0.5, 2, torch.Generator().manual_seed(1))
    tokens: list[torch.Tensor] = []
    network.blocks[-1].register_forward_hook(lambda _, __, output: tokens.append(output))
    features = network(images)
    (tokens_of_last,) = tokens
    assert tokens_of_last.shape[1] == network.num_prefix_tokens + 9
    assert isinstance(network.norm, nn.Identity) != isinstance(network.fc_norm, nn.Identity)
    prefix = network.num_prefix_tokens
    if pool == "token":
        expected = network.norm(tokens_of_last[:, 0])
    else:
        patches = [network.norm(tokens_of_last[:, prefix + i]) for i in range(9)]
        expected = network.fc_norm(sum(patches) / 9)
    torch.testing.assert_close(features, expected)
    assert StandardisedEncoder(network).pool == pool and features.shape == (2, network.num_features)


@pytest.mark.parametrize("name", TINY)
def test_the_choice_of_pooling_keeps_every_weight_of_the_norms(name: str) -> None:
    """So that pretrained weights are loaded into the network that was trained."""
    as_made, averaging = encoder(name), encoder(name, pool="avg")
    kept = {key for key in as_made.state_dict() if not key.startswith("attn_pool")}
    assert averaging.state_dict().keys() == kept and any("norm.weight" in key for key in kept)


def test_how_other_networks_pool_is_no_choice() -> None:
    assert [
        StandardisedEncoder(encoder(name)).pool for name in ("resnet18", "small", "test_vit")
    ] == [*("auto", "auto", "token")]


def test_register_tokens_are_no_patches() -> None:
    """dinov2 with registers: of 1 + 4 + 4 tokens of an image of 28 pixels, 4 are patches."""
    network, outputs = encoder("vit_small_patch14_reg4_dinov2", channels=1).eval(), []
    *_, (_, block) = encoder_blocks(network)
    block.register_forward_hook(lambda _, __, output: outputs.append(output))
    with torch.no_grad():
        network(torch.rand(1, 1, 28, 28))
    assert outputs[0].shape == (1, 9, 384)
    torch.testing.assert_close(pooled(network, outputs[0]), sum(outputs[0][:, 5:].unbind(1)) / 4)


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("vit_tiny_patch16_224", 40, "patches of 16 pixels.*set size=32 or size=48"),
        ("vit_small_patch14_reg4_dinov2", 96, "patches of 14 pixels.*size=84 or size=98"),
        ("vit_tiny_patch16_224", 8, "8 pixels are less than one; set size=16"),
        ("swin_tiny_patch4_window7_224", 30, "patches of 4 pixels.*size=28 or size=32"),
        ("beit_base_patch16_224", 96, "takes images of 224 pixels only.*set size=224"),
    ],
)
def test_sizes_that_are_no_patches_are_refused(name: str, size: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_side(name, size)


def test_every_side_that_is_said_to_fit_is_taken() -> None:
    """The witness is the network itself, of one patch and of windows that do not divide."""
    for name, size, side in (("test_vit", 100, 96), ("swin_tiny_patch4_window7_224", 46, 44)):
        assert fitting_side(name, size) == side
        check_side(name, side)
        with torch.device("meta"):
            assert len(encoder(name)(torch.zeros(2, 3, side, side))) == 2
    assert fitting_side("test_vit", 10) == 16 and fitting_side("beit_base_patch16_224", 96) == 224
    for name in ("small", "resnet18", "custom:Mine", "no_such_encoder"):
        assert fitting_side(name, 97) == 97
        check_side(name, 97)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "vit_tiny_patch16_224"])
def test_no_encoder_has_a_classifier(name: str) -> None:
    assert encoder(name).get_classifier().__class__ is nn.Identity


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"name": "convnext_atto", "stem": "cifar"},
            ["stem cifar", "ResNet family", "convnext_atto"],
        ),
        ({"name": "resnet18", "stem": "cifra"}, ["unknown stem 'cifra'", "did you mean cifar"]),
        ({"name": "resnet81"}, ["unknown encoder 'resnet81'", "did you mean resnet18"]),
        ({"name": "xy"}, ["unknown encoder 'xy'", "small", "resnet50"]),
        ({"name": "small", "pretrained": True}, ["init timm", "small"]),
        ({"name": "small-0"}, ["unknown encoder 'small-0'", "small"]),
        ({"name": "test_vit", "pool": "mean"}, ["unknown pool 'mean'", "token", "avg"]),
        ({"name": "resnet18", "pool": "token"}, ["pool=token", "resnet18 has no such choice"]),
        ({"name": "small", "pool": "avg"}, ["pool=avg", "small has no such choice"]),
        ({"name": "test_vit2", "pool": "token"}, ["test_vit2 has no class token", "use pool=avg"]),
        (
            {"name": "deit_tiny_distilled_patch16_224", "pool": "avg"},
            ["deit_tiny_distilled_patch16_224 has no such choice"],
        ),
    ],
)
def test_refused_in_one_short_sentence(options: dict, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        encoder(**options)
    text = str(caught.value)
    assert all(word in text for word in words)
    assert "\n" not in text and len(text) < 400


def test_pretrained_weights_that_cannot_be_had_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    def offline(*_: object, **__: object) -> None:
        raise FileNotFoundError("the hub's client, offline")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UserError, match="resnet18 are not in the local hub cache"):
        encoder("resnet18", pretrained=True)


def test_a_registered_encoder_is_built_by_name() -> None:
    from sureclr.models.encoders import ENCODERS, register_encoder

    @register_encoder("test-mine")
    def mine(channels: int, stem: str) -> nn.Module:
        network = nn.Sequential(nn.Flatten(), nn.LazyLinear(5 if stem == "cifar" else 6))
        network.channels, network.num_features = channels, 5 if stem == "cifar" else 6
        return network

    assert ENCODERS["test-mine"] is mine  # the decorator returns the function
    network = encoder("test-mine", "cifar", channels=1)
    assert network.channels == 1 and network(torch.rand(2, 1, 4, 4)).shape == (2, 5)
    with pytest.raises(UserError, match="init timm needs a timm encoder, and test-mine is none"):
        encoder("test-mine", pretrained=True)
    with pytest.raises(UserError, match="there is already an encoder named 'test-mine'"):
        register_encoder("test-mine")(lambda channels, stem: nn.Flatten())
    with pytest.raises(UserError, match="did you mean test-mine"):
        encoder("test-min")


def test_a_registered_encoder_without_a_width_is_refused() -> None:
    from sureclr.models.encoders import register_encoder

    register_encoder("test-no-width")(lambda channels, stem: nn.Flatten())
    with pytest.raises(UserError, match="test-no-width has no attribute num_features"):
        encoder("test-no-width")


def test_a_recorded_module_cannot_be_built_by_name() -> None:
    with pytest.raises(UserError, match="custom:Tiny is a module of your own.*pass the module"):
        encoder("custom:Tiny")


PACKAGE = """
from torch import nn

class Flat(nn.Flatten):
    num_features = 64

def build(channels, stem):
    return Flat()
"""
RUN = """
import sys, torch, sureclr
from sureclr.models.encoders import ENCODERS
assert "mine_package" not in sys.modules, "imported too early"
images = torch.randint(0, 256, (8, 1, 8, 8), dtype=torch.uint8)
config = sureclr.PretrainConfig("own", encoder="mine", epochs=1, batch_size=4, monitor_every=0)
run = sureclr.pretrain(config, images, out=sys.argv[1])
print(sureclr.load(sys.argv[1]).embed(images).features.shape[1], list(ENCODERS))
"""


def test_an_installed_package_can_bring_an_encoder(tmp_path: Path) -> None:
    """A package with an entry point, in a process of its own, from PretrainConfig to the table."""
    (tmp_path / "mine_package.py").write_text(PACKAGE)
    (tmp_path / "mine-1.0.dist-info").mkdir()
    (tmp_path / "mine-1.0.dist-info" / "METADATA").write_text("Name: mine\nVersion: 1.0\n")
    points = "[sureclr.encoders]\nmine = mine_package:build\n"
    (tmp_path / "mine-1.0.dist-info" / "entry_points.txt").write_text(points)
    paths = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path / "run")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "64 ['small', 'mine']"


@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(3, 5, 1), (4, 4, 2), (3, 5, 2)])
def test_the_shortcut_of_a_residual_block_fits_its_body(
    inputs: int, outputs: int, stride: int
) -> None:
    block = Residual(inputs, outputs, stride)
    assert block(torch.rand(2, inputs, 8, 8)).shape == (2, outputs, 8 // stride, 8 // stride)


@pytest.mark.parametrize("name", ["small", "small-8", "resnet18", "custom:mine"])
def test_names_with_a_meaning_are_refused(name: str) -> None:
    from sureclr.models.encoders import register_encoder

    with pytest.raises(UserError, match="cannot be named"):
        register_encoder(name)


NARROW = """
import torch
from sureclr.models.encoders import Residual

torch.manual_seed(0)
for size, images in ((48, 64), (64, 32), (112, 8)):
    block = Residual(8, 16, stride=2).to(memory_format=torch.channels_last)
    x = torch.randn(images, 8, size, size).contiguous(memory_format=torch.channels_last)
    block(x.requires_grad_()).square().mean().backward()
"""


def test_the_gradient_of_a_narrow_block_stays_inside_of_its_memory() -> None:
    # oneDNN's gradient of a 1x1 convolution of stride 2 with fewer than 16 channels does not
    # (torch 2.13 on a CPU with AVX-512): the process died
    done = subprocess.run([sys.executable, "-c", NARROW], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("side", [8, 9])
def test_the_shortcut_is_a_strided_convolution(side: int) -> None:
    torch.manual_seed(0)
    block = Residual(3, 6, stride=2).eval()
    x = torch.randn(2, 3, side, side)
    shortcut = block.get_submodule("shortcut.0").weight
    strided = block.get_submodule("shortcut.1")(torch.conv2d(x, shortcut, stride=2))
    torch.testing.assert_close(block(x), (block.body(x) + strided).relu())
