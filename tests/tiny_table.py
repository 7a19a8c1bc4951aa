"""A table of features for every test that needs one: 3 views of 60 images, 12 numbers each."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

import sureclr
from sureclr.progress import SILENT

K, N, F = 3, 60, 12
RANDOM = np.random.default_rng(0)
CENTRES = RANDOM.normal(size=(3, F))
NAMES = ("ant", "bee", "cat")
LABELS = [NAMES[i % 3] for i in range(N)]
CLEAN = (CENTRES[np.arange(N) % 3] + 0.5 * RANDOM.normal(size=(N, F))).astype(np.float32)
VIEWS = (CLEAN + 0.5 * RANDOM.normal(size=(K, N, F))).astype(np.float32)
SPLIT = ["test" if i % 5 == 0 else "train" for i in range(N)]
PATHS = [f"photos/{i:02d}.jpg" for i in range(N)]
SETTINGS: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 16,
    "projection_dim": 8,
    "warmup_epochs": 0,
    "checkpoint_every": 1,
    "monitor_every": 1,
    "snapshot_every": 2,
    "precision": "float32",
}
MACHINE: dict[str, Any] = {"device": "cpu", "progress": SILENT}


def lists(rows: Any, kind: Any = None) -> pa.Array:
    """Rows as a column of lists; without a type as fixed-size lists of theirs."""
    rows = np.ascontiguousarray(rows)
    if kind is None:
        return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
    return pa.array(rows.tolist(), kind)


def write_table(file: Path, /, views: Any = VIEWS, **columns: Any) -> Path:
    """A Parquet table; a column that is None is left out."""
    plain = {"path": PATHS, "label": LABELS, "split": SPLIT, "features": lists(CLEAN)}
    plain |= {f"view_{k}": lists(view) for k, view in enumerate(views)}
    kept = {name: column for name, column in (plain | columns).items() if column is not None}
    parquet.write_table(pa.table(kept), file)
    return file


def train(source: Path, out: Path, **options: Any) -> sureclr.Run:
    settings = {name: options.pop(name) for name in list(options) if name in SETTINGS}
    config = sureclr.PretrainConfig(f"table:{source}", **{**SETTINGS, **settings})
    return sureclr.pretrain(config, out=out, **{**MACHINE, **options})
