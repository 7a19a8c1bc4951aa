"""`sureclr.finetune`: fine-tune a run from Python, with all that the command line does."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from sureclr.data.image_set import ImageSet
from sureclr.data.sources import is_source
from sureclr.data.sources import load_images as load_source
from sureclr.errors import UserError
from sureclr.finetuning.config import FinetuneConfig
from sureclr.finetuning.protocol import run_finetuning
from sureclr.finetuning.results import FinetuningResult
from sureclr.progress import ConsoleProgress, Progress, Stoppable
from sureclr.stopping import stop_on_signals
from sureclr.training.run import Run
from sureclr.training.run import load as load_run

SAVED = "finished seeds are saved; run it again to continue after them"


def finetune(
    run: Run | str | Path,
    images: Any = None,
    config: FinetuneConfig | None = None,
    *,
    labels: str | int | Path | None = None,
    data: str | None = None,
    again: bool = False,
    device: str = "auto",
    root: Path | None = None,
    progress: Progress | None = None,
) -> FinetuningResult:
    """Fine-tune a run with few labels, and compare it with the same network from scratch.

    The result is saved in the results.json of the run after each seed, and the best classifier
    beside it, for `sureclr.load_finetuned`. Seeds that are finished already are not trained again.
    The first SIGINT or SIGTERM stops the work after the current step.

    Args:
        run: a run, or its folder.
        images: an ImageSet with labelled training and test images; None for those that the run was
            trained on, or those of `data`.
        config: the settings; None for the defaults.
        labels: labels to train on, in place of those in `config`: a share ("10%"), a count (500),
            or the path of a CSV file with the columns path and label.
        data: a data source to load in place of the run's own images. Together with `images` it
            names these in results.json.
        again: train finished seeds again.
        device: auto, cuda, mps or cpu; a run that is loaded already stays on its device.
        root: folder of the data sets; None for $SURECLR_DATA, else ~/.cache/sureclr/data.
        progress: reports the work; None for lines on stderr.

    Raises:
        UserError: the run, the images or the labels cannot be used, another process is writing to
            the run, or training diverges at every learning rate.
        Stopped: a signal has stopped the work.
    """
    if isinstance(run, str | Path):
        run = load_run(run, device)
    config = FinetuneConfig() if config is None else config
    progress = ConsoleProgress() if progress is None else progress
    if labels is not None:
        config = replace(config, labels=str(labels))
    with stop_on_signals() as flag, run.directory.lock():
        return run_finetuning(
            run,
            _own_images(run, data, root) if images is None else images,
            config,
            data=data,
            again=again,
            progress=Stoppable(progress, flag, SAVED),
        )


def _own_images(run: Run, data: str | None, root: Path | None) -> ImageSet:
    """Load the images of the run, or of another source, at the size of the run."""
    if data is None and not is_source(run.source):
        raise UserError(
            f"the run was trained on images that are not a data source ({run.source}); pass them as"
            " images, or set data to a labelled source."
        )
    return load_source(
        data or run.source,
        root=root,
        size=run.size,
        channels=run.channels,
        seed=run.config.seed,
    )
