"""label-next: which images to label, as a CSV file to fill in."""

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from sureclr.cli.shared import Device, Json, Opened, Root, Run_, answer, app
from sureclr.errors import UserError

if TYPE_CHECKING:
    from sureclr.data.embeddings import Embeddings

SHOWN = 5  # rows of the file shown as text


@app.command
def label_next(
    run: Run_,
    /,
    *,
    budget: Annotated[int, Parameter(help="How many images you will label now.")],
    strategy: Annotated[
        str | None,
        Parameter(
            help=(
                "random, typical, k-means, evidence, ...; default: k-means, on average the best of "
                "benchmarks.label_next."
            )
        ),
    ] = None,
    known: Annotated[
        Path | None,
        Parameter(help="CSV file path,label of the images labelled already: others are chosen."),
    ] = None,
    out: Annotated[Path, Parameter(help="CSV file to write; must not exist.")] = Path("next.csv"),
    seed: Annotated[
        int,
        Parameter(help="Of ties, of k-means and of the images looked at; another chooses others."),
    ] = 0,
    data: Annotated[
        str | None,
        Parameter(help="Choose among these images instead of those of the run: folder:PATH, ..."),
    ] = None,
    device: Device = "auto",
    root: Root = None,
    json: Json = False,
) -> None:
    """Which images to label next: a CSV file, the most useful first, whose empty column `label` is
    yours to fill in.
    """
    from sureclr.evaluation.label_choice import (
        DEFAULT,
        STRATEGIES,
        WHY,
        label_next,
        labelled_already,
    )

    if out.exists():
        raise UserError(
            f"{out} is there already, and labels may have been written into it; give another --out."
        )
    with Opened(run, data, device, root) as opened:
        material = opened.material()
        labelled, note = labelled_already(material.images, known)
        chosen = label_next(material.table, labelled, budget, name := strategy or DEFAULT, seed)
    rows = rows_of(material.table, chosen.rows.tolist(), chosen.reasons)
    write(out, rows)
    found = {
        "strategy": name,
        "about": (STRATEGIES[name].__doc__ or "").split("\n")[0],
        "budget": budget,
        "known": int(labelled.sum()),
        "why": f"{name} is the default: {WHY}" if strategy is None else "asked for",
        "note": note,
        "out": str(out),
        "next": rows,
    }
    answer(
        json,
        found,
        text(found),
        f"sureclr finetune {run} --labels {out}  (once its labels are filled in)",
    )


def rows_of(table: "Embeddings", rows: list[int], reasons: list[str]) -> list[dict[str, Any]]:
    """What is told of each image."""
    sure = {} if table.certainty is None else {row: float(table.certainty[row]) for row in rows}
    return [
        {"path": table.paths[row], "label": "", "reason": reason}
        | ({"certainty": round(sure[row], 4)} if sure else {})
        for row, reason in zip(rows, reasons, strict=True)
    ]


def write(out: Path, rows: list[dict[str, Any]]) -> None:
    try:
        with out.open("x", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise UserError(
            f"{out} cannot be written ({error.strerror or error}); give another --out."
        ) from error


def text(found: dict[str, Any]) -> str:
    rows = found["next"]
    lines = [
        (
            f"{found['budget']} images to label, {found['known']} labelled already, strategy"
            f" {found['strategy']} ({found['why']})"
        ),
        found["about"],
    ]
    lines += [f"  {row['path']}  {row['reason']}" for row in rows[:SHOWN]]
    lines += [f"  ... {len(rows) - SHOWN} more"] if len(rows) > SHOWN else []
    return "\n".join(
        [
            *lines,
            *([found["note"]] if found["note"] else []),
            f"in {found['out']}, the most useful first",
        ]
    )
