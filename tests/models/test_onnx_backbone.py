"""A frozen encoder in an ONNX file: torch computes the same, and nothing hostile is run."""

import os
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import timm
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from sureclr.errors import UserError
from sureclr.models.onnx_backbone import OnnxBackbone, read_onnx

IMAGES = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("onnx")


def exported(network: nn.Module, path: Path, example: Tensor = IMAGES[:2], fixed: bool = False):
    """Of the old exporter, which takes a tenth of a second."""
    network.eval()
    free = None if fixed else {"x": {0: "n", 2: "h", 3: "w"}}
    torch.onnx.export(network, (example,), path, dynamo=False, input_names=["x"], dynamic_axes=free)
    return path


def opened(path: Path, **options: Any) -> OnnxBackbone:
    return OnnxBackbone(read_onnx(path), path.name, **options)


class Dense(nn.Module):
    """A convolution whose output takes one of the forms that encoders have."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.patches, self.form = nn.Conv2d(3, 6, 8, 8), form

    def forward(self, x: Tensor) -> Any:
        maps = self.patches(x)
        tokens = maps.flatten(2).transpose(1, 2)
        first = tokens.square().sum(1, keepdim=True)
        classed = torch.cat([first, tokens], 1)
        return {
            "maps": maps,
            "patches": tokens,
            "classed": classed,
            "both": (classed, maps.mean((2, 3))),
            "ambiguous": (classed, maps),
            "scalar": maps.mean((1, 2, 3)),
        }[self.form]


def the_sum(channels: str = "c", shape: Any = None, kind: int = TensorProto.FLOAT, op: Any = None):
    """A graph (n, c, h, w) -> (n, c) as a message: the sum over positions plus a stored bias."""
    shape = ["n", 3, "h", "w"] if shape is None else shape
    bias = numpy_helper.from_array(np.arange(3, dtype=np.float32), "bias")
    axes = numpy_helper.from_array(np.array([2, 3]), "axes")
    nodes = op or [
        helper.make_node("ReduceSum", ["x", "axes"], ["s"], keepdims=0),
        helper.make_node("Add", ["s", "bias"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, None)],
        [bias, axes],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=9)


def external(location: str, values: bytes, offset: int = 0, length: int | None = None) -> Any:
    """The same graph with its bias in another file."""
    model = the_sum()
    bias = model.graph.initializer[0]
    bias.ClearField("raw_data")
    bias.data_location = TensorProto.EXTERNAL
    entries = {"location": location, "offset": offset, "length": length or len(values)}
    for key, value in entries.items():
        bias.external_data.add(key=key, value=str(value))
    return model


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_timm_network_has_the_features_that_torch_computes(name: str, folder: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        at_size = {"img_size": 32, "patch_size": 8} if name == "test_vit" else {}
        network = timm.create_model(name, num_classes=0, **at_size).eval()
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):  # statistics as of a trained network
            norm.running_mean.uniform_(-0.1, 0.1)
            norm.running_var.uniform_(0.5, 2)
    path = exported(network, folder / f"{name}.onnx", fixed=name == "test_vit")
    ours = opened(path)
    with torch.no_grad():
        expected = network(IMAGES)
    assert expected.std() > 0.01
    torch.testing.assert_close(ours(IMAGES), expected, atol=1e-4, rtol=1e-4)
    assert ours.num_features == expected.shape[1]
    assert (ours.batch, ours.channels, ours.size) == (
        (2, 3, 32) if name == "test_vit" else (None, 3, None)
    )


@pytest.mark.parametrize(
    ("form", "pool", "expected"),
    [
        ("maps", "auto", lambda maps, tokens: maps.mean((2, 3))),
        ("patches", "auto", lambda maps, tokens: tokens.mean(1)),
        ("patches", "avg", lambda maps, tokens: tokens.mean(1)),
        ("classed", "auto", lambda maps, tokens: tokens.square().sum(1)),
        ("classed", "token", lambda maps, tokens: tokens.square().sum(1)),
        ("classed", "avg", lambda maps, tokens: tokens.mean(1)),
        ("both", "auto", lambda maps, tokens: maps.mean((2, 3))),
    ],
)
def test_maps_and_tokens_become_one_vector(
    form: str, pool: Any, expected: Any, folder: Path
) -> None:
    network = Dense(form)
    path = exported(network, folder / f"{form}-{pool}.onnx")
    with torch.no_grad():
        maps = network.patches(IMAGES)
    wanted = expected(maps, maps.flatten(2).transpose(1, 2))
    torch.testing.assert_close(opened(path, pool=pool)(IMAGES), wanted, atol=1e-5, rtol=1e-5)


def test_a_fixed_batch_and_float16_give_the_same_features(folder: Path) -> None:
    network = Dense("maps")
    free = opened(exported(network, folder / "free.onnx"))(IMAGES)
    for size in (1, 2, 7):  # 5 images: five times one, three times two with one more, one with two
        path = exported(network, folder / "fixed.onnx", IMAGES[:1].repeat(size, 1, 1, 1), True)
        fixed = opened(path)
        assert fixed.batch == size
        torch.testing.assert_close(fixed(IMAGES), free)
    half = deepcopy(network).half()
    path = exported(half, folder / "half.onnx", IMAGES[:2].half())
    features = opened(path)(IMAGES)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, free, atol=2e-3, rtol=2e-3)


def test_weights_beside_the_file_are_joined_with_it(folder: Path) -> None:
    values = np.array([5, 6, 7], np.float32).tobytes()
    (folder / "w.data").write_bytes(b"12345678" + values)
    path = folder / "w.onnx"
    onnx.save(external("w.data", values, offset=8), path)
    expected = IMAGES.sum((2, 3)) + torch.tensor([5.0, 6.0, 7.0])
    torch.testing.assert_close(opened(path)(IMAGES), expected, atol=1e-4, rtol=1e-4)
    # the cache of the Hugging Face hub: links beside each other to files beside each other
    for name in ("blobs", "snapshot"):
        (folder / name).mkdir()
    path.rename(folder / "blobs" / "1")
    (folder / "w.data").rename(folder / "blobs" / "2")
    (folder / "snapshot" / "w.onnx").symlink_to("../blobs/1")
    (folder / "snapshot" / "w.data").symlink_to("../blobs/2")
    linked = opened(folder / "snapshot" / "w.onnx")
    torch.testing.assert_close(linked(IMAGES), expected, atol=1e-4, rtol=1e-4)
    (folder / "blobs" / "2").unlink()  # joined: the second file is not needed any more
    torch.testing.assert_close(linked(IMAGES), expected, atol=1e-4, rtol=1e-4)


def test_copies_share_the_network_and_its_state_is_a_digest(folder: Path) -> None:
    first = opened(exported(Dense("maps"), folder / "first.onnx"))
    copy = deepcopy(first).to("cpu")
    assert torch.equal(copy(IMAGES), first(IMAGES)) and not list(copy.parameters())
    assert list(first.state_dict()) == ["digest"]
    copy.load_state_dict(first.state_dict())
    other = opened(exported(Dense("patches"), folder / "other.onnx"))
    with pytest.raises(UserError, match="other.onnx is another one than that"):
        other.load_state_dict(first.state_dict())


def test_no_gradient_passes_but_heads_behind_it_learn(folder: Path) -> None:
    network = opened(exported(Dense("maps"), folder / "gradient.onnx"))
    head = nn.Linear(network.num_features, 1)
    head(network(IMAGES)).sum().backward()
    torch.testing.assert_close(head.weight.grad, network(IMAGES).sum(0, keepdim=True))
    with pytest.raises(UserError, match="gradients do not pass through the ONNX network"):
        network(IMAGES.clone().requires_grad_()).sum().backward()


def test_redrawn_weights_are_the_same_ones_in_another_order(folder: Path) -> None:
    network = opened(exported(Dense("maps"), folder / "redrawn.onnx"))
    a, again, b = network.redrawn(1), network.redrawn(1), network.redrawn(2)
    assert torch.equal(a(IMAGES), again(IMAGES)) and not torch.allclose(a(IMAGES), b(IMAGES))
    assert not torch.allclose(a(IMAGES), network(IMAGES))

    def weights(one: OnnxBackbone) -> np.ndarray:
        (tensor,) = (
            t for t in onnx.load_from_string(one.data).graph.initializer if len(t.dims) == 4
        )
        return np.sort(numpy_helper.to_array(tensor).ravel())

    assert np.array_equal(weights(a), weights(network))


SAME = [helper.make_node("Identity", ["x"], ["y"])]
HOSTILE: dict[str, tuple[Any, str]] = {
    "text": (b"not a network", "is not an ONNX file"),
    "empty": (b"", "no network is in it"),
    "truncated": (the_sum().SerializeToString()[:-40], "is not an ONNX file"),
    "a custom operator": (
        the_sum(op=[helper.make_node("Evil", ["x"], ["y"], domain="mine")]),
        "mine:Evil",
    ),
    "an unknown operator": (the_sum(op=[helper.make_node("Evil", ["x"], ["y"])]), "Evil"),
    "whole numbers": (the_sum(kind=TensorProto.UINT8, op=SAME), "must have one input of float"),
    "rows": (the_sum(shape=["n", 3], op=SAME), "must have one input of float images"),
    "channels last": (the_sum(shape=["n", 32, 32, 3], op=SAME), "with the channels last"),
    "channels last, any side": (the_sum(shape=["n", "h", "w", 3], op=SAME), "channels last"),
    "no square": (the_sum(shape=["n", 3, 32, 64]), "32 x 64 pixels"),
    "weights above": (external("../victim", b"0" * 12), "outside of its folder"),
    "weights anywhere": (external("/etc/passwd", b"0" * 12), "outside of its folder"),
    "linked weights": (external("link", b"0" * 12), "outside of its folder"),
    "no file of weights": (external("missing", b"0" * 12), "No such file"),
    "a pipe of weights": (external("pipe", b"0" * 12), "pipe or a device"),
    "a folder of weights": (external("", b"0" * 12), "outside of its folder"),
    "few weights": (external("small", b"0" * 12), "4 bytes, and 12 are needed"),
    "negative": (external("small", b"0" * 12, -4), "are needed"),
    "too many weights": (external("huge", b"", 0, 3 << 30), "at most 2 are read"),
    "weights of another shape": (external("small", b"", 0, 4), "cannot run the network"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_gets_one_sentence(name: str, tmp_path: Path) -> None:
    content, words = HOSTILE[name]
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "victim").write_bytes(b"0" * 12)
    (inside / "link").symlink_to("../victim")
    (inside / "small").write_bytes(b"0123")
    os.mkfifo(inside / "pipe")
    with (inside / "huge").open("wb") as file:
        file.truncate(3 << 30)
    data = content if isinstance(content, bytes) else content.SerializeToString()
    (inside / "x.onnx").write_bytes(data)
    with pytest.raises(UserError) as caught:
        opened(inside / "x.onnx")
    text = str(caught.value)
    assert words in text and text.endswith(".") and "\n" not in text and "Error]" not in text


def test_a_path_that_is_no_file_gets_one_sentence(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    (tmp_path / "folder.onnx").mkdir()
    with (tmp_path / "large.onnx").open("wb") as file:
        file.truncate((1 << 31) + 1)
    for name, words in (
        ("pipe", "a pipe or a device"),
        ("folder", "a folder"),
        ("large", "more than 2,147,483,647 are not read"),
        ("missing", "No such file"),
    ):
        with pytest.raises(UserError, match=words):
            read_onnx(tmp_path / f"{name}.onnx")


def test_images_or_outputs_of_another_form_get_one_sentence(folder: Path) -> None:
    fixed = exported(Dense("maps"), folder / "form.onnx", fixed=True)
    for options, words in (
        ({"size": 48}, "takes images of 32 pixels, and those of this run have 48"),
        ({"channels": 1}, "takes images of 3 channels, and those of this run have 1"),
    ):
        with pytest.raises(UserError, match=words):
            opened(fixed, **options)
    free = opened(exported(Dense("patches"), folder / "patches.onnx"), size=32)
    with pytest.raises(UserError, match="cannot take images of 4 pixels with 3 channels"):
        free(IMAGES[:, :, :4, :4])
    for form in ("ambiguous", "scalar"):
        with pytest.raises(UserError, match="export it with one such output"):
            opened(exported(Dense(form), folder / f"{form}.onnx"))
    with pytest.raises(UserError, match="one for each patch; use pool avg"):
        opened(folder / "patches.onnx", pool="token")


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_named(
    package: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = exported(Dense("maps"), folder / "missing.onnx")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=r"pip install 'sureclr\[onnx\]'"):
        opened(path)
