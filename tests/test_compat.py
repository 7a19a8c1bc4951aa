"""torchvision and timm import beside any torch, and what they are used for works."""

import subprocess
import sys

import pytest
import torch


def fresh_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_timm_can_be_imported_after_sureclr() -> None:
    """And with it torchvision, which timm imports."""
    assert fresh_process("import sureclr, timm; print(timm.__version__)")


def test_importing_sureclr_imports_no_torch() -> None:
    """And neither does asking whether some other package is there."""
    code = (
        "import sureclr, sys; from importlib.util import find_spec; find_spec('tensorboard');"
        " print('torch' in sys.modules, 'torchvision' in sys.modules)"
    )
    assert fresh_process(code) == "False False"


def test_asking_whether_torchvision_is_there_before_importing_it_is_harmless() -> None:
    code = (
        "import sureclr; from importlib.util import find_spec; find_spec('torchvision');"
        " import torchvision.transforms.v2; print(torchvision.__name__)"
    )
    assert fresh_process(code) == "torchvision"


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
