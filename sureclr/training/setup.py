"""What a run starts from: a trainer at step 0 whose batch fits into memory."""

from copy import deepcopy
from dataclasses import replace

import torch
from torch import nn

from sureclr.config import PretrainConfig
from sureclr.data.batches import steps_per_epoch
from sureclr.data.image_set import ImageSet
from sureclr.errors import UserError
from sureclr.maths.objectives import Objective
from sureclr.models.devices import choose_precision, seeded
from sureclr.progress import Progress
from sureclr.training.building import (
    build,
    feature_count,
    own_network,
    pixel_statistics,
    with_stem,
)
from sureclr.training.compiling import compile_step
from sureclr.training.optimizers import new_optimizer
from sureclr.training.starting import starting_network
from sureclr.training.trainer import Trainer


def new_trainer(
    config: PretrainConfig,
    images: ImageSet,
    device: torch.device,
    *,
    encoder: nn.Module | None = None,
    loss: Objective | None = None,
    resumed: bool = False,
) -> Trainer:
    """Return a trainer at step 0.

    Args:
        config: of the run, as `building.recorded` returns it.
        images: the training images.
        device: on which the network runs.
        encoder: the user's own encoder, which is copied.
        loss: the user's own loss, which is copied.
        resumed: whether the weights of a run that goes on will take the place of the first ones,
            so that those of a pretrained encoder need not exist any more.

    Raises:
        UserError: the images are too few, configuration and images do not fit together, the encoder
            has no stages to freeze, or a value of the network or the loss is not finite.
    """
    steps_per_epoch(len(images), config.batch_size)  # raises if there are too few images
    shape = images.images.shape[1:]
    config = with_stem(config, shape[-1])
    mean, std = pixel_statistics(images, config)
    network = None if encoder is None else own_network(encoder, shape)
    # passed as `network`, so that the heads begin as they did
    if network is None and resumed and config.pretrained:
        with seeded(config.seed):
            network = starting_network(replace(config, init="random", freeze="off"), shape[0])
    model, objective = build(config, shape[0], mean, std, network=network, loss=deepcopy(loss))
    if encoder is None:
        feature_count(model.encoder.backbone, config.encoder, shape)
    if any(parameter.requires_grad for parameter in objective.parameters()):
        raise UserError(
            "this loss has parameters, and only the network is trained; make them buffers, or"
            " numbers."
        )
    model.to(device).train()
    model.encoder.freeze(config.freeze, config.encoder)
    objective.to(device).train()
    optimizer = new_optimizer(
        config.optimizer,
        model,
        config.learning_rate,
        config.weight_decay,
        config.layer_decay,
    )
    precision = choose_precision(config.precision, device)
    ahead = device.type != "cpu"
    trainer = Trainer(config, images, model, objective, optimizer, precision, ahead)
    trainer.check_weights()
    return trainer


def fitting_trainer(
    config: PretrainConfig,
    images: ImageSet,
    device: torch.device,
    progress: Progress,
    *,
    probe: bool,
    encoder: nn.Module | None = None,
    loss: Objective | None = None,
    resumed: bool = False,
) -> Trainer:
    """Return a trainer at step 0 whose batch fits into memory, compiled where that is wanted.

    If `micro_batch` is not set, the number of images at a time is halved until one step can be
    taken. Heads on the features of a frozen encoder are neither tried nor compiled: their steps are
    small, and the encoder takes no part in them.

    Args:
        config: as in `new_trainer`, like the arguments that are not named here.
        images: the training images.
        device: on which the network runs.
        progress: gets a message if the batch had to be divided.
        probe: whether to try a step at all: on accelerators, because a CPU swaps instead of
            raising an error. The trial leaves no trace.
        encoder: the user's own encoder.
        loss: the user's own loss.
        resumed: as in `new_trainer`.

    Raises:
        UserError: nothing fits, or the network cannot be compiled and must be.
    """
    if config.freeze == "backbone":
        if config.compile == "on":
            progress.message("Heads on the features of a frozen encoder are not compiled.")
        return new_trainer(config, images, device, encoder=encoder, loss=loss, resumed=resumed)
    chosen = config
    while probe and config.micro_batch is None:
        if _fits(new_trainer(chosen, images, device, encoder=encoder, loss=loss)):
            break
        size = chosen.micro_batch or chosen.batch_size
        if size % 2 or size < 4:
            raise UserError(
                f"{size} images do not fit into the device's memory, and {size} cannot be halved;"
                " choose a batch_size that is a power of two, a smaller micro_batch, encoder or"
                " size."
            )
        chosen = replace(chosen, micro_batch=size // 2)
    if chosen != config:
        progress.message(
            f"{config.batch_size} images do not fit into the device's memory at once, so gradients"
            f" are accumulated exactly with micro_batch={chosen.micro_batch} (batch normalisation"
            " uses the statistics of a micro-batch)"
        )
    trainer = new_trainer(chosen, images, device, encoder=encoder, loss=loss, resumed=resumed)
    compile_step(trainer, progress)
    return trainer


def _fits(trainer: Trainer) -> bool:
    """Return whether a step can be taken."""
    try:
        trainer.step()
    except torch.OutOfMemoryError:
        return False
    return True
