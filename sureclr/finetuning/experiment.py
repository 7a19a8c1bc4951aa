"""One repetition: both networks and the probe on the same labels, chosen and tested alike."""

import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from sureclr.config import ViewConfig
from sureclr.data.labels import Labelled
from sureclr.errors import UserError
from sureclr.evaluation.probes import linear_probe, stratified_split
from sureclr.evaluation.tables import class_numbers
from sureclr.finetuning.config import FinetuneConfig
from sureclr.finetuning.draws import Draw
from sureclr.finetuning.results import Attempt, ProbeScore, SeedResult, TrainedScore
from sureclr.finetuning.train import Classifier, Fit, Training, fit, predict_labelled
from sureclr.progress import SILENT, Progress, report_progress
from sureclr.training.run import Run

Arm = Literal["finetune", "scratch"]
ARMS: dict[Arm, str] = {"finetune": "fine-tuned", "scratch": "from scratch"}
MATRIX = 50  # classes up to which the confusion matrix of a seed is kept
Rates = Mapping[Arm, Sequence[float]]  # the learning rates to search


@dataclass
class Experiment:
    """What all seeds of a fine-tuning share.

    Attributes:
        run: the trained run.
        config: the settings.
        test: labelled test images; there may be none.
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
            The result, and the fine-tuned classifier. Without test images the network from scratch
            and the probe, which are there to be compared, are not trained.
        """
        labelled = draw.labelled
        generator = torch.Generator().manual_seed(draw.seed)
        out = stratified_split(labelled.target, self.config.validation, generator)
        learned = labelled.with_own_classes()
        train, held_out = learned[~out], learned[out]
        finetune, model = self.run_arm("finetune", train, held_out, draw.seed, rates["finetune"])
        scratch = linear = None
        if len(self.test):
            scratch, _ = self.run_arm("scratch", train, held_out, draw.seed, rates["scratch"])
            linear = self.probe(labelled, draw.seed)
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
            linear=linear,
        )
        return result, model

    def run_arm(
        self, arm: Arm, train: Labelled, held_out: Labelled, seed: int, rates: Sequence[float]
    ) -> tuple[TrainedScore, Classifier]:
        """Search the learning rate, then test the chosen network once.

        Test images of a class that `train` does not have count as wrong.
        """
        began, cpu_began = time.monotonic(), time.process_time()
        fits = self.search(arm, train, held_out, seed, rates)
        best = best_fit(fits)
        task = f"Seed {seed}, {ARMS[arm]}: test"
        accuracy = by_class = None
        if len(self.test):
            with report_progress(self.progress, task, len(self.test)) as update:
                outputs = predict_labelled(best.model, self.test, update)
            names = self.test.images.classes
            class_of = torch.tensor([names.index(name) for name in train.images.classes])
            by_class = class_numbers(
                class_of[torch.cat([train.target, held_out.target])],
                self.test.target,
                class_of[outputs],
                names,
                matrix=MATRIX,
            )
            accuracy = int((class_of[outputs] == self.test.target).sum()) / len(self.test)
        score = TrainedScore(
            accuracy=accuracy,
            learning_rate=best.learning_rate,
            epoch=best.epoch,
            validation=best.validation,
            tried=tuple(Attempt(f.learning_rate, f.epoch, f.validation) for f in fits),
            seconds=time.monotonic() - began,
            cpu_seconds=time.process_time() - cpu_began,
            balanced_accuracy=None if by_class is None else by_class.balanced_accuracy,
            macro_f1=None if by_class is None else by_class.macro_f1,
            by_class=by_class,
        )
        held_out_accuracy = "" if best.validation is None else f"{best.validation:.4f} held-out, "
        self.progress.message(
            f"Seed {seed}, {ARMS[arm]}: learning rate {best.learning_rate:g}, epoch {best.epoch};"
            f" accuracy {held_out_accuracy}"
            + ("not tested" if accuracy is None else f"{accuracy:.4f} test")
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
            with report_progress(self.progress, task, training.steps):
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
        by_class = class_numbers(
            labelled.target, self.test.target, probe.predictions, labelled.images.classes
        )
        return ProbeScore(
            probe.accuracy, probe.strength, by_class.balanced_accuracy, by_class.macro_f1
        )

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
    source = run if arm == "finetune" else run.redrawn(seed)
    return Classifier(deepcopy(source.encoder), classes)


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
