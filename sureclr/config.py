"""One frozen, complete, checked configuration of a pretraining run, and the YAML file that it is
kept in.

Defaults stand here and nowhere else; a recipe is a function that returns a configuration
(recipes.py).
"""

import math
import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from sureclr.errors import UserError, unknown


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
            _check_view(self, name, 0 <= getattr(self, name) <= 1, "must lie in [0, 1]")
        for name in ("strength", "brightness", "contrast", "saturation", "hue"):
            _check_view(
                self, name, 0 <= getattr(self, name) < math.inf, "must be zero (off) or positive"
            )
        for name in ("crop_area", "crop_aspect", "blur_sigma"):
            low, high = getattr(self, name)
            _check_view(
                self,
                name,
                0 < low <= high < math.inf,
                "must be two positive numbers, the smaller first",
            )
        _check_view(self, "crop_area", self.crop_area[1] <= 1, "must not exceed 1, the whole image")
        _check_view(
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


def _check_view(config: ViewConfig, name: str, holds: bool, rule: str) -> None:
    if not holds:
        default = next(field.default for field in fields(config) if field.name == name)
        raise UserError(
            f"views.{name} {rule}, not {getattr(config, name)}; SimCLR's value is {default}."
        )


@dataclass(frozen=True)
class PretrainConfig:
    """Everything that decides what a run learns. Where it is written and on which machine it runs
    are arguments of `pretrain`.
    """

    source: str
    """Data source: digits, fashion-mnist, cifar10, cifar100, stl10, or folder:PATH."""
    size: int | None = None
    """Side of the images in pixels; default: the data set's own (a folder: 96)."""

    encoder: str = "resnet18"
    """`small` (trains on a CPU) or any timm model name."""
    stem: Literal["imagenet", "cifar"] = "imagenet"
    """First layers: imagenet, or cifar (3x3, stride 1, no max-pool; for images of about 32 px)."""
    init: Literal["random", "timm"] = "random"
    """Start from random weights, or from timm's pretrained ones where you have them."""
    projection_dim: int = 128
    """Coordinates d of the direction (output of the projection head)."""
    projection_layers: int = 2
    """Linear layers of the projection head, 1 to 4."""
    projection_hidden: int | None = None
    """Width of its hidden layers; default: the encoder's feature count."""

    loss: str = "sure"
    """sure (NT-Xent plus a likelihood for the radius), nt-xent, or a reference loss (`sureclr
    list`).
    """
    temperature: float | None = None
    """Temperature tau of the loss; default: the loss's own."""
    certainty_weight: float | None = None
    """Weight lambda of the certainty term; default: the loss's own (sure: 28/m)."""
    kernel_dimension: float | Literal["measured"] | None = None
    """Dimension m of the likelihood's kernel: a number, or measured (1/E[c^2] over different
    images); default: projection_dim.
    """
    empirical_prior: float | None = None
    """Share beta of the batch's own law of directions in the likelihood's prior; 1: certainty of
    which image; default: 0 (uniform).
    """
    softening: Literal["anchors", "means", "off"] | None = None
    """Softer logits where a view is unsure: its own (anchors), all that it takes part in (means),
    none (off); default: anchors, off where certainty_gradient is off.
    """
    samples: int | None = None
    """Monte Carlo samples a view (mc-infonce)."""
    certainty_gradient: Literal["on", "off"] = "on"
    """off: stop the certainty's gradient at the features, which leaves exactly SimCLR's
    representation (softening: off).
    """

    epochs: int = 200
    """Passes over the training images."""
    batch_size: int = 512
    """Images a step; the loss compares all 2 x batch_size views."""
    micro_batch: int | None = None
    """Images in memory at once; smaller than batch_size: exact accumulation, BN statistics per
    micro-batch. Default: batch_size.
    """
    optimizer: Literal["adam", "lars", "sgd"] = "adam"
    """adam, lars (biases and norms excluded; for batches of 1024 and more), or sgd with Nesterov
    momentum.
    """
    learning_rate: float = 1e-3
    """Peak learning rate."""
    weight_decay: float = 1e-6
    """L2 on weight matrices (biases and norms are left alone)."""
    warmup_epochs: float = 10
    """Linear warm-up, then cosine to zero; at most half of the epochs is used."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 autocast on GPUs that have it (loss always float32), else float32."""
    seed: int = 0
    """Decides the initial weights, the order of the images and every view."""

    monitor_every: int = 5
    """Epochs between quality checks (kNN on held-out training images, alignment, uniformity,
    effective rank); 0: never.
    """
    snapshot_every: int = 10
    """Epochs between snapshots of 1,024 fixed training images, for the study of how it learned; 0:
    never.
    """
    checkpoint_every: int = 10
    """Epochs between checkpoints (one is always written at the end and on a signal)."""

    views: ViewConfig = field(default_factory=ViewConfig)
    """SimCLR's augmentations."""

    def __post_init__(self) -> None:
        typed(type(self), {name: value for name, value in vars(self).items() if name != "views"})
        if not isinstance(self.views, ViewConfig):
            raise UserError(
                f"views must be a ViewConfig, not {self.views!r}; make one with"
                " sureclr.ViewConfig(...)."
            )
        for rule, holds, value in self._rules():
            if not holds:
                raise UserError(f"{rule}; got {value}.")
        if self.micro_batch and self.batch_size % self.micro_batch:
            nearest = max(1, round(self.batch_size / self.micro_batch)) * self.micro_batch
            raise UserError(
                f"batch_size {self.batch_size} is not a multiple of micro_batch {self.micro_batch};"
                f" try batch_size {nearest}."
            )

    def _rules(self) -> list[tuple[str, bool, Any]]:
        return [
            (
                (
                    "batch_size must be at least 2, because a batch of 1 has no other image to"
                    " contrast with"
                ),
                self.batch_size >= 2,
                self.batch_size,
            ),
            (
                "micro_batch must be at least 2 (BN needs more than one image) or left out",
                self.micro_batch is None or self.micro_batch >= 2,
                self.micro_batch,
            ),
            ("epochs must be at least 1", self.epochs >= 1, self.epochs),
            (
                "projection_layers must be 1 to 4",
                1 <= self.projection_layers <= 4,
                self.projection_layers,
            ),
            ("projection_dim must be at least 2", self.projection_dim >= 2, self.projection_dim),
            (
                "projection_hidden must be positive or left out",
                self.projection_hidden is None or self.projection_hidden >= 1,
                self.projection_hidden,
            ),
            (
                "size must be at least 4 pixels or left out",
                self.size is None or self.size >= 4,
                self.size,
            ),
            (
                "learning_rate must be a positive number",
                0 < self.learning_rate < float("inf"),
                self.learning_rate,
            ),
            (
                "weight_decay must not be negative",
                0 <= self.weight_decay < float("inf"),
                self.weight_decay,
            ),
            (
                "warmup_epochs must not be negative, and finite",
                0 <= self.warmup_epochs < float("inf"),
                self.warmup_epochs,
            ),
            ("seed must not be negative, and below 2^31", 0 <= self.seed < 2**31, self.seed),
            (
                "monitor_every, snapshot_every and checkpoint_every must not be negative",
                min(self.monitor_every, self.snapshot_every, self.checkpoint_every) >= 0,
                (self.monitor_every, self.snapshot_every, self.checkpoint_every),
            ),
        ]

    def objective_options(self) -> dict[str, Any]:
        """The loss's options by the names of `sureclr.maths.objectives.objective`; None: the loss's
        own default.
        """
        simclr = self.softening is None and self.loss == "sure" and self.certainty_gradient == "off"
        return {
            "temperature": self.temperature,
            "weight": self.certainty_weight,
            "dimension": self.kernel_dimension,
            "empirical_prior": self.empirical_prior,
            "softening": "off" if simclr else self.softening,
            "samples": self.samples,
        }


class _Loader(yaml.SafeLoader):
    """YAML 1.2's idea of a truth value: `off` is a word, as on the command line."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag != "tag:yaml.org,2002:bool" or first in "tTfF"
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}

_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; UserError where there is none."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise UserError(
            f"the configuration {path} cannot be read ({error.strerror}); give the path of a YAML"
            " file."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            f"the configuration {path} is not valid YAML: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(content, dict):
        raise UserError(
            f"the configuration {path} must be a mapping of keys to values, as `sureclr pretrain"
            " --dry-run` prints it."
        )
    return content


def from_dict(values: dict[str, Any]) -> PretrainConfig:
    """A checked configuration from plain values (a file's); unknown keys and values of another type
    are refused by name.
    """
    plain = typed(PretrainConfig, {key: value for key, value in values.items() if key != "views"})
    if "source" not in plain:
        raise UserError("the configuration names no source; add for example `source: digits`.")
    return PretrainConfig(
        **plain, views=ViewConfig(**typed(ViewConfig, view_values(values), "views."))
    )


def view_values(values: dict[str, Any]) -> dict[str, Any]:
    """What plain values say of the views; {} where nothing."""
    views = values.get("views") or {}
    if not isinstance(views, dict):
        raise UserError(
            f"configuration key views must be a mapping of its own keys to values, not {views!r}."
        )
    return views


def typed(config: type, values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values as the fields of a configuration class want them: a whole number where a float is
    wanted, a tuple for a list.
    """
    hints = get_type_hints(config)
    for key in values:
        if key not in hints:
            raise unknown("configuration key", f"{prefix}{key}", [prefix + name for name in hints])
    return {key: _as(hints[key], value, prefix + key) for key, value in values.items()}


def _as(hint: Any, value: Any, key: str) -> Any:
    """One value as its type hint wants it, or a UserError."""
    choices = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    for choice in choices:
        if get_origin(choice) is Literal and value in get_args(choice):
            return value
        if (
            get_origin(choice) is tuple
            and isinstance(value, list | tuple)
            and len(value) == len(get_args(choice))
        ):
            return tuple(
                _as(part, entry, key) for part, entry in zip(get_args(choice), value, strict=True)
            )
        if choice is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if choice in (int, str, NoneType) and type(value) is choice:
            return value
    raise UserError(
        f"configuration key {key} must be {' or '.join(map(_told, choices))}; got {value!r}."
    )


def _told(choice: Any) -> str:
    """A type in words."""
    if get_origin(choice) is Literal:
        words = [str(word) for word in get_args(choice)]
        return words[0] if len(words) == 1 else f"one of {', '.join(words)}"
    return (
        "nothing"
        if choice is NoneType
        else str(choice)
        if get_origin(choice)
        else str(choice.__name__)
    )


def to_yaml(config: PretrainConfig) -> str:
    """The configuration as YAML, in the order of its fields; `from_dict(read_yaml(...))` gives it
    back.
    """
    plain = asdict(config)
    plain["views"] = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in plain["views"].items()
    }
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def differing(one: PretrainConfig, other: PretrainConfig) -> list[str]:
    """The keys in which two configurations differ."""
    return [
        f.name for f in fields(PretrainConfig) if getattr(one, f.name) != getattr(other, f.name)
    ]
