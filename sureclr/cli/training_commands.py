"""pretrain: train an encoder, continue a run, or check a configuration."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter

from sureclr.cli.flags import (
    NO_CONFIG,
    NO_VIEWS,
    ConfigFlags,
    ViewFlags,
    given_flags,
    resolve,
)
from sureclr.cli.shared import (
    TRAIN,
    CommandProgress,
    Device,
    EvaluationOptions,
    ImageColumn,
    Json,
    LabelColumn,
    Root,
    Verify,
    app,
    file_of_labels,
    json_line,
    print_answer,
    quoted,
)
from sureclr.config import to_yaml
from sureclr.errors import UserError

RUN = Group("Run", sort_key=5)


@app.command(group=TRAIN)
def pretrain(
    source: Annotated[
        str | None,
        Parameter(help="What to train on: digits, fashion-mnist, cifar10, ..., or folder:PATH."),
    ] = None,
    /,
    *,
    config: Annotated[
        Path | None,
        Parameter(
            name=["--config", "-c"],
            group=RUN,
            help="A YAML file with any of the options below; a run's config.yaml is one.",
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        Parameter(group=RUN, help="Start from this recipe instead of the data source's own."),
    ] = None,
    out: Annotated[
        Path | None,
        Parameter(group=RUN, help="The run folder. Default: runs/SOURCE-LOSS-ENCODER-DATE."),
    ] = None,
    resume: Annotated[
        Path | None,
        Parameter(
            name="--resume",
            group=RUN,
            help="Continue the run in this folder exactly where it stopped.",
        ),
    ] = None,
    extend: Annotated[
        int | None,
        Parameter(
            group=RUN,
            help="With --resume: train a complete run on for so many epochs.",
        ),
    ] = None,
    extend_schedule: Annotated[
        Literal["cosine", "constant", "restart"] | None,
        Parameter(
            group=RUN,
            help=(
                "With --extend: cosine (the learning rate rises during a tenth of the extension,"
                " and falls to zero), constant, or restart (it begins at its highest value and"
                " falls to zero). Default: constant if the run ended with a constant rate, else"
                " cosine."
            ),
        ),
    ] = None,
    extend_learning_rate: Annotated[
        float | None,
        Parameter(
            group=RUN,
            help=(
                "With --extend: the highest learning rate. Default: with restart that of the run,"
                " with cosine half of it; with constant the rate at which the run ended, or a tenth"
                " of its highest where that was zero."
            ),
        ),
    ] = None,
    accept_changes: Annotated[
        bool,
        Parameter(
            negative="",
            group=RUN,
            help=(
                "With --resume: go on although the configuration or the images are others than the"
                " run recorded, and store the change."
            ),
        ),
    ] = False,
    overwrite: Annotated[
        bool,
        Parameter(negative="", group=RUN, help="Replace the run that --out holds already."),
    ] = False,
    dry_run: Annotated[
        bool,
        Parameter(
            negative="",
            group=RUN,
            help=(
                "Check the configuration, the images (which are read, or downloaded) and the"
                " network, print the configuration as YAML, and stop."
            ),
        ),
    ] = False,
    track: Annotated[
        str | None,
        Parameter(group=RUN, help="Also send the numbers to `tensorboard` or `wandb`."),
    ] = None,
    labels: Annotated[
        Path | None,
        Parameter(
            group=RUN,
            help=(
                "File of labels (CSV, JSON, Parquet; one image a row) by which kNN accuracy is"
                " measured on the way. They change nothing of what is learned."
            ),
        ),
    ] = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    device: Device = "auto",
    root: Root = None,
    verify: Verify = False,
    json: Json = False,
    given: Annotated[ConfigFlags, Parameter(name="*")] = NO_CONFIG,
    views: Annotated[ViewFlags, Parameter(name="views")] = NO_VIEWS,
) -> None:
    """Train an encoder on images without labels, by contrasting augmented views of them."""
    if resume is not None:
        if out is not None or overwrite:
            raise UserError(
                f"--resume continues the run in {resume}; leave out --out and --overwrite."
            )
        file = resume / "config.yaml"
        config = config or (file if os.path.lexists(file) else None)
        source = source or (None if config else "digits")  # `pretrain` says that there is no run
    elif accept_changes:
        raise UserError("--accept-changes belongs to --resume; leave it out.")
    if extend is None and (extend_schedule is not None or extend_learning_rate is not None):
        raise UserError(
            "--extend-schedule and --extend-learning-rate belong to --extend EPOCHS; add it, or"
            " leave them out."
        )
    if extend is not None and resume is None:
        raise UserError("--extend trains a complete run on; name the run with --resume RUN.")
    progress = CommandProgress()
    resolved = resolve(source, recipe, config, given_flags(given), given_flags(views), progress)
    if extend is not None:
        resolved = resolved.extended(extend, extend_schedule, extend_learning_rate)
    from sureclr.training.pretraining import check_pretraining
    from sureclr.training.pretraining import pretrain as train

    options: dict[str, Any] = {
        "out": resume or out,
        "resume": resume is not None,
        "accept_changes": accept_changes,
        "overwrite": overwrite,
        "labels": file_of_labels(labels, image_column, label_column),
        "device": device,
        "track": track,
        "root": root,
        "verify": verify,
        "progress": progress,
    }
    if dry_run:
        check_pretraining(resolved, **options)
        print(json_line(asdict(resolved)) if json else to_yaml(resolved), end="")
        return
    run = train(resolved, **options)
    last = next(reversed(run.directory.lines()), None)  # None: all lines were damaged
    evaluated_with = EvaluationOptions(None, labels, image_column, label_column, root=root)
    print_answer(
        json,
        {"run": str(run.path), "last": last},
        f"The run is in {run.path}.",
        f"sureclr evaluate {quoted(run.path)}{evaluated_with.words}",
    )
