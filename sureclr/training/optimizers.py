"""Optimizers, which parameters they decay, and the learning rate of each step."""

import math
from collections.abc import Iterator

import torch
from torch import nn

import sureclr.compat  # noqa: F401  (before timm)
from sureclr.errors import unknown

OPTIMIZERS = ("adam", "lars", "sgd")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Weight matrices with decay; biases and norms (fewer than two axes) without. LARS also leaves
    the second group unscaled.
    """

    def trained(matrix: bool) -> Iterator[nn.Parameter]:
        return (p for p in model.parameters() if p.requires_grad and (p.ndim > 1) == matrix)

    return [
        {"params": list(trained(True)), "weight_decay": weight_decay},
        {"params": list(trained(False)), "weight_decay": 0.0},
    ]


def optimizer(
    name: str, model: nn.Module, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Adam (Kingma and Ba 2015), LARS (You et al. 2017; momentum 0.9, trust 0.001, as SimCLR), or
    SGD (Nesterov, 0.9).
    """
    groups = parameter_groups(model, weight_decay)
    if name == "adam":
        return torch.optim.Adam(groups, lr=learning_rate)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=learning_rate, momentum=0.9, nesterov=True)
    if name == "lars":
        from timm.optim import Lars

        matrices, others = groups  # without the word timm scales no matrix where the decay is zero
        return Lars(
            [{**matrices, "always_adapt": True}, {**others, "always_adapt": False}],
            lr=learning_rate,
            momentum=0.9,
        )
    raise unknown("optimizer", name, OPTIMIZERS)


def learning_rate(step: int, steps: int, warmup: int, peak: float) -> float:
    """Linear warm-up over `warmup` steps, then a half cosine to zero at `steps` (Loshchilov and
    Hutter 2017, no restarts).

    >>> [round(learning_rate(s, steps=4, warmup=2, peak=1.0), 3) for s in range(4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
