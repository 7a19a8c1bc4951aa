"""Encoders: any timm model by its timm name, with the ImageNet or the CIFAR stem, and one small
network that trains on a CPU.

An encoder maps images (n, c, h, w) to pooled features (n, num_features); it has no classifier.
"""

from collections.abc import Iterator
from contextlib import suppress
from difflib import get_close_matches
from re import fullmatch
from typing import Any, Protocol, cast, runtime_checkable

from torch import Tensor, nn

import sureclr.compat  # noqa: F401  (before timm)
from sureclr.errors import UserError, unknown

STEMS = ("imagenet", "cifar")
SMALL, SMALL_WIDTH = r"small(?:-([1-9]\d{0,3}))?", 32
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
STAGE = r"layer\d+|s\d+"  # a stage among the children: ResNet, RegNet
CONTAINERS = (
    "stages",
    "layers",
    "blocks",
)  # children that hold the stages or blocks: ConvNeXt, Swin, ViT
FREE_SIZE: tuple[
    dict[str, Any], ...
] = (  # how families that are built for one size are told to take any
    {"dynamic_img_size": True, "dynamic_img_pad": True},  # ViT
    {"strict_img_size": False},  # Swin
)


@runtime_checkable
class Encoder(Protocol):
    """What the rest of the package asks of an encoder: features (n, num_features) from images (n,
    c, h, w).
    """

    num_features: int

    def __call__(self, images: Tensor) -> Tensor: ...


def encoder(
    name: str, stem: str = "imagenet", channels: int = 3, pretrained: bool = False
) -> nn.Module:
    """An encoder by name, without classifier; its pooled features have `.num_features` entries.

    Args:
        name: `small` (`small-24` is narrower, 24 channels after the stem instead of 32), or any
            timm model (`resnet18`, `resnet50`, ...).
        stem: `imagenet` as timm builds it (ResNet: 7x7, stride 2, max-pool; `small`: 3x3, stride
            2), or `cifar` (3x3, stride 1, no max-pool; ResNet family and `small` only), which
            SimCLR uses at 32 px (Chen et al. 2020, appendix B.9).
        channels: 1 for grey, 3 for colour.
        pretrained: load timm's weights where the user has them (or can reach the hub).

    Raises:
        UserError: unknown name or stem, a CIFAR stem on another family, or weights that cannot be
            had.

    >>> sum(p.numel() for p in encoder("resnet50", stem="cifar").parameters())
    23500352
    """
    if stem not in STEMS:
        raise unknown("stem", stem, STEMS)
    if small := fullmatch(SMALL, name):
        return _small(stem, channels, int(small[1] or SMALL_WIDTH), pretrained)
    network = _timm(name, channels, pretrained)
    return _with_cifar_stem(network, name, channels) if stem == "cifar" else network


def _small(stem: str, channels: int, width: int, pretrained: bool) -> nn.Module:
    if pretrained:
        raise UserError(
            "init timm needs a timm encoder, and `small` is our own; leave out --init or choose a"
            " timm encoder."
        )
    return SmallResNet(channels, stride=1 if stem == "cifar" else 2, width=width)


def _timm(name: str, channels: int, pretrained: bool) -> nn.Module:
    import timm

    if not timm.is_model(name):
        raise unknown(
            "encoder",
            name,
            dict.fromkeys(
                [*COMMON, *get_close_matches(name.lower(), timm.list_models(), cutoff=0.7)]
            ),
        )
    try:
        network = _at_any_size(name, pretrained=pretrained, in_chans=channels, num_classes=0)
    except RuntimeError as error:
        if not pretrained:
            raise
        raise UserError(
            f"timm has no pretrained weights for {name} ({error}); leave out --init timm."
        ) from error
    except (
        OSError
    ) as error:  # what the hub's client raises offline, and what a missing cache looks like
        raise UserError(
            f"the pretrained weights of {name} are neither in the local hub cache nor to be"
            " reached; download them once while online, or leave out --init timm."
        ) from error
    network.num_features = getattr(
        network, "head_hidden_size", network.num_features
    )  # MobileNet, VGG: a layer follows pooling
    return cast(nn.Module, network)


def _at_any_size(name: str, **options: Any) -> Any:
    """A timm model that takes images of any size where its family can: transformers are built for
    one size unless asked.
    """
    import timm

    about = timm.get_pretrained_cfg(name)
    for asked in FREE_SIZE if about is not None and about.fixed_input_size else ():
        with suppress(TypeError):  # another family's option
            return timm.create_model(name, **options, **asked)
    return timm.create_model(name, **options)


def _with_cifar_stem(network: nn.Module, name: str, channels: int) -> nn.Module:
    """Replace a ResNet's 7x7 stride-2 stem and max-pool by one 3x3 convolution of stride 1."""
    from timm.models.resnet import ResNet

    if not isinstance(network, ResNet):
        raise UserError(
            f"stem cifar is for the ResNet family, and {name} is not of it; use --stem imagenet or"
            " a resnet."
        )
    stem = nn.Conv2d(
        channels, cast(int, network.bn1.num_features), 3, stride=1, padding=1, bias=False
    )
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    network.register_module("conv1", stem)
    network.register_module("maxpool", nn.Identity())
    return network


def blocks(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The encoder's blocks in order, by name (`layer1`, `stages.0`, `blocks.11`): where a hook
    reads what each of them knows.

    Those are the stages of ResNet, ConvNeXt, Swin, RegNet and their kin and the blocks of a ViT; of
    a family that names none (VGG, DenseNet) the modules where timm takes its feature maps; nothing
    where timm knows of none.
    """
    named = list(_named_blocks(network))
    maps: Any = getattr(network, "feature_info", None) or []
    yield from named or [
        (about["module"], network.get_submodule(about["module"])) for about in maps
    ]


def _named_blocks(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in network.named_children():
        if fullmatch(STAGE, name):
            yield name, module
        elif name in CONTAINERS:
            yield from ((f"{name}.{part}", block) for part, block in module.named_children())


def pooled(network: nn.Module, output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """What a block puts out, averaged over all positions: (n, c) from maps (n, c, h, w), or (n, h,
    w, c) as Swin keeps them, or from tokens (n, t, c), those of patches alone: no class or register
    token.
    """
    maps = output[0] if isinstance(output, tuple) else output
    if maps.ndim == 4:
        return maps.mean((1, 2) if getattr(network, "output_fmt", "NCHW") == "NHWC" else (2, 3))
    return (
        maps[:, cast(int, getattr(network, "num_prefix_tokens", 0)) :].mean(1)
        if maps.ndim == 3
        else maps
    )


class Residual(nn.Module):
    """Two 3x3 convolutions with BN, and a shortcut (He et al. 2016, basic block)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        same = stride == 1 and inputs == outputs
        self.shortcut = (
            nn.Identity()
            if same
            else nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.relu(self.body(x) + self.shortcut(x)))


class SmallResNet(nn.Module):
    """A residual network that a CPU can train: a 3x3 stem, three stages of one block, widths w, 2w,
    8w; features (n, 8w).

    Args:
        stride: of the stem; 2 for images of about 28 px and more, 1 for smaller ones.
    """

    def __init__(self, channels: int, stride: int = 2, width: int = SMALL_WIDTH) -> None:
        super().__init__()
        self.num_features = 8 * width
        convolution = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.stem = nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        self.layer1 = Residual(width, width, stride=1)
        self.layer2 = Residual(width, 2 * width, stride=2)
        self.layer3 = Residual(2 * width, 8 * width, stride=2)

    def forward(self, images: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.stem(images))))
        return cast(Tensor, x.mean(dim=(2, 3)))
