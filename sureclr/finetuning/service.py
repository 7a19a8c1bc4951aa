"""`sureclr.finetune`: fine-tune a run from Python, with all that the command line does."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from sureclr.config import ONNX
from sureclr.data.label_request import LabelFile
from sureclr.errors import UserError
from sureclr.evaluation.opening import open_run, why_not_kept
from sureclr.evaluation.results import Results
from sureclr.evaluation.session import Session
from sureclr.finetuning.config import FinetuneConfig
from sureclr.finetuning.protocol import run_finetuning
from sureclr.finetuning.results import FinetuningResult
from sureclr.progress import Progress
from sureclr.training.run import Run


def finetune(
    run: str | Path | Run | Results,
    data: Any = None,
    config: FinetuneConfig | None = None,
    *,
    labels: str | int | Path | LabelFile | None = None,
    again: bool = False,
    checkpoint: str | int | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    root: Path | None = None,
    progress: Progress | None = None,
) -> FinetuningResult:
    """Fine-tune a run with few labels, and compare it with the same network from scratch.

    The result is saved in the results.json of the run after each seed, and the best classifier
    in its folder, for `sureclr.load_finetuned`. Seeds that are finished are not trained again.

    Args:
        run: a run folder, a `Run`, or the `Results` of one.
        data: labelled images, as in `sureclr.evaluate`; None means the run's own.
        config: the settings; None for the defaults.
        labels: labels to train on, in place of those in `config`: a share ("10%"), a count (500),
            or a file of labels (its path, or a `LabelFile` that names its columns).
        again: train finished seeds again.
        checkpoint: "last", "best" or a number of steps; None: the last, or that of a `Run`. The
            result of another one than the last is in a folder of its own in the run folder.
        out: a folder for the result and the classifier in place of the run folder, as in
            `sureclr.evaluate`; `sureclr.load_finetuned(out)` then opens the classifier.
        device: auto, cuda, mps or cpu; a `Run` stays where it is.
        root: the folder of downloaded data sets.
        progress: what to report to; None reports on stderr.

    Raises:
        UserError: the run, the images or the labels cannot be used (the encoder of an ONNX file
            cannot be trained), another process is writing to the run, or training diverges at every
            learning rate.
        Stopped: SIGINT or SIGTERM came; finished seeds are saved.
    """
    config = FinetuneConfig() if config is None else config
    if isinstance(labels, LabelFile):
        config = replace(
            config,
            labels=str(labels.path),
            image_column=labels.image_column,
            label_column=labels.label_column,
        )
    elif labels is not None:
        config = replace(config, labels=str(labels))
    opened = open_run(run, checkpoint, out, device)
    if opened.config.of_table:
        raise UserError(
            f"the run in {opened.path} was trained on features made elsewhere, so it has no encoder"
            " to fine-tune; use linear, knn or predict."
        )
    if opened.config.encoder == ONNX:
        raise UserError(
            f"the encoder of the run {opened.path} is an ONNX network, which cannot be trained;"
            " `linear` evaluates a classifier on its features, and `predict` applies one."
        )
    if reason := why_not_kept(opened):
        raise UserError(
            f"the run folder {opened.path} cannot be written ({reason}), and fine-tuning keeps each"
            " seed and the classifier; give out=DIR."
        )
    with Session(opened, data, root=root, progress=progress) as session:
        name = None if data is None else session.images.name
        return run_finetuning(
            session.run, session.images, config, data=name, again=again, progress=session.progress
        )
