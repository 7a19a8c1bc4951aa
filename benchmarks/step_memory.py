"""The peak memory of a training step, counted without a device: for `benchmarks.step --memory`.

The step runs on fake tensors, which have a shape and no numbers, so the memory of a GPU can be
planned on any machine. Counted are weights, gradients, the optimizer's moments, running statistics,
pixels, views, activations, the loss, and what operators return on the way. Not counted are what
cuDNN and cuBLAS take for themselves, the CUDA context (about 0.5 GiB) and holes between blocks.
"""

import copy
import weakref
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sureclr.config import PretrainConfig
from sureclr.data.pictures import Pictures
from sureclr.data.view_parameters import plan_views
from sureclr.data.views import views_of
from sureclr.maths.objectives import Objective
from sureclr.models.encoders import stem_for
from sureclr.models.simclr import SimCLR
from sureclr.training import accumulate
from sureclr.training.building import build


class Peak(TorchDispatchMode):
    """Follows the storages that operators return while it is active, until they are freed.

    Attributes:
        live: their bytes now.
        most: the most bytes that were alive at once.
    """

    def __init__(self) -> None:
        """Start with nothing."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operator and follow what it returns."""
        out = operator(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.follow(leaf)
        return out

    def follow(self, tensor: Tensor) -> None:
        """Count the memory of a tensor until it is freed; once, however many tensors share it."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.live += size
            self.most = max(self.most, self.live)
            weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def peak_bytes(
    config: PretrainConfig, size: int, precision: torch.dtype, *, fake: bool = True
) -> int:
    """Return the most bytes that two steps of Adam have in use at once.

    Args:
        config: names the encoder, its stem, the loss, the batch and the micro-batch.
        size: side of the colour images in pixels.
        precision: of the network.
        fake: False computes the steps, on the CPU.
    """
    mode = FakeTensorMode()
    plan = plan_views(
        Pictures.of_array(torch.zeros(config.batch_size, 3, size, size, dtype=torch.uint8)),
        torch.arange(config.batch_size),
        (0, 1),
        size,
        size,
        config.views,
    )
    parts = build(config, 3, torch.zeros(3), torch.ones(3)), plan.pictures.values, plan.packed()
    if fake:
        with FakeCopyMode(mode):
            parts = copy.deepcopy(parts)
    (model, objective), values, packed = parts
    peak = Peak()
    for tensor in (*model.parameters(), *model.buffers(), *objective.buffers(), values, packed):
        peak.follow(tensor)
    with mode if fake else nullcontext(), peak:
        _two_steps(model.train(), objective.train(), config, values, packed, plan.form, precision)
    return peak.most


def _two_steps(
    model: SimCLR,
    objective: Objective,
    config: PretrainConfig,
    values: Tensor,
    packed: Tensor,
    form: Any,
    precision: torch.dtype,
) -> None:
    """Take two steps; the second has the optimizer's moments from the beginning."""
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    for _ in range(2):
        optimizer.zero_grad(set_to_none=True)
        accumulate.backward(
            model,
            objective,
            lambda part: views_of(values, packed[part], form),
            config.batch_size,
            config.micro_batch,
            precision=precision,
        )
        optimizer.step()


def print_memory() -> None:
    """Print the peak of some networks, in the two precisions."""
    print("peak memory of a step, counted on fake tensors, without cuDNN's own: GiB")
    for encoder, size, batch, micro in (
        ("resnet18", 32, 512, None),
        ("resnet50", 32, 512, 64),
        ("resnet50", 32, 512, None),
        ("resnet50", 224, 512, 64),
    ):
        config = PretrainConfig(
            "noise",
            encoder=encoder,
            stem=stem_for(encoder, size),
            batch_size=batch,
            micro_batch=micro,
        )
        peaks = [
            peak_bytes(config, size, precision) / 2**30
            for precision in (torch.float32, torch.bfloat16)
        ]
        print(
            f"  {encoder}, {config.stem} stem, {size} px, batch {batch}, micro-batch"
            f" {micro or batch}: {peaks[0]:.2f} in float32, {peaks[1]:.2f} in bfloat16",
            flush=True,
        )
