"""The one place that knows of torchvision's missing CPU build.

PyPI's torchvision wheel is built against CUDA's torch. Beside a CPU torch its compiled operators do
not load, and the import stops with "operator torchvision::nms does not exist", which takes timm
along. Transforms, data sets, models and all of timm need none of
these operators: it is enough that their schemas are declared. ``torchvision.ops`` and
    ``torchvision.io`` stay out of reach (we decode
with Pillow). Import this module before torchvision or timm.
"""

from importlib.util import find_spec
from pathlib import Path

import torch

_declared: list[torch.library.Library] = []  # the declaration lives as long as this object


def prepare_torchvision() -> None:
    """Declare the schemas that torchvision asks for at import, where its compiled operators do not
    load. Safe to call again.
    """
    spec = find_spec("torchvision")
    if _declared or spec is None or spec.origin is None:
        return
    for binary in Path(spec.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(str(binary))
        except OSError:
            library = torch.library.Library("torchvision", "DEF")
            library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _declared.append(library)
            return


prepare_torchvision()
