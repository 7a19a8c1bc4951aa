"""Published and measured settings as functions returning a configuration; each docstring is its lab
record.

A variant is `dataclasses.replace(recipe("cifar10"), epochs=500)`, or on the command line `--recipe
cifar10 --epochs 500`.
"""

from collections.abc import Callable
from dataclasses import replace

from sureclr.config import PretrainConfig, ViewConfig
from sureclr.errors import unknown


def digits() -> PretrainConfig:
    """scikit-learn's digits, 8x8: what `sureclr demo` runs. No flip (a mirrored 2 is no 2).

    Measured at seeds 0 and 1: a minute on one core; linear 0.975 and 0.980 (each +- 0.011 at 95 %,
        797 test images); raw pixels 0.935,
    untrained 0.900.
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
    """Fashion-MNIST, 28x28 grey, on a CPU: `sureclr pretrain fashion-mnist`, then `sureclr linear
    RUN`.

    Measured once (seed 0): about 15 minutes on one core of a shared 2-core AMD EPYC (340 to 430
    images/s); linear 0.8852 (95 % 0.8788 to 0.8913, 10,000 test images), kNN 0.870; raw pixels
    0.8475 and 0.845, untrained encoder 0.8267 and 0.781. Views without blur,
    jitter at full strength, batches of 128: the study's choice (NOTEBOOK.md, third session).
    """
    return PretrainConfig(
        "fashion-mnist",
        encoder="small",
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
    """CIFAR-10 with ResNet-18, CIFAR stem, Adam, jitter strength 0.5.

    Chen et al. 2020, appendix B.9, who left out the blur there (`--views.blur-p 0`).
    Not measured by us yet. Peers with ResNet-18: kNN 84.8 % at 200 epochs (lightly), linear 91.8 %
    at 1000 (dkobak/simclr-cifar10).
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
    """CIFAR-10 with ResNet-50, 1000 epochs, batch 1024, LARS at 1.5: the published setting of
    ae-foster/pytorch-simclr (93.5 %).

    Not measured by us yet. A micro-batch of 64 fits a 12 GB card.
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
    """CIFAR-100 as CIFAR-10. Not measured by us yet."""
    return replace(cifar10(), source="cifar100")


def stl10() -> PretrainConfig:
    """STL-10: its 100,000 unlabelled and 5,000 training images at 96 px, ResNet-18, Adam.

    Not measured by us yet. Peers: ResNet-50, 100 epochs, batch 256, Adam, 82.9 %
        (Spijkervet/SimCLR).
    """
    return PretrainConfig("stl10", encoder="resnet18", epochs=100, batch_size=256)


def folder() -> PretrainConfig:
    """Your own images: ResNet-18 at 96 px, SimCLR's views as published."""
    return PretrainConfig("folder:PATH", encoder="resnet18", epochs=200, batch_size=256)


RECIPES: dict[str, Callable[[], PretrainConfig]] = {
    "digits": digits,
    "fashion-mnist": fashion_mnist,
    "cifar10": cifar10,
    "cifar10-resnet50": cifar10_resnet50,
    "cifar100": cifar100,
    "stl10": stl10,
    "folder": folder,
}


def recipe(name: str) -> PretrainConfig:
    """The configuration of that name."""
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    return RECIPES[name]()


def recipe_for(source: str) -> str:
    """The recipe that a source starts from."""
    return "folder" if source.startswith("folder:") else source
