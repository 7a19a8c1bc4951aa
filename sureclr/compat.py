"""A workaround for torchvision beside a CPU build of torch. No other module knows about it.

PyPI's torchvision is built for torch with CUDA. Beside a CPU build of torch its compiled operators
do not load, and `import torchvision` fails with "operator torchvision::nms does not exist"; so does
`import timm`, which imports torchvision. Transforms, data sets, models and all of timm need none of
these operators: it is enough to declare their schemas. `torchvision.ops` and `torchvision.io` still
do not work; SureCLR decodes images with Pillow. Import this module before torchvision or timm.
"""

from importlib.util import find_spec
from pathlib import Path

import torch

_declared: list[torch.library.Library] = []  # a declaration ends when its object is deleted


def prepare_torchvision() -> bool:
    """Declare torchvision's operators if its compiled ones cannot be loaded.

    It is safe to call this again.

    Returns:
        Whether the operators are declared by SureCLR, now or by an earlier call.
    """
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
    try:
        torch.ops.load_library(str(binary))
    except OSError:
        return False
    return True


prepare_torchvision()
