"""Heads for any embedding: features that a program holds become a run.

`run = sureclr.heads(features)` trains them on features (k, n, f) of k views of n images, and
`run.embed(features).radius` says how certain each of some images is, from features (m, f).
"""

from collections.abc import Sequence
from dataclasses import fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from sureclr.config import TABLE, PretrainConfig
from sureclr.data.feature_table import FeatureSet, features_given
from sureclr.data.folder import absolute
from sureclr.errors import UserError, unknown
from sureclr.progress import ConsoleProgress, Progress
from sureclr.recipes import recipe
from sureclr.training.images import with_rows
from sureclr.training.pretraining import pretrain
from sureclr.training.run import Run
from sureclr.training.run_dir import FEATURES, default_name

SETTINGS = tuple(
    field.name
    for field in fields(PretrainConfig)
    if field.name not in ("source", "encoder", "init", "freeze", "cached_views")
)


def heads(
    features: Any,
    *,
    clean: Any = None,
    labels: Sequence[Any] | None = None,
    paths: Sequence[str] | None = None,
    split: Sequence[str] | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    accept_changes: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    track: str | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Run:
    """Train a projection head and a certainty head on features of any network, and return the run.

    The features are copied into the run folder (features.npz), so that it can be evaluated, and
    continued with `sureclr pretrain --resume`, without them.

    Args:
        features: (k, n, f) floats, an array or a tensor: of each of n images the features of k >= 2
            augmented views. They need no normalisation.
        clean: (n, f) features of the whole images, which are embedded and evaluated; None: the mean
            over the views.
        labels: one an image, for evaluations alone: class numbers from 0 (-1 or None: not known),
            or class names.
        paths: n names of the images, each another.
        split: n of "train", "test" and "unlabelled"; None: a hash of the features holds out 20 %
            for testing.
        out: the run folder; None: runs/features-LOSS-table-DATE.
        resume: continue the run in `out` exactly where it stopped.
        accept_changes: continue it with other features or settings than it recorded.
        overwrite: replace the run in `out`.
        device: auto, cuda, mps or cpu.
        track: tensorboard or wandb, which then also gets the numbers.
        progress: gets the number of steps done; None: reports on stderr.
        settings: fields of `PretrainConfig`, such as `epochs`, `batch_size`, `loss` and `seed`.

    Returns:
        The run. `Run.embed` takes features (m, f) of whole images.

    Raises:
        UserError: bad input. Nothing has been overwritten.
        Stopped: SIGINT or SIGTERM, after a checkpoint.
    """
    for name in settings:
        if name not in SETTINGS:
            raise unknown("setting", name, SETTINGS)
    if resume and out is None:
        raise UserError("resume=True continues the run in out; name that folder as out=.")
    config = replace(recipe(TABLE), **settings)
    folder = Path(out) if out else default_name("features", config.loss, TABLE, datetime.now())
    config = replace(config, source=f"{TABLE}:{absolute(folder / FEATURES)}")
    images = features_given(
        features,
        clean=clean,
        labels=labels,
        paths=paths,
        split=split,
        name=config.source,
        seed=config.seed,
    )
    progress = progress or ConsoleProgress()
    return pretrain(
        with_rows(config, cast(FeatureSet, images.pretraining), progress),
        images,
        out=folder,
        resume=resume,
        accept_changes=accept_changes,
        overwrite=overwrite,
        device=device,
        track=track,
        progress=progress,
    )
