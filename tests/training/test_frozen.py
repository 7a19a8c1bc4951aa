"""Heads on the features of a frozen encoder, and an encoder of which the last stage is trained."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import CONFIG, IMAGES, weights
from torch import Tensor, nn

import sureclr
from sureclr.models.encoders import encoder
from sureclr.progress import SILENT

K = 3
LABELS = torch.arange(48) % 3


def network(seed: int = 1) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = encoder("small-10", channels=1)
    for norm in module.modules():  # statistics as of a trained network
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.uniform_(-0.1, 0.1)
            norm.running_var.uniform_(0.5, 2)
    return module


BACKBONE = network()


def frozen(out: Path, images: Any = None, **options: Any) -> sureclr.Run:
    known = {name: options.pop(name) for name in list(options) if hasattr(CONFIG, name)}
    config = replace(CONFIG, **{"freeze": "backbone", "cached_views": K, "loss": "sure", **known})
    given = sureclr.as_image_set(IMAGES, size=8, channels=1) if images is None else images
    given = replace(given, labels=LABELS, classes=("a", "b", "c"))
    arguments = {"encoder": BACKBONE, "out": out, "device": "cpu", "progress": SILENT, **options}
    return sureclr.pretrain(config, given, **arguments)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> sureclr.Run:
    return frozen(tmp_path_factory.mktemp("frozen") / "run")


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_backbone_stays_bit_for_bit_and_the_heads_learn(run: sureclr.Run) -> None:
    before, untrained = BACKBONE.state_dict(), run.untrained().model.state_dict()
    loaded = sureclr.load(run.path, encoder=network(7), device="cpu").model.state_dict()
    for state in (run.model.state_dict(), loaded, untrained):
        assert same({name: state[f"encoder.backbone.{name}"] for name in before}, before)
    assert same(loaded, run.model.state_dict())
    heads = [name for name in loaded if name.startswith(("projection", "certainty"))]
    assert heads and not any(
        torch.equal(loaded[name], untrained[name]) for name in heads if name.endswith("0.weight")
    )
    saved = load_file(run.path / "encoder.safetensors")
    assert same(saved, before)
    assert {name.split(".")[0] for name in weights(run.path)} == {"model", "objective", "optimizer"}
    assert [n for n in weights(run.path) if "encoder" in n] == [
        "model.encoder.mean",
        "model.encoder.std",
    ]
    assert all(parameter.requires_grad for parameter in run.model.parameters())
