"""Training a classifier on few labels: an encoder with a linear layer, the epoch chosen on held-out
labels. No test set is seen here.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sureclr.config import ViewConfig
from sureclr.data.batches import batch, steps_per_epoch
from sureclr.data.labels import Labelled
from sureclr.data.views import one_view
from sureclr.finetuning.config import FinetuneConfig
from sureclr.models.embedding import as_float, evaluating
from sureclr.models.simclr import standardised
from sureclr.training.devices import autocast, choose_precision
from sureclr.training.optimizers import learning_rate, parameter_groups

EACH_STEP = Callable[
    [dict[str, float]], None
]  # told epoch, loss and images of every step; may raise to stop
AT_ONCE = 512  # images judged at once


class Classifier(nn.Module):
    """Images (n, c, h, w) in [0, 1] -> logits (n, classes) of a linear layer on the encoder's
    features; no projection head.

    The layer starts at zero: every class is equally likely.

    Args:
        network: the encoder, which becomes this model's own: pass a copy.
        mean, std: (c,) of the pixels in [0, 1], as the encoder was trained.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, classes: int, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.encoder = network
        self.classifier = nn.Linear(cast(int, network.num_features), classes)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)
        self.register_buffer("mean", mean.clone())
        self.register_buffer("std", std.clone())
        self.to(mean.device)

    def forward(self, images: Tensor) -> Tensor:
        return cast(
            Tensor, self.classifier(self.encoder(standardised(images, self.mean, self.std)))
        )

    @property
    def device(self) -> torch.device:
        return self.mean.device


@dataclass(frozen=True)
class Score:
    """On held-out labels; ordered by accuracy, and where that is equal by cross-entropy. NaN where
    nothing was held out.
    """

    accuracy: float
    nats: float

    def beats(self, other: "Score | None") -> bool:
        return (
            other is None
            or math.isnan(self.accuracy)
            or (self.accuracy, -self.nats) > (other.accuracy, -other.nats)
        )


@dataclass(frozen=True)
class Fit:
    """The best epoch of one training.

    Attributes:
        lr: peak of the encoder. epoch: counted from 1; 0 if training diverged before the first was
            over.
        score: of that epoch on the held-out labels, None if diverged. model: its weights.
    """

    lr: float
    epoch: int
    score: Score | None
    model: Classifier


def fit(
    model: Classifier,
    train: Labelled,
    held_out: Labelled,
    config: FinetuneConfig,
    views: ViewConfig,
    lr: float,
    seed: int,
    frozen: bool,
    each_step: EACH_STEP,
) -> Fit:
    """Train, look at the held-out labels after each epoch, and return to the best one (the last, if
    nothing is held out).

    Args:
        frozen: BN keeps its statistics; its scale and shift are trained all the same.
        seed: of order, crops and dropout.
    """
    best, epoch, state = None, 0, deepcopy(model.state_dict())
    training = Training(model, train, config, views, lr, seed, frozen)
    with seeded(seed, model.device):
        for number in range(config.epochs):
            if not training.epoch(number, each_step):
                break
            score = judge(model, held_out, lambda: each_step({}))
            if score.beats(best) and math.isfinite(score.nats) | (len(held_out) == 0):
                best, epoch, state = score, number + 1, deepcopy(model.state_dict())
    model.load_state_dict(state)
    return Fit(lr, epoch, best, model.eval())


def training_steps(config: FinetuneConfig, labels: int) -> int:
    """Of a whole training."""
    return config.epochs * steps_per_epoch(labels, min(config.batch_size, labels))


@dataclass
class Training:
    """SGD with Nesterov momentum on the cross-entropy (nats, mean over the batch) of light views."""

    model: Classifier
    train: Labelled
    config: FinetuneConfig
    views: ViewConfig
    lr: float
    seed: int
    frozen: bool

    def __post_init__(self) -> None:
        self.batch_size = min(self.config.batch_size, len(self.train))
        self.per_epoch = steps_per_epoch(len(self.train), self.batch_size)
        self.precision = choose_precision(self.config.precision, self.model.device)
        peaks = (
            (self.model.encoder, self.lr),
            (self.model.classifier, self.config.classifier_lr or self.lr),
        )
        groups = [
            {**group, "peak": peak, "lr": peak}
            for part, peak in peaks
            for group in parameter_groups(part, self.config.weight_decay)
        ]
        self.optimizer = torch.optim.SGD(groups, momentum=self.config.momentum, nesterov=True)

    def epoch(self, number: int, each_step: EACH_STEP) -> bool:
        """One pass over the labels; False where it diverged."""
        self.model.train()
        if self.frozen:
            freeze_statistics(self.model)
        for step in range(self.per_epoch):
            loss = self.step(number, step)
            if not math.isfinite(loss):
                return False
            each_step(
                {
                    "epoch": number + (step + 1) / self.per_epoch,
                    "loss": loss,
                    "images": self.batch_size,
                }
            )
        return True

    def step(self, epoch: int, step: int) -> float:
        share = self.rate(epoch * self.per_epoch + step)
        for group in self.optimizer.param_groups:
            group["lr"] = share * group["peak"]
        index, seeds = batch(self.seed, epoch, step, len(self.train), self.batch_size)
        device = self.model.device
        images = one_view(
            self.train.pixels(index).to(device, non_blocking=True), seeds, 0, self.views
        )
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(device, self.precision):
            logits = self.model(images)
        loss = F.cross_entropy(logits.float(), self.train.target[index].to(device))
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())

    def rate(self, done: int) -> float:
        """Of the peak, in [0, 1]."""
        steps = self.per_epoch * self.config.epochs
        warmup = min(round(self.config.warmup_epochs * self.per_epoch), steps // 2)
        if self.config.schedule == "constant":
            return min(1.0, (done + 1) / max(1, warmup))
        return learning_rate(done, steps, warmup, 1.0)


def judge(model: Classifier, labelled: Labelled, poll: Callable[[], None]) -> Score:
    """Accuracy and cross-entropy (nats, mean over images) on whole images, in evaluation mode and
    float32.
    """
    if len(labelled) == 0:
        return Score(math.nan, math.nan)
    right, nats = 0, 0.0
    with evaluating(model):
        for start in range(0, len(labelled), AT_ONCE):
            rows = slice(start, start + AT_ONCE)
            logits = model(as_float(labelled.pixels(rows).to(model.device))).float()
            target = labelled.target[rows].to(model.device)
            right += int((logits.argmax(1) == target).sum())
            nats += float(F.cross_entropy(logits, target, reduction="sum"))
            poll()
    return Score(right / len(labelled), nats / len(labelled))


def freeze_statistics(model: nn.Module) -> None:
    """BN in evaluation mode: it normalises with its running statistics and leaves them alone."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """torch's own generators, from which dropout draws, as a function of the seed; they come back
    as they were.
    """
    kind, devices = ("cuda", []) if device.type == "cpu" else (device.type, [device])
    with torch.random.fork_rng(devices=devices, device_type=kind):
        torch.manual_seed(seed)
        yield
