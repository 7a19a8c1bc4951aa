"""The probe against scikit-learn's LogisticRegression on the same split and the same rows.

The solver has its own test, tests/maths/test_logistic.py.
"""

import math
from typing import Any

import numpy as np
import pytest
import torch
from noisy_classes import rows
from sklearn.linear_model import LogisticRegression
from torch.utils._python_dispatch import TorchDispatchMode

from sureclr.errors import UserError
from sureclr.evaluation import probes
from sureclr.evaluation.probes import (
    STRENGTHS,
    choose_strength,
    linear_probe,
    nothing_to_gain,
    stratified_split,
)
from sureclr.maths import inputs, logistic
from sureclr.maths.logistic import logistic_regression, standardisation
from sureclr.maths.metrics import wilson_interval


def test_stratified_split_keeps_shares_and_never_takes_a_whole_class() -> None:
    target = torch.tensor([0] * 50 + [1] * 10 + [2] * 2 + [3])
    held = stratified_split(target, 0.2, torch.Generator().manual_seed(0))
    assert [int(held[target == c].sum()) for c in range(4)] == [10, 2, 1, 0]
    assert torch.equal(held, stratified_split(target, 0.2, torch.Generator().manual_seed(0)))
    assert not torch.equal(held, stratified_split(target, 0.2, torch.Generator().manual_seed(1)))
    assert [
        int(stratified_split(target, 0.99, torch.Generator())[target == c].sum()) for c in range(4)
    ] == [49, 9, 1, 0]


def test_the_probe_is_the_chosen_model_on_raw_features() -> None:
    (x, y), (tx, ty) = rows(400), rows(300, seed=1)
    probe = linear_probe(x, y, tx, ty, tolerance=1e-8)
    mean, scale = standardisation(x)
    n, strength = 400, probe.strength
    witness = LogisticRegression(C=1 / (n * strength), tol=1e-10, max_iter=10000).fit(
        ((x - mean) / scale).numpy(), y.numpy()
    )
    probabilities = witness.predict_proba(((tx - mean) / scale).numpy())
    assert np.allclose(probe.probabilities.numpy(), probabilities, atol=1e-5)
    assert torch.allclose(probe.logits, tx @ probe.weight + probe.bias)
    right = int((probe.predictions == ty).sum())
    assert (
        probe.accuracy
        == right / 300
        == pytest.approx(witness.score(((tx - mean) / scale).numpy(), ty.numpy()))
    )
    assert probe.interval == wilson_interval(right, 300)
    assert probe.converged and probe.gradient <= 1e-8 and 0.4 < probe.accuracy < 0.95


def test_the_strength_is_the_best_on_the_split_of_training_rows() -> None:
    x, y = rows(120, f=40, classes=3)
    probe = linear_probe(x, y, *rows(50, f=40, classes=3, seed=1), seed=5, tolerance=1e-7)
    held = stratified_split(y, 0.2, torch.Generator().manual_seed(5))
    mean, scale = standardisation(x[~held])
    scores = []
    for strength in STRENGTHS:
        witness = LogisticRegression(
            C=1 / (int((~held).sum()) * strength), tol=1e-9, max_iter=20000
        )
        witness.fit(((x - mean) / scale)[~held].numpy(), y[~held].numpy())
        scores.append(witness.score(((x - mean) / scale)[held].numpy(), y[held].numpy()))
    tried = len(probe.strengths)
    assert [s for s, _ in probe.strengths] == list(STRENGTHS[-tried:])
    assert [a for _, a in probe.strengths] == pytest.approx(scores[-tried:])
    assert len(set(scores)) > 2  # the choice is a choice
    best = [s for s, a in zip(STRENGTHS, scores, strict=True) if a == max(scores)]
    assert probe.strength == max(best)


def hidden(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The classes depend on directions of a small variance alone, which a penalty hides."""
    generator = torch.Generator().manual_seed(seed)
    latent = torch.randn(n, 16, generator=generator) * torch.logspace(0, -3, 16)
    turn = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(9)))[0]
    classes = (latent[:, -3:] * 1e3).argmax(1)
    return latent @ turn, torch.where(torch.rand(n, generator=generator) < 0.3, 0, classes)


def weak(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """All directions tell the classes apart equally well, and their variances fall as 1 / k^2."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 10, (n,), generator=generator)
    centres, noise = (torch.randn(m, 128, generator=generator) for m in (10, n))
    turn = torch.linalg.qr(torch.randn(128, 128, generator=generator))[0]
    return (0.4 * centres[y] + noise) / torch.arange(1, 129) @ turn, y


@pytest.mark.parametrize("case", ["noisy", "wide", "vain", "rare", "few", "hidden", "weak"])
def test_what_is_left_out_of_the_grid_would_gain_one_held_out_row_at_most(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Witness: all strengths, each fitted from 0 in one batch."""
    if case in ("hidden", "weak"):
        x, y = hidden(800, 0) if case == "hidden" else weak(200, 20)
    else:
        x, y = rows(*{"few": (40, 30)}.get(case, (300, 20)))
    if case not in ("few", "weak"):  # these hold out 8 and 40 rows
        monkeypatch.setattr(probes, "LEAST_HELD_OUT", 1)
    if case == "wide":
        x = torch.cat([x, (x - x.mean(0)).relu(), (x.roll(1, 1) - x.mean(0)).abs()], 1)
    if case == "vain":  # most features say nothing
        x = torch.cat([x, torch.randn(300, 60, generator=torch.Generator().manual_seed(3))], 1)
    if case == "rare":
        keep = torch.rand(len(y), generator=torch.Generator().manual_seed(1)) < 0.3**y
        x, y = x[keep], y[keep].unique(return_inverse=True)[1]
    probe = linear_probe(x, y, x, y, seed=2)
    held = stratified_split(y, 0.2, torch.Generator().manual_seed(2))
    mean, scale = standardisation(x[~held])
    x = (x - mean) / scale
    whole = logistic_regression(x[~held], y[~held], STRENGTHS, 1e-6, 2000)
    logits = x[held].double() @ whole.weight + whole.bias[:, None]
    right = (logits.argmax(2) == y[held]).sum(1).tolist()
    best = choose_strength(STRENGTHS, tuple(right))
    near = case in ("noisy", "weak")  # a row changes sides between this tolerance and the probe's
    assert right[STRENGTHS.index(probe.strength)] >= max(right) - near
    assert probe.strength == best or near
    stopped = case == "vain"
    assert bool(probe.not_tried) == (len(probe.strengths) < len(STRENGTHS)) == stopped


def test_when_weaker_strengths_have_nothing_to_gain() -> None:
    """Each line is an accuracy and a loss on the held-out rows, the strongest penalty first."""
    a, b, c, d = (1.0, 0.5, 2.0), (0.1, 0.6, 1.5), (0.01, 0.6, 1.6), (0.001, 0.55, 1.7)
    fallen = (0.01, 0.6, 1.4)
    for tried, chance, stops in (
        ([a], 0.1, ""),
        ([a, b], 0.1, ""),
        ([a, b, c], 0.1, ""),  # once is not enough
        ([a, b, c, d], 0.1, "twice in a row"),
        ([a, b, fallen, d], 0.1, ""),  # the loss has risen once alone
        ([a, b, c, (0.001, 0.55, 1.6)], 0.1, ""),
        ([a, b, c, d], 0.6, ""),  # no better than the commonest class
        ([a, b, c, (0.001, 0.61, 9.0)], 0.1, ""),  # it is the best
    ):
        assert stops in (found := nothing_to_gain(tried, chance)) and bool(found) == bool(stops)


def test_the_last_fit_starts_where_the_split_ended_and_ends_at_the_same_minimum() -> None:
    (x, y), test = rows(800), rows(50, seed=1)
    mean, scale = standardisation(x)
    probe = linear_probe(x, y, *test, tolerance=1e-8)
    alone = logistic_regression((x - mean) / scale, y, [probe.strength], 1e-8)
    assert torch.allclose(probe.weight, alone.weight[0] / scale[:, None], atol=1e-6)
    assert probe.objective == pytest.approx(float(alone.objective[0]), rel=1e-9)
    loose = linear_probe(x, y, *test)
    cold = logistic_regression((x - mean) / scale, y, [loose.strength], 1e-4)
    assert loose.iterations < cold.iterations


class Allocations(TorchDispatchMode):
    """The sizes in bytes of the memory that operators allocate."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: list[int] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        tensors = [a for a in (*args, *(kwargs or {}).values()) if isinstance(a, torch.Tensor)]
        given = {tensor.untyped_storage().data_ptr() for tensor in tensors}
        found = function(*args, **(kwargs or {}))
        for each in found if isinstance(found, tuple | list) else [found]:
            if isinstance(each, torch.Tensor):
                storage = each.untyped_storage()
                if storage.data_ptr() not in given:
                    self.bytes.append(storage.nbytes())
        return found


def test_the_features_are_copied_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logistic, "DOUBLES_AT_ONCE", 1 << 15)
    monkeypatch.setattr(inputs, "NUMBERS_AT_ONCE", 1 << 15)
    x, y = rows(4000, f=64, classes=2)
    train, test = (x.float(), y), (x.float()[:100], y[:100])
    with Allocations() as seen:
        linear_probe(*train, *test, strengths=[0.1, 1.0], tolerance=1e-2)
    size = train[0].nbytes
    assert [each for each in seen.bytes if each > size / 2] == [size]


def test_of_equally_accurate_strengths_the_strongest_is_taken() -> None:
    assert choose_strength((0.1, 1.0, 10.0), (0.7, 0.7, 0.5)) == 1.0


def test_the_test_rows_cannot_change_the_model() -> None:
    x, y = rows(150)
    a, b = (linear_probe(x, y, *rows(60, seed=s)) for s in (1, 2))
    assert (
        a.strength == b.strength and torch.equal(a.weight, b.weight) and torch.equal(a.bias, b.bias)
    )


def test_scaling_and_shifting_columns_changes_nothing() -> None:
    """With a constant column, which standardisation must survive."""
    (x, y), (tx, ty) = rows(200), rows(100, seed=1)
    scale = torch.logspace(-3, 3, 12, dtype=torch.float64)
    one = linear_probe(x, y, tx, ty, tolerance=1e-8)
    moved, tmoved = (torch.cat([a * scale - 3, torch.full((len(a), 1), 2.5)], 1) for a in (x, tx))
    two = linear_probe(moved, y, tmoved, ty, tolerance=1e-8)
    assert one.strength == two.strength and torch.allclose(
        one.probabilities, two.probabilities, atol=1e-5
    )


def test_labels_need_not_be_consecutive_and_missing_classes_are_wrong() -> None:
    (x, y), (tx, ty) = rows(200), rows(100, seed=1)
    plain, spread = linear_probe(x, y, tx, ty), linear_probe(x, 10 * y, tx, 10 * ty)
    assert spread.classes.tolist() == [0, 10, 20, 30] and torch.equal(
        spread.predictions, 10 * plain.predictions
    )
    seen = y != 3
    probe = linear_probe(x[seen], y[seen], tx, ty)
    assert probe.logits.shape == (100, 3)
    assert (
        probe.accuracy
        == float((probe.predictions == ty).double().mean())
        <= float((ty != 3).double().mean())
    )


def test_one_row_a_class_and_one_strength_leave_nothing_to_choose() -> None:
    x, y = torch.eye(4), torch.arange(4)
    probe = linear_probe(x, y, x, y)
    assert probe.strength == STRENGTHS[len(STRENGTHS) // 2] and probe.accuracy == 1
    assert all(math.isnan(a) for _, a in probe.strengths)
    assert linear_probe(*rows(100), *rows(20, seed=1), strengths=[0.5]).strength == 0.5


def test_half_precision_and_integer_features_are_widened() -> None:
    x, y = (
        torch.randint(0, 17, (200, 6), generator=torch.Generator().manual_seed(0)),
        torch.arange(200) % 2,
    )
    results = [
        linear_probe(x.to(t), y, x.to(t), y).accuracy
        for t in (torch.uint8, torch.float16, torch.float64)
    ]
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_y": torch.tensor([0, -1, 1, -1])}, "2 of 4 training rows have none"),
        ({"train_y": torch.tensor([1, 1, 1, 1])}, "belong to one class .label 1."),
        ({"train_y": torch.tensor([0, 1])}, "there are 4 rows and 2 labels"),
        (
            {"test_x": torch.empty(0, 2), "test_y": torch.empty(0, dtype=torch.int64)},
            "test rows, and there are 0 rows",
        ),
        (
            {"train_x": torch.tensor([[0, math.nan], [1, 1], [2, 1], [3, 2]])},
            "those of 1 of 4 training rows",
        ),
        ({"test_x": torch.full((2, 2), math.inf)}, "those of 2 of 2 test rows"),
        ({"strengths": [0.0, 1.0]}, "above 0"),
        ({"strengths": []}, "above 0"),
    ],
)
def test_bad_input_is_one_sentence(change: dict, message: str) -> None:
    good = {
        "train_x": torch.rand(4, 2),
        "train_y": torch.tensor([0, 1, 0, 1]),
        "test_x": torch.rand(2, 2),
        "test_y": torch.tensor([0, 1]),
    }
    linear_probe(**good)
    with pytest.raises(UserError, match=message) as error:
        linear_probe(**{**good, **change})
    assert "\n" not in str(error.value)
