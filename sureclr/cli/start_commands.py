"""demo, list and views: the first things that a newcomer runs."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from sureclr.cli.flags import NO_VIEWS, ViewFlags, given_flags, resolve
from sureclr.cli.shared import (
    START,
    Device,
    Json,
    Root,
    app,
    mapping_json,
    print_answer,
)
from sureclr.errors import UserError
from sureclr.progress import ConsoleProgress
from sureclr.recipes import RECIPES, recipe

if TYPE_CHECKING:
    from torch import Tensor

    from sureclr.data.image_set import ImageSet
    from sureclr.evaluation.results import Results


@app.command(group=START)
def demo(
    *,
    out: Annotated[Path, Parameter(help="The run folder; an older demo there is replaced.")] = Path(
        "runs/demo"
    ),
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Train on handwritten digits, evaluate, and write a report (3 minutes on 2 CPU cores)."""
    from sureclr.evaluation.session import evaluate
    from sureclr.reporting.page import report
    from sureclr.training.pretraining import pretrain

    print("Training on 1,000 images of digits, without their labels.", file=sys.stderr)
    replace = (out / "config.yaml").is_file()
    run = pretrain(recipe("digits"), out=out, overwrite=replace, device=device)
    results = evaluate(run)
    page = report(results, device=device)
    value = {"run": str(run.path), **mapping_json(results), "report": str(page)}
    next_command = (
        f"open {page} in a browser, then run: sureclr pretrain fashion-mnist  (or"
        " folder:YOUR/IMAGES)"
    )
    print_answer(json, value, _demo_text(run.path, results), next_command)


def _demo_text(path: Path, results: "Results") -> str:
    """Return what the demo's numbers mean."""
    linear = results["linear"]
    low, high = linear.interval
    return f"""
The encoder was trained on 1,000 images of digits, without labels. A linear classifier was then
trained on its frozen features of the same images, with labels, and tested on {linear.n_test} digits
of other writers:

    SureCLR features    {linear.accuracy:.3f}   (95 % interval {low:.3f} to {high:.3f})
    raw pixels          {linear.baselines.raw_pixels:.3f}
    untrained encoder   {linear.baselines.untrained:.3f}

Everything is in {path}/:
    report.html          the page to open: what the encoder sees, ignores, and how certain it is
    config.yaml          the configuration; `sureclr pretrain -c` repeats the run
    metrics.jsonl        one line for each training step
    results.json         all numbers of the evaluations
    embeddings.parquet   one row for each image: features, direction, radius
    encoder.safetensors  the weights of the encoder
    snapshots/           the representation of some images during training"""


@app.command(name="list", group=START)
def list_names(*, json: Json = False) -> None:
    """List the names of data sources, losses, encoders and recipes."""
    from sureclr.data.sources import SOURCES
    from sureclr.maths.objectives import OBJECTIVES
    from sureclr.models.encoders import COMMON, ENCODERS

    encoders = {name: _first_line(make) for name, make in ENCODERS.items()}
    names = {
        "sources": {name: source.about for name, source in SOURCES.items()},
        "losses": {name: _first_line(loss) for name, loss in OBJECTIVES.items()},
        "encoders": encoders | dict.fromkeys(COMMON, "") | {"...": "Any other timm model name."},
        "recipes": {name: _first_line(make) for name, make in RECIPES.items()},
    }
    lines = []
    for kind, entries in names.items():
        lines.append(f"{kind}:")
        lines += [f"  {name:24s} {about}".rstrip() for name, about in entries.items()]
    print_answer(json, names, "\n".join(lines), "sureclr pretrain digits")


def _first_line(documented: Any) -> str:
    """Return the summary of a docstring."""
    return (documented.__doc__ or "").strip().split("\n")[0]


@app.command(group=START)
def views(
    source: Annotated[
        str, Parameter(help="The images: digits, fashion-mnist, cifar10, ..., or folder:PATH.")
    ],
    /,
    *,
    out: Annotated[Path, Parameter(help="The PNG file to write.")] = Path("views.png"),
    count: Annotated[int, Parameter(help="How many images to show.")] = 8,
    seed: Annotated[int, Parameter(help="Another seed draws other views.")] = 0,
    size: Annotated[
        int | None,
        Parameter(help="Side of the images in pixels. Default: the data set's own; a folder: 96."),
    ] = None,
    root: Root = None,
    json: Json = False,
    given: Annotated[ViewFlags, Parameter(name="*")] = NO_VIEWS,
) -> None:
    """Draw some images, each next to two of its augmented views."""
    from sureclr.data.sources import load_images
    from sureclr.reporting.figures import augmented_pairs

    if count < 1:
        raise UserError(f"--count must be at least 1; got {count}.")
    config = resolve(source, None, None, {}, given_flags(given)).views
    images = load_images(source, root=root, size=size, progress=ConsoleProgress()).pretraining
    rows = _some_rows(images, count)
    import torch

    try:
        augmented_pairs(images.images[rows], config, torch.arange(len(rows)) + seed * count, out)
    except OSError as error:
        raise UserError(
            f"{out} cannot be written ({error.strerror or error}); give another --out."
        ) from error
    print_answer(
        json,
        {"out": str(out), "images": len(rows)},
        f"The picture is {out}.",
        f"sureclr pretrain {source}",
    )


def _some_rows(images: "ImageSet", count: int) -> "Tensor":
    """Return rows of `count` images: one of each class where there are labels, else spread out."""
    import torch

    rows = torch.arange(len(images))
    if not images.labelled:
        return rows[:: max(1, len(images) // count)][:count]
    first = [rows[images.labels == label][:1] for label in range(len(images.classes))]
    return torch.cat([*first, rows])[:count]
