"""The complete configuration of a pretraining run, and the YAML file that stores it.

Every default stands here and nowhere else. A recipe is a function that returns a configuration
(recipes.py). The docstring of a field is also the help text of its option on the command line.
"""

import math
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from sureclr.errors import UserError, unknown
from sureclr.files import read_file

# Side of people's own pictures. STL-10's: objects can be recognised, 27 KB an image, and a CPU can
# still train on it
DEFAULT_SIZE = 96
LARGEST_CONFIGURATION = 1 << 16  # bytes; ours have about 2,000
LARGEST_TREE = 10_000  # values in a configuration, those behind YAML's aliases included
LARGEST = {  # what decides memory and time; far above what anybody has used
    "size": 4096,
    "projection_dim": 1 << 16,
    "projection_hidden": 1 << 16,
    "samples": 1 << 16,
    "epochs": 1_000_000,
    "batch_size": 1 << 20,
    "micro_batch": 1 << 20,
    "warmup_epochs": 1_000_000,
    "monitor_every": 1_000_000,
    "snapshot_every": 1_000_000,
    "checkpoint_every": 1_000_000,
    "seeds": 10_000,
}
LARGEST_NUMBER = {  # numbers above these overflow in float32, whose largest is 3e38
    "learning_rate": 1e38,
    "classifier_learning_rate": 1e38,
    "weight_decay": 1e38,
    "temperature": 10**9,
    "certainty_weight": 10**9,
    "kernel_dimension": 10**9,
    "null_weight": 10**9,
}
LEAST_TEMPERATURE = 1e-9  # cosines over a smaller one overflow where they are squared
MOST_EXTENSIONS = 100  # of a run
PRESENCE: Literal["on", "off"] = "off"  # of a run with the loss sure
NULL_FRACTION = 0.125  # null views of a step as a share of its images, where the loss uses them
NullKind = Literal["noise", "tiles"]
NULL_KINDS: tuple[NullKind, ...] = get_args(NullKind)
MOST_VIEWS = 1000  # of an image, whose features are stored
COSINE_SHARE, CONSTANT_SHARE = 0.5, 0.1  # of the learning rate, which an extension has by default
LARGEST_AMOUNT = 1000  # of a change of colour; every pixel is black or white long before


@dataclass(frozen=True)
class ViewConfig:
    """SimCLR's random views of an image (Chen et al. 2020, appendix A).

    The defaults are the paper's. A probability of 0 switches an operation off.
    """

    crop_area: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest area of the random crop, as fractions of the image's area. Raise the
    first one where small objects would often be cut away.
    """
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest ratio of width to height of the random crop."""
    flip: float = 0.5
    """Probability of a left-right flip. Use 0 where a mirror image means something else, as for
    digits and letters.
    """
    jitter_p: float = 0.8
    """Probability that a view's colours are changed at random."""
    strength: float = 1.0
    """Factor for the four amounts of colour change below. The paper uses 0.5 for CIFAR-10."""
    brightness: float = 0.8
    """Amount by which the brightness changes: at strength 1 its factor lies between 1 - amount (at
    least 0) and 1 + amount.
    """
    contrast: float = 0.8
    """Amount by which the contrast changes, as for brightness."""
    saturation: float = 0.8
    """Amount by which the saturation of the colours changes, as for brightness."""
    hue: float = 0.2
    """Amount by which the hue changes, in turns of the colour circle: at strength 1 it moves by up
    to this much either way. Times strength it is at most 0.5.
    """
    grey_p: float = 0.2
    """Probability that a view loses its colours."""
    blur_p: float = 0.5
    """Probability of a Gaussian blur. Use 0 for small images, where a blur removes too much."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Smallest and largest standard deviation of the blur, in pixels."""
    blur_kernel: float = 0.1
    """Width of the blur's kernel as a fraction of the image's shorter side: by default 3
    pixels at 32 and 9 at 96, and none below 20.
    """

    def __post_init__(self) -> None:
        """Refuse values that cannot be used.

        Raises:
            UserError: a value of another type or out of range; the sentence names its field.
        """
        _check_types(self, "views.")
        for name in ("flip", "jitter_p", "grey_p", "blur_p", "blur_kernel"):
            _check_view(self, name, 0 <= getattr(self, name) <= 1, "must lie in [0, 1]")
        for name in ("strength", "brightness", "contrast", "saturation", "hue"):
            _check_view(
                self,
                name,
                0 <= getattr(self, name) <= LARGEST_AMOUNT,
                f"must be zero (off) or positive, and at most {LARGEST_AMOUNT:,}",
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
        """Return the views for fine-tuning with labels: crops of at least half the area, and flips.

        Args:
            flip: probability of a left-right flip.
        """
        return cls(crop_area=(0.5, 1.0), flip=flip, jitter_p=0, grey_p=0, blur_p=0)

    def blur_radius(self, height: int, width: int) -> int:
        """Return the number of kernel pixels on each side of the blur's centre pixel.

        The kernel is 2 radius + 1 pixels wide; 0 means no blur. SimCLR's own rounding.

        Args:
            height: of the image, in pixels.
            width: of the image, in pixels.
        """
        return int(self.blur_kernel * min(height, width) + 1e-9) // 2


def _check_view(config: ViewConfig, name: str, holds: bool, rule: str) -> None:
    if not holds:
        default = next(field.default for field in fields(config) if field.name == name)
        raise UserError(
            f"views.{name} {rule}, not {getattr(config, name)}; SimCLR's value is {default}."
        )


Pages = Literal["first", "all"]
Interpolation = Literal["bilinear", "bicubic"]
Freeze = Literal["off", "stages", "backbone"]
Pooling = Literal["auto", "token", "avg"]
NAMED_WEIGHTS = ("random", "timm")  # all other first weights are named by a path
OF_THE_NETWORK = ("encoder", "stem", "pool")  # what a run takes from the run that it starts from
FirstEncoder = Literal["untrained", "pretrained", "frozen"]
FIRST_ENCODERS: dict[FirstEncoder, str] = {  # in the words of summaries and reports
    "untrained": "untrained encoder",
    "pretrained": "backbone as it came",
    "frozen": "backbone as it came",
}
# Of "folder:PATH" and the other forms of a source of picture files
PICTURE_SOURCES = ("folder", "list", "tar", "parquet", "hf")
ONNX = "onnx"  # recorded as the name of an encoder that is the network of an ONNX file
TABLE = "table"  # begins the name of a source of features made elsewhere; the encoder of its runs


@dataclass(frozen=True)
class ReadOptions:
    """How picture files become pixels. A run stores them, so that later images are read alike.

    Attributes:
        size: side of the square images in pixels; None: the data set's own, and for picture files
            96, or less where most of them are smaller.
        channels: 1 (grey), 3 (RGB), or another number of bands up to 32; None: the data set's own,
            and for picture files 3, unless all of them have another number of bands.
        value_range: the values that become black and white in images of more than 8 bits; None:
            found in the images.
        pages: whether only the first page of a file with several pages is an image, or each page.
        centre_share: side of the centre square that is embedded, as a share of the shorter side; it
            is cut out of the resized picture, see `raster_pixels.centre_box`. None: the largest
            square, which is cut out before it is resized.
        interpolation: filter that resizes this square.
        cache_scale: shorter side of the whole pictures from which views are cropped, as a multiple
            of `size`. Pictures are never enlarged for it.
        strict: whether a file that cannot be read is an error.
        allow_unreadable: whether more than a tenth of the files may be unreadable.
        unsplit: whether the images are only to be classified: there are no splits then, and every
            picture is read, also copies and those that splits leave out.
        verify: whether every byte of the cache of decoded pictures is checked, which is only
            needed where a disk may have changed one by itself (see `data.cache_manifest`).

    Raises:
        UserError: a value of another type or out of range; the sentence names its field.
    """

    size: int | None = None
    channels: int | None = None
    value_range: tuple[float, float] | None = None
    pages: Pages = "first"
    centre_share: float | None = None
    interpolation: Interpolation = "bilinear"
    cache_scale: float = 2.0
    strict: bool = False
    allow_unreadable: bool = False
    unsplit: bool = False
    verify: bool = False

    def __post_init__(self) -> None:
        """Refuse values that cannot be used."""
        _check_types(self)
        check_rules(_read_rules(self))
        check_largest(self)


@dataclass(frozen=True)
class TrainingPart:
    """Epochs of a run that were planned together: its first ones, or those of an extension.

    Attributes:
        epochs: their number.
        schedule: learning rate after the warm-up: constant; cosine (half a cosine down to zero); or
            restart, which is a cosine without a warm-up (Loshchilov and Hutter 2017).
        learning_rate: highest learning rate.
        warmup_epochs: epochs in which the learning rate rises to it from zero.

    Raises:
        UserError: a value of another type or out of range; the sentence names its field.
    """

    epochs: int
    schedule: Literal["cosine", "constant", "restart"]
    learning_rate: float
    warmup_epochs: float = 0.0

    def __str__(self) -> str:
        """Describe the part in a few words."""
        count = f"{self.epochs:,} epoch{'s' * (self.epochs != 1)}"
        return f"{count}, {self.schedule}, learning_rate {self.learning_rate:g}"

    def __post_init__(self) -> None:
        """Refuse values that cannot be used."""
        _check_types(self, "extensions.")
        check_rules(_rules_of_a_part(self))
        check_largest(self)


@dataclass(frozen=True)
class PretrainConfig:
    """Everything that decides what a pretraining run learns.

    Where the run is written, and on which machine it runs, are arguments of `pretrain`.
    """

    source: str
    """Images to train on: digits, fashion-mnist, cifar10, cifar100, stl10, or folder:PATH for your
    own (`sureclr list` names other forms).
    """
    size: int | None = None
    """Side of the images in pixels. Default: that of the data set. For your own pictures it is 96,
    or less where most of them are smaller, so that nothing is enlarged.
    """
    channels: int | None = None
    """Number of bands of the images: 1 (grey), 3 (RGB), or up to 32 for multispectral files.
    Default: that of the data set; for your own pictures 3, unless all have another number.
    """
    value_range: tuple[float, float] | None = None
    """Values that become black and white in images of more than 8 bits. Default: found in the
    images, one range for all of them.
    """
    pages: Pages = "first"
    """What is an image in a file of several pages or frames: the first page, or each page (all)."""
    centre_share: float | None = None
    """Side of the square that is cut out of the middle of a picture to embed it, as a share of the
    picture's shorter side. Default: that with which a pretrained encoder was evaluated; else the
    largest square.
    """
    interpolation: Literal["auto", "bilinear", "bicubic"] = "auto"
    """Filter that resizes these squares (antialiased): bilinear, bicubic, or auto, which is that of
    a pretrained encoder, else bilinear.
    """
    pixel_mean: tuple[float, ...] | None = None
    """Mean of each channel's pixels in [0, 1], which is subtracted. Default: that of the training
    images, or that with which a pretrained encoder was trained.
    """
    pixel_std: tuple[float, ...] | None = None
    """Standard deviation of each channel's pixels, by which they are divided; as for pixel_mean."""
    cache_scale: float = 2.0
    """Shorter side of the stored pictures from which views are cropped, as a multiple of the size.
    A larger one gives sharper small crops and needs more disk.
    """
    strict: bool = False
    """Stop at an image file that cannot be read. Default: leave it out, and say so."""
    allow_unreadable: bool = False
    """Go on where more than a tenth of the image files cannot be read."""

    encoder: str = "resnet18"
    """Network that is trained: small (quick on a CPU) or the name of any timm model."""
    stem: Literal["auto", "imagenet", "cifar"] = "auto"
    """First layers of the encoder: imagenet; cifar (3x3 convolution, stride 1, no pooling), which
    suits images of about 32 pixels; or auto, which is cifar for images of at most 40 pixels where
    the encoder has such a stem and starts from random weights, else imagenet.
    """
    init: str = "random"
    """First weights of the encoder: random; timm (the pretrained ones of the timm model); the
    folder of a run; a file of weights (safetensors, or a PyTorch state dict: .pth, .pt, .bin); or
    an ONNX file, whose network takes the place of the encoder and is not trained.
    """
    init_by_order: bool = False
    """Accept a file whose tensors have other names, if they have the shapes of the encoder's in the
    same order.
    """
    freeze: Freeze = "off"
    """What of a pretrained encoder is not trained: backbone (all of it: features of cached_views
    views of each image are computed once, and only the heads are trained); stages (all but its last
    stage); or off, which trains everything. On the command line, --freeze alone means backbone.
    """
    cached_views: int = 8
    """With freeze=backbone: number of views of each image whose features are computed and stored,
    from which each step draws two. More need more time and disk and are usually better.
    """
    pool: Pooling = "auto"
    """How a vision transformer makes one vector of an image: token (its class token), avg (the mean
    over the patches), or auto, which is what the model was made with.
    """
    projection_dim: int = 128
    """Number of coordinates of the direction, which is the output of the projection head."""
    projection_layers: int = 2
    """Number of linear layers in the projection head, 1 to 4."""
    projection_hidden: int | None = None
    """Width of the hidden layers in the projection head. Default: the number of features of the
    encoder.
    """

    loss: str = "sure"
    """Loss to minimise: sure (learns certainty), nt-xent (SimCLR), or another one that
    `sureclr list` names.
    """
    temperature: float | None = None
    """Temperature of the loss; a lower one separates similar images more sharply. Default: the
    loss's own.
    """
    certainty_weight: float | None = None
    """Weight of the part of the loss that teaches certainty. Default: the loss's own."""
    kernel_dimension: float | Literal["measured"] | None = None
    """How many directions the loss assumes to be in use. Default: all of them. measured: estimated
    from the images while training; the radius is then better calibrated.
    """
    empirical_prior: float | None = None
    """For loss research. 0 (default): any direction is equally likely beforehand. 1: directions are
    as likely as they are common in the batch, so certainty means "sure which image this is".
    """
    softening: Literal["anchors", "means", "off"] | None = None
    """How much an unsure view counts. anchors (default): its own comparisons are softened. means:
    those of other views with it, too. off: every view counts the same, as in SimCLR (also the
    default where certainty_gradient is off).
    """
    presence: Literal["on", "off"] | None = None
    """Whether certainty has a second number, the probability that an image shows anything of the
    kind of the training images at all. on: the loss sure learns it beside the radius. Default: off.
    """
    null_fraction: float | None = None
    """Null views of a training step, as a share of batch_size: images of nothing, from which the
    loss sure learns what it looks like when there is nothing to see. 0: none. Default: 0.125 where
    the loss has a presence, else 0.
    """
    null_kinds: tuple[NullKind, ...] = NULL_KINDS
    """Kinds of null views, each of which is as frequent as the others: noise (coloured noise of
    random smoothness, contrast and colour), tiles (training images with their small tiles
    shuffled).
    """
    null_weight: float | None = None
    """How much a null view counts beside an image, in what teaches certainty. With more, certainty
    tells images of nothing better and crops from whole images worse. Default: 1.
    """
    samples: int | None = None
    """Monte Carlo samples a view; only for the loss mc-infonce. More are slower and less noisy.
    Default: the loss's own.
    """
    certainty_gradient: Literal["on", "off"] = "on"
    """on: learning how sure to be also shapes the features. off: certainty is learned on the side,
    and the features are exactly SimCLR's.
    """

    epochs: int = 200
    """Number of passes over the training images. More is slower and usually better."""
    batch_size: int = 512
    """Number of images in a training step; the loss compares two views of each with all others.
    Lower it only where there are fewer images; if memory runs out, set micro_batch instead.
    """
    micro_batch: int | None = None
    """Number of images in memory at once. A smaller number saves memory; the loss still compares
    the whole batch, and only batch normalisation sees less. Default: batch_size, or less where that
    does not fit.
    """
    optimizer: Literal["adam", "lars", "sgd"] = "adam"
    """Optimizer: adam; lars for batches of 1024 and more; or sgd with Nesterov momentum."""
    learning_rate: float = 1e-3
    """Highest learning rate, which is reached after the warm-up. Lower it if training diverges."""
    layer_decay: float = 1.0
    """Factor of the learning rate from each block of the encoder to the one before it, so that
    early blocks of a pretrained encoder change less (0.65 to 0.9 are usual). 1: all learn alike.
    """
    weight_decay: float = 1e-6
    """Strength of the L2 penalty on weight matrices; biases and norms have none."""
    warmup_epochs: float = 10
    """Epochs in which the learning rate rises to its highest value; with the schedule cosine at
    most half of all.
    """
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate after the warm-up: cosine (it falls to zero), or constant. Only a constant one
    can be extended later as if the run had been planned longer.
    """
    extensions: tuple[TrainingPart, ...] = ()
    """Parts of the training that were added when the run was complete (see `extended`)."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the network: float32, bfloat16, or auto, which is bfloat16 on GPUs that
    compute in it and on CPUs with AMX, else float32. The loss is always computed in float32.
    """
    compile: Literal["auto", "on", "off"] = "auto"
    """Whether torch compiles the network and the views, which is faster on GPUs and takes a minute
    at the start: on, off, or auto, which is on for CUDA GPUs if it works there.
    """
    seed: int = 0
    """Seed of the first weights, the order of the images and every view. Another seed gives another
    run.
    """

    monitor_every: int = 5
    """Epochs between quality checks while training: accuracy of nearest neighbours, alignment,
    uniformity, effective rank. 0: never.
    """
    snapshot_every: int = 10
    """Epochs between records of how 1,024 fixed training images are seen, from which `learning` is
    evaluated. 0: never.
    """
    checkpoint_every: int = 10
    """Epochs between checkpoints from which training can resume. One is always written at the end
    and when a signal stops the run; 0: only these.
    """

    views: ViewConfig = field(default_factory=ViewConfig)
    """The random views of the images."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be used.

        Raises:
            UserError: a value of another type or out of range; the sentence names its field.
        """
        _check_types(self)
        if not isinstance(self.views, ViewConfig):
            raise UserError(
                f"views must be a ViewConfig, not {self.views!r}; make one with"
                " sureclr.ViewConfig(...)."
            )
        check_rules(self._rules())
        check_largest(self)
        if self.micro_batch and self.batch_size % self.micro_batch:
            nearest = max(1, round(self.batch_size / self.micro_batch)) * self.micro_batch
            raise UserError(
                f"batch_size {self.batch_size} is not a multiple of micro_batch {self.micro_batch};"
                f" try batch_size {nearest}."
            )

    def _rules(self) -> list["Rule"]:
        """(The rule in words, whether it holds, the value) of each rule about one field."""
        return [
            (
                "source must be a name or folder:PATH, without a zero byte",
                bool(self.source) and "\0" not in self.source,
                self.source,
            ),
            (
                "batch_size must be at least 2, because a batch of 1 has no other image to compare"
                " with",
                self.batch_size >= 2,
                self.batch_size,
            ),
            (
                "micro_batch must be at least 2 (batch normalisation needs more than one image), or"
                " None",
                self.micro_batch is None or self.micro_batch >= 2,
                self.micro_batch,
            ),
            (
                f"extensions must be at most {MOST_EXTENSIONS}",
                len(self.extensions) <= MOST_EXTENSIONS,
                len(self.extensions),
            ),
            (
                "projection_layers must be 1 to 4",
                1 <= self.projection_layers <= 4,
                self.projection_layers,
            ),
            ("projection_dim must be at least 2", self.projection_dim >= 2, self.projection_dim),
            (
                "projection_hidden must be positive, or None",
                self.projection_hidden is None or self.projection_hidden >= 1,
                self.projection_hidden,
            ),
            *_read_rules(self),
            (
                "pixel_mean must be a number from 0 to 1 for each channel, or None",
                self.pixel_mean is None or _all_within(self.pixel_mean, 0, 1),
                self.pixel_mean,
            ),
            (
                "pixel_std must be a number from 0.001 to 10 for each channel, or None",
                self.pixel_std is None or _all_within(self.pixel_std, 1e-3, 10),
                self.pixel_std,
            ),
            (
                "pixel_mean and pixel_std must be given together, with a number for each channel",
                len(self.pixel_mean or ()) == len(self.pixel_std or ()),
                (self.pixel_mean, self.pixel_std),
            ),
            *_rules_of_a_part(self),
            (
                "init must be random, timm or a path",
                bool(self.init) and "\0" not in self.init,
                self.init,
            ),
            (
                f"cached_views must be 2 to {MOST_VIEWS:,}",
                2 <= self.cached_views <= MOST_VIEWS,
                self.cached_views,
            ),
            (
                "layer_decay must be above 0 and at most 1",
                0 < self.layer_decay <= 1,
                self.layer_decay,
            ),
            (
                "weight_decay must not be negative, and finite",
                0 <= self.weight_decay < math.inf,
                self.weight_decay,
            ),
            _seed_rule(self.seed),
            (
                f"temperature must be at least {LEAST_TEMPERATURE:g}, or None for the loss's own",
                self.temperature is None or self.temperature >= LEAST_TEMPERATURE,
                self.temperature,
            ),
            (
                "certainty_weight must be 0 or a positive number, or None for the loss's own",
                self.certainty_weight is None or self.certainty_weight >= 0,
                self.certainty_weight,
            ),
            (
                "kernel_dimension must be a number above 1, measured, or None for all coordinates",
                not isinstance(self.kernel_dimension, int | float) or self.kernel_dimension > 1,
                self.kernel_dimension,
            ),
            (
                "empirical_prior must lie in [0, 1], or be None for 0",
                self.empirical_prior is None or 0 <= self.empirical_prior <= 1,
                self.empirical_prior,
            ),
            (
                "null_fraction must lie in [0, 1], or be None",
                self.null_fraction is None or 0 <= self.null_fraction <= 1,
                self.null_fraction,
            ),
            (
                "null_kinds must name at least one kind, and none twice",
                0 < len(self.null_kinds) == len(set(self.null_kinds)),
                self.null_kinds,
            ),
            (
                "null_weight must be 0 or a positive number, or None for the loss's own",
                self.null_weight is None or self.null_weight >= 0,
                self.null_weight,
            ),
            (
                "samples must be at least 1, or None for the loss's own",
                self.samples is None or self.samples >= 1,
                self.samples,
            ),
            *(
                (f"{name} must not be negative", getattr(self, name) >= 0, getattr(self, name))
                for name in ("monitor_every", "snapshot_every", "checkpoint_every")
            ),
        ]

    @property
    def read_options(self) -> ReadOptions:
        """Return how the picture files of the source become pixels."""
        return ReadOptions(
            size=self.size,
            channels=self.channels,
            value_range=self.value_range,
            pages=self.pages,
            centre_share=self.centre_share,
            interpolation="bicubic" if self.interpolation == "bicubic" else "bilinear",
            cache_scale=self.cache_scale,
            strict=self.strict,
            allow_unreadable=self.allow_unreadable,
        )

    @property
    def trainable(self) -> bool:
        """Return whether the encoder can be trained, which features and an ONNX file cannot."""
        return self.encoder not in (ONNX, TABLE)

    @property
    def nulls(self) -> int:
        """Return the number of null views of a training step; a fraction above 0 gives one."""
        fraction = self.null_fraction or 0.0
        return max(1, round(fraction * self.batch_size)) if fraction else 0

    @property
    def of_table(self) -> bool:
        """Return whether features that were made elsewhere take the place of images."""
        return self.source.startswith(f"{TABLE}:")

    @property
    def pretrained(self) -> bool:
        """Return whether the encoder does not begin with random weights."""
        return self.init != "random"

    @property
    def all_epochs(self) -> int:
        """Return the number of epochs of the whole run, with those of its extensions."""
        return self.epochs + sum(part.epochs for part in self.extensions)

    @property
    def parts(self) -> list[TrainingPart]:
        """Return the parts of the training in turn.

        An extension that goes on with the same constant rate is one part with what it extends, so
        that their rates are those of a run that was planned longer.
        """
        first = TrainingPart(self.epochs, self.schedule, self.learning_rate, self.warmup_epochs)
        found = [first]
        for part in self.extensions:
            last = found[-1]
            goes_on = part == replace(last, epochs=part.epochs, warmup_epochs=0)
            if goes_on and last.schedule == "constant":
                found[-1] = replace(last, epochs=last.epochs + part.epochs)
            else:
                found.append(part)
        return found

    def extended(
        self,
        epochs: int,
        schedule: Literal["cosine", "constant", "restart"] | None = None,
        learning_rate: float | None = None,
    ) -> "PretrainConfig":
        """Return the configuration with which a complete run trains on.

        `pretrain(run.config.extended(50), out=run.path, resume=True)` takes 50 more epochs. Given
        again, it does not extend twice, but goes on with an extension that was interrupted.

        Args:
            epochs: number of epochs to add.
            schedule: `constant`; `cosine`, which warms up during a tenth of the extension (at most
                `warmup_epochs`) and falls to zero; or `restart`, which begins at its highest rate
                and falls to zero. None: constant if the run ended with a constant rate, else
                cosine.
            learning_rate: the highest. None: of constant the rate with which the run ended, or, if
                that is zero, a tenth of the run's `learning_rate`; of cosine half of the run's
                `learning_rate`; of restart the run's `learning_rate`.

        Raises:
            UserError: a value out of range.
        """
        last = self.parts[-1]
        flat = last.schedule == "constant"
        schedule = schedule or ("constant" if flat else "cosine")
        if learning_rate is None:
            ended = last.learning_rate if flat else self.learning_rate * CONSTANT_SHARE
            rates = {"constant": ended, "cosine": self.learning_rate * COSINE_SHARE}
            learning_rate = rates.get(schedule, self.learning_rate)
        check_rules([("an extension must have at least 1 epoch", epochs >= 1, epochs)])
        warmup = min(self.warmup_epochs, epochs / 10) if schedule == "cosine" else 0.0
        part = TrainingPart(epochs, schedule, learning_rate, warmup)
        return replace(self, extensions=(*self.extensions, part))

    def extends(self, earlier: "PretrainConfig") -> bool:
        """Return whether this is another configuration with some more extensions, or none."""
        given = self.extensions[: len(earlier.extensions)]
        return replace(self, extensions=given) == earlier

    @property
    def first_encoder(self) -> FirstEncoder:
        """Return what the encoder was before the first step, with which evaluations compare it.

        A frozen one is that at any time.
        """
        if self.freeze == "backbone":
            return "frozen"
        return "pretrained" if self.pretrained else "untrained"

    @property
    def first_encoder_name(self) -> str:
        """Return what summaries and reports call the encoder before the first step."""
        return FIRST_ENCODERS[self.first_encoder]

    def objective_options(self) -> dict[str, Any]:
        """Return the loss's options by the argument names of `sureclr.maths.objectives.objective`.

        None stands for the loss's own default.
        """
        simclr = self.softening is None and self.loss == "sure" and self.certainty_gradient == "off"
        # Off is what every other loss has, too
        presence = "on" if self.presence == "on" else "off" if self.loss == "sure" else None
        return {
            "temperature": self.temperature,
            "weight": self.certainty_weight,
            "dimension": self.kernel_dimension,
            "empirical_prior": self.empirical_prior,
            "softening": "off" if simclr else self.softening,
            "presence": presence,
            "null_weight": self.null_weight,
            "samples": self.samples,
        }


Rule = tuple[str, bool, Any]  # the rule in words, whether it holds, the value


def _rules_of_a_part(part: "TrainingPart | PretrainConfig") -> list[Rule]:
    """Return the rules about epochs and rates, which the first part of a run has in common."""
    return [
        ("epochs must be at least 1", part.epochs >= 1, part.epochs),
        (
            "learning_rate must be a positive number",
            0 < part.learning_rate < math.inf,
            part.learning_rate,
        ),
        (
            "warmup_epochs must not be negative, and finite",
            0 <= part.warmup_epochs < math.inf,
            part.warmup_epochs,
        ),
    ]


def _all_within(values: tuple[float, ...], low: float, high: float) -> bool:
    return bool(values) and all(low <= value <= high for value in values)


def _read_rules(options: ReadOptions | PretrainConfig) -> list[Rule]:
    """Return the rules about how picture files become pixels; an encoder needs 4 x 4 of them."""
    values, least = options.value_range, 4 if isinstance(options, PretrainConfig) else 1
    return [
        (
            f"size must be at least {least} pixel{'s' * (least > 1)}, or None",
            options.size is None or options.size >= least,
            options.size,
        ),
        (
            "channels must be 1 (grey), 3 (RGB), or another number of bands up to 32, or None",
            options.channels is None or 1 <= options.channels <= 32,
            options.channels,
        ),
        (
            "value_range must be two finite numbers, the smaller first, or None",
            values is None or -math.inf < values[0] < values[1] < math.inf,
            values,
        ),
        (
            "centre_share must be above 0.1 and at most 1, or None",
            options.centre_share is None or 0.1 < options.centre_share <= 1,
            options.centre_share,
        ),
        ("cache_scale must be 1 to 8", 1 <= options.cache_scale <= 8, options.cache_scale),
    ]


def _seed_rule(seed: object) -> Rule:
    holds = isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < 2**31
    return "seed must not be negative, and below 2^31", holds, seed


def check_seed(seed: object) -> None:
    """Raise a `UserError` unless a seed is a whole number from 0 to 2^31 - 1."""
    check_rules([_seed_rule(seed)])


def check_rules(rules: Iterable[Rule]) -> None:
    """Raise a `UserError` with the first rule that does not hold, and the value."""
    for rule, holds, value in rules:
        if not holds:
            raise UserError(f"{rule}; got {shown(value)}.")


def check_largest(config: object) -> None:
    """Raise a `UserError` if a field of a configuration is above its bound; it names the field."""
    reasons = (
        (LARGEST, "so that a slip of the pen cannot take all memory or time"),
        (LARGEST_NUMBER, "because larger numbers overflow in training"),
    )
    for bounds, reason in reasons:
        for name, largest in bounds.items():
            value = getattr(config, name, None)
            if isinstance(value, int | float) and value > largest:
                raise UserError(
                    f"{name} must be at most {largest:,}, {reason}; got {shown(value)}."
                )


def _check_types(config: Any, prefix: str = "") -> None:
    """Raise a `UserError` if a field has another type; a list becomes a tuple where one is due.

    A field that is a configuration itself has checked itself.
    """
    values = {name: value for name, value in vars(config).items() if name != "views"}
    for name, value in as_field_types(type(config), values, prefix).items():
        if isinstance(values[name], list):
            object.__setattr__(config, name, value)


def shown(value: object) -> str:
    """Return a value in the words of an error message: at most 200 characters of its `repr`."""
    try:
        return repr(value)[:200]
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "a number of thousands of digits"


class _Loader(yaml.SafeLoader):
    """YAML 1.2's truth values and numbers: `off` is a word, and `1e-3` is a number.

    A key that comes twice and a number of more than 4,096 bits raise a ValueError: of two values
    one would be lost in silence, and Python cannot print a number of 5,000 digits.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = [key for key in keys if keys.count(key) > 1]
        if twice:
            raise ValueError(f"the key {twice[0]!r:.80} comes twice")
        return super().construct_mapping(node, deep)

    def construct_short_int(self, node: yaml.ScalarNode) -> int:
        value = int(self.construct_yaml_int(node))
        if value.bit_length() > 4096:
            raise ValueError(f"the number {node.value:.20}... has more than 4,096 bits")
        return value


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag != "tag:yaml.org,2002:bool" or first in "tTfF"
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}

_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_short_int)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the mapping in a YAML file.

    Raises:
        UserError: the file cannot be read, is too large, is not YAML, or is not a mapping.
    """
    try:
        content = _parsed(read_file(path, LARGEST_CONFIGURATION).decode())
    except OSError as error:
        raise UserError(
            f"the configuration {path} cannot be read ({error.strerror}); use the path of a YAML"
            " file."
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(
            f"the configuration {path} is not valid YAML: {' '.join(str(error).split())[:300]}"
        ) from error
    if not isinstance(content, dict):
        raise UserError(
            f"the configuration {path} must be a mapping of keys to values, as in the config.yaml"
            " of a run folder."
        )
    return content


def _parsed(text: str) -> Any:
    """Return the value that YAML describes; a ValueError if its aliases would make it huge."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _count(node, {}) > LARGEST_TREE:
            raise ValueError(f"it holds more than {LARGEST_TREE:,} values")
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """Return the number of values below a node; a node that holds itself counts as too many."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = LARGEST_TREE + 1  # until it is counted
        pairs = isinstance(node, yaml.MappingNode)
        inner = [part for pair in node.value for part in pair] if pairs else node.value
        known[id(node)] = 1 + sum(_count(part, known) for part in inner)
    return known[id(node)]


def from_dict(values: dict[str, Any]) -> PretrainConfig:
    """Return the configuration that plain values, as read from a file, describe.

    Args:
        values: names of fields and their values; fields that are missing take their defaults.

    Raises:
        UserError: an unknown key, or a value of another type or out of range.
    """
    plain = {key: value for key, value in values.items() if key != "views"}
    converted = as_field_types(PretrainConfig, plain)
    if "source" not in converted:
        raise UserError("the configuration has no source; add for example `source: digits`.")
    views = ViewConfig(**as_field_types(ViewConfig, view_values(values), "views."))
    return PretrainConfig(**converted, views=views)


def view_values(values: dict[str, Any]) -> dict[str, Any]:
    """Return the mapping under the key `views`, or {} where there is none.

    Raises:
        UserError: the value of `views` is not a mapping.
    """
    views = values.get("views") or {}
    if not isinstance(views, dict):
        raise UserError(
            f"configuration key views must be a mapping of its own keys to values, not {views!r}."
        )
    return views


def as_field_types(config: type, values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Convert plain values to the types of a configuration's fields.

    A whole number becomes a float, and a list becomes a tuple, where the field is one.

    Args:
        config: a configuration class.
        values: names of its fields and their values.
        prefix: what error messages put before the name of a field.

    Raises:
        UserError: an unknown name, or a value of another type.
    """
    hints = get_type_hints(config)
    for key in values:
        if key not in hints:
            raise unknown("configuration key", f"{prefix}{key}", [prefix + name for name in hints])
    return {key: _as_type(hints[key], value, prefix + key) for key, value in values.items()}


def _as_type(hint: object, value: object, key: str) -> object:
    """Convert one value to its type hint, or raise a UserError that names the key."""
    choices = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    for choice in choices:
        if get_origin(choice) is Literal and value in get_args(choice):
            return value
        if (
            get_origin(choice) is tuple
            and isinstance(value, list | tuple)
            and (parts := _parts_of_tuple(choice, len(value))) is not None
        ):
            return tuple(
                _as_type(part, entry, key) for part, entry in zip(parts, value, strict=True)
            )
        if choice is TrainingPart and isinstance(value, Mapping):
            return _training_part(value, key)
        if choice is TrainingPart and isinstance(value, TrainingPart):
            return value
        if choice is float and isinstance(value, int | float) and not isinstance(value, bool):
            with suppress(OverflowError):  # a whole number above the largest float
                return float(value)
        if choice in (int, str, bool, NoneType) and type(value) is choice:
            return value
    raise UserError(
        f"configuration key {key} must be {' or '.join(map(_in_words, choices))}; got"
        f" {shown(value)}."
    )


def _training_part(values: Mapping[str, Any], key: str) -> TrainingPart:
    """Return the part that plain values describe, whose `warmup_epochs` may be missing."""
    given = as_field_types(TrainingPart, values, f"{key}.")
    if missing := {"epochs", "schedule", "learning_rate"} - given.keys():
        raise UserError(f"configuration key {key} has an entry without {min(missing)}; add it.")
    return TrainingPart(**given)


def _parts_of_tuple(choice: object, count: int) -> tuple[object, ...] | None:
    """Return the types of `count` entries of a tuple; None where it has another length."""
    parts = get_args(choice)
    if parts[-1] is Ellipsis:
        return (parts[0],) * count
    return parts if len(parts) == count else None


def _in_words(choice: object) -> str:
    """A type in the words of an error message."""
    if get_origin(choice) is Literal:
        words = [str(word) for word in get_args(choice)]
        return words[0] if len(words) == 1 else f"one of {', '.join(words)}"
    if get_origin(choice) is tuple:
        first, last = get_args(choice)[0], get_args(choice)[-1]
        if first is TrainingPart:
            return "a list of mappings"
        return "numbers" if last is Ellipsis else f"{len(get_args(choice))} numbers"
    return "nothing" if choice is NoneType else getattr(choice, "__name__", str(choice))


def to_yaml(config: PretrainConfig) -> str:
    """Return the configuration as YAML, in the order of its fields.

    `from_dict(read_yaml(path))` reads it back.
    """
    plain = asdict(config)
    plain["views"] = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in plain["views"].items()
    }
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def differing(config: PretrainConfig, other: PretrainConfig) -> list[str]:
    """Return the names of the fields in which two configurations differ."""
    return [
        f.name for f in fields(PretrainConfig) if getattr(config, f.name) != getattr(other, f.name)
    ]


READ_OPTIONS = ReadOptions()
