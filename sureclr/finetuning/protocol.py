"""Semi-supervised fine-tuning (Chen et al. 2020, section 6 and appendix B.5): the pretrained
encoder with few labels, beside the same network from scratch with the same labels, search and
budget, and a linear probe on the frozen features.

Learning rate and epoch are chosen on held-out labels; each chosen model sees the test set once.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, replace
from functools import cached_property
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor

from sureclr.config import ViewConfig
from sureclr.data.image_set import ImageSet, convert
from sureclr.data.label_request import LabelRequest
from sureclr.data.labels import Labelled, choose_labels, labelled_rows
from sureclr.errors import UserError
from sureclr.evaluation.probes import linear_probe, stratified_split
from sureclr.finetuning.config import FinetuneConfig
from sureclr.finetuning.store import save_finetuned
from sureclr.finetuning.train import Classifier, Fit, fit, judge, training_steps
from sureclr.maths.metrics import wilson_interval
from sureclr.progress import ConsoleProgress as Lines
from sureclr.progress import Progress as Reporter
from sureclr.training.building import build
from sureclr.training.run import Run, as_image_set

ARMS = ("finetune", "scratch")
Result = dict[str, Any]
Poll = Callable[[], None]


def finetune(
    run: Run,
    images: Any,
    config: FinetuneConfig | None = None,
    *,
    data: str | None = None,
    again: bool = False,
    poll: Poll = lambda: None,
    reporter: Reporter | None = None,
) -> Result:
    """Every seed of a fine-tuning; results.json has each as soon as it is done, and the same call
    goes on from there.

    Args:
        run: whose folder gets the result and the best classifier (by held-out labels). The caller
            holds its lock.
        images: an ImageSet with labelled training (or a label file) and labelled test images.
        data: name of the source where it is not the run's own; part of the result's key.
        again: forget finished seeds.
        poll: called at every step; may raise to stop.

    Raises:
        UserError: bad labels, no test labels, or training that diverges at every learning rate.
    """
    config, told = config or FinetuneConfig(), reporter or Lines()
    images = convert(as_image_set(images), run.size, run.channels)
    draws = list(choices(images, config))
    test = _test(images)
    key, results = result_key(config, data), run.directory.results_so_far()
    entries = [] if again else _finished(results.get(key, {}), config, draws, test.digest)
    weights = results.get(key, {}).get("weights") if entries else None
    if entries:
        told.say(f"{len(entries)} of {len(draws)} seeds are in results.json already")
    if draws[0][2].differing:
        told.say(
            f"{draws[0][2].differing} of {len(draws[0][2])} labels of the file are not those of"
            f" {images.name}; the file's are used"
        )
    progress, frozen = Progress(told, poll), Frozen(run, test, poll)
    for seed, fold, labelled in draws[len(entries) :]:
        entry, model = one_seed(
            run, labelled, frozen, config, seed, fold, _rates(config, entries), progress
        )
        entries.append(entry)
        if _best(entries) is entry:
            weights = save_finetuned(run, key, model, images.classes, entry)
        run.directory.add_result(key, summarised(entries, config, len(draws), weights))
    return summarised(entries, config, len(draws), weights)


def choices(images: ImageSet, config: FinetuneConfig) -> Iterator[tuple[int, int | None, Labelled]]:
    """(seed, fold, labels) of each repetition."""
    request, folds = (
        LabelRequest.of(config.asked),
        range(0 if images.folds is None else len(images.folds)),
    )
    for seed in (folds or [0]) if config.fold == "all" else range(config.seeds):
        fold = seed if config.fold == "all" else config.fold
        yield seed, fold, choose_labels(images, request, fold, seed)


def result_key(config: FinetuneConfig, data: str | None) -> str:
    """finetune:10%, finetune:100%:fold-3, finetune:500:stl10 (labels, fold, other data)."""
    parts = [
        "finetune",
        config.asked.replace(" ", ""),
        None if config.fold is None else f"fold-{config.fold}",
        data,
    ]
    return ":".join(part for part in parts if part is not None)


def one_seed(
    run: Run,
    labelled: Labelled,
    frozen: "Frozen",
    config: FinetuneConfig,
    seed: int,
    fold: int | None,
    rates: dict[str, Sequence[float]],
    progress: "Progress",
) -> tuple[Result, Classifier]:
    """Both arms and the probe with one choice of labels: what to keep of it, and the fine-tuned
    model.
    """
    test, out = (
        frozen.test,
        stratified_split(labelled.target, config.validation, torch.Generator().manual_seed(seed)),
    )
    entry: Result = {
        "seed": seed,
        "fold": fold,
        "n_labels": len(labelled),
        "n_validation": int(out.sum()),
        "n_test": len(test),
        "labels_sha256": labelled.digest,
        "test_sha256": test.digest,
        "labels_differing": labelled.differing,
    }
    models = {}
    for arm in ARMS:
        began, cpu = time.monotonic(), time.process_time()
        found = search(run, arm, labelled[~out], labelled[out], config, seed, rates[arm], progress)
        best = found[chosen(found, rates[arm])]
        score = judge(best.model, test, progress.poll)
        entry[arm] = {
            "accuracy": score.accuracy,
            "lr": best.lr,
            "epoch": best.epoch,
            "validation": _held_out(best),
            "tried": [[one.lr, one.epoch, _held_out(one)] for one in found],
            "seconds": time.monotonic() - began,
            "cpu_seconds": time.process_time() - cpu,
        }
        models[arm] = best.model
        progress.told.say(
            f"seed {seed}  {arm}  lr {best.lr:g}  epoch {best.epoch}  held-out"
            f" {entry[arm]['validation']}  test {score.accuracy:.4f}"
        )
    entry["linear"] = frozen.probe(labelled, seed)
    return entry, models["finetune"]


def search(
    run: Run,
    arm: str,
    train: Labelled,
    held_out: Labelled,
    config: FinetuneConfig,
    seed: int,
    rates: Sequence[float],
    progress: "Progress",
) -> list[Fit]:
    """A training for each learning rate; without held-out labels for the middle one alone."""
    tried = rates if len(held_out) else [sorted(rates)[len(rates) // 2]]
    views = ViewConfig.light(flip=run.config.views.flip)
    frozen = config.bn == "frozen" and arm == "finetune"
    fits = []
    for lr in tried:
        with progress.training(
            f"seed {seed}  {arm}  lr {lr:g}", training_steps(config, len(train))
        ):
            fits.append(
                fit(
                    start(run, arm, train, seed),
                    train,
                    held_out,
                    config,
                    views,
                    lr,
                    seed,
                    frozen,
                    progress,
                )
            )
    return fits


def start(run: Run, arm: str, train: Labelled, seed: int) -> Classifier:
    """A new classifier: a copy of the pretrained encoder, or the same network with random weights
    of this seed.
    """
    pretrained, classes = run.model, len(train.images.classes)
    if arm == "finetune":
        return Classifier(deepcopy(pretrained.encoder.backbone), classes, pretrained.mean, pretrained.std)
    fresh, _ = build(
        replace(run.config, init="random", seed=seed), run.channels, pretrained.mean, pretrained.std
    )
    return Classifier(
        fresh.encoder.backbone.to(pretrained.mean.device), classes, pretrained.mean, pretrained.std
    )


def chosen(found: Sequence[Fit], rates: Sequence[float]) -> int:
    """The fit that is best on held-out labels, the first of equals."""
    best: int | None = None
    for number, one in enumerate(found):
        if one.score is not None and (best is None or one.score.beats(found[best].score)):
            best = number
    if best is None:
        tried = ", ".join(f"{rate:g}" for rate in rates)
        raise UserError(
            f"training diverged at every learning rate ({tried}); give smaller ones with --lr."
        )
    return best


class Frozen:
    """The pretrained encoder as it is: the linear probe on its features, with the labels that
    fine-tuning has.
    """

    def __init__(self, run: Run, test: Labelled, poll: Poll) -> None:
        self.run, self.test, self.poll = run, test, poll

    def features(self, of: Labelled) -> Tensor:
        """(n, f) of whole images."""
        return self.run.embed(of.images.select(of.rows), lambda done, total: self.poll()).features

    @cached_property
    def of_test(self) -> Tensor:
        """Computed once for all seeds."""
        return self.features(self.test)

    def probe(self, labelled: Labelled, seed: int) -> Result:
        found = linear_probe(
            self.features(labelled), labelled.target, self.of_test, self.test.target, seed=seed
        )
        return {"accuracy": found.accuracy, "strength": found.strength}


def _test(images: ImageSet) -> Labelled:
    test = labelled_rows(images, "test")
    if len(test) == 0:
        raise UserError(
            f"finetune needs labelled test images, and {images.name} has none; put images into"
            " test/CLASS/ folders, or name labelled data with --data."
        )
    return test


def _rates(config: FinetuneConfig, entries: Sequence[Result]) -> dict[str, Sequence[float]]:
    """The learning rates to search, by arm."""
    if config.tune == "first" and entries:
        return {arm: [entries[0][arm]["lr"]] for arm in ARMS}
    return dict.fromkeys(ARMS, config.lr)


def _finished(
    before: Result,
    config: FinetuneConfig,
    draws: Sequence[tuple[int, int | None, Labelled]],
    test: str,
) -> list[Result]:
    """The leading seeds that were done before with this configuration (any number of seeds), these
    very labels and this test set.
    """

    def plain(of: Result) -> Result:
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in of.items()
            if key != "seeds"
        }

    if plain(before.get("configuration", {})) != plain(asdict(config)):
        return []
    kept: list[Result] = []
    for entry, (seed, _, labelled) in zip(before["per_seed"], draws, strict=False):
        if (entry["seed"], entry["labels_sha256"], entry["test_sha256"]) != (
            seed,
            labelled.digest,
            test,
        ):
            break
        kept.append(entry)
    return kept


def _best(entries: Sequence[Result]) -> Result:
    """The seed that is best on its held-out labels (the first, where none were held out)."""
    return max(entries, key=lambda entry: entry["finetune"]["validation"] or 0)


# --- Numbers over seeds ---------------------------------------------------------------


def summarised(
    entries: Sequence[Result], config: FinetuneConfig, seeds: int, weights: Result | None
) -> Result:
    """The key of results.json: mean and 95 % interval of each arm, all that was chosen, and what it
    cost.
    """
    of = {arm: [entry[arm]["accuracy"] for entry in entries] for arm in (*ARMS, "linear")}
    over = {arm: interval(values, entries[0]["n_test"]) for arm, values in of.items()}
    gains = [a - b for a, b in zip(of["finetune"], of["scratch"], strict=True)]
    rivals = ("scratch", "linear")
    return {
        "accuracy": mean(of["finetune"]),
        "interval": over["finetune"],
        "interval_of": (
            "95 %, Student's t over seeds"
            if len(entries) > 1
            else "95 %, Wilson's over test images (one seed)"
        ),
        "accuracies": of["finetune"],
        "n_labels": entries[0]["n_labels"],
        "n_test": entries[0]["n_test"],
        "baselines": {arm: mean(of[arm]) for arm in rivals},
        "baseline_intervals": {arm: over[arm] for arm in rivals},
        "baseline_accuracies": {arm: of[arm] for arm in rivals},
        "gain": {
            "mean": mean(gains),
            "interval": t_interval(gains) if len(gains) > 1 else None,
            "outside_both_intervals": over["finetune"][0] > over["scratch"][1],
        },
        "seeds": len(entries),
        "complete": len(entries) == seeds,
        "weights": weights,
        "cpu_seconds": sum(entry[arm]["cpu_seconds"] for entry in entries for arm in ARMS),
        "configuration": asdict(config),
        "per_seed": list(entries),
    }


def interval(accuracies: Sequence[float], n_test: int) -> list[float]:
    """95 %: Student's t over seeds, inside [0, 1]; of one seed Wilson's over test images."""
    if len(accuracies) == 1:
        return list(wilson_interval(round(accuracies[0] * n_test), n_test))
    low, high = t_interval(accuracies)
    return [max(0.0, low), min(1.0, high)]


def t_interval(values: Sequence[float]) -> list[float]:
    """mean -+ t s / sqrt(n), t the 97.5 % quantile of Student's with n - 1 degrees of freedom (two
    values or more).
    """
    from scipy.stats import t

    half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return [mean(values) - half, mean(values) + half]


def _held_out(one: Fit) -> float | None:
    """Accuracy on the held-out labels; None where there were none, or training diverged (JSON knows
    no NaN).
    """
    return None if one.score is None or math.isnan(one.score.accuracy) else one.score.accuracy


class Progress:
    """Told of every step; tells the reporter, and polls for a stop."""

    def __init__(self, told: Reporter, poll: Poll) -> None:
        self.told, self.poll = told, poll
        self.last = time.monotonic()

    @contextmanager
    def training(self, what: str, steps: int) -> Iterator[None]:
        """Around one training."""
        self.told.say(what)
        self.told.start(steps, 0)
        self.last = time.monotonic()
        try:
            yield
        finally:
            self.told.end()

    def __call__(self, numbers: dict[str, float]) -> None:
        self.poll()
        now = time.monotonic()
        if numbers:
            self.told.step(
                {**numbers, "images_per_second": numbers["images"] / max(now - self.last, 1e-9)}
            )
        self.last = now
