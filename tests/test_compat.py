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
    ("loads", "expected"), [(False, "0 True True 1"), (True, "0 False False 0")]
)
def test_operators_are_declared_once_and_only_where_they_do_not_load(
    loads: bool, expected: str
) -> None:
    code = COUNTING.replace("LOADS", str(loads))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == expected, done.stderr
