"""list and views: what there is to choose from, and what the augmentation does."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from sureclr.cli.flags import (
    NO_IMAGES,
    NO_NULLS,
    NO_VIEWS,
    ImageFlags,
    NullFlags,
    ViewFlags,
    as_words,
    given_flags,
    resolve,
)
from sureclr.cli.shared import (
    START,
    CommandProgress,
    Json,
    Root,
    app,
    print_answer,
    quoted,
    with_flags,
)
from sureclr.errors import UserError
from sureclr.recipes import RECIPES

if TYPE_CHECKING:
    from torch import Tensor

    from sureclr.data.image_set import ImageSet


@app.command(name="list", group=START)
def list_names(*, json: Json = False) -> None:
    """List the names of data sources, losses, encoders and recipes.

    It says of which encoders the pretrained weights are on this machine.
    """
    from sureclr.data.sources import SOURCES
    from sureclr.maths.objectives import OBJECTIVES
    from sureclr.models.encoders import COMMON, ENCODERS
    from sureclr.models.hub_cache import encoders_with_weights

    encoders = dict.fromkeys(COMMON, "")
    encoders |= {name: _first_line(make) for name, make in ENCODERS.items()}
    pretrained = encoders_with_weights()
    encoders |= dict.fromkeys(pretrained, "Its pretrained weights are on this machine: init=timm.")
    names = {
        "sources": {name: source.about for name, source in SOURCES.items()},
        "losses": {name: _first_line(loss) for name, loss in OBJECTIVES.items()},
        "encoders": encoders | {"...": "Any other timm model name."},
        "recipes": {name: _first_line(make) for name, make in RECIPES.items()},
    }
    lines = []
    for kind, entries in names.items():
        lines.append(f"{kind}:")
        lines += [f"  {name:24s} {about}".rstrip() for name, about in entries.items()]
    if not pretrained:
        lines.append("No pretrained weights of timm are on this machine; init=timm downloads some.")
    text = with_flags("\n".join(lines))
    print_answer(json, names | {"pretrained": pretrained}, text, "sureclr pretrain digits")


def _first_line(documented: Any) -> str:
    """Return the summary of a docstring."""
    return (documented.__doc__ or "").strip().split("\n")[0]


@app.command(name="views", group=START)
def draw_views(
    source: Annotated[
        str, Parameter(help="The images: digits, fashion-mnist, cifar10, ..., or folder:PATH.")
    ],
    /,
    *,
    out: Annotated[Path, Parameter(help="The PNG file to write.")] = Path("views.png"),
    count: Annotated[int, Parameter(help="How many images to show.")] = 8,
    seed: Annotated[int, Parameter(help="Another seed draws other views.")] = 0,
    root: Root = None,
    json: Json = False,
    reading: Annotated[ImageFlags, Parameter(name="*")] = NO_IMAGES,
    given: Annotated[ViewFlags, Parameter(name="*")] = NO_VIEWS,
    nothing: Annotated[NullFlags, Parameter(name="*")] = NO_NULLS,
) -> None:
    """Draw some images, each next to two of its augmented views, and null views below."""
    from sureclr.data.sources import load_images
    from sureclr.reporting.figures import augmented_pairs
    from sureclr.training.building import with_presence
    from sureclr.training.step_views import nulls_of_run

    if count < 1:
        raise UserError(f"--count must be at least 1; got {count}.")
    chosen = given_flags(reading) | given_flags(nothing)
    config = with_presence(resolve(source, None, None, chosen, given_flags(given)))
    progress, options = CommandProgress(), config.read_options
    images = load_images(source, root=root, progress=progress, options=options).pretraining
    rows = _some_rows(images, count)
    import torch

    seeds, side = torch.arange(len(rows)) + seed * count, images.images.shape[-1]
    kinds = config.null_kinds if config.null_fraction else ()

    def nulls(number: int) -> "Tensor":
        return nulls_of_run(replace(config, seed=seed), images, range(number), torch.device("cpu"))

    try:
        shown = images.for_views(rows)
        augmented_pairs(shown, config.views, seeds, out, side, nulls if kinds else None, kinds)
    except OSError as error:
        raise UserError(
            f"{out} cannot be written ({error.strerror or error}); give another --out."
        ) from error
    below = (
        f" Its last row has null views ({', '.join(kinds)}): images of nothing, from which a run"
        " learns what it looks like when there is nothing to see."
    )
    print_answer(
        json,
        {"out": str(out), "images": len(rows), "null_kinds": list(kinds)},
        f"The picture is {out}.{below if kinds else ''}",
        f"sureclr pretrain {quoted(source)}{as_words(chosen)}",
    )


def _some_rows(images: "ImageSet", count: int) -> "Tensor":
    """Return rows of `count` images: one of each class where there are labels, else spread out."""
    import torch

    rows = torch.arange(len(images))
    if not images.labelled:
        return rows[:: max(1, len(images) // count)][:count]
    first = [rows[images.labels == label][:1] for label in range(len(images.classes))]
    return torch.cat([*first, rows])[:count]
