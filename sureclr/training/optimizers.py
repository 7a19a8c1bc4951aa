"""Optimizers, the parameters that they decay, and the learning rate of each step."""

import math
from collections.abc import Iterator

import torch
from torch import nn

from sureclr.errors import unknown

OPTIMIZERS = ("adam", "lars", "sgd")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Split the trained parameters into weight matrices, which decay, and the rest, which does not.

    The rest are biases and the parameters of norms: those with fewer than two axes.
    """

    def trained(matrix: bool) -> Iterator[nn.Parameter]:
        return (p for p in model.parameters() if p.requires_grad and (p.ndim > 1) == matrix)

    return [
        {"params": list(trained(True)), "weight_decay": weight_decay},
        {"params": list(trained(False)), "weight_decay": 0.0},
    ]


def new_optimizer(
    name: str, model: nn.Module, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Build an optimizer for a model.

    Args:
        name: `adam` (Kingma and Ba 2015), `lars` (You et al. 2017; momentum 0.9, trust 0.001 and no
            scaling of biases and norms, as in SimCLR), or `sgd` (Nesterov momentum 0.9).
        model: whose parameters it trains.
        learning_rate: the peak; `set_learning_rate` changes it at each step.
        weight_decay: L2 penalty on weight matrices.

    On CUDA each is a few kernels for all parameters: adam and sgd are fused, lars (of timm 1.0.31
    or newer) works on lists of tensors. A CPU's loops over parameters stay, which are exact where a
    run is repeated.

    Raises:
        UserError: the name is unknown.
    """
    groups = parameter_groups(model, weight_decay)
    fused = all(parameter.device.type == "cuda" for parameter in model.parameters()) or None
    if name == "adam":
        return torch.optim.Adam(groups, lr=learning_rate, fused=fused)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=learning_rate, momentum=0.9, nesterov=True, fused=fused)
    if name == "lars":
        from timm.optim.lars import Lars

        # without always_adapt, timm does not scale matrices where the decay is zero
        matrices, others = groups
        return Lars(
            [{**matrices, "always_adapt": True}, {**others, "always_adapt": False}],
            lr=learning_rate,
            momentum=0.9,
        )
    raise unknown("optimizer", name, OPTIMIZERS)


def learning_rate(
    step: int, steps: int, warmup: int, peak: float, *, constant: bool = False
) -> float:
    """Return the learning rate of a step, which counts from 0.

    It rises linearly to `peak` over `warmup` steps, and then falls along half a cosine to zero at
    `steps` (Loshchilov and Hutter 2017), or stays if it is `constant`.

    >>> [round(learning_rate(s, steps=4, warmup=2, peak=1.0), 3) for s in range(4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    if constant:
        return peak
    return peak * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the next step, for all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = rate
