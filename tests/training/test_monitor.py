"""What is watched during training: each number against its definition as a loop, and images kept
apart.
"""

import numpy as np
import pytest
import torch
from tiny import CONFIG, FEATURES, IMAGES
from torch.nn import functional as F

from sureclr.data.image_set import ImageSet
from sureclr.maths import losses
from sureclr.training.building import build
from sureclr.training.monitor import (
    Monitor,
    collapse_warning,
    evidence_split,
    mean_cosine_of_different,
    monitor_text,
)

DIRECTIONS = F.normalize(torch.randn(12, 5, generator=torch.Generator().manual_seed(0)), dim=1)


def images(labels: torch.Tensor) -> ImageSet:
    return ImageSet(
        "mine", IMAGES, labels, ("a", "b"), np.full(48, "train"), [str(i) for i in range(48)]
    )


def test_mean_cosine_of_different_images() -> None:
    pairs = [float(DIRECTIONS[i] @ DIRECTIONS[j]) for i in range(12) for j in range(12) if i != j]
    assert mean_cosine_of_different(DIRECTIONS) == pytest.approx(np.mean(pairs), abs=1e-6)
    other = DIRECTIONS.flip(1)
    pairs = [float(DIRECTIONS[i] @ other[j]) for i in range(12) for j in range(12) if i != j]
    assert mean_cosine_of_different(DIRECTIONS, other) == pytest.approx(np.mean(pairs), abs=1e-6)


def test_the_two_parts_of_nt_xent() -> None:
    """positives - negatives - log(2n - 2) is minus the loss, but for the positive in the
    denominator (put back here).
    """
    parts = evidence_split(DIRECTIONS, temperature=0.5)
    logits = DIRECTIONS @ DIRECTIONS.T / 0.5
    positive = torch.stack([logits[i, (i + 6) % 12] for i in range(12)])
    negative = torch.stack(
        [
            torch.stack([logits[i, j] for j in range(12) if j not in (i, (i + 6) % 12)]).logsumexp(
                0
            )
            for i in range(12)
        ]
    )
    assert parts["positives"] == pytest.approx(float(positive.mean()), rel=1e-5)
    assert parts["negatives"] == pytest.approx(float(negative.mean()) - np.log(10), rel=1e-5)
    loss = -(positive - torch.logaddexp(negative, positive)).mean()
    assert float(losses.nt_xent(DIRECTIONS, 0.5)) == pytest.approx(float(loss), rel=1e-5)


def test_held_out_images_and_bank_are_disjoint_labelled_and_a_function_of_the_seed() -> None:
    labels = torch.arange(48) % 3 - 1
    first, again, other = (Monitor.of(images(labels), seed) for seed in (0, 0, 1))
    both = [*first.queries.tolist(), *first.bank.tolist()]
    assert len(set(both)) == len(both) == int((labels >= 0).sum()) and len(first.queries) == 32 // 5
    assert bool((labels[both] >= 0).all())
    assert torch.equal(first.queries, again.queries) and not torch.equal(
        first.queries, other.queries
    )


@pytest.mark.parametrize("loss", ["sure", "nt-xent", "tau"])
def test_a_look_changes_nothing_and_says_the_same_twice(loss: str) -> None:
    from dataclasses import replace

    model = build(replace(CONFIG, loss=loss), 1, torch.tensor([0.5]), torch.tensor([0.3]))[
        0
    ].train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    monitor = Monitor.of(images(torch.arange(48) % 2), 0)
    (numbers, tensors), (again, _) = (monitor.measure(model, CONFIG.views) for _ in range(2))
    assert numbers == again and all(np.isfinite(value) for value in numbers.values())
    assert model.training and all(
        torch.equal(before[name], value) for name, value in model.state_dict().items()
    )
    assert ("radius" in numbers) == (loss == "sure") and ("certainty" in tensors) == (
        loss != "nt-xent"
    )
    assert tensors["features"].shape == (48, FEATURES) and 0 <= numbers["knn"] <= 1


def test_unlabelled_images_have_no_knn() -> None:
    model = build(CONFIG, 1, torch.tensor([0.5]), torch.tensor([0.3]))[0]
    numbers, _ = Monitor.of(images(torch.full((48,), -1)), 0).measure(model, CONFIG.views)
    assert "knn" not in numbers and "alignment" in numbers


def test_collapse_is_told_with_the_remedy() -> None:
    assert collapse_warning({"cosine_different": 0.5}) is None and collapse_warning({}) is None
    said = collapse_warning({"cosine_different": 0.99})
    assert said is not None and "0.990" in said and "learning rate" in said


def test_knn_is_the_vote_of_the_nearest_found_by_hand() -> None:
    """Cosine neighbours of the features, each vote weighted as in `neighbours.vote`."""
    from sureclr.maths import neighbours
    from sureclr.models.embedding import embed

    model = build(CONFIG, 1, torch.tensor([0.5]), torch.tensor([0.3]))[0]
    some = images(torch.arange(48) % 2)
    monitor = Monitor.of(some, 0)
    features = F.normalize(embed(model, some).features.double(), dim=1)
    bank, queries = monitor.bank.tolist(), monitor.queries.tolist()
    correct = 0
    for row in queries:
        cosines = features[bank] @ features[row]
        nearest = cosines.topk(20)
        labels = some.labels[bank][nearest.indices]
        voted = neighbours.vote(nearest.values[None].float(), labels[None], 2)
        correct += int(voted) == int(some.labels[row])
    assert monitor.knn(model) == {"knn": pytest.approx(correct / len(queries))}


def test_the_message_names_what_is_better() -> None:
    text = monitor_text(3, {"knn": 0.5, "alignment": 0.25, "uniformity": -2.0, "radius": 0.5})
    assert text == (
        "after epoch 3: kNN accuracy 0.500 (higher is better), alignment 0.250 (lower is better),"
        " uniformity -2.000 (lower is better)"
    )
