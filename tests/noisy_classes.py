"""Features whose class is linear but for noise: what the probe and its solver are tested on."""

import torch
from torch import Tensor


def rows(n: int, f: int = 12, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Correlated features on very different scales, away from 0, with a noisy linear class."""
    generator = torch.Generator().manual_seed(seed)
    fixed = torch.Generator().manual_seed(7)
    latent = (
        torch.randn(n, f, generator=generator, dtype=torch.float64) / torch.arange(1, f + 1).sqrt()
    )
    mixing, teacher = (
        torch.randn(f, k, generator=fixed, dtype=torch.float64) for k in (f, classes)
    )
    noise = torch.rand(n, classes, generator=generator, dtype=torch.float64).log().neg().log().neg()
    return (latent @ mixing) * torch.logspace(-2, 2, f) + 5, (2 * latent @ teacher + noise).argmax(
        1
    )
