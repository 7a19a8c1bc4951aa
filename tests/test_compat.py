"""torchvision and timm import beside any torch, and what they are used for works."""

import subprocess
import sys

import pytest
import torch


@pytest.mark.parametrize("name", ["torchvision", "timm"])
def test_a_fresh_process_imports_it(name: str) -> None:
    code = (
        f"import sureclr.compat, {name}; sureclr.compat.prepare_torchvision();"
        f" print({name}.__version__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_transforms_datasets_and_models_work() -> None:
    from timm import create_model
    from torchvision import datasets
    from torchvision.transforms import v2

    assert v2.functional.gaussian_blur(torch.rand(1, 3, 8, 8), [3, 3]).shape == (1, 3, 8, 8)
    assert create_model("resnet18", num_classes=0).num_features == 512
    assert datasets.CIFAR10.filename.endswith(".tar.gz")


def test_declaring_again_is_harmless() -> None:
    from sureclr import compat

    before = list(compat._declared)
    compat.prepare_torchvision()
    assert compat._declared == before


def test_a_torchvision_that_loads_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from sureclr import compat

    monkeypatch.setattr(compat, "_declared", [])
    monkeypatch.setattr(torch.ops, "load_library", lambda path: None)
    compat.prepare_torchvision()
    assert compat._declared == []
