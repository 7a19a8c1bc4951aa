"""What must be arranged before torch and torchvision load. No other module knows about it.

OpenMP, whose threads torch uses, reads once how they wait for each other. By default they spin for
milliseconds at the end of every parallel loop. Where another program needs their cores, the thread
that waits then takes the time of the one that it waits for: two threads were several times slower
than one. `import sureclr` asks for threads that soon sleep, unless the user has chosen (in one of
`CHOICES`) or torch is loaded already. No number depends on it.

PyPI's torchvision is built for torch with CUDA. Beside a CPU build of torch its compiled operators
do not load, and `import torchvision` fails with "operator torchvision::nms does not exist"; so does
`import timm`, which imports torchvision. Transforms, data sets, models and all of timm need none of
these operators: it is enough to declare their schemas. `torchvision.ops` and `torchvision.io` still
do not work; SureCLR decodes images with Pillow.

`import sureclr` imports this module, which registers a hook: the operators are declared as soon as
anything imports torchvision for the first time. Until then, torch is not imported either.
"""

import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
# LLVM's and Intel's OpenMP know the first alone. GNU's would not spin at all then; a thousand turns
# (20 microseconds) are as good on a busy machine, and short loops are 1.2 times as fast on an idle
# one (benchmarks/threads.py)
WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
_declared: list["torch.library.Library"] = []  # a declaration ends when its object is deleted


def prepare_torchvision() -> bool:
    """Declare torchvision's operators if its compiled ones cannot be loaded.

    It is safe to call this again.

    Returns:
        Whether the operators are declared by SureCLR, now or by an earlier call.
    """
    import torch

    spec = find_spec("torchvision")
    # The operators are also there if another copy of this module has declared them
    if _declared or spec is None or spec.origin is None or hasattr(torch.ops.torchvision, "nms"):
        return bool(_declared)
    for binary in Path(spec.origin).parent.glob("_C*.so"):
        if not _loads(binary):
            library = torch.library.Library("torchvision", "DEF")
            library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _declared.append(library)
            return True
    return False


def _loads(binary: Path) -> bool:
    import torch

    try:
        torch.ops.load_library(str(binary))
    except OSError:
        return False
    return True


class _TorchvisionHook(MetaPathFinder):
    """Finds no module, but prepares torchvision when Python is asked to find it."""

    def __init__(self) -> None:
        self._waiting = True

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name == "torchvision" and self._waiting:
            self._waiting = False  # first, because the preparation looks for torchvision as well
            prepare_torchvision()
        return None


def let_threads_sleep() -> None:
    """Ask OpenMP for threads that sleep while they wait, or spin for microseconds at most.

    A setting of the user's stays. Once torch is loaded, nothing is set: OpenMP would not read it,
    and only other processes would get it.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in CHOICES):
        os.environ.update(WAITING)


let_threads_sleep()
sys.meta_path.insert(0, _TorchvisionHook())
