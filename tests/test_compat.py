"""torchvision and timm import beside any torch, and what they are used for works; OpenMP's threads
sleep where they wait, unless the user has chosen.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sureclr.compat import CHOICES, let_threads_sleep


def fresh_process(code: str, *words: str) -> str:
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_timm_and_torchvision_can_be_imported_after_sureclr() -> None:
    """timm imports torchvision, too; to ask before whether that is there is harmless."""
    code = (
        "import sureclr; from importlib.util import find_spec; find_spec('torchvision');"
        " import timm, torchvision.transforms.v2; print(timm.__name__, torchvision.__name__)"
    )
    assert fresh_process(code) == "timm torchvision"


def test_importing_sureclr_imports_no_torch() -> None:
    """And neither does asking whether some other package is there."""
    code = (
        "import sureclr, sys; from importlib.util import find_spec; find_spec('tensorboard');"
        " print('torch' in sys.modules, 'torchvision' in sys.modules)"
    )
    assert fresh_process(code) == "False False"


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


# Programs that each run in a process of their own, which has torch; it is loaded once
FORKED = """
import os, sys, torch
for code in sys.argv[1:]:
    if not os.fork():
        exec(code, {})
        sys.exit()
    os.wait()
"""


def test_operators_are_declared_once_and_only_where_they_do_not_load() -> None:
    words = [COUNTING.replace("LOADS", loads) for loads in ("False", "True")]
    found = fresh_process(FORKED, *words).splitlines()
    assert found == ["0 True True 1", "0 False False 0"]


@pytest.mark.parametrize("chosen", [None, *CHOICES])
@pytest.mark.parametrize("loaded", [False, True])
def test_threads_sleep_unless_the_user_has_chosen_or_torch_is_there(
    monkeypatch: pytest.MonkeyPatch, chosen: str | None, loaded: bool
) -> None:
    for name in CHOICES:
        monkeypatch.setenv(name, "")  # so that it is as before after the test
        monkeypatch.delenv(name)
    if chosen is not None:
        monkeypatch.setenv(chosen, "ACTIVE")
    if not loaded:
        monkeypatch.delitem(sys.modules, "torch")
    let_threads_sleep()
    found = {name: os.environ[name] for name in CHOICES if name in os.environ}
    if chosen is not None:
        assert found == {chosen: "ACTIVE"}
    else:
        ours = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
        assert found == ({} if loaded else ours)


GOMP = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))


@pytest.mark.skipif(not GOMP, reason="this torch brings another OpenMP than GNU's")
@pytest.mark.parametrize(("first", "turns"), [("sureclr", "1000"), ("sys", "300000")])
def test_openmp_says_how_long_its_threads_spin(first: str, turns: str) -> None:
    """The library that torch loads prints what it understood of the environment."""
    environment = {name: value for name, value in os.environ.items() if name not in CHOICES}
    environment |= {"OMP_DISPLAY_ENV": "VERBOSE", "OMP_NUM_THREADS": "1"}
    code = f"import {first}, ctypes; ctypes.CDLL({str(GOMP[0])!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment
    )
    assert f"GOMP_SPINCOUNT = '{turns}'" in done.stderr, done.stderr
