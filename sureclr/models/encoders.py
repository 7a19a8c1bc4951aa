"""Encoders by name: any timm model, one small network that trains on a CPU, and registered ones.

An encoder maps standardised images (n, c, h, w) to pooled features (n, num_features). It has no
classifier.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from difflib import get_close_matches
from functools import cache, partial
from re import fullmatch
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from sureclr.config import Pooling
from sureclr.errors import UserError, unknown
from sureclr.registry import Registry

STEMS = ("imagenet", "cifar")
CIFAR_STEM_PIXELS = 40  # side of the largest images that suit the CIFAR stem
SMALL, SMALL_WIDTH = r"small-([1-9]\d{0,3})", 32
COMMON = (
    "small",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "wide_resnet50_2",
    "convnext_tiny",
    "vit_small_patch16_224",
)
CUSTOM = "custom:"  # begins the recorded name of an encoder or a loss that is an object of the user
STAGE = r"layer\d+|s\d+"  # a stage is a child of the network: ResNet, RegNet
CONTAINERS = (
    "stages",
    "layers",
    "blocks",
)  # children that hold stages or blocks: ConvNeXt, Swin, ViT
FREE_SIZE: tuple[dict[str, Any], ...] = (  # options that let a family take images of any size
    # ViT. `check_side` lets no new run have a part of a patch; runs from before it are padded
    {"dynamic_img_size": True, "dynamic_img_pad": True},
    {"strict_img_size": False},  # Swin
)
POOLS = get_args(Pooling)

EncoderFactory = Callable[[int, str], nn.Module]
ENCODERS: Registry[EncoderFactory] = Registry("encoder", "sureclr.encoders")


def register_encoder(name: str) -> Callable[[EncoderFactory], EncoderFactory]:
    """Return a decorator that registers an encoder under this name.

    It is put on a function `(channels, stem) -> nn.Module` that builds the network with random
    weights. The network maps images (n, channels, h, w) to features (n, f), and its attribute
    `num_features` is f. A package can also declare the function as an entry point of the group
    `sureclr.encoders`.

    Args:
        name: what the user writes in `PretrainConfig(encoder=...)`.

    Raises:
        UserError: there is an encoder of this name already, or the name is one that `encoder`
            reads otherwise.
    """
    if fullmatch(SMALL, name) or name in COMMON or ":" in name:
        raise UserError(f"an encoder cannot be named {name!r}, which has a meaning already.")
    return ENCODERS.register(name)


def encoder(
    name: str,
    stem: str = "imagenet",
    channels: int = 3,
    pretrained: bool = False,
    pool: str = "auto",
) -> nn.Module:
    """Build an encoder by name; it has no classifier, and `num_features` pooled features.

    Args:
        name: `small` (`small-24` is narrower: 24 channels after the stem instead of 32), a
            registered name, or any timm model (`resnet18`, `resnet50`, ...).
        stem: the first layers. `imagenet`: as timm builds them (ResNet: 7x7, stride 2, max-pool;
            `small`: 3x3, stride 2). `cifar`: 3x3, stride 1, no max-pool, as SimCLR does at 32
            pixels (Chen et al. 2020, appendix B.9); only for `small` and the ResNet family.
        channels: 1 for grey images, 3 for colour, or any other number of bands.
        pretrained: load timm's weights, from the local cache or the hub.
        pool: how a vision transformer makes one vector of an image: `token` (its class token),
            `avg` (the mean over the patches, without class and register tokens) or `auto` (as the
            model was made). Both come after the model's own last norm, whose weights stay.

    Raises:
        UserError: the name, the stem or the pooling is unknown, the family has no CIFAR stem or no
            choice of pooling, or the weights cannot be loaded.

    >>> sum(p.numel() for p in encoder("resnet50", stem="cifar").parameters())
    23500352
    """
    if stem not in STEMS:
        raise unknown("stem", stem, STEMS)
    if pool not in POOLS:
        raise unknown("pool", pool, POOLS)
    if name.startswith(CUSTOM):
        raise UserError(
            f"the encoder {name} is a module of your own, and a run stores its weights but not its"
            " code; pass the module again, as the argument `encoder`."
        )
    if factory := _factory(name):
        if pool != "auto":
            raise _no_choice_of_pool(name, pool)
        return _registered(name, factory, channels, stem, pretrained)
    network = _timm(name, channels, pretrained)
    if pool != "auto":
        _set_pool(network, name, pool)
    return _with_cifar_stem(network, name, channels) if stem == "cifar" else network


def stem_for(name: str, size: int) -> Literal["imagenet", "cifar"]:
    """Return the stem that suits images of a size, for an encoder with random weights.

    It is cifar for images of at most 40 pixels and an encoder that has this stem, else imagenet.

    Args:
        name: of the encoder; one that does not exist gets imagenet.
        size: side of the images in pixels.
    """
    return "cifar" if size <= CIFAR_STEM_PIXELS and _has_cifar_stem(name) else "imagenet"


def _has_cifar_stem(name: str) -> bool:
    if name == "small" or fullmatch(SMALL, name):
        return True
    if name.startswith(CUSTOM) or name in ENCODERS:
        return False
    from timm.models import is_model_in_modules

    return bool(is_model_in_modules(name, ["resnet"]))


def _factory(name: str) -> EncoderFactory | None:
    """Return the function that builds an encoder which is not timm's."""
    if width := fullmatch(SMALL, name):
        return partial(_small, width=int(width[1]))
    return cast(EncoderFactory | None, ENCODERS.get(name))


def _registered(
    name: str, factory: EncoderFactory, channels: int, stem: str, pretrained: bool
) -> nn.Module:
    if pretrained:
        raise UserError(
            f"init timm needs a timm encoder, and {name} is none; use init=random or choose a timm"
            " encoder."
        )
    network = factory(channels, stem)
    if not isinstance(getattr(network, "num_features", None), int):
        raise UserError(
            f"the registered encoder {name} has no attribute num_features; set it to the number of"
            " features of an image."
        )
    return network


def _timm(name: str, channels: int, pretrained: bool) -> nn.Module:
    import timm

    if not timm.is_model(name):
        near = get_close_matches(name.lower(), timm.list_models(), cutoff=0.7)
        raise unknown("encoder", name, dict.fromkeys([*ENCODERS, *COMMON, *near]))
    timm_defaults(name)
    try:
        network = _at_any_size(name, pretrained=pretrained, in_chans=channels, num_classes=0)
    except RuntimeError as error:
        if not pretrained:
            raise
        raise UserError(
            f"timm has no pretrained weights for {name} ({error}); use init=random, or init=FILE"
            " with a file of weights."
        ) from error
    except OSError as error:  # the hub's client offline, or an empty cache
        raise UserError(
            f"the pretrained weights of {name} are not in the local hub cache and cannot be"
            " downloaded; download them once while online, or use init=random, or init=FILE with a"
            " file of weights."
        ) from error
    # MobileNet and VGG have another layer behind the pooling, whose width differs
    network.num_features = getattr(network, "head_hidden_size", network.num_features)
    return cast(nn.Module, network)


def timm_defaults(name: str) -> Any:
    """Return what timm says of the pretrained weights of an encoder; None if it has none.

    Args:
        name: of the encoder, of any kind.

    Raises:
        UserError: timm has the network, but no weights of that tag (the word behind the dot).
    """
    if name.startswith(CUSTOM) or _factory(name):
        return None
    import timm

    if not timm.is_model(name):
        return None
    try:
        return timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        network, _, tag = name.partition(".")
        tags = timm.list_pretrained(f"{network}.*")
        raise unknown(f"weights of {network}", tag, [x.partition(".")[2] for x in tags]) from error


def _at_any_size(name: str, **options: Any) -> Any:
    """Build a timm model that takes images of any size, if its family can.

    Transformers are built for one size unless an option says otherwise.
    """
    import timm

    defaults = timm_defaults(name)
    for extra in FREE_SIZE if defaults is not None and defaults.fixed_input_size else ():
        with suppress(TypeError):  # the option of another family
            return timm.create_model(name, **options, **extra)
    return timm.create_model(name, **options)


def _set_pool(network: Any, name: str, pool: str) -> None:
    """Make a vision transformer pool its class token or its patches.

    The model is built and its weights are loaded before, so that its last norm is the one that was
    trained, wherever it stands: before the pooling, or after it in models that were made to
    average.
    """
    from timm.models.beit import Beit
    from timm.models.deit import VisionTransformerDistilled
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    # A distilled model averages two tokens, and has no other way
    if not isinstance(network, VisionTransformer | Eva | Beit) or isinstance(
        network, VisionTransformerDistilled
    ):
        raise _no_choice_of_pool(name, pool)
    if pool == "token" and network.cls_token is None:
        raise UserError(
            f"the encoder {name} has no class token that pool=token could take; use pool=avg, or"
            " leave it out."
        )
    network.reset_classifier(0, global_pool=pool)  # without a pooling by attention, if it had one
    network.pool_include_prefix = False


def _no_choice_of_pool(name: str, pool: str) -> UserError:
    return UserError(
        f"pool={pool} chooses between class token and patches of a vision transformer, and the"
        f" encoder {name} has no such choice; leave it out."
    )


def check_pool(name: str, pool: str) -> None:
    """Raise what `encoder` raises about a pooling, without weights.

    Args:
        name: of the encoder; an encoder of the user's own has no choice of pooling.
        pool: as in `encoder`.
    """
    if pool == "auto":
        return
    if name.startswith(CUSTOM):
        raise _no_choice_of_pool(name, pool)
    with torch.device("meta"):
        encoder(name, pool=pool)


def check_side(name: str, size: int) -> None:
    """Refuse an image size that a vision transformer cannot take, without weights or images.

    The windows of a Swin transformer ask for nothing: where they do not divide its maps, these are
    padded. Images are a whole number of patches, because padding would put black bars into every
    image.

    Args:
        name: of the encoder; one that is not timm's can take any size here.
        size: side of the images in pixels.

    Raises:
        UserError: an image is not a whole number of patches, or the model takes another size only.
    """
    patch, only = _sides(name)
    if only is not None and size != only:
        raise UserError(
            f"the encoder {name} takes images of {only} pixels only, and these have {size}; set"
            f" size={only}, or choose another encoder."
        )
    if size < patch:
        raise UserError(
            f"the encoder {name} divides images into patches of {patch} pixels, and {size} pixels"
            f" are less than one; set size={patch} or a multiple of it, or choose another encoder."
        )
    if size % patch:
        low = size // patch * patch
        raise UserError(
            f"the encoder {name} divides images into patches of {patch} pixels, and {size} is no"
            f" multiple of {patch}; set size={low} or size={low + patch}."
        )


def fitting_side(name: str, size: int) -> int:
    """Return the largest side, at most `size`, of which a vision transformer takes images.

    Args:
        name: of the encoder; another one gets `size`.
        size: side in pixels; where it is smaller than what the model takes, that is returned.
    """
    patch, only = _sides(name)
    return only or max(size // patch, 1) * patch


@cache
def _sides(name: str) -> tuple[int, int | None]:
    """Return the side of a patch (1: there are none), and the only size that a model takes."""
    defaults = timm_defaults(name)
    if defaults is None or not defaults.fixed_input_size:
        return 1, None
    from timm.layers.hybrid_embed import HybridEmbed
    from timm.layers.patch_embed import PatchEmbed

    with torch.device("meta"):
        embed = getattr(_at_any_size(name, num_classes=0), "patch_embed", None)
    if not isinstance(embed, PatchEmbed | HybridEmbed):
        return 1, None  # what it can take is seen when two images are tried
    if isinstance(embed, PatchEmbed) and embed.strict_img_size:
        return 1, cast(tuple[int, int], embed.img_size)[0]
    return cast(int, embed.feat_ratio()), None


def _with_cifar_stem(network: nn.Module, name: str, channels: int) -> nn.Module:
    """Replace a ResNet's 7x7 stride-2 stem and max-pool by one 3x3 convolution of stride 1."""
    from timm.models.resnet import ResNet

    if not isinstance(network, ResNet):
        raise UserError(
            f"stem cifar exists for `small` and the ResNet family, and {name} is neither; use"
            " stem imagenet or a ResNet."
        )
    width = cast(int, network.bn1.num_features)
    stem = nn.Conv2d(channels, width, 3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    network.register_module("conv1", stem)
    network.register_module("maxpool", nn.Identity())
    return network


def encoder_blocks(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Iterate over an encoder's blocks in order, with their names (`layer1`, `blocks.11`).

    The blocks are the stages of ResNet, ConvNeXt, Swin, RegNet and similar networks, and the blocks
    of a ViT. Of a family that names none (VGG, DenseNet) they are the modules whose outputs timm
    calls feature maps. A network that has neither yields nothing.
    """
    named = list(_named_blocks(network))
    maps: Any = getattr(network, "feature_info", None) or []
    yield from named or [
        (entry["module"], network.get_submodule(entry["module"])) for entry in maps
    ]


def _named_blocks(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in network.named_children():
        if fullmatch(STAGE, name):
            yield name, module
        elif name in CONTAINERS:
            yield from ((f"{name}.{part}", block) for part, block in module.named_children())


def pooled(network: nn.Module, output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Average a block's output over all positions.

    Args:
        network: the encoder, which knows the layout of its outputs.
        output: maps (n, c, h, w), or (n, h, w, c) of a Swin transformer, or tokens (n, t, c), or a
            tuple that begins with one of these.

    Returns:
        (n, c): the mean over positions. Class and register tokens are left out.
    """
    maps = output[0] if isinstance(output, tuple) else output
    if maps.ndim == 4:
        return maps.mean((1, 2) if getattr(network, "output_fmt", "NCHW") == "NHWC" else (2, 3))
    prefix = cast(int, getattr(network, "num_prefix_tokens", 0))
    return maps[:, prefix:].mean(1) if maps.ndim == 3 else maps


class Residual(nn.Module):
    """Two 3x3 convolutions with BN, and a shortcut (He et al. 2016, basic block)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        """Build a block from `inputs` to `outputs` channels."""
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            convolution = nn.Conv2d(inputs, outputs, 1, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(outputs))
        self.stride = stride
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, h, w) to (n, outputs, h / stride, w / stride)."""
        # a 1x1 convolution of this stride, but oneDNN's gradient of that writes outside of its
        # memory where there are fewer than 16 channels (torch 2.13, AVX-512)
        kept = x[:, :, :: self.stride, :: self.stride]
        return cast(Tensor, self.relu(self.body(x) + self.shortcut(kept)))


class SmallResNet(nn.Module):
    """A residual network that a CPU can train.

    A 3x3 stem is followed by three stages of one block, of widths w, 2w and 8w; the features are
    the last maps, averaged over positions (n, 8w).

    Args:
        channels: 1 for grey images, 3 for colour, or any other number of bands.
        stride: of the stem: 2 for images of about 28 pixels and more, 1 for smaller ones.
        width: w, the number of channels after the stem.
    """

    def __init__(self, channels: int, stride: int = 2, width: int = SMALL_WIDTH) -> None:
        """Build the network with random weights."""
        super().__init__()
        self.num_features = 8 * width
        convolution = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.stem = nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        self.layer1 = Residual(width, width, stride=1)
        self.layer2 = Residual(width, 2 * width, stride=2)
        self.layer3 = Residual(2 * width, 8 * width, stride=2)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (n, channels, h, w) to features (n, num_features)."""
        x = self.layer3(self.layer2(self.layer1(self.stem(images))))
        return cast(Tensor, x.mean(dim=(2, 3)))


def _small(channels: int, stem: str, width: int = SMALL_WIDTH) -> SmallResNet:
    return SmallResNet(channels, stride=1 if stem == "cifar" else 2, width=width)


ENCODERS.register("small")(_small)
