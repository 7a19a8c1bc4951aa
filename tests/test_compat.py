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


# How often torchvision's operators are declared in a fresh process, where its compiled ones can be
# loaded or not, and what the function returns then and the second time
COUNTING = """
import torch
declared, Library = [], torch.library.Library
class Counting(Library):
    def __init__(self, *arguments):
        declared.append(arguments)
        super().__init__(*arguments)
torch.library.Library = Counting
def load(path):
    if not LOADS:
        raise OSError("undefined symbol")
torch.ops.load_library = load
from sureclr.compat import prepare_torchvision
print(len(declared), prepare_torchvision(), prepare_torchvision(), len(declared))
"""


@pytest.mark.parametrize(
    ("loads", "expected"), [(False, "1 True True 1"), (True, "0 False False 0")]
)
def test_operators_are_declared_once_and_only_where_they_do_not_load(
    loads: bool, expected: str
) -> None:
    code = COUNTING.replace("LOADS", str(loads))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == expected, done.stderr
