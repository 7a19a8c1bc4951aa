"""Which parts of an encoder are not trained: all of it, or all but its last stage."""

from typing import Literal

from torch import nn

from sureclr.errors import UserError
from sureclr.models.encoders import encoder_blocks
from sureclr.models.simclr import StandardisedEncoder


def freeze(
    encoder: StandardisedEncoder, what: Literal["off", "stages", "backbone"], name: str
) -> None:
    """Keep parts of an encoder from training: their weights and the statistics of their BN.

    They are put into evaluation mode, which `embedding.evaluating` restores.

    Args:
        encoder: in training mode.
        what: backbone is all of it. stages is all but its last stage: of a convolutional network
            the last of `encoders.encoder_blocks` and what stands behind it (such as the last
            convolution and norm of EfficientNet), of a vision transformer the last block and the
            norm behind it. off is nothing.
        name: of the encoder, for the error message.

    Raises:
        UserError: the encoder has no two stages or blocks.
    """
    if what == "backbone":
        encoder.eval().requires_grad_(False)
    elif what == "stages":
        for module in _before_the_last_stage(encoder.backbone, name):
            object.__setattr__(module, "training", False)  # not that of the modules inside it
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)


def _before_the_last_stage(network: nn.Module, name: str) -> list[nn.Module]:
    """Return the modules up to the last stage, in the order in which they were registered.

    Those around the last stage, such as the network itself, are among them: their own parameters
    (class token, positions) come before the first block.
    """
    blocks = [block for _, block in encoder_blocks(network)]
    if len(blocks) < 2:
        raise UserError(
            f"freeze stages trains the last stage of an encoder alone, and {name} has no stages or"
            " blocks that SureCLR knows; use freeze backbone, or off."
        )
    inside = set(blocks[-2].modules())
    modules = list(network.modules())
    last = max(place for place, module in enumerate(modules) if module in inside)
    return modules[: last + 1]
