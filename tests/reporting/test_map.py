"""The data of the interactive map: read back from the page's own JSON and sheets, they are the
files' numbers and the images' pixels.
"""

import base64
import io
import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sureclr.config import PretrainConfig
from sureclr.data.embeddings import Embeddings
from sureclr.data.image_set import ImageSet
from sureclr.evaluation.results import Results
from sureclr.reporting.blocks import Map, Note
from sureclr.reporting.map_data import map_blocks, script_json
from sureclr.reporting.run_files import RunFiles

N, ROWS = (
    1100,
    [*range(1099, 49, -1)],
)  # 1,050 of 1,100 images are on the map, last first: more than one sheet of 1,024
HOSTILE = [
    "</script><script>alert(1)</script>",
    "<!--<script",
    "a&b",
    "\u2028\u2029",
    "\ud800",
    '"\\',
    "{{ 7 * 7 }}",
]
LETTERS = {"f4": "f", "i2": "h", "i4": "i"}


def run_files() -> RunFiles:
    """Images of 4 pixels of one grey each (row // 5, top left 255 - that)."""
    random, place, seeds = (
        np.random.default_rng(0),
        np.arange(len(ROWS)),
        torch.Generator().manual_seed(0),
    )
    pixels = (torch.arange(N) // 5).to(torch.uint8).reshape(N, 1, 1, 1).repeat(1, 1, 4, 4)
    pixels[:, :, 0, 0] = 255 - pixels[:, :, 0, 0]
    split, paths = (
        np.where(np.arange(N) % 3, "train", "test"),
        [f"{i} {HOSTILE[i % len(HOSTILE)]}" for i in range(N)],
    )
    labels, classes = torch.arange(N) % 3 - 1, ("<b>", "dog")
    table = Embeddings(
        *torch.nn.functional.normalize(torch.randn(2, N, 3, generator=seeds), dim=2),
        *torch.rand(2, N, generator=seeds),
        labels,
        classes,
        split,
        paths,
        1.0,
    )
    near = np.stack([(np.roll(ROWS, -1)), np.roll(ROWS, -2)], axis=1)
    near[0, 1] = 3  # an image that is not on the map
    places: dict[str, Any] = {
        "row": np.asarray(ROWS),
        "pca_x": random.normal(size=len(ROWS)),
        "pca_y": random.normal(size=len(ROWS)),
        "cluster": place % 4,
        "predicted": place % 2,
        "correct": [None if i % 3 == 0 else i % 2 == 0 for i in place],
        "neighbours": near,
        "similarity": random.random((len(ROWS), 2)),
        "evidence": random.normal(size=(len(ROWS), 2)),
    }
    images = ImageSet("made", pixels, labels, classes, split, paths)
    path = Path("run")
    return RunFiles(
        path, PretrainConfig(source="digits"), {}, [], Results(path), table, places, images
    )


def drawn(run: RunFiles) -> Map:
    return next(block for block in map_blocks(run) if isinstance(block, Map))


def unpacked(found: Map) -> dict[str, list[float]]:
    """By struct, as the page's script does it by typed arrays."""
    columns = json.loads(found.data)["columns"]
    raw = {
        name: (LETTERS[column["type"]], base64.b64decode(column["data"]))
        for name, column in columns.items()
    }
    return {
        name: list(struct.unpack(f"<{len(data) // struct.calcsize(letter)}{letter}", data))
        for name, (letter, data) in raw.items()
    }


def test_the_columns_are_the_files_run_files() -> None:
    run = run_files()
    places, table, read = run.places, run.table, unpacked(drawn(run))
    assert places is not None and table is not None and table.certainty is not None
    assert read["row"] == ROWS
    for name in ("pca_x", "pca_y", "cluster", "predicted"):
        assert read[name] == pytest.approx(places[name].tolist(), rel=1e-6)
    for name in ("similarity", "evidence"):
        assert read[name] == pytest.approx(
            [value for line in places[name].tolist() for value in line], rel=1e-6
        )
    assert read["label"] == [table.labels[row] for row in ROWS]
    assert read["certainty"] == pytest.approx([float(table.certainty[row]) for row in ROWS])
    assert read["correct"] == [-1 if value is None else int(value) for value in places["correct"]]
    data = json.loads(drawn(run).data)
    assert data["paths"] == [table.paths[row] for row in ROWS] and data["classes"] == ["<b>", "dog"]
    assert [data["splits"][int(i)] for i in read["split"]] == [table.split[row] for row in ROWS]


def test_neighbours_are_places_of_the_map_and_one_that_is_not_there_is_marked() -> None:
    run = run_files()
    read = unpacked(drawn(run))["neighbours"]
    assert read[:2] == [1, -1] and read[2:4] == [2, 3] and read[-2:] == [0, 1]


def test_each_picture_lies_where_the_script_looks_for_it() -> None:
    found = drawn(run_files())
    sheet = json.loads(found.data)["sheet"]
    sheets = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))
        for uri in found.uris
    ]
    assert len(sheets) == 2
    for i, row in enumerate(ROWS):
        place, side = i % sheet["per_sheet"], sheet["side"]
        top, left = place // sheet["per_row"] * side, place % sheet["per_row"] * side
        picture = sheets[i // sheet["per_sheet"]][top : top + side, left : left + side]
        assert (
            picture.shape == (4, 4)
            and picture[0, 0] == 255 - row // 5
            and (picture.reshape(-1)[1:] == row // 5).all()
        ), row


@pytest.mark.parametrize("text", HOSTILE)
def test_json_in_a_script_element_is_inert_and_the_same_text(text: str) -> None:
    written = str(script_json({text: [text]}))
    assert not set(written) & set("<>&\u2028\u2029") and written.isascii()
    assert json.loads(written) == {text: [text]}


def test_what_is_absent_is_not_offered() -> None:
    run = run_files()
    assert run.places is not None and run.table is not None
    assert drawn(run).layouts == [("pca", "PCA")]
    assert [name for name, _ in drawn(run).colours] == ["label", "certainty", "cluster", "correct"]
    bare = {
        name: values
        for name, values in run.places.items()
        if name not in ("correct", "evidence", "cluster")
    }
    unlabelled = replace(run.table, labels=torch.full((N,), -1), certainty=None, radius=None)
    assert not any(
        "cannot be coloured" in block.text for block in map_blocks(run) if isinstance(block, Note)
    )
    blocks = map_blocks(less := replace(run, places=bare, table=unlabelled, images=None))
    assert isinstance(blocks[1], Note) and all(
        f"cannot be coloured by {what}: " in blocks[1].text
        for what in ("label", "certainty", "cluster", "correctness")
    )
    found = drawn(less)
    assert (
        found.colours == []
        and found.uris == []
        and not {"evidence", "certainty", "cluster"} & set(unpacked(found))
    )
    both = drawn(
        replace(
            run, places=run.places | {"umap_x": run.places["pca_y"], "umap_y": run.places["pca_x"]}
        )
    )
    assert [name for name, _ in both.layouts] == ["umap", "pca"] and unpacked(both)[
        "umap_x"
    ] == unpacked(both)["pca_y"]


@pytest.mark.parametrize(
    "places", [None, {}, {"row": np.asarray([], int)}, {"row": np.asarray([N])}]
)
def test_no_map_or_one_of_other_embeddings_is_a_sentence(places: dict[str, Any] | None) -> None:
    blocks = map_blocks(replace(run_files(), places=places))
    assert not any(isinstance(block, Map) for block in blocks)
    assert (
        isinstance(blocks[0], Note)
        and blocks[0].missing
        and "sureclr evaluate run" in blocks[0].text
    )
