"""What it sees: the interactive map of the embeddings, and what its main directions mean."""

import base64
import json
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from sureclr.reporting.blocks import Block, Figure, Gallery, Map, Note, from_key, picture
from sureclr.reporting.charts import Axis, bars, told
from sureclr.reporting.pictures import sheets
from sureclr.reporting.run_files import Numbers


def sees(run: Numbers) -> list[Block]:
    return [*_map(run), *from_key(run, "geometry", _geometry)]


def _map(run: Numbers) -> list[Block]:
    places, table = run.places, run.table
    if places is None or table is None or "row" not in places or len(places["row"]) == 0:
        return [
            Note(
                f"There is no map.parquet yet; `sureclr evaluate {run.path}` makes it.",
                missing=True,
            )
        ]
    if max(places["row"]) >= len(table):
        return [
            Note(
                "map.parquet is not of these embeddings; delete it and `sureclr evaluate"
                f" {run.path}` makes it again.",
                missing=True,
            )
        ]
    rows = [int(row) for row in places["row"]]
    pictures = sheets(run.images, rows) if run.images is not None else {"uris": []}
    uris = pictures.pop("uris")
    layouts = [
        (name, title) for name, title in (("umap", "UMAP"), ("pca", "PCA")) if f"{name}_x" in places
    ]
    every = (
        (
            "label",
            "label",
            bool((table.labels[rows] >= 0).any()),
            "no image on the map is labelled",
        ),
        (
            "certainty",
            "certainty",
            table.certainty is not None,
            "this loss has none; train with --loss sure",
        ),
        (
            "cluster",
            "cluster",
            "cluster" in places,
            "map.parquet holds none; delete it and evaluate again",
        ),
        (
            "correct",
            "correctness",
            "correct" in places,
            "that takes labelled training images, whose vote is right or wrong",
        ),
    )
    colours = [(name, title) for name, title, there, _ in every if there]
    absent = [f"No colour by {title}: {why}." for _, title, there, why in every if not there]
    data = {
        "run": run.name,
        "n": len(rows),
        "classes": list(table.classes),
        "splits": sorted(set(table.split[rows].tolist())),
        "paths": [table.paths[row] for row in rows],
        "sheet": pictures,
        "columns": _columns(run, rows),
    }
    return [
        Map("map.parquet", script_json(data), uris, len(rows), layouts, colours),
        *([Note(" ".join(absent))] if absent else []),
    ]


def _columns(run: Numbers, rows: list[int]) -> dict[str, Any]:
    """Name -> {type, data}: little-endian typed arrays in base64."""
    places, table = run.places, run.table
    assert places is not None and table is not None
    at = {row: i for i, row in enumerate(rows)}
    splits = {name: i for i, name in enumerate(sorted(set(table.split[rows].tolist())))}
    columns: dict[str, NDArray[Any]] = {
        "row": np.asarray(rows, "<i4"),
        "label": table.labels[rows].numpy().astype("<i2"),
        "split": np.asarray([splits[s] for s in table.split[rows].tolist()], "<i2"),
    }
    columns |= {
        name: places[name].astype("<f4")
        for name in ("pca_x", "pca_y", "umap_x", "umap_y")
        if name in places
    }
    columns |= {
        name: places[name].astype("<i2") for name in ("cluster", "predicted") if name in places
    }
    if "correct" in places:
        columns["correct"] = np.asarray(
            [-1 if value is None else int(value) for value in places["correct"]], "<i2"
        )
    if table.certainty is not None:
        columns["certainty"] = table.certainty[rows].numpy().astype("<f4")
    if "neighbours" in places:
        columns["neighbours"] = np.asarray(
            [[at.get(int(row), -1) for row in line] for line in places["neighbours"]], "<i2"
        ).reshape(-1)
        columns |= {
            name: places[name].astype("<f4").reshape(-1)
            for name in ("similarity", "evidence")
            if name in places
        }
    return {name: packed(values) for name, values in columns.items()}


def packed(values: NDArray[Any]) -> dict[str, str]:
    return {
        "type": values.dtype.str[1:],
        "data": base64.b64encode(np.ascontiguousarray(values).tobytes()).decode(),
    }


def script_json(value: Any) -> Markup:
    """JSON that cannot end its script element, start a comment, or break a line of JavaScript."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _geometry(run: Numbers, found: dict[str, Any]) -> list[Block]:
    shares = found["explained"]
    chart = bars(
        "Share of variance",
        [str(i + 1) for i in range(len(shares))],
        shares,
        Axis("share of the variance of features", 0),
    )
    blocks: list[Block] = [
        _directions(run, found),
        Figure(
            "geometry.explained",
            "How much the main directions hold",
            "Principal axes of "
            "the features, the largest first; "
            "a steep fall means that a few directions say nearly all.",
            [("", chart)],
        ),
    ]
    clusters = found.get("clusters") or {}
    if clusters.get("k"):
        purity = (
            ""
            if clusters.get("purity") is None
            else (
                f" {told(clusters['purity'])} of the images lie in a cluster where their "
                "class is the commonest"
                f" (one cluster for all: {told(clusters.get('purity_of_one_cluster'))})."
            )
        )
        blocks.append(
            Note(
                f"k-means finds {clusters['k']} clusters of {min(clusters['sizes']):,} to"
                f" {max(clusters['sizes']):,} images.{purity}"
            )
        )
    return blocks + (
        [Note(f"UMAP is not there: {found['umap']}")] if isinstance(found.get("umap"), str) else []
    )


def _directions(run: Numbers, found: dict[str, Any]) -> Gallery:
    rows = []
    for one in found["directions"]:
        said = [f"axis {one['axis'] + 1}", f"{told(one['share'])} of the variance"]
        said += (
            [f"correlation with certainty {told(one['certainty_correlation'])}"]
            if one.get("certainty_correlation") is not None
            else []
        )
        said += (
            [f"classes explain {told(one['class_eta2'])}"]
            if one.get("class_eta2") is not None
            else []
        )
        rows.append((f"{', '.join(said)}: low end", [picture(run, row) for row in one["low"]]))
        rows.append(("high end", [picture(run, row) for row in one["high"]]))
    return Gallery(
        "geometry.directions",
        "What the main directions mean",
        "The images at both ends of each principal axis of the "
        "features: whatever differs between left and right is what that axis has learned to tell.",
        rows,
        tight=True,
    )
