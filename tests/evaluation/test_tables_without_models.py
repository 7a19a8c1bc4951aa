"""A saved table is enough for kNN, the linear probe and the geometry: no model code is imported."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from sureclr.data.embeddings import Embeddings
from sureclr.evaluation.feature_space import describe_geometry
from sureclr.evaluation.neighbour_vote import vote_on_table
from sureclr.evaluation.probes import head_output, probe_table
from sureclr.schema import to_json

BLOCKED = ("sureclr.models", "sureclr.training", "timm", "torchvision", "umap")
PROGRAM = """
import json, sys
for name in sys.argv[2].split(","):
    sys.modules[name] = None
from pathlib import Path
from sureclr.data.embeddings import Embeddings
from sureclr.evaluation.feature_space import describe_geometry
from sureclr.evaluation.neighbour_vote import vote_on_table
from sureclr.evaluation.probes import head_output, probe_table
from sureclr.schema import to_json
table = Embeddings.read(Path(sys.argv[1]))
print(json.dumps({
    "knn": vote_on_table(table).accuracy,
    "linear": probe_table(table).accuracy,
    "head": probe_table(head_output(table)).accuracy,
    "geometry": to_json(describe_geometry(table)[0]),
}))
"""


def table(n: int = 120) -> Embeddings:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 3
    features = torch.randn(n, 6, generator=generator) + 1.5 * torch.eye(6)[labels]
    radius = torch.rand(n, generator=generator)
    split = np.asarray(["test" if i % 2 else "train" for i in range(n)])
    paths = [str(i) for i in range(n)]
    direction = normalize(features[:, :4], dim=1)
    return Embeddings(
        features, direction, radius, radius, labels, ("a", "b", "c"), split, paths, 5.0
    )


def run(path: Path, blocked: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, str(path), ",".join(blocked)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_table_is_evaluated_with_the_models_blocked(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    table().save(path)
    result = run(path, BLOCKED)
    assert result.returncode == 0, result.stderr
    numbers = json.loads(result.stdout)
    here = Embeddings.read(path)
    assert numbers["knn"] == vote_on_table(here).accuracy
    assert numbers["linear"] == probe_table(here).accuracy
    assert numbers["head"] == probe_table(head_output(here)).accuracy
    geometry = to_json(describe_geometry(here)[0])
    assert numbers["geometry"]["clusters"] == geometry["clusters"]
    assert numbers["geometry"]["explained"] == pytest.approx(geometry["explained"])


def test_the_block_is_a_block(tmp_path: Path) -> None:
    """The check itself: a module that the program needs is missed."""
    table().save(tmp_path / "table.parquet")
    result = run(tmp_path / "table.parquet", ("sureclr.maths.neighbours",))
    assert result.returncode != 0 and "sureclr.maths.neighbours" in result.stderr
