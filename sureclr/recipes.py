"""Settings that were published or measured, as functions that return a configuration.

The docstring of each function is its lab record: source, measurement, seeds, sample size and cost.
Its first line is printed by `sureclr list`. A variant is `dataclasses.replace(recipe("cifar10"),
epochs=500)`.
"""

from collections.abc import Callable
from dataclasses import replace

from sureclr.config import PICTURE_SOURCES, TABLE, PretrainConfig, ViewConfig
from sureclr.errors import unknown


def digits() -> PretrainConfig:
    """Trains on scikit-learn's digits in about a minute on one CPU core, without a download.

    Views: no flip, because a mirrored 2 is not a 2.
    Measured by us, seeds 0 and 1 (n = 2), 797 test images, one CPU core, about a minute each:
    accuracy of the linear probe 0.975 and 0.980 (each +- 0.011 at 95 %); raw pixels 0.935,
    untrained encoder 0.900. `sureclr demo` runs this recipe.
    """
    return PretrainConfig(
        "digits",
        encoder="small",
        stem="cifar",
        epochs=60,
        batch_size=250,
        learning_rate=2e-3,
        warmup_epochs=5,
        monitor_every=10,
        snapshot_every=10,
        views=ViewConfig(flip=0.0, crop_area=(0.25, 1.0)),
    )


def fashion_mnist() -> PretrainConfig:
    """Trains on Fashion-MNIST in about 15 minutes on one CPU core.

    Measured by us once (seed 0, n = 1), 10,000 test images, one core of a shared 2-core AMD EPYC,
    about 15 minutes (340 to 430 images/s): accuracy of the linear probe 0.8852 (95 % 0.8788 to
    0.8913), of kNN 0.870. Raw pixels: 0.8475 and 0.845. Untrained encoder: 0.8267 and 0.781.
    Views without blur, colour change at full strength and batches of 128 were chosen by a study
    (NOTEBOOK.md, "What brings the targets within reach?").
    """
    return PretrainConfig(
        "fashion-mnist",
        encoder="small",
        stem="imagenet",
        epochs=6,
        batch_size=128,
        learning_rate=2e-3,
        warmup_epochs=0.5,
        monitor_every=1,
        snapshot_every=1,
        checkpoint_every=1,
        views=ViewConfig(blur_p=0),
    )


def cifar10() -> PretrainConfig:
    """Trains a ResNet-18 on CIFAR-10 for 500 epochs; needs a GPU.

    Source: Chen et al. 2020, appendix B.9 (jitter strength 0.5; they also leave out the blur,
    `ViewConfig(blur_p=0)`); here with Adam.
    Not measured by us yet. Others with ResNet-18: kNN 84.8 % after 200 epochs (lightly), linear
    probe 91.8 % after 1000 (dkobak/simclr-cifar10).
    """
    return PretrainConfig(
        "cifar10",
        encoder="resnet18",
        stem="cifar",
        epochs=500,
        batch_size=512,
        views=ViewConfig(strength=0.5),
    )


def cifar10_resnet50() -> PretrainConfig:
    """Trains a ResNet-50 on CIFAR-10 for 1000 epochs with LARS; needs a GPU.

    Source: the published setting of ae-foster/pytorch-simclr (batch 1024, LARS at 1.5), which
    reports 93.5 %.
    Not measured by us yet. A micro-batch of 64 fits a GPU with 12 GB.
    """
    return replace(
        cifar10(),
        encoder="resnet50",
        epochs=1000,
        batch_size=1024,
        micro_batch=64,
        optimizer="lars",
        learning_rate=1.5,
    )


def cifar100() -> PretrainConfig:
    """Trains a ResNet-18 on CIFAR-100 for 500 epochs; needs a GPU.

    The settings are those of `cifar10`. Not measured by us yet.
    """
    return replace(cifar10(), source="cifar100")


def stl10() -> PretrainConfig:
    """Trains a ResNet-18 on the 105,000 training images of STL-10 at 96 pixels; needs a GPU.

    Of these, 100,000 have no labels. Optimizer: Adam.
    Not measured by us yet. Others: 82.9 % with ResNet-50, 100 epochs, batch 256 and Adam
    (Spijkervet/SimCLR).
    """
    return PretrainConfig("stl10", encoder="resnet18", epochs=100, batch_size=256)


def image_folder() -> PretrainConfig:
    """Trains a ResNet-18 on your own images at 96 pixels, or less where they are smaller.

    The views are SimCLR's as published. There is nothing to measure: the images are yours.
    """
    return PretrainConfig("folder:PATH", encoder="resnet18", epochs=200, batch_size=256)


FEW_PICTURES = 20_000  # fewer of them do not train a pretrained encoder any further
# Pretrained encoders that are looked for on this machine, in this order; the order is a guess from
# what others publish. The first is downloaded if a user asks for weights and names no encoder.
PHOTO_ENCODERS = (
    "vit_small_patch14_dinov2",
    "vit_small_patch14_reg4_dinov2",
    "convnext_tiny",
    "resnet50",
    "tf_efficientnet_lite0",
    "resnet18",
)


def photos(
    encoder: str | None = None, *, frozen: bool = False, images: int | None = None
) -> PretrainConfig:
    """Trains on your own photographs, from pretrained weights where they are on this machine.

    Which of its three forms is taken is decided by `training.photographs.recipe_for_pictures`.

    Frozen encoder (fewer than 20,000 pictures): measured by us once (seed 0, n = 1) on CIFAR-10 as
    JPEG files, one core: EfficientNet-Lite0 with ImageNet weights, 10,000 pictures at 96 pixels, 8
    views of each embedded once (270 CPU s in bfloat16), then 60 epochs of both heads (70 CPU s):
    kNN .723, linear .738, R-AUROC of the radius .647, of the evidence .678. `small-24` from random
    weights on 50,000 pictures took 800 CPU s: kNN .585, linear .601, radius .615. The other
    encoders of the list have not been measured by us, and neither have more epochs.

    Trained encoder (20,000 pictures and more): not measured by us. The factor 0.75 of layer-wise
    decay is that of Bao et al. 2022 (BEiT) for fine-tuning.

    Random weights: the recipe `folder`.

    Args:
        encoder: a pretrained one; None: random weights.
        frozen: whether it is not trained.
        images: number of training images, which a batch must not exceed; None: many.
    """
    largest = image_folder().batch_size
    half = largest if images is None else max(images // 2, 2)
    batch_size = min(largest, 2 ** (half.bit_length() - 1))
    if encoder is None:
        return replace(image_folder(), batch_size=batch_size)
    return PretrainConfig(
        "folder:PATH",
        encoder=encoder,
        init="timm",
        freeze="backbone" if frozen else "off",
        epochs=60 if frozen else 50,
        batch_size=batch_size,
        learning_rate=1e-3 if frozen else 3e-4,
        layer_decay=1.0 if frozen else 0.75,
        warmup_epochs=5,
    )


def table_of_features() -> PretrainConfig:
    """Trains heads alone on features of several views of each image that were made elsewhere.

    Measured on 2,000 CIFAR-10 pictures (8 views, EfficientNet-Lite0, one seed): R-AUROC of the
    radius .592 after 15 epochs, .594 after 30 and .557 after 60 (of evidence .678, .663, .654).
    The features are taken as they come, because scaling them made no difference: .588 standardised,
    .594 of unit length, .602 divided by 1,000 (30 epochs).
    """
    return PretrainConfig(
        f"{TABLE}:PATH", encoder=TABLE, freeze="backbone", epochs=30, batch_size=256
    )


RECIPES: dict[str, Callable[[], PretrainConfig]] = {
    "digits": digits,
    "fashion-mnist": fashion_mnist,
    "cifar10": cifar10,
    "cifar10-resnet50": cifar10_resnet50,
    "cifar100": cifar100,
    "stl10": stl10,
    "folder": image_folder,
    "photos": photos,
    "table": table_of_features,
}


def recipe(name: str) -> PretrainConfig:
    """Return the configuration of a recipe.

    Args:
        name: a key of `RECIPES`.

    Raises:
        UserError: there is no recipe of that name.
    """
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    return RECIPES[name]()


def recipe_for(source: str) -> str:
    """Return the name of the recipe from which a data source starts."""
    kind = source.partition(":")[0]
    return "photos" if kind in PICTURE_SOURCES else TABLE if kind == TABLE else source
