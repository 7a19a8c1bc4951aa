"""Training one classifier on few labels: an encoder with a linear layer on top.

The epoch is chosen on held-out labels. No function here sees a test set unless it is passed one.
"""

import math
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sureclr.config import ViewConfig
from sureclr.data.batches import batch, steps_per_epoch
from sureclr.data.labels import Labelled
from sureclr.data.views import one_view
from sureclr.finetuning.config import FinetuneConfig
from sureclr.models.devices import PRECISIONS, autocast, resolve_precision, seeded
from sureclr.models.embedding import as_float, evaluating
from sureclr.models.simclr import StandardisedEncoder
from sureclr.progress import SILENT, Progress, Update
from sureclr.training.optimizers import learning_rate, parameter_groups

EVALUATION_BATCH = 512  # images classified at once: bounded memory, whatever the size of the set


class Classifier(nn.Module):
    """An encoder and a linear layer on its features, without a projection head.

    It takes images (n, c, h, w) in [0, 1] and returns logits (n, classes). The linear layer starts
    at zero, so that every class is equally likely at first.

    Args:
        encoder: standardises the images itself, and becomes a part of this model; pass a copy of
            one that is needed elsewhere.
        classes: number of classes.
    """

    def __init__(self, encoder: StandardisedEncoder, classes: int) -> None:
        """Put a linear layer on the encoder, on its device."""
        super().__init__()
        self.encoder = encoder
        self.classifier = nn.Linear(encoder.num_features, classes)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)
        self.to(encoder.mean.device)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (n, classes) of images (n, c, h, w) in [0, 1]."""
        return cast(Tensor, self.classifier(self.encoder(images)))

    @property
    def device(self) -> torch.device:
        """The device that the model is on."""
        return self.encoder.mean.device


@dataclass(frozen=True)
class Score:
    """How well a model classifies labelled images; both numbers are NaN where there are none.

    Attributes:
        accuracy: share of the images whose class has the largest logit.
        cross_entropy: nats, mean over the images.
    """

    accuracy: float
    cross_entropy: float

    def beats(self, other: "Score | None") -> bool:
        """Whether it is the better score: of higher accuracy, or equal and of lower cross-entropy.

        Every score beats None, and a score without images beats every other: where nothing is held
        out, the last epoch is the one to use.
        """
        return (
            other is None
            or math.isnan(self.accuracy)
            or (self.accuracy, -self.cross_entropy) > (other.accuracy, -other.cross_entropy)
        )


Scorer = Callable[[Classifier, Labelled, Update], Score]


def score_on(model: Classifier, labelled: Labelled, update: Update = SILENT.update) -> Score:
    """Score a model on whole images, in evaluation mode and float32.

    Args:
        model: left in the mode that it was in.
        labelled: images and their classes.
        update: is called with the number of images done after every batch; may raise to stop.
    """
    if len(labelled) == 0:
        return Score(math.nan, math.nan)
    correct, cross_entropy = 0, 0.0
    with evaluating(model):
        for start in range(0, len(labelled), EVALUATION_BATCH):
            rows = slice(start, start + EVALUATION_BATCH)
            logits = model(as_float(labelled.pixels(rows).to(model.device))).float()
            target = labelled.target[rows].to(model.device)
            correct += int((logits.argmax(1) == target).sum())
            cross_entropy += float(F.cross_entropy(logits, target, reduction="sum"))
            update(min(start + EVALUATION_BATCH, len(labelled)))
    return Score(correct / len(labelled), cross_entropy / len(labelled))


def predict_labelled(
    model: Classifier, labelled: Labelled, update: Update = SILENT.update
) -> Tensor:
    """Return the outputs with the largest logit, (n,) int64 on the CPU, of whole images.

    The model is in evaluation mode and float32, as in `score_on`, and is left in its own mode.
    """
    parts = []
    with evaluating(model):
        for start in range(0, len(labelled), EVALUATION_BATCH):
            pixels = labelled.pixels(slice(start, start + EVALUATION_BATCH))
            parts.append(model(as_float(pixels.to(model.device))).float().argmax(1).cpu())
            update(min(start + EVALUATION_BATCH, len(labelled)))
    return torch.cat(parts)


@dataclass(frozen=True)
class Fit:
    """The best epoch of one training.

    Attributes:
        learning_rate: highest one of the encoder.
        epoch: counted from 1; 0 if training diverged before the first was over.
        score: of that epoch on the held-out labels; None if the epoch is 0.
        model: with the weights of that epoch, in evaluation mode.
    """

    learning_rate: float
    epoch: int
    score: Score | None
    model: Classifier

    @property
    def validation(self) -> float | None:
        """Accuracy on the held-out labels; None where there is none."""
        if self.score is None or math.isnan(self.score.accuracy):
            return None
        return self.score.accuracy


@dataclass
class Training:
    """SGD with Nesterov momentum on the cross-entropy (nats, mean over the batch) of random views.

    Attributes:
        model: the classifier that is trained.
        labelled: images to train on, and their classes.
        config: the settings.
        views: random crops and flips, cropped from whole pictures where the images have them.
        learning_rate: highest one of the encoder.
        seed: of the order of the images, of their views and of dropout.
        frozen_statistics: whether batch normalisation keeps its statistics; its scale and shift are
            trained all the same.
    """

    model: Classifier
    labelled: Labelled
    config: FinetuneConfig
    views: ViewConfig
    learning_rate: float
    seed: int = 0
    frozen_statistics: bool = False

    def __post_init__(self) -> None:
        """Prepare the optimizer."""
        self.batch_size = min(self.config.batch_size, len(self.labelled))
        self.steps_per_epoch = steps_per_epoch(len(self.labelled), self.batch_size)
        self.precision = PRECISIONS[resolve_precision(self.config.precision, self.model.device)[0]]
        highest = (
            (self.model.encoder, self.learning_rate),
            (self.model.classifier, self.config.classifier_learning_rate or self.learning_rate),
        )
        groups = [
            {**group, "highest": rate, "lr": rate}
            for part, rate in highest
            for group in parameter_groups(part, self.config.weight_decay)
        ]
        self.optimizer = torch.optim.SGD(groups, momentum=self.config.momentum, nesterov=True)

    @property
    def steps(self) -> int:
        """Number of steps of the whole training."""
        return self.config.epochs * self.steps_per_epoch

    def run_epoch(self, epoch: int, progress: Progress = SILENT) -> bool:
        """Pass over the labels once.

        Args:
            epoch: counted from 0.
            progress: is updated after every step.

        Returns:
            False as soon as the loss is not finite, else True.
        """
        self.model.train()
        if self.frozen_statistics:
            freeze_statistics(self.model)
        before = time.monotonic()
        for step in range(self.steps_per_epoch):
            loss = self.step(epoch, step)
            if not math.isfinite(loss):
                return False
            now = time.monotonic()
            numbers = {
                "epoch": epoch + (step + 1) / self.steps_per_epoch,
                "loss": loss,
                "images_per_second": self.batch_size / max(now - before, 1e-9),
            }
            before = now
            progress.update(epoch * self.steps_per_epoch + step + 1, numbers)
        return True

    def step(self, epoch: int, step: int) -> float:
        """Train on one batch and return its loss; epoch and step within it count from 0."""
        share = self.rate_share(epoch * self.steps_per_epoch + step)
        for group in self.optimizer.param_groups:
            group["lr"] = share * group["highest"]
        index, seeds = batch(self.seed, epoch, step, len(self.labelled), self.batch_size)
        device = self.model.device
        size = self.labelled.images.images.shape[-1]
        images = one_view(self.labelled.for_views(index).to(device), seeds, 0, self.views, size)
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(device, self.precision):
            logits = self.model(images)
        loss = F.cross_entropy(logits.float(), self.labelled.target[index].to(device))
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())

    def rate_share(self, step: int) -> float:
        """Return the learning rate of a step as a share of the highest one; steps count from 0."""
        warmup = min(
            round(self.config.warmup_epochs * self.steps_per_epoch),
            self.steps // 2,
        )
        if self.config.schedule == "constant":
            return min(1.0, (step + 1) / max(1, warmup))
        return learning_rate(step, self.steps, warmup, 1.0)


def fit(
    training: Training,
    held_out: Labelled,
    progress: Progress = SILENT,
    scorer: Scorer = score_on,
) -> Fit:
    """Train, score every epoch on the held-out labels, and return the best epoch.

    Args:
        training: a new one. Its model ends with the weights of the best epoch.
        held_out: labels to choose the epoch on. The last epoch is returned where there are none.
        progress: is updated after every step; the caller begins and finishes its task.
        scorer: scores the model on the held-out labels.
    """
    model, best, best_epoch = training.model, None, 0
    weights = deepcopy(model.state_dict())
    with seeded(training.seed, model.device):
        for epoch in range(training.config.epochs):
            if not training.run_epoch(epoch, progress) or not has_finite_weights(model):
                break
            done = (epoch + 1) * training.steps_per_epoch
            score = scorer(model, held_out, partial(_still_at, progress, done))
            usable = math.isfinite(score.cross_entropy) or len(held_out) == 0
            if usable and score.beats(best):
                best, best_epoch, weights = score, epoch + 1, deepcopy(model.state_dict())
    model.load_state_dict(weights)
    return Fit(training.learning_rate, best_epoch, best, model.eval())


def has_finite_weights(model: nn.Module) -> bool:
    """Whether no weight and no running statistic is NaN or infinite.

    The loss of a step is that before its update, and where nothing is held out no score would tell.
    """
    return all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values())


def _still_at(progress: Progress, done: int, images: int) -> None:
    """Report that the training has not moved on while images are scored, so that it can stop."""
    progress.update(done)


def freeze_statistics(model: nn.Module) -> None:
    """Let batch normalisation use its running statistics and leave them as they are."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
