"""embed: what a run says of the images of a source, as a table."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from sureclr.cli.shared import (
    OUTPUT,
    USE,
    CheckpointName,
    CommandProgress,
    Device,
    Json,
    OverwriteFile,
    Root,
    RunFolder,
    app,
    print_answer,
    quoted,
)

if TYPE_CHECKING:
    from sureclr.evaluation.embedded_source import EmbeddedSource


@app.command(group=USE)
def embed(
    run: RunFolder,
    source: Annotated[
        str | None,
        Parameter(
            name="SOURCE",
            help=(
                "What to embed: an image file, a folder, or a data source; table:PATH for a run on"
                " features made elsewhere. Default: the images that the run was trained on."
            ),
        ),
    ] = None,
    /,
    *,
    out: Annotated[
        Path,
        Parameter(group=OUTPUT, help="The table to write: .parquet or .npz, one row an image."),
    ],
    overwrite: OverwriteFile = False,
    checkpoint: CheckpointName = "last",
    device: Device = "auto",
    root: Root = None,
    json: Json = False,
) -> None:
    """Embed images: features, direction, radius, and how familiar they are.

    `familiar` is a p-value that is low for an image unlike the training data. `evidence` says in
    nats how much better than by chance the training images expect the image. An image of the
    training data is not compared with itself.
    """
    from sureclr.evaluation.embedded_source import FORMATS, embed_source
    from sureclr.evaluation.prediction_table import check_out

    check_out(out, overwrite=overwrite, formats=FORMATS)
    found = embed_source(
        run, source, checkpoint=checkpoint, device=device, root=root, progress=CommandProgress()
    )
    found.save(out, overwrite=overwrite)
    answer = _answer(found, out)
    print_answer(json, answer, _text(found, answer), f"sureclr report {quoted(run)}")


def _answer(found: "EmbeddedSource", out: Path) -> dict[str, Any]:
    """Return what `--json` prints; None stands for a column that does not exist."""
    table = found.table
    means = {
        "radius": table.radius,
        "presence": table.presence,
        "information": table.information,
        "familiar": found.familiar,
        "evidence": found.evidence,
    }
    return {
        "out": str(out),
        "images": len(table),
        "features": table.features.shape[1],
        "dimensions": table.direction.shape[1],
        "mean": {
            name: None if values is None else float(values.nanmean())
            for name, values in means.items()
        },
        "compared_with": {"images": found.n_compared, "what": found.compared_with},
    }


def _text(found: "EmbeddedSource", answer: dict[str, Any]) -> str:
    """Return the answer in words."""
    from sureclr.data.image_report import counted

    mean = answer["mean"]
    units = {"information": " nats", "evidence": " nats"}
    words = ", ".join(
        f"{name} {value:.3f}{units.get(name, '')}"
        for name, value in mean.items()
        if value is not None
    )
    lines = [
        f"{counted(answer['images'], 'image')} with {answer['features']:,} features and a direction"
        f" of {answer['dimensions']:,} numbers each."
    ]
    if words:
        lines.append(f"The means are: {words}.")
    if found.n_compared:
        lines.append(
            f"The p-value `familiar` compares each image with {found.n_compared:,}"
            f" {found.compared_with}."
        )
    return "\n".join([*lines, f"The table is {answer['out']}, one row an image."])
