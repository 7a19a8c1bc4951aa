"""Semi-supervised fine-tuning (Chen et al. 2020, section 6 and appendix B.5).

Three classifiers are trained on the same few labels: the pretrained encoder, the same network from
scratch with the same search and budget, and a linear probe on the frozen features. Learning rate
and epoch are chosen on held-out labels; each chosen network is tested once.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sureclr.data.labels import Labelled
from sureclr.data.user_images import as_image_set
from sureclr.finetuning.config import FinetuneConfig
from sureclr.finetuning.draws import Draw, label_draws, test_images_of
from sureclr.finetuning.entries import (
    finished_seeds,
    provenance_of,
    read_entry,
    result_key,
    save_entry,
)
from sureclr.finetuning.experiment import Experiment, Rates
from sureclr.finetuning.results import FinetuningResult, SeedResult
from sureclr.finetuning.store import save_finetuned
from sureclr.finetuning.summary import summarise
from sureclr.models.devices import resolve_precision
from sureclr.progress import SILENT, Progress
from sureclr.training.run import Run


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
        images: an ImageSet with labelled training and test images. Where the labels come from a
            file it needs none of its own; a part of those in the file is then held out for testing,
            or, where they are too few, the classifier is trained and saved and not tested.
        config: the settings; None for the defaults.
        data: name of the images where they are not the run's own; a part of the result's key.
        again: train finished seeds again.
        progress: reports every training; may raise to stop.

    Raises:
        UserError: the labels cannot be used, there are no labelled test images, or training
            diverges at every learning rate.
    """
    config = FinetuneConfig() if config is None else config
    precision, sentence = resolve_precision(config.precision, run.model.device)
    if precision == "bfloat16":  # recorded, so that seeds of two precisions are not averaged
        config = replace(config, precision=precision)
    if sentence:
        progress.message(sentence)
    options = run.config.read_options
    images = as_image_set(images, size=run.size, channels=run.channels, options=options)
    draws = label_draws(images, config, run.config.seed, progress)
    images = draws[0].labelled.images  # with the labels of the file, where there is one
    test, why_not = test_images_of(draws[0])
    if why_not:
        progress.message(f"The classifier is not tested: {why_not}")
    key, origin = result_key(config, data), provenance_of(run, images, config)
    saved = None if again else read_entry(run, key)
    finished = [] if saved is None else finished_seeds(*saved, origin, draws, test)
    _report_start(progress, finished, draws, test)
    seconds, weights = (
        (saved[1].seconds, saved[0].weights) if saved is not None and finished else (0.0, None)
    )
    experiment = Experiment(run, config, test, progress)
    began = time.monotonic()
    for draw in draws[len(finished) :]:
        seed, model = experiment.run_seed(draw, _rates(config, finished))
        finished.append(seed)
        if weights is None or _best(finished) is seed:
            classes = draw.labelled.with_own_classes().images.classes
            weights = save_finetuned(run, key, model, classes, seed, (origin.images, origin.labels))
        result = summarise(finished, config, len(draws), weights, why_not)
        save_entry(run, key, result, origin, seconds + time.monotonic() - began)
    assert weights is not None  # there is at least one seed
    return summarise(finished, config, len(draws), weights, why_not)


def _report_start(
    progress: Progress, finished: Sequence[SeedResult], draws: Sequence[Draw], test: Labelled
) -> None:
    """Report finished seeds, and classes without a label."""
    labelled = draws[0].labelled
    unknown = set(test.target.tolist()) - set(labelled.target.tolist())
    if unknown:
        count = sum(k in unknown for k in test.target.tolist())
        names = ", ".join(test.images.classes[k] for k in sorted(unknown)[:10])
        more = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
        progress.message(
            f"No label to learn from is of class {names}{more}; the classifiers cannot name it, and"
            f" its {count:,} test images count as wrong."
        )
    if finished:
        progress.message(
            f"{len(finished)} of {len(draws)} seeds are finished already and are read from"
            " results.json."
        )


def _rates(config: FinetuneConfig, finished: Sequence[SeedResult]) -> Rates:
    """Return the learning rates that the next seed searches."""
    if config.tune == "first" and finished:
        first = finished[0]
        return {
            "finetune": [first.finetune.learning_rate],
            "scratch": [first.scratch.learning_rate] if first.scratch else config.learning_rates,
        }
    return {"finetune": config.learning_rates, "scratch": config.learning_rates}


def _best(seeds: Sequence[SeedResult]) -> SeedResult:
    """Return the seed that is best on its held-out labels (the first where none were held out)."""
    return max(seeds, key=lambda seed: seed.finetune.validation or 0)
