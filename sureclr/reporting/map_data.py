"""The data of the interactive map, as its script reads them: columns and sheets of images."""

import base64
import json
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from sureclr.reporting import captions
from sureclr.reporting.blocks import Block, Map, Note
from sureclr.reporting.pictures import sheets
from sureclr.reporting.run_files import RunFiles

LAYOUTS = (("umap", "UMAP"), ("pca", "PCA"))


def map_blocks(run: RunFiles) -> list[Block]:
    """Return the map, and a note on colours that it lacks; or a note that says why it is absent."""
    places, table = run.places, run.table
    if places is None or table is None or "row" not in places or len(places["row"]) == 0:
        return [Note(captions.NO_MAP.format(run=run.path), missing=True)]
    if max(places["row"]) >= len(table):
        return [Note(captions.OTHER_MAP.format(run=run.path), missing=True)]
    rows = [int(row) for row in places["row"]]
    pictures = sheets(run.images, rows) if run.images is not None else {"uris": []}
    uris = pictures.pop("uris")
    colours, notes = _colours(run, rows)
    data = {
        "run": run.name,
        "n": len(rows),
        "classes": list(table.classes),
        "splits": sorted(set(table.split[rows].tolist())),
        "paths": [table.paths[row] for row in rows],
        "sheet": pictures,
        "columns": _columns(run, rows),
    }
    drawn = Map(
        "map.parquet",
        captions.MAP.fill(n=len(rows)),
        captions.MAP_LABEL.format(n=len(rows)),
        script_json(data),
        uris,
        [(name, title) for name, title in LAYOUTS if f"{name}_x" in places],
        colours,
    )
    return [drawn, *([Note(" ".join(notes))] if notes else [])]


def _colours(run: RunFiles, rows: list[int]) -> tuple[list[tuple[str, str]], list[str]]:
    """What the map can be coloured by (column and name), and a sentence for each that it cannot."""
    places, table = run.places, run.table
    assert places is not None and table is not None
    labelled = bool((table.labels[rows] >= 0).any())
    colours = (
        ("label", "label", labelled, captions.NO_LABEL_COLOUR),
        ("certainty", "certainty", table.certainty is not None, captions.NO_CERTAINTY_COLOUR),
        ("cluster", "cluster", "cluster" in places, captions.NO_CLUSTER_COLOUR),
        ("correct", "correctness", "correct" in places, captions.NO_CORRECT_COLOUR),
    )
    there = [(name, title) for name, title, known, _ in colours if known]
    notes = [
        captions.NO_COLOUR.format(colour=title, why=why)
        for _, title, known, why in colours
        if not known
    ]
    return there, notes


def _columns(run: RunFiles, rows: list[int]) -> dict[str, Any]:
    """Name -> {type, data}: little-endian typed arrays in base64."""
    places, table = run.places, run.table
    assert places is not None and table is not None
    splits = {name: i for i, name in enumerate(sorted(set(table.split[rows].tolist())))}
    columns: dict[str, NDArray[Any]] = {
        "row": np.asarray(rows, "<i4"),
        "label": table.labels[rows].numpy().astype("<i2"),
        "split": np.asarray([splits[split] for split in table.split[rows].tolist()], "<i2"),
    }
    for name in ("pca_x", "pca_y", "umap_x", "umap_y"):
        if name in places:
            columns[name] = places[name].astype("<f4")
    for name in ("cluster", "predicted"):
        if name in places:
            columns[name] = places[name].astype("<i2")
    if "correct" in places:
        correct = [-1 if value is None else int(value) for value in places["correct"]]
        columns["correct"] = np.asarray(correct, "<i2")
    if table.certainty is not None:
        columns["certainty"] = table.certainty[rows].numpy().astype("<f4")
    columns |= _neighbour_columns(places, rows)
    return {name: packed(values) for name, values in columns.items()}


def _neighbour_columns(places: dict[str, Any], rows: list[int]) -> dict[str, NDArray[Any]]:
    """Neighbours as positions on the map (-1: not on the map), with similarity and evidence."""
    if "neighbours" not in places:
        return {}
    position = {row: i for i, row in enumerate(rows)}
    neighbours = [[position.get(int(row), -1) for row in line] for line in places["neighbours"]]
    columns = {"neighbours": np.asarray(neighbours, "<i2").reshape(-1)}
    for name in ("similarity", "evidence"):
        if name in places:
            columns[name] = places[name].astype("<f4").reshape(-1)
    return columns


def packed(values: NDArray[Any]) -> dict[str, str]:
    """Return an array as its type and its bytes in base64."""
    data = base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
    return {"type": values.dtype.str[1:], "data": data}


def script_json(value: Any) -> Markup:
    """Return JSON that cannot end its script element, start a comment or break a line of script."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
