"""What the heads add, against loops over pairs of images and scikit-learn's vote."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from tiny import CONFIG
from torch import nn
from torch.nn.functional import normalize

from sureclr.data.embeddings import Embeddings
from sureclr.data.image_set import ImageSet
from sureclr.errors import UserError
from sureclr.evaluation.evaluations import EVALUATIONS
from sureclr.evaluation.head_gain import measure_heads
from sureclr.evaluation.inputs import evaluation_inputs
from sureclr.evaluation.neighbour_vote import vote_on_table
from sureclr.evaluation.scores import Reference
from sureclr.progress import SILENT
from sureclr.training.pretraining import pretrain
from sureclr.training.run import Run

N, TEST = 90, 30


@pytest.fixture(scope="module")
def table() -> Embeddings:
    """Three classes in features of 6 numbers; the directions are other numbers, and know less."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(N) % 3
    centres = torch.randn(3, 6, generator=generator)
    features = centres[labels] + torch.randn(N, 6, generator=generator)
    direction = normalize(features[:, :4] + torch.randn(N, 4, generator=generator), dim=1)
    radius = torch.rand(N, generator=generator) * 0.9
    split = np.array(["test" if i < TEST else "train" for i in range(N)])
    paths = [str(i) for i in range(N)]
    return Embeddings(
        features, direction, radius, radius, labels, ("a", "b", "c"), split, paths, 4.5
    )


def log_kernel(a: Embeddings, i: int, b: Embeddings, j: int) -> float:
    """log P_r(cosine) of theory 2, in Python's own numbers."""
    assert a.radius is not None and b.radius is not None
    r = float(a.radius[i]) * float(b.radius[j])
    mu, other = a.direction[i].tolist(), b.direction[j].tolist()
    cosine = sum(x * y for x, y in zip(mu, other, strict=True))
    return math.log(1 - r * r) - 4.5 / 2 * math.log(1 + r * r - 2 * r * cosine)


def evidence_by_loops(table: Embeddings) -> list[float]:
    """Of each test image: the log of the mean over the training images."""
    test, train = (table.select(table.split == split) for split in ("test", "train"))
    return [
        math.log(sum(math.exp(log_kernel(test, i, train, j)) for j in range(len(train))) / 60)
        for i in range(TEST)
    ]


def test_votes_and_scores_are_those_of_a_loop(table: Embeddings) -> None:
    result = measure_heads(table, Reference.of(table))
    by_direction = vote_on_table(replace(table, features=table.direction))
    assert result.knn_features.accuracy == vote_on_table(table).accuracy
    assert result.knn_directions.accuracy == by_direction.accuracy != result.knn_features.accuracy
    assert result.knn_directions.interval == by_direction.interval
    unit = normalize(table.features.double(), dim=1).tolist()
    right = []
    for i in range(TEST):
        cosines = [
            sum(a * b for a, b in zip(unit[i], unit[j], strict=True)) for j in range(TEST, N)
        ]
        right.append(table.labels[TEST + cosines.index(max(cosines))] == table.labels[i])
    assert 0 < result.recall_at_1 == sum(right) / TEST < 1
    assert list(result.r_auroc)[:2] == ["certainty", "evidence"] and len(result.r_auroc) == 7
    assert table.radius is not None
    assert result.r_auroc["certainty"].auroc == pytest.approx(
        roc_auc_score(right, table.radius[:TEST])
    )
    evidence = result.r_auroc["evidence"]
    assert evidence.auroc == pytest.approx(roc_auc_score(right, evidence_by_loops(table)))
    assert evidence.interval is not None and evidence.interval[0] < evidence.auroc
    assert (result.n_train, result.n_test, result.n_judged, result.sample) == (60, 30, 30, None)


def test_a_loss_without_certainty_has_the_other_scores(table: Embeddings) -> None:
    bare = replace(table, radius=None, certainty=None)
    result = measure_heads(bare, Reference.of(bare))
    assert list(result.r_auroc) == [
        *("familiarity", "neighbour_similarity", "mean_similarity", "feature_norm"),
        "negative_entropy",
    ]


def test_only_labelled_test_images_are_judged(table: Embeddings) -> None:
    labels = table.labels.clone()
    labels[:20] = -1
    some = replace(table, labels=labels)
    result = measure_heads(some, Reference.of(some), most=6)
    assert (result.n_test, result.n_judged) == (10, 6)
    assert result.sample is not None and result.sample.of == 10


def test_one_class_is_refused(table: Embeddings) -> None:
    same = replace(table, labels=table.labels * 0)
    with pytest.raises(UserError, match="two classes"):
        measure_heads(same, Reference.of(same))


def test_a_frozen_encoder_is_its_own_baseline_and_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = torch.arange(60) % 3
    pixels = 60 * labels[:, None, None, None] + torch.randint(
        0, 100, (60, 1, 8, 8), generator=torch.Generator().manual_seed(0)
    )
    split = np.array(["test" if i % 4 == 3 else "train" for i in range(60)])
    paths = [str(i) for i in range(60)]
    images = ImageSet("mine", pixels.to(torch.uint8), labels, ("a", "b", "c"), split, paths)
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network.num_features = 8
    config = replace(CONFIG, freeze="backbone", cached_views=2, epochs=1, monitor_every=0)
    out = tmp_path / "run"
    run = pretrain(config, images, encoder=network, out=out, device="cpu", progress=SILENT)

    def not_asked(run: Run) -> Run:
        raise AssertionError("the untrained network was built")

    monkeypatch.setattr(Run, "untrained", not_asked)
    inputs = evaluation_inputs(run, images)
    for name in ("knn", "linear"):
        result = EVALUATIONS[name](inputs)
        assert result.first_encoder == "frozen"
        assert result.baselines.untrained == result.accuracy
        assert result.baseline_intervals.untrained == result.interval
    heads = EVALUATIONS["heads"](inputs)
    assert heads.knn_features.accuracy == EVALUATIONS["knn"](inputs).accuracy
    assert list(heads.r_auroc)[:2] == ["certainty", "evidence"]
