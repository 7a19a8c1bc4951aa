"""A contrastive step of any batch size: on one graph where it fits, else by exact accumulation.

The loss compares every view with every other one, so the gradients of small batches do not add up
to that of a large batch. Exact accumulation (GradCache, Gao et al. 2021) embeds all micro-batches
without a graph and computes the loss over the whole batch with its gradient with respect to the
heads' outputs. Then it runs each micro-batch again and backpropagates its part. The views of the
first pass are kept for the second one where they take little memory. In both passes BN
normalises with the statistics of the micro-batch; the second pass alone updates running statistics.
Dropout draws the same masks in both passes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sureclr.maths.objectives import Objective
from sureclr.maths.sphere import Posterior
from sureclr.models.devices import autocast
from sureclr.models.simclr import SimCLR

Heads = tuple[Tensor, Tensor | None]  # projections (2m, d), and k (2m,) or None
KEPT_ON_CPU = 2**30  # bytes of views that the second pass takes from the first
KEPT_SHARE = 8  # and of a GPU's memory, one part of so many
Network = Callable[[Tensor], Heads]  # views (2m, c, h, w) to what the heads put out
# The m images of a slice to their views (2m, c, h, w), and behind them its null views
MakeViews = Callable[[slice], Tensor]


def backward(
    model: SimCLR,
    objective: Objective,
    views: MakeViews,
    images: int,
    micro_batch: int | None = None,
    generator: torch.Generator | None = None,
    precision: torch.dtype = torch.float32,
    network: Network | None = None,
    nulls: int = 0,
) -> tuple[Tensor, Posterior]:
    """Add the gradient of the loss over all views to the gradients of the parameters.

    Args:
        model: the network.
        objective: the loss.
        views: returns both views of the images of a slice, rows i and i + m of image i, and behind
            them the null views that belong to the slice (`null_rows`). It may be called twice for a
            micro-batch and must return the same pixels.
        images: number of images of the whole batch.
        micro_batch: number of images on one graph; None: all of them.
        generator: for losses that sample.
        precision: of the network; the loss is always computed in float32.
        network: the model's encoder and heads as one function, such as a compiled one; None: the
            model itself.
        nulls: number of null views of the whole batch, which pass through the network with the
            others.

    Returns:
        The loss in nats, a mean over the views, and the posteriors of the views and of the null
        views behind them; all detached.
    """
    size = micro_batch or images
    network = network or (lambda images: model.heads(model.features(images)))
    parts = [slice(start, min(start + size, images)) for start in range(0, images, size)]
    if len(parts) == 1:
        posterior = model.read(*_run(network, views(parts[0]), precision))
        loss = _loss(objective, posterior, images, generator)
        loss.backward()
        return loss.detach(), _detached(posterior)
    return _accumulated(model, objective, views, parts, generator, precision, network, nulls)


def null_rows(part: slice, images: int, nulls: int) -> slice:
    """Return which null views of a batch pass through the network with the images of a slice.

    They are spread evenly, and the slices of all images together have each of them once.

    >>> null_rows(slice(0, 4), 8, 3), null_rows(slice(4, 8), 8, 3)
    (slice(0, 1, None), slice(1, 3, None))
    """
    return slice(part.start * nulls // images, part.stop * nulls // images)


def _loss(
    objective: Objective, posterior: Posterior, images: int, generator: torch.Generator | None
) -> Tensor:
    """Return the loss of 2n views, with that of the null views behind them if there are any."""
    if len(posterior.direction) == 2 * images:
        return objective(posterior, generator=generator)
    views, nulls = posterior.part(slice(2 * images)), posterior.part(slice(2 * images, None))
    return objective(views, generator=generator) + objective.null_loss(views, nulls)


def _accumulated(
    model: SimCLR,
    objective: Objective,
    views: MakeViews,
    parts: list[slice],
    generator: torch.Generator | None,
    precision: torch.dtype,
    network: Network,
    nulls: int,
) -> tuple[Tensor, Posterior]:
    images_in_all = parts[-1].stop
    rows = [_rows(part, images_in_all, nulls) for part in parts]
    states, outputs = [], []
    kept: dict[int, Tensor] = {}  # by where their part begins
    with torch.no_grad(), frozen_statistics(model):
        for part in parts:
            images = views(part)
            if images.nbytes * len(parts) <= kept_bytes(images.device):
                kept[part.start] = images
            states.append(_random_states(images.device))
            outputs.append(_run(network, images, precision))
    projections = _whole_batch([p for p, _ in outputs], rows).requires_grad_()
    ks = [k for _, k in outputs if k is not None]
    k = _whole_batch(ks, rows).requires_grad_() if ks else None
    posterior = model.read(projections, k)
    loss = _loss(objective, posterior, images_in_all, generator)
    leaves = [leaf for leaf in (projections, k) if leaf is not None]
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    for part, own, state in zip(parts, rows, states, strict=True):
        images = kept.pop(part.start) if part.start in kept else views(part)
        _set_random_states(images.device, state)
        again = [output for output in _run(network, images, precision) if output is not None]
        pairs = [
            (output, torch.cat([gradient[some] for some in own]))
            for output, gradient in zip(again, gradients, strict=True)
            if gradient is not None
        ]
        torch.autograd.backward(
            [output for output, _ in pairs],
            [gradient.to(output.dtype) for output, gradient in pairs],
        )
    return loss.detach(), _detached(posterior)


def kept_bytes(device: torch.device) -> int:
    """Return how many bytes of views may stay on a device between the two passes."""
    if device.type != "cuda":
        return KEPT_ON_CPU
    return int(torch.cuda.get_device_properties(device).total_memory) // KEPT_SHARE


def _run(network: Network, views: Tensor, precision: torch.dtype) -> Heads:
    with autocast(views.device, precision):
        return network(views)


def _random_states(device: torch.device) -> list[Tensor]:
    """Return the states of torch's own generators, from which dropout draws."""
    return [torch.get_rng_state()] + (
        [] if device.type == "cpu" else [torch.get_device_module(device).get_rng_state(device)]
    )


def _set_random_states(device: torch.device, states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.get_device_module(device).set_rng_state(state, device)


def _rows(part: slice, images: int, nulls: int) -> tuple[slice, slice, slice]:
    """Return which rows of the whole batch a micro-batch has: first, second and null views."""
    own = null_rows(part, images, nulls)
    return (
        part,
        slice(images + part.start, images + part.stop),
        slice(2 * images + own.start, 2 * images + own.stop),
    )


def _whole_batch(parts: list[Tensor], rows: list[tuple[slice, slice, slice]]) -> Tensor:
    """Join micro-batches (2m + k, ...) to the whole batch, in float32.

    All first views come first, then all second ones, then the null views.
    """
    pieces = [
        part.float().split([some.stop - some.start for some in own])
        for part, own in zip(parts, rows, strict=True)
    ]
    return torch.cat([piece for kind in zip(*pieces, strict=True) for piece in kind])


def _detached(posterior: Posterior) -> Posterior:
    values: dict[str, Any] = {
        name: None if value is None else value.detach() for name, value in vars(posterior).items()
    }
    return Posterior(**values)


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Let BN normalise with its batch, as in training, without updating running statistics."""
    norms = [
        module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)
    ]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches
