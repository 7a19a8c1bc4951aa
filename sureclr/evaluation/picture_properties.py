"""What certainty may follow in place of content: simple properties of the pixels.

    sharpness   mean over pixels of the squared Laplacian of the brightness
    contrast    standard deviation of the brightness over the image
    saturation  mean over pixels of (largest - smallest channel); 0 for grey images
    colours     entropy of the counts of colours at 4 levels a channel, in nats
    brightness  mean over pixels and channels

Pixels count from 0 to 1. Of more than three bands the first three count as colours.
"""

import torch
from torch import Tensor

from sureclr.maths.metrics import spearman

AT_ONCE = 512  # images that are measured together
LEVELS = 4  # of a channel, for `colours`


def measure_properties(images: Tensor) -> dict[str, Tensor]:
    """Return each property of each image, (n,) float64 by name.

    Args:
        images: (n, c, h, w) uint8, n > 0.
    """
    parts = [_properties(images[i : i + AT_ONCE]) for i in range(0, len(images), AT_ONCE)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def followed_properties(score: Tensor, images: Tensor) -> dict[str, float]:
    """Return Spearman's correlation of a score (n,) with each property of the images.

    A property that is the same in all images, such as the saturation of grey ones, is left out.
    """
    found = {
        name: spearman(score.cpu().double(), values)
        for name, values in measure_properties(images).items()
        if bool((values != values[0]).any())
    }
    return {name: value for name, value in found.items() if value == value}  # NaN: a flat score


def _properties(images: Tensor) -> dict[str, Tensor]:
    x = images.cpu().double() / 255
    grey = x.mean(1)
    inside = grey[:, 1:-1, 1:-1]
    around = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    laplacian = (around - 4 * inside).flatten(1)
    colour = x[:, :3]
    levels = (images[:, :3].cpu().long() * LEVELS) // 256
    code = levels[:, 0]
    for channel in levels.unbind(1)[1:]:
        code = code * LEVELS + channel
    kinds = LEVELS ** levels.shape[1]
    counts = torch.zeros(len(x), kinds, dtype=torch.float64)
    counts.scatter_add_(1, code.flatten(1), torch.ones(code.flatten(1).shape, dtype=torch.float64))
    share = counts / counts.sum(1, keepdim=True)
    return {
        "sharpness": laplacian.square().mean(1) if laplacian.shape[1] else grey.new_zeros(len(x)),
        "contrast": grey.flatten(1).std(1, correction=0),
        "saturation": (colour.amax(1) - colour.amin(1)).flatten(1).mean(1),
        "colours": -torch.special.xlogy(share, share).sum(1),
        "brightness": x.flatten(1).mean(1),
    }
