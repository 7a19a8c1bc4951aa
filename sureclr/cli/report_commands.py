"""report: one self-contained page about a run, or about two side by side."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from sureclr.cli.shared import (
    EVALUATE,
    CheckpointName,
    CommandProgress,
    Device,
    ImageColumn,
    Json,
    LabelColumn,
    LabelPath,
    Root,
    RunFolder,
    app,
    file_of_labels,
    print_answer,
)


@app.command(group=EVALUATE)
def report(
    run: RunFolder,
    other: Annotated[
        Path | None,
        Parameter(name="OTHER", help="A second run, to be shown next to the first."),
    ] = None,
    /,
    *,
    evaluate: Annotated[
        bool,
        Parameter(
            negative="--no-evaluate",
            help="First make the evaluations that the run does not have yet.",
        ),
    ] = True,
    labels: LabelPath = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    out: Annotated[
        Path | None,
        Parameter(
            help=(
                "The HTML file to write. Default: report.html, or comparison-OTHER.html, in the run"
                " folder. Results that an evaluation has put beside it with its --out are used."
            )
        ),
    ] = None,
    checkpoint: CheckpointName = "last",
    open: Annotated[bool, Parameter(negative="", help="Open the page in the browser.")] = False,
    device: Device = "auto",
    root: Root = None,
    json: Json = False,
) -> None:
    """Write one page about a run: its quality, how it learned, what it sees, how certain it is."""
    from sureclr.reporting.page import report as write_page

    page = write_page(
        run,
        other,
        evaluate=evaluate,
        labels=file_of_labels(labels, image_column, label_column),
        out=out,
        checkpoint=checkpoint,
        device=device,
        root=root,
        progress=CommandProgress(),
    )
    size = page.stat().st_size
    print_answer(
        json,
        {"report": str(page), "bytes": size},
        f"The report is {page} ({size / 1e6:.1f} MB); it opens without a network.",
        f"open {page} in a browser",
    )
    if open:
        import webbrowser

        webbrowser.open(page.resolve().as_uri())
