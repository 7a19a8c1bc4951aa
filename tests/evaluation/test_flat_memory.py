"""Evaluations of a table take at most 1.2 times its features, whatever the order of its rows.

Splits and labels alternate, so that no part of the table is a view. What `top_k` and the linear
probe take themselves is tested with them; here both are replaced by what takes nothing.
"""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import sklearn.cluster
import sklearn.isotonic  # noqa: F401  (both before memory is counted, as an import takes much)
import torch
from memory import bytes_of, counted
from torch import Tensor

from sureclr.config import ViewConfig
from sureclr.data.embeddings import Embeddings
from sureclr.data.image_set import ImageSet
from sureclr.errors import UserError
from sureclr.evaluation import (
    classifiers,
    clusters,
    familiarity,
    feature_space,
    label_choice,
    neighbour_space,
    prediction,
    scores,
    view_pairs,
)
from sureclr.evaluation.certainty_quality import measure_uncertainty
from sureclr.evaluation.familiarity import fit_familiarity
from sureclr.evaluation.foreign_images import measure_ood
from sureclr.evaluation.label_choice import Limits, label_next
from sureclr.evaluation.neighbour_space import choose_space
from sureclr.maths import whitening

N, F = 10_000, 256
Core = Callable[[], object]


def table() -> Embeddings:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(N, F, generator=generator)
    radius = torch.rand(N, generator=generator) * 0.5
    labels = torch.arange(N) // 5 % 3
    split = np.where(np.arange(N) % 5 == 4, "test", "train")
    direction = torch.nn.functional.normalize(features[:, :2], dim=1)
    names = [str(i) for i in range(N)]
    return Embeddings(features, direction, radius, radius, labels, tuple("abc"), split, names, 2.0)


def nothing_found(queries: Tensor, keys: Tensor, k: int, **_: Any) -> tuple[Tensor, Tensor]:
    return torch.zeros(len(queries), k), torch.zeros(len(queries), k, dtype=torch.int64)


def nothing_fitted(x: Tensor, y: Tensor, test_x: Tensor, *_: Any, **__: Any) -> Any:
    k = len(y.unique())
    return SimpleNamespace(
        classes=torch.arange(k),
        strength=1.0,
        logits=torch.zeros(len(test_x), k),
        weight=torch.zeros(x.shape[1], k, dtype=torch.float64),
        bias=torch.zeros(k, dtype=torch.float64),
    )


def images_of(t: Embeddings) -> ImageSet:
    pixels = torch.zeros(N, 1, 2, 2, dtype=torch.uint8)
    return ImageSet("made up", pixels, t.labels, t.classes, t.split, t.paths)


def embed(some: ImageSet) -> Embeddings:
    n, radius = len(some), some.images.float().mean((1, 2, 3)) / 300
    direction = torch.ones(n, 2) / 2**0.5
    about = (some.labels, some.classes, some.split, some.paths, 2.0)
    return Embeddings(torch.ones(n, F), direction, radius, radius, *about)


def geometry(t: Embeddings) -> Core:
    return lambda: feature_space.describe_geometry(t)


def choice(strategy: str) -> Callable[[Embeddings], Core]:
    limits = Limits(candidates=400, witnesses=100, clusters=10, known=400)
    known = np.arange(N) % 2 == 0
    return lambda t: lambda: label_next(t, known, 10, strategy, limits=limits)


def answers(t: Embeddings) -> Core:
    images = images_of(t)
    run = SimpleNamespace(embed=embed)
    session: Any = SimpleNamespace(catalogue=images, run=run)

    def core() -> None:
        gallery = classifiers.Gallery.of(t)
        fitted = classifiers.knn_classifier(t, "made up", gallery)
        familiar = fit_familiarity(t)
        space = choose_space(t, familiar.axes)
        answering = prediction._Answering.of(
            session, fitted, familiar, gallery, space.unit, "no sets here"
        )
        answering.answer((images.select(np.arange(100)), None))

    return core


def reference(t: Embeddings) -> scores.Reference:
    return scores.Reference(t.labelled("train"), None)


def uncertainty(t: Embeddings) -> Core:
    images, against = images_of(t), reference(t)
    return lambda: measure_uncertainty(
        embed, images, t, ViewConfig(), levels=slice(0, 1), reference=against, most=100
    )


def foreign(t: Embeddings) -> Core:
    images, against = images_of(t), reference(t)

    def absent(name: str) -> ImageSet:
        raise UserError(f"{name} is not here.")

    return lambda: measure_ood(embed, images, t, absent, reference=against, most=100)


@pytest.mark.parametrize(
    ("core", "most"),
    [
        (geometry, 1.2),
        (choice("k-means"), 0.3),
        (choice("k-center"), 0.3),
        (choice("evidence"), 0.3),
        (answers, 2.2),  # 1 of it is constant: the evidence of some pairs at a time
        (lambda t: lambda: classifiers.fit_linear(t, "made up"), 1.2),
        (uncertainty, 1.2),
        (foreign, 1.2),
    ],
    ids=["geometry", "k-means", "k-center", "evidence", "predict", "linear", "uncertainty", "ood"],
)
def test_an_evaluation_takes_little_beside_the_table(
    monkeypatch: pytest.MonkeyPatch, core: Callable[[Embeddings], Core], most: float
) -> None:
    for module in (feature_space, classifiers, label_choice, neighbour_space, scores):
        monkeypatch.setattr(module, "top_k", nothing_found)
    for module in (feature_space, classifiers, clusters, label_choice, whitening):
        monkeypatch.setattr(module, "ROWS_AT_ONCE", 256)
    monkeypatch.setattr(label_choice, "KEY_BLOCK", 256)
    monkeypatch.setattr(neighbour_space, "MOST", 200)
    few = partial(feature_space.map_rows, most=500)  # on the map, of which copies are made
    monkeypatch.setattr(feature_space, "map_rows", few)
    some = partial(view_pairs.training_view_pairs, most=50)
    monkeypatch.setattr(view_pairs, "training_view_pairs", some)
    for module in (classifiers, familiarity):
        monkeypatch.setattr(module, "spread_rows", partial(classifiers.spread_rows, most=200))
    monkeypatch.setattr(classifiers, "linear_probe", nothing_fitted)
    t = table()
    run = core(t)
    with counted() as memory:
        run()
    assert memory.peak / bytes_of(t.features) < most
