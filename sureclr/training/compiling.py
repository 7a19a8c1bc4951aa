"""Compiling what a step computes: the network, and the views where they have one shape."""

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor

from sureclr.data.views import views_of
from sureclr.errors import UserError
from sureclr.models.devices import seeded
from sureclr.models.simclr import SimCLR
from sureclr.progress import Progress
from sureclr.training.accumulate import Heads
from sureclr.training.trainer import Trainer

COMPILED_ON = ("cuda",)  # devices on which `compile=auto` compiles; on a CPU it does not pay


def compile_step(trainer: Trainer, progress: Progress) -> None:
    """Let a trainer use compiled code, where the configuration wants it and where it works.

    One gradient is computed as a trial, which also compiles; nothing of it stays. The network
    itself remains as it is, with the same names in its state, for the monitor and for checkpoints.

    Args:
        trainer: before its first step.
        progress: gets a sentence where `compile=auto` finds that it does not work.

    Raises:
        UserError: it does not work, and the configuration has `compile=on`.
    """
    device, wanted = trainer.model.device, trainer.config.compile
    if wanted == "off" or (wanted == "auto" and device.type not in COMPILED_ON):
        return
    modules = trainer.model, trainer.objective
    before = [deepcopy(module.state_dict()) for module in modules]
    trainer.network = torch.compile(_outputs_of(trainer.model), dynamic=False)
    if trainer.images.pictures is None:  # whole pictures have crops of another size in each step
        trainer.views_of = torch.compile(views_of, dynamic=False)
    try:
        with seeded(0, device):
            trainer.gradient()
    except UserError:
        raise
    except Exception as error:  # compilers fail in many ways, and none of them ends a run
        trainer.network = trainer.views_of = None
        reason = " ".join(str(error).split())[:200]
        if wanted == "on":
            raise UserError(
                f"the network cannot be compiled here ({reason}); use compile=off."
            ) from error
        progress.message(
            f"The network cannot be compiled here ({reason}), so it runs as it is, which is slower;"
            " with compile=off it is not tried."
        )
    finally:
        for module, state in zip(modules, before, strict=True):
            module.load_state_dict(state)
        trainer.optimizer.zero_grad(set_to_none=True)


def _outputs_of(model: SimCLR) -> Callable[[Tensor], Heads]:
    """Return the function from views to the outputs of the heads; its name is in error messages."""

    def network(views: Tensor) -> Heads:
        return model.heads(model.features(views))

    return network
