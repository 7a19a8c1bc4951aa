"""Snapshots as lists over epochs; the gradient's weights by loops and by autograd; files damaged,
missing or not of these images.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from json_round_trip import read_back
from recording_progress import RecordingProgress
from safetensors.torch import save_file
from tiny import train
from torch import Tensor
from torch.nn.functional import normalize

from sureclr.data.image_set import ImageSet
from sureclr.errors import UserError
from sureclr.evaluation.training_history import (
    Logits,
    Snapshot,
    chance_of_same_class,
    describe_snapshots,
    heaviest_negatives,
    weigh_negatives,
    weights,
)
from sureclr.maths.losses import Softening, nt_xent
from sureclr.training.monitor import evidence_split

P, TAU = 9, 0.4
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0, -1])


def views(seed: int = 0) -> Tensor:
    return normalize(
        torch.randn(2 * P, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64),
        dim=1,
    )


def plain(mu: Tensor, tau: float = TAU) -> Logits:
    return Logits(mu @ mu.T / tau)


def images(labels: Tensor = LABELS) -> ImageSet:
    """Three test images among and before the training images 1, 2, 4, 5 ..., whose order the
    snapshots' index follows.
    """
    split = np.array(
        [
            "test",
            "train",
            "train",
            "test",
            "train",
            "train",
            "train",
            "unlabelled",
            "train",
            "test",
            "train",
            "train",
        ]
    )
    every = torch.full((12,), 0)
    every[torch.from_numpy(np.flatnonzero(split != "test"))] = labels
    return ImageSet(
        "mine",
        torch.zeros(12, 1, 8, 8, dtype=torch.uint8),
        every,
        ("a", "b", "c"),
        split,
        [str(i) for i in range(12)],
    )


def snapshot(folder: Path, epoch: int, index: Tensor, labels: Tensor, **numbers: float) -> Path:
    mu = views(epoch).float()
    tensors = {
        "first_direction": mu[:P].clone(),
        "second_direction": mu[P:].clone(),
        "index": index,
        "label": labels,
        "certainty": torch.arange(P) + float(epoch),
    }
    file = folder / f"epoch-{epoch:05d}.safetensors"
    save_file(tensors, file, {"numbers": json.dumps({"epoch": epoch, **numbers})})
    return file


# --- The weights ----------------------------------------------------------------------


def test_the_weights_are_the_gradient_of_nt_xent_with_respect_to_the_weigh_negatives() -> None:
    """By autograd of the loss itself: d L_i / d c_ij is proportional to w_ij; its sum over the
    negatives is `remaining` / tau.
    """
    mu, n = views(), 2 * P
    logits = (mu @ mu.T).clone().requires_grad_()
    loss = torch.stack(
        [
            torch.logsumexp(torch.cat([logits[i, :i], logits[i, i + 1 :]]) / TAU, 0)
            - logits[i, (i + P) % n] / TAU
            for i in range(n)
        ]
    )
    assert float(loss.detach().mean()) == pytest.approx(float(nt_xent(mu, TAU)))
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    for i in range(n):
        gradient[i, i] = gradient[i, (i + P) % n] = 0
    assert torch.allclose(weights(plain(mu)), gradient / gradient.sum(1, keepdim=True))
    assert weigh_negatives(plain(mu), LABELS).remaining == pytest.approx(
        float(gradient.sum(1).mean()) * TAU
    )


@pytest.mark.parametrize("softening", ["anchors", "means"])
def test_the_weights_of_softened_views_are_the_gradient(softening: Softening) -> None:
    """By autograd of each view's own term with respect to its cosines, radii from 0.2 to 0.9."""
    mu, n = views(), 2 * P
    radii = torch.linspace(0.2, 0.9, n, dtype=torch.float64)[
        torch.randperm(n, generator=torch.Generator().manual_seed(1))
    ]
    taken = Snapshot(
        1,
        {},
        {
            "first_direction": mu[:P],
            "second_direction": mu[P:],
            "first_certainty": radii[:P],
            "second_certainty": radii[P:],
        },
    )
    q = [r * radii.mean() / (1 + (r * radii.mean()) ** 2) for r in radii]
    a = radii / radii.mean() if softening == "means" else torch.stack(q) / sum(q) * n
    found, remaining = taken.logits(TAU, softening), []
    for i in range(n):
        cosines = (mu @ mu[i]).requires_grad_()
        logits = a[i] * (a if softening == "means" else 1) * cosines / TAU
        term = torch.logsumexp(torch.cat([logits[:i], logits[i + 1 :]]), 0) - logits[(i + P) % n]
        (slope,) = torch.autograd.grad(term, cosines)
        slope[[i, (i + P) % n]] = 0
        assert torch.allclose(weights(found)[i], slope / slope.sum(), atol=1e-12)
        logits = logits.detach()
        remaining.append(
            1
            - math.exp(
                float(
                    logits[(i + P) % n]
                    - torch.logsumexp(torch.cat([logits[:i], logits[i + 1 :]]), 0)
                )
            )
        )
    assert weigh_negatives(found, LABELS).remaining == pytest.approx(np.mean(remaining))


def test_spread_hardest_and_own_class_by_loops() -> None:
    mu, n = views(), 2 * P
    effective, hardest, own = [], [], []
    for i in range(n):
        others = [j for j in range(n) if j % P != i % P]
        e = [math.exp(float(mu[i] @ mu[j]) / TAU) for j in others]
        w = [value / sum(e) for value in e]
        effective.append(math.exp(-sum(x * math.log(x) for x in w)))
        hardest.append(max(w))  # 1 % of 16 negatives is one
        known = [(x, j) for x, j in zip(w, others, strict=True) if LABELS[j % P] >= 0]
        if LABELS[i % P] >= 0:
            own.append(
                sum(x for x, j in known if LABELS[j % P] == LABELS[i % P])
                / sum(x for x, _ in known)
            )
    found = weigh_negatives(plain(mu), LABELS)
    assert found.effective_negatives == pytest.approx(np.mean(effective))
    assert found.top_share == pytest.approx(np.mean(hardest))
    assert found.same_class_share == pytest.approx(np.mean(own))


@pytest.mark.parametrize(("equal", "tau"), [(True, 0.1), (False, 1e6)])
def test_equal_directions_and_high_temperature_spread_the_weight_evenly(
    equal: bool, tau: float
) -> None:
    mu = torch.ones(2 * P, 4, dtype=torch.float64) / 2 if equal else views()
    result = weigh_negatives(plain(mu, tau), LABELS)
    assert result.effective_negatives == pytest.approx(2 * P - 2, rel=1e-5)
    assert result.top_share == pytest.approx(1 / (2 * P - 2), rel=1e-5)
    assert result.same_class_share == pytest.approx(chance_of_same_class(LABELS), rel=0.2)


def test_unlabelled_images_have_no_share_of_the_same_class() -> None:
    assert weigh_negatives(plain(views()), torch.full((P,), -1)).same_class_share is None


def test_chance_of_one_class_by_loops() -> None:
    known = [int(label) for label in LABELS if label >= 0]
    pairs = [known[i] == known[j] for i in range(len(known)) for j in range(len(known)) if i != j]
    assert chance_of_same_class(LABELS) == pytest.approx(np.mean(pairs))
    assert chance_of_same_class(torch.tensor([-1, 2])) is None


# --- The folder -----------------------------------------------------------------------


def test_lists_over_epochs_rows_of_the_table_and_classes(tmp_path: Path) -> None:
    index = torch.tensor([3, 0, 1, 2, 4, 5, 6, 7, 8])
    labels = LABELS[index]
    snapshot(tmp_path, 4, index, labels, alignment=0.5, knn=0.25)
    snapshot(tmp_path, 12, index, labels, alignment=0.25, knn=0.75)
    progress = RecordingProgress()
    found = describe_snapshots(tmp_path, images(), TAU, progress=progress)
    assert read_back(found) == found
    assert (found.epochs, found.alignment, found.knn, found.radius) == (
        (4, 12),
        (0.5, 0.25),
        (0.25, 0.75),
        None,
    )
    assert found.positives[1] == pytest.approx(
        evidence_split(views(12).float(), 0.2)["positives"], rel=1e-5
    )
    assert progress.updates == [(1, 2), (2, 2)] and found.damaged == {}
    means = [float((torch.arange(P) + 12.0)[labels == k].mean()) for k in range(3)]
    assert [of_class[1] for of_class in found.per_class.certainty] == pytest.approx(means)
    assert found.gradient.epochs == (4, 12) and len(found.gradient.effective_negatives) == 2
    training = np.flatnonzero(images().split != "test")
    w = weights(plain(views(12).float().double()))
    first = found.gradient.examples[0]
    assert first.anchor == training[3]
    heaviest = max(range(1, P), key=lambda j: float(w[0, j] + w[0, j + P]))
    assert first.negatives[0] == training[index[heaviest]]
    assert first.weights[0] == pytest.approx(float(w[0, heaviest] + w[0, heaviest + P]), rel=1e-5)


def test_damaged_files_are_named_and_left_out(tmp_path: Path) -> None:
    index = torch.arange(P)
    snapshot(tmp_path, 1, index, LABELS)
    whole = snapshot(tmp_path, 2, index, LABELS).read_bytes()
    (tmp_path / "epoch-00002.safetensors").write_bytes(whole[:-100])
    (tmp_path / "epoch-00003.safetensors").write_bytes(b"")
    save_file({"index": index}, tmp_path / "epoch-00004.safetensors", {"numbers": '{"epoch": 4}'})
    save_file({"index": index}, tmp_path / "epoch-00005.safetensors")
    nan = {
        "first_direction": torch.full((P, 5), math.nan),
        "second_direction": views()[P:].float(),
        "index": index,
        "label": LABELS,
    }
    save_file(nan, tmp_path / "epoch-00006.safetensors", {"numbers": '{"epoch": 6}'})
    good = {
        "first_direction": views()[:P].float(),
        "second_direction": views()[P:].float(),
        "index": index,
        "label": LABELS,
    }
    one = {name: rows[:1] for name, rows in good.items()}
    for epoch, tensors, told in (
        (7, one, '{"epoch": 7}'),
        (8, good, '{"epoch": null}'),
        (9, good, "[]"),
        (10, {**good, "certainty": torch.zeros(P - 1)}, '{"epoch": 10}'),
    ):
        save_file(tensors, tmp_path / f"epoch-{epoch:05d}.safetensors", {"numbers": told})
    found = describe_snapshots(tmp_path, images(), TAU)
    assert found.epochs == (1,) and sorted(found.damaged) == [
        f"epoch-{i:05d}.safetensors" for i in range(2, 11)
    ]
    assert found.per_class is not None


def test_none_at_all_and_images_of_another_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none that can be read; train with snapshot_every above"):
        describe_snapshots(tmp_path, images(), TAU)
    (tmp_path / "epoch-00003.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="epoch-00003.safetensors: it cannot be read"):
        describe_snapshots(tmp_path, images(), TAU)
    snapshot(tmp_path, 1, torch.arange(P), LABELS)
    assert describe_snapshots(tmp_path, images(LABELS.flip(0)), TAU).gradient.examples == ()
    snapshot(tmp_path, 1, torch.arange(P) + 100, LABELS)
    assert describe_snapshots(tmp_path, images(), TAU).gradient.examples == ()


@pytest.mark.parametrize("loss", ["sure", "nt-xent"])
def test_a_run_without_labels_gives_all_but_what_needs_labels(tmp_path: Path, loss: str) -> None:
    run = train(tmp_path / "run", loss=loss)
    from tiny import IMAGES

    from sureclr.data.user_images import as_image_set

    found = describe_snapshots(run.directory.snapshots, as_image_set(IMAGES), 0.2)
    assert found.epochs == (2, 4) and found.per_class is None and found.knn is None
    assert found.gradient.same_class_share == (None, None) and len(found.gradient.examples) == 8
    assert (found.radius is None) == (loss == "nt-xent")
    told = [line for line in run.directory.lines() if "positives" in line]
    assert found.positives == pytest.approx([line["positives"] for line in told], rel=1e-4)


def test_a_row_beyond_the_training_images_is_of_another_run(tmp_path: Path) -> None:
    snapshot(tmp_path, 1, torch.arange(P) + 1, LABELS)  # there are P training images, 0 to P - 1
    assert describe_snapshots(tmp_path, images(), TAU).gradient.examples == ()


def test_few_images_have_all_others_as_examples() -> None:
    mu = views()[[0, 1, 2, P, P + 1, P + 2]]
    examples = heaviest_negatives(plain(mu), torch.tensor([10, 11, 12]))
    assert [(e.anchor, sorted(e.negatives)) for e in examples] == [
        (10, [11, 12]),
        (11, [10, 12]),
        (12, [10, 11]),
    ]
    assert [sum(e.weights) for e in examples] == pytest.approx([1, 1, 1])
