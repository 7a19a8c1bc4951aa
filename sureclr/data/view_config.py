"""All parameters of SimCLR's augmentation, once. Apart from views.py because the command line reads
it, which imports no torch.
"""

import math
from dataclasses import dataclass, fields

from sureclr.errors import UserError


@dataclass(frozen=True)
class ViewConfig:
    """SimCLR's augmentation, complete; the defaults are the paper's. `*_p` are probabilities; off
    is 0.
    """

    crop_area: tuple[float, float] = (0.08, 1.0)
    """Area of the crop as a fraction of the image's: uniform between these."""
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """Width / height of the crop: log-uniform between these."""
    flip: float = 0.5
    """Probability of a left-right flip. 0 for digits and letters."""
    jitter_p: float = 0.8
    """Probability of colour jitter."""
    strength: float = 1.0
    """Strength s of the jitter: multiplies the four amounts below. The paper takes 0.5 for CIFAR.
    """
    brightness: float = 0.8
    """Amount b at strength 1: the factor is uniform in [max(0, 1 - s b), 1 + s b]."""
    contrast: float = 0.8
    """Amount at strength 1, as for brightness."""
    saturation: float = 0.8
    """Amount at strength 1, as for brightness."""
    hue: float = 0.2
    """Amount at strength 1, in turns of the colour circle: the shift is uniform in [-s hue, s hue];
    s hue is at most 0.5.
    """
    grey_p: float = 0.2
    """Probability of dropping the colour."""
    blur_p: float = 0.5
    """Probability of a Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Standard deviation of the blur in pixels: uniform between these."""
    blur_kernel: float = 0.1
    """Width of the blur's kernel as a fraction of the image's shorter side, made odd: 3 at 32 px, 9
    at 96, none below 20.
    """

    def __post_init__(self) -> None:
        for name in ("flip", "jitter_p", "grey_p", "blur_p", "blur_kernel"):
            _check(self, name, 0 <= getattr(self, name) <= 1, "must lie in [0, 1]")
        for name in ("strength", "brightness", "contrast", "saturation", "hue"):
            _check(
                self, name, 0 <= getattr(self, name) < math.inf, "must be zero (off) or positive"
            )
        for name in ("crop_area", "crop_aspect", "blur_sigma"):
            low, high = getattr(self, name)
            _check(
                self,
                name,
                0 < low <= high < math.inf,
                "must be two positive numbers, the smaller first",
            )
        _check(self, "crop_area", self.crop_area[1] <= 1, "must not exceed 1, the whole image")
        _check(
            self,
            "hue",
            self.hue * self.strength <= 0.5,
            f"times strength {self.strength} must not exceed 0.5, half a turn",
        )

    @classmethod
    def light(cls, flip: float = 0.5) -> "ViewConfig":
        """Half to whole crops and the flip alone: for fine-tuning with labels."""
        return cls(crop_area=(0.5, 1.0), flip=flip, jitter_p=0, grey_p=0, blur_p=0)

    def blur_radius(self, height: int, width: int) -> int:
        """Pixels on each side of the kernel's centre; the kernel is 2 radius + 1 wide, 0 is no
        blur. SimCLR's own rounding.
        """
        return int(self.blur_kernel * min(height, width) + 1e-9) // 2


def _check(config: ViewConfig, name: str, holds: bool, rule: str) -> None:
    if not holds:
        default = next(field.default for field in fields(config) if field.name == name)
        raise UserError(
            f"views.{name} {rule}, not {getattr(config, name)}; SimCLR's value is {default}."
        )
