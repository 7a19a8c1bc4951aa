"""A saved table is enough for kNN, the linear probe and the geometry: no model code is imported."""

from pathlib import Path

import numpy as np
import pytest
import torch
from fresh_modules import fresh_modules
from torch.nn.functional import normalize

from sureclr.data.embeddings import Embeddings
from sureclr.evaluation.feature_space import describe_geometry
from sureclr.evaluation.neighbour_vote import vote_on_table
from sureclr.evaluation.probes import head_output, probe_table
from sureclr.schema import to_json

BLOCKED = ("sureclr.models", "sureclr.training", "timm", "torchvision", "umap")


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


def test_a_table_is_evaluated_with_the_models_blocked(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    table().save(path)
    with fresh_modules(*BLOCKED):
        from sureclr.data import embeddings
        from sureclr.evaluation import feature_space, neighbour_vote, probes

        with pytest.raises(ImportError):
            import sureclr.models.embedding  # noqa: F401
        read = embeddings.Embeddings.read(path)
        numbers = {
            "knn": neighbour_vote.vote_on_table(read).accuracy,
            "linear": probes.probe_table(read).accuracy,
            "head": probes.probe_table(probes.head_output(read)).accuracy,
            "geometry": to_json(feature_space.describe_geometry(read)[0]),
        }
    assert embeddings.Embeddings is not Embeddings, "the module was not imported anew"
    here = Embeddings.read(path)
    assert numbers["knn"] == vote_on_table(here).accuracy
    assert numbers["linear"] == probe_table(here).accuracy
    assert numbers["head"] == probe_table(head_output(here)).accuracy
    geometry = to_json(describe_geometry(here)[0])
    assert numbers["geometry"]["clusters"] == geometry["clusters"]
    assert numbers["geometry"]["explained"] == pytest.approx(geometry["explained"])
