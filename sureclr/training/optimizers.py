"""Optimizers, the parameters that they decay, and the learning rate of each step."""

import math
from typing import Any

import torch
from torch import nn

from sureclr.errors import unknown
from sureclr.models.encoders import encoder_blocks
from sureclr.models.simclr import SimCLR

OPTIMIZERS = ("adam", "lars", "sgd")


def parameter_groups(
    model: nn.Module, weight_decay: float, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Split the trained parameters into weight matrices, which decay, and the rest, which does not.

    The rest are biases and the parameters of norms: those with fewer than two axes. With a
    `layer_decay` below 1 there are two such groups for each block of the encoder, and their `scale`
    is a factor of the learning rate: 1 in the heads, `layer_decay` in the encoder's last block and
    in what follows it (a last norm), `layer_decay` squared in the block before it, and so on to the
    stem or the embedding of patches, which is one block more. An encoder without named blocks is
    one block. (Clark et al. 2020, ELECTRA; the factors are those of timm's
    `param_groups_layer_decay`, which counts the blocks of a ResNet one by one.)

    Args:
        model: whose parameters they are; a `SimCLR` where `layer_decay` is below 1.
        weight_decay: L2 penalty on weight matrices.
        layer_decay: factor from each block to the one before it.
    """
    distances = {} if layer_decay == 1 or not isinstance(model, SimCLR) else _distances(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {
            "params": [
                p for p in trained if (p.ndim > 1) == matrix and distances.get(p, 0) == distance
            ],
            "weight_decay": weight_decay if matrix else 0.0,
            "scale": layer_decay**distance,
        }
        for distance in sorted({0, *distances.values()})
        for matrix in (True, False)
    ]
    return [*groups[:2], *(group for group in groups[2:] if group["params"])]


def _distances(model: SimCLR) -> dict[nn.Parameter, int]:
    """Return how many blocks before the heads each parameter of the encoder is, at least 1."""
    backbone = model.encoder.backbone
    blocks = [module for _, module in encoder_blocks(backbone)]
    begun, distances = 0, dict[nn.Parameter, int]()
    for module in backbone.modules():  # in the order in which they were made
        begun += any(module is block for block in blocks)
        for parameter in module.parameters(recurse=False):
            distances.setdefault(parameter, len(blocks) + 1 - begun)
    return distances


def new_optimizer(
    name: str,
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    layer_decay: float = 1.0,
) -> torch.optim.Optimizer:
    """Build an optimizer for a model.

    Args:
        name: `adam` (Kingma and Ba 2015), `lars` (You et al. 2017; momentum 0.9, trust 0.001 and no
            scaling of biases and norms, as in SimCLR), or `sgd` (Nesterov momentum 0.9).
        model: whose parameters it trains.
        learning_rate: the peak; `set_learning_rate` changes it at each step.
        weight_decay: L2 penalty on weight matrices.
        layer_decay: factor of the learning rate from block to block, see `parameter_groups`.

    On CUDA each is a few kernels for all parameters: adam and sgd are fused, lars (of timm 1.0.31
    or newer) works on lists of tensors. A CPU's loops over parameters stay, which are exact where a
    run is repeated.

    Raises:
        UserError: the name is unknown.
    """
    groups = parameter_groups(model, weight_decay, layer_decay)
    fused = all(parameter.device.type == "cuda" for parameter in model.parameters()) or None
    if name == "adam":
        return torch.optim.Adam(groups, lr=learning_rate, fused=fused)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=learning_rate, momentum=0.9, nesterov=True, fused=fused)
    if name == "lars":
        from timm.optim.lars import Lars

        # without always_adapt, timm does not scale matrices where the decay is zero
        for group in groups:
            group["always_adapt"] = any(parameter.ndim > 1 for parameter in group["params"])
        return Lars(groups, lr=learning_rate, momentum=0.9)
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
    """Set the learning rate of the next step for all parameters, each group's by its scale."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("scale", 1.0)
