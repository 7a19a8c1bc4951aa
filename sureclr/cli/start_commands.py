"""views and list: what goes in, and what there is to choose from."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from sureclr.cli.flags import NO_VIEWS, ViewFlags, resolve, said
from sureclr.cli.shared import Json, Root, answer, app
from sureclr.errors import UserError
from sureclr.progress import ConsoleProgress
from sureclr.recipes import RECIPES


@app.command
def views(
    source: Annotated[str, Parameter(help="digits, fashion-mnist, cifar10, ..., or folder:PATH.")],
    /,
    *,
    out: Annotated[Path, Parameter(help="PNG to write.")] = Path("views.png"),
    count: Annotated[int, Parameter(help="Images to show.")] = 8,
    seed: int = 0,
    size: int | None = None,
    root: Root = None,
    json: Json = False,
    given: Annotated[ViewFlags, Parameter(name="*")] = NO_VIEWS,
) -> None:
    """Draw original images beside two augmented views of each."""
    from sureclr.data.sources import load_images
    from sureclr.reporting.figures import augmented_pairs

    if count < 1:
        raise UserError(f"--count must be at least 1; got {count}.")
    config = resolve(source, None, None, {}, said(given)).views
    images = load_images(source, root=root, size=size, progress=ConsoleProgress()).pretraining
    chosen = _spread(images, count)
    import torch

    try:
        augmented_pairs(
            images.images[chosen], config, torch.arange(len(chosen)) + seed * count, out
        )
    except OSError as error:
        raise UserError(
            f"{out} cannot be written ({error.strerror or error}); give another --out."
        ) from error
    answer(
        json,
        {"out": str(out), "images": len(chosen)},
        f"drawn: {out}",
        f"sureclr pretrain {source}",
    )


def _spread(images: Any, count: int) -> Any:
    """Rows of `count` images, one class after another where there are labels, else evenly spread."""
    import torch

    rows = torch.arange(len(images))
    if images.labelled:
        first = [rows[images.labels == label][:1] for label in range(len(images.classes))]
        rows = torch.cat([*first, rows])
        return rows[:count]
    return rows[:: max(1, len(images) // count)][:count]


@app.command(name="list")
def list_(*, json: Json = False) -> None:
    """Data sources, losses, encoders and recipes by name."""
    from sureclr.data.sources import SOURCES
    from sureclr.maths.objectives import OBJECTIVES
    from sureclr.models.encoders import COMMON

    found = {
        "sources": {name: source.about for name, source in SOURCES.items()},
        "losses": {name: _first_line(loss) for name, loss in OBJECTIVES.items()},
        "encoders": {name: "" for name in COMMON} | {"...": "any other timm model name"},
        "recipes": {name: _first_line(made) for name, made in RECIPES.items()},
    }
    lines = [
        line
        for kind, names in found.items()
        for line in (
            f"{kind}:",
            *(f"  {name:24s} {about}".rstrip() for name, about in names.items()),
        )
    ]
    answer(json, found, "\n".join(lines), "sureclr pretrain digits")


def _first_line(thing: Any) -> str:
    return (thing.__doc__ or "").strip().split("\n")[0]
