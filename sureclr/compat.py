"""A workaround for torchvision beside a CPU build of torch. No other module knows about it.

PyPI's torchvision is built for torch with CUDA. Beside a CPU build of torch its compiled operators
do not load, and `import torchvision` fails with "operator torchvision::nms does not exist"; so does
`import timm`, which imports torchvision. Transforms, data sets, models and all of timm need none of
these operators: it is enough to declare their schemas. `torchvision.ops` and `torchvision.io` still
do not work; SureCLR decodes images with Pillow.

`import sureclr` imports this module, which registers a hook: the operators are declared as soon as
anything imports torchvision for the first time. Until then, torch is not imported either.
"""

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

_declared: list["torch.library.Library"] = []  # a declaration ends when its object is deleted


def prepare_torchvision() -> bool:
    """Declare torchvision's operators if its compiled ones cannot be loaded.

    It is safe to call this again.

    Returns:
        Whether the operators are declared by SureCLR, now or by an earlier call.
    """
    import torch

    spec = find_spec("torchvision")
    if _declared or spec is None or spec.origin is None:
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


sys.meta_path.insert(0, _TorchvisionHook())
