"""Semi-supervised fine-tuning (Chen et al. 2020, section 6 and appendix B.5).

Three classifiers are trained on the same few labels: the pretrained encoder, the same network from
scratch with the same search and budget, and a linear probe on the frozen features. Learning rate
and epoch are chosen on held-out labels; each chosen network is tested once.
"""

import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from sureclr.config import ViewConfig
from sureclr.data.image_set import ImageSet, convert
from sureclr.data.label_request import LabelRequest
from sureclr.data.labels import Labelled, choose_labels, labelled_rows
from sureclr.errors import UserError
from sureclr.evaluation.probes import linear_probe, stratified_split
from sureclr.evaluation.results import Provenance
from sureclr.finetuning.config import FinetuneConfig
from sureclr.finetuning.entries import provenance_of, read_entry, result_key, save_entry
from sureclr.finetuning.results import (
    Attempt,
    FinetuningResult,
    ProbeScore,
    SeedResult,
    TrainedScore,
)
from sureclr.finetuning.store import save_finetuned
from sureclr.finetuning.summary import summarise
from sureclr.finetuning.train import Classifier, Fit, Training, fit, score_on
from sureclr.progress import SILENT, Progress, reporting
from sureclr.training.run import Run, as_image_set, build

Arm = Literal["finetune", "scratch"]
ARMS: dict[Arm, str] = {"finetune": "fine-tuned", "scratch": "from scratch"}
Rates = Mapping[Arm, Sequence[float]]  # the learning rates to search


def run_finetuning(
    run: Run,
    images: Any,
    config: FinetuneConfig | None = None,
    *,
    data: str | None = None,
    again: bool = False,
    progress: Progress = SILENT,
) -> FinetuningResult:
    """Fine-tune once for each seed; finished seeds are read from results.json.

    Every seed is saved as soon as it is finished, and the same call continues after a stop. The
    caller holds the lock of the run; `sureclr.finetune` takes care of that.

    Args:
        run: a trained run. Its folder gets the result and the best classifier (on held-out labels).
        images: an ImageSet with labelled test images, and labelled training images unless the
            labels come from a file.
        config: the settings; None for the defaults.
        data: name of the images where they are not the run's own; a part of the result's key.
        again: train finished seeds again.
        progress: reports every training; may raise to stop.

    Raises:
        UserError: the labels cannot be used, there are no labelled test images, or training
            diverges at every learning rate.
    """
    config = FinetuneConfig() if config is None else config
    images = convert(as_image_set(images), run.size, run.channels)
    draws = label_draws(images, config)
    test = _test_images(images)
    key, origin = result_key(config, data), provenance_of(run, images, config)
    saved = None if again else read_entry(run, key)
    finished = [] if saved is None else finished_seeds(*saved, origin, draws, test)
    _report_start(progress, finished, draws)
    seconds, weights = (
        (saved[1].seconds, saved[0].weights) if saved is not None and finished else (0.0, None)
    )
    experiment = Experiment(run, config, test, progress)
    began = time.monotonic()
    for draw in draws[len(finished) :]:
        seed, model = experiment.run_seed(draw, _rates(config, finished))
        finished.append(seed)
        if weights is None or _best(finished) is seed:
            weights = save_finetuned(run, key, model, images.classes, seed)
        result = summarise(finished, config, len(draws), weights)
        save_entry(run, key, result, origin, seconds + time.monotonic() - began)
    assert weights is not None  # there is at least one seed
    return summarise(finished, config, len(draws), weights)


@dataclass(frozen=True)
class Draw:
    """The labels of one repetition, from a fold of the data set or (None) from all of it."""

    seed: int
    fold: int | None
    labelled: Labelled


def label_draws(images: ImageSet, config: FinetuneConfig) -> list[Draw]:
    """Choose the labels of every repetition.

    Raises:
        UserError: the labels or folds asked for do not exist.
    """
    request = LabelRequest.of(config.label_request)
    if config.fold != "all":
        return [
            Draw(seed, config.fold, choose_labels(images, request, config.fold, seed))
            for seed in range(config.seeds)
        ]
    count = 0 if images.folds is None else len(images.folds)
    return [  # without folds, fold 0 raises the error that says so
        Draw(fold, fold, choose_labels(images, request, fold, fold))
        for fold in range(max(1, count))
    ]


def finished_seeds(
    saved: FinetuningResult,
    provenance: Provenance,
    origin: Provenance,
    draws: Sequence[Draw],
    test: Labelled,
) -> list[SeedResult]:
    """Return the leading seeds of a saved result that need not be trained again.

    A seed counts if it was made from the same checkpoint, images, labels and settings, the number
    of seeds aside.

    Args:
        saved: the result.
        provenance: what it was made of.
        origin: what the new result is made of.
        draws: the labels of every repetition.
        test: the test images.
    """
    finished: list[SeedResult] = []
    if not provenance.same_origin(origin):
        return finished
    for seed, draw in zip(saved.per_seed, draws, strict=False):
        if (seed.seed, seed.labels_sha256, seed.test_sha256) != (
            draw.seed,
            draw.labelled.digest,
            test.digest,
        ):
            break
        finished.append(seed)
    return finished


@dataclass
class Experiment:
    """What all seeds of a fine-tuning share.

    Attributes:
        run: the trained run.
        config: the settings.
        test: labelled test images.
        progress: reports every training; may raise to stop.
    """

    run: Run
    config: FinetuneConfig
    test: Labelled
    progress: Progress = SILENT

    def run_seed(self, draw: Draw, rates: Rates) -> tuple[SeedResult, Classifier]:
        """Train both networks and the probe on one choice of labels.

        Args:
            draw: the labels.
            rates: learning rates to search.

        Returns:
            The result, and the fine-tuned classifier.
        """
        labelled = draw.labelled
        generator = torch.Generator().manual_seed(draw.seed)
        out = stratified_split(labelled.target, self.config.validation, generator)
        train, held_out = labelled[~out], labelled[out]
        finetune, model = self.run_arm("finetune", train, held_out, draw.seed, rates["finetune"])
        scratch, _ = self.run_arm("scratch", train, held_out, draw.seed, rates["scratch"])
        result = SeedResult(
            seed=draw.seed,
            fold=draw.fold,
            n_labels=len(labelled),
            n_validation=len(held_out),
            n_test=len(self.test),
            labels_sha256=labelled.digest,
            test_sha256=self.test.digest,
            labels_differing=labelled.differing,
            finetune=finetune,
            scratch=scratch,
            linear=self.probe(labelled, draw.seed),
        )
        return result, model

    def run_arm(
        self, arm: Arm, train: Labelled, held_out: Labelled, seed: int, rates: Sequence[float]
    ) -> tuple[TrainedScore, Classifier]:
        """Search the learning rate, then test the chosen network once."""
        began, cpu_began = time.monotonic(), time.process_time()
        fits = self.search(arm, train, held_out, seed, rates)
        best = best_fit(fits)
        task = f"Seed {seed}, {ARMS[arm]}: test"
        with reporting(self.progress, task, len(self.test)) as update:
            accuracy = score_on(best.model, self.test, update).accuracy
        score = TrainedScore(
            accuracy=accuracy,
            learning_rate=best.learning_rate,
            epoch=best.epoch,
            validation=best.validation,
            tried=tuple(Attempt(f.learning_rate, f.epoch, f.validation) for f in fits),
            seconds=time.monotonic() - began,
            cpu_seconds=time.process_time() - cpu_began,
        )
        held_out_accuracy = "" if best.validation is None else f"{best.validation:.4f} held-out, "
        self.progress.message(
            f"Seed {seed}, {ARMS[arm]}: learning rate {best.learning_rate:g}, epoch {best.epoch};"
            f" accuracy {held_out_accuracy}{accuracy:.4f} test"
        )
        return score, best.model

    def search(
        self, arm: Arm, train: Labelled, held_out: Labelled, seed: int, rates: Sequence[float]
    ) -> list[Fit]:
        """Train once for each learning rate, or for the middle one alone without held-out labels.

        Both networks get the same light views: random crops, and flips where the run had them.
        Frozen statistics are for the pretrained encoder, because a new network has none yet.
        """
        tried = rates if len(held_out) else [sorted(rates)[len(rates) // 2]]
        fits = []
        for rate in tried:
            training = Training(
                model=new_classifier(self.run, arm, len(train.images.classes), seed),
                labelled=train,
                config=self.config,
                views=ViewConfig.light(flip=self.run.config.views.flip),
                learning_rate=rate,
                seed=seed,
                frozen_statistics=self.config.bn == "frozen" and arm == "finetune",
            )
            task = f"Seed {seed}, {ARMS[arm]}: learning rate {rate:g}"
            with reporting(self.progress, task, training.steps):
                fits.append(fit(training, held_out, self.progress))
        return fits

    def probe(self, labelled: Labelled, seed: int) -> ProbeScore:
        """Fit a linear probe on the frozen features of all labels, and test it."""
        probe = linear_probe(
            self._features(labelled),
            labelled.target,
            self._test_features,
            self.test.target,
            seed=seed,
        )
        return ProbeScore(probe.accuracy, probe.strength)

    @cached_property
    def _test_features(self) -> Tensor:
        """Computed once for all seeds."""
        return self._features(self.test)

    def _features(self, labelled: Labelled) -> Tensor:
        """Return the frozen features (n, f) of whole images."""
        images = labelled.images.select(labelled.rows)
        return self.run.embed(images, self.progress).features


def new_classifier(run: Run, arm: Arm, classes: int, seed: int) -> Classifier:
    """Return a classifier that is not trained yet, on the device of the run.

    Args:
        run: the trained run.
        arm: "finetune" for a copy of its encoder, "scratch" for the same network with random
            weights.
        classes: number of classes.
        seed: of the random weights.
    """
    pretrained = run.model
    if arm == "finetune":
        network = deepcopy(pretrained.encoder)
    else:
        config = replace(run.config, init="random", seed=seed)
        fresh, _ = build(config, run.channels, pretrained.mean, pretrained.std)
        network = fresh.encoder.to(pretrained.mean.device)
    return Classifier(network, classes, pretrained.mean, pretrained.std)


def best_fit(fits: Sequence[Fit]) -> Fit:
    """Return the training that is best on the held-out labels, the first of equals.

    Raises:
        UserError: every training diverged.
    """
    best: Fit | None = None
    for candidate in fits:
        if candidate.score is not None and (best is None or candidate.score.beats(best.score)):
            best = candidate
    if best is None:
        tried = ", ".join(f"{candidate.learning_rate:g}" for candidate in fits)
        raise UserError(
            f"training diverged at every learning rate that was tried ({tried}); set"
            " learning_rates to smaller ones."
        )
    return best


def _test_images(images: ImageSet) -> Labelled:
    """Return the labelled test images, or raise a UserError."""
    test = labelled_rows(images, "test")
    if len(test) == 0:
        raise UserError(
            f"fine-tuning needs labelled test images, and {images.name} has none; put images into"
            " test/CLASS/ folders, or set data to a source that has some."
        )
    return test


def _report_start(
    progress: Progress, finished: Sequence[SeedResult], draws: Sequence[Draw]
) -> None:
    """Report what is finished already, and labels that differ from the data set's."""
    labelled = draws[0].labelled
    if finished:
        progress.message(
            f"{len(finished)} of {len(draws)} seeds are finished already and are read from"
            " results.json."
        )
    if labelled.differing:
        progress.message(
            f"{labelled.differing} of {len(labelled)} labels in the file are not those of"
            f" {labelled.images.name}; those in the file are used."
        )


def _rates(config: FinetuneConfig, finished: Sequence[SeedResult]) -> Rates:
    """Return the learning rates that the next seed searches."""
    if config.tune == "first" and finished:
        first = finished[0]
        return {
            "finetune": [first.finetune.learning_rate],
            "scratch": [first.scratch.learning_rate],
        }
    return {"finetune": config.learning_rates, "scratch": config.learning_rates}


def _best(seeds: Sequence[SeedResult]) -> SeedResult:
    """Return the seed that is best on its held-out labels (the first where none were held out)."""
    return max(seeds, key=lambda seed: seed.finetune.validation or 0)
