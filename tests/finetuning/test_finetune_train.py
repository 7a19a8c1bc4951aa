"""Training one classifier: its steps against formulas, its scores against one pass, and which epoch
it ends with.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from few_labels import IMAGES, QUICK, Recorder, same
from torch import Tensor, nn
from torch.nn import functional as F

from sureclr.config import ViewConfig
from sureclr.data.batches import batch
from sureclr.data.image_set import ImageSet
from sureclr.data.labels import Labelled, labelled_rows
from sureclr.data.views import one_view
from sureclr.finetuning.experiment import new_classifier
from sureclr.finetuning.train import (
    EVALUATION_BATCH,
    Classifier,
    Score,
    Training,
    fit,
    score_on,
)
from sureclr.models.embedding import as_float
from sureclr.training.run import Run

LABELS = labelled_rows(IMAGES, "train")  # 48 of them
NONE = LABELS[torch.zeros(48, dtype=torch.bool)]


def training(
    run: Run, rate: float = 0.1, frozen: bool = False, labelled: Labelled = LABELS, **options: Any
) -> Training:
    return Training(
        new_classifier(run, "finetune", 3, 0),
        labelled,
        replace(QUICK, **{"epochs": 5, **options}),
        ViewConfig.light(),
        rate,
        seed=0,
        frozen_statistics=frozen,
    )


def losses(recorder: Recorder) -> list[float]:
    return [numbers["loss"] for _, numbers in recorder.updates if numbers is not None]


# --- One step -------------------------------------------------------------------------


def test_at_the_start_every_class_is_equally_likely(run: Run) -> None:
    recorder = Recorder()
    fit(training(run, 0.005, epochs=2), LABELS, recorder)
    steps = losses(recorder)
    assert steps[0] == pytest.approx(math.log(3)) and np.mean(steps[-8:]) < steps[0]


@pytest.mark.parametrize("classifier_rate", [None, 0.3])
def test_a_step_is_nesterovs_with_decay_on_matrices_alone(
    run: Run, classifier_rate: float | None
) -> None:
    """Two steps against the formula b <- mu b + g, w <- w - lr (g + mu b), on the classifier."""
    two_steps = training(
        run,
        warmup_epochs=0,
        weight_decay=0.1,
        schedule="constant",
        momentum=0.8,
        classifier_learning_rate=classifier_rate,
    )
    rate = classifier_rate or 0.1
    weight, bias = two_steps.model.classifier.weight, two_steps.model.classifier.bias
    expected = {"weight": weight.detach().clone(), "bias": bias.detach().clone()}
    buffer = {"weight": torch.zeros_like(weight), "bias": torch.zeros_like(bias)}
    two_steps.model.train()
    for step in range(2):
        two_steps.step(0, step)
        for name, p, decay in (("weight", weight, 0.1), ("bias", bias, 0.0)):
            gradient = p.grad + decay * expected[name]
            buffer[name] = 0.8 * buffer[name] + gradient
            expected[name] = expected[name] - rate * (gradient + 0.8 * buffer[name])
            torch.testing.assert_close(p.detach(), expected[name], rtol=1e-5, atol=1e-7)
    assert float(expected["weight"].abs().max()) > 0


def test_the_loss_is_the_cross_entropy_of_the_views_of_the_batch(run: Run) -> None:
    """The second step of the second epoch, with the batch and the views made by hand."""
    by_hand = training(run)
    by_hand.run_epoch(0)
    index, seeds = batch(0, 1, 1, 48, 6)
    views = one_view(IMAGES.images[LABELS.rows[index]], seeds, 0, ViewConfig.light())
    with torch.no_grad():
        expected = F.cross_entropy(by_hand.model(views), LABELS.target[index])
    by_hand.model.train()
    assert by_hand.step(1, 1) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("precision", ["bfloat16", "auto"])
def test_bfloat16_is_for_the_network_alone(
    run: Run, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """`auto` takes it on a CPU with AMX."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: precision == "auto")
    half, dtypes = training(run, precision=precision), []
    half.model.classifier.register_forward_hook(
        lambda module, inputs, output: dtypes.append(output.dtype)
    )
    half.step(0, 0)
    assert dtypes == [torch.bfloat16] and all(
        p.grad is not None and p.grad.dtype == torch.float32 for p in half.model.parameters()
    )


def test_the_rate_warms_up_and_falls_to_zero_or_stays(run: Run) -> None:
    cosine, constant = (
        training(run, warmup_epochs=2),
        training(run, warmup_epochs=2, schedule="constant"),
    )
    assert cosine.steps_per_epoch == 8
    for step in range(40):
        wanted = (step + 1) / 16 if step < 16 else (1 + math.cos(math.pi * (step - 16) / 24)) / 2
        assert cosine.rate_share(step) == pytest.approx(wanted)
        assert constant.rate_share(step) == pytest.approx(min(1, (step + 1) / 16))


def test_the_warm_up_takes_at_most_half_of_the_steps(run: Run) -> None:
    long = training(run, warmup_epochs=4, epochs=3)  # 24 steps
    assert long.rate_share(10) == pytest.approx(11 / 12)
    assert long.rate_share(11) == long.rate_share(12) == 1.0
    assert long.rate_share(18) == pytest.approx(0.5)


# --- One epoch ------------------------------------------------------------------------


def test_an_epoch_reports_every_step(run: Run) -> None:
    recorder = Recorder()
    assert training(run).run_epoch(2, recorder)
    assert [done for done, _ in recorder.updates] == list(range(17, 25))
    epochs = [numbers["epoch"] for _, numbers in recorder.updates if numbers is not None]
    assert epochs == [2 + step / 8 for step in range(1, 9)]
    assert all(numbers["images_per_second"] > 0 for _, numbers in recorder.updates)


def test_fewer_labels_than_a_batch_are_one_batch(run: Run) -> None:
    few = training(run, labelled=LABELS[torch.arange(5)], epochs=3)
    assert (few.batch_size, few.steps_per_epoch, few.steps) == (5, 1, 3)


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_bn_keeps_its_statistics_and_nothing_else(frozen: bool, run: Run) -> None:
    model = fit(training(run, 0.005, frozen, epochs=2), LABELS).model
    before, after = run.model.encoder.state_dict(), model.encoder.state_dict()
    statistics = [name for name in before if "running" in name or "num_batches" in name]
    norms = [
        f"{name}.weight"
        for name, module in model.encoder.named_modules()
        if isinstance(module, nn.BatchNorm2d)
    ]
    assert len(statistics) >= 12 and all(
        torch.equal(before[name], after[name]) == frozen for name in statistics
    )
    assert not any(torch.equal(before[name], after[name]) for name in norms), (
        "scale and shift are to be trained"
    )


# --- The whole training ---------------------------------------------------------------


def scores_in_turn(
    scores: list[Score], weights: list[dict[str, Tensor]]
) -> Callable[[Classifier, Labelled, Callable[[int], None]], Score]:
    """A scorer that gives each epoch the next of these scores, and records its weights."""

    def scorer(model: Classifier, held_out: Labelled, update: Callable[[int], None]) -> Score:
        weights.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return scores[len(weights) - 1]

    return scorer


BETTER_LATER = [(0.2, 1.0), (0.9, 1.5), (0.9, 1.2), (0.9, 1.2), (0.5, 0.1)]
NEVER_FINITE = [(0.2, math.inf), (0.3, math.nan), (0.2, 1.0), (0.9, math.inf), (0.1, 0.5)]


@pytest.mark.parametrize(
    ("numbers", "best"), [(BETTER_LATER, 3), (NEVER_FINITE, 3), ([(0.5, 1.0)] * 5, 1)]
)
def test_the_best_epoch_on_held_out_labels_is_returned_to(
    run: Run, numbers: list[tuple[float, float]], best: int
) -> None:
    scores, weights = [Score(*pair) for pair in numbers], []
    result = fit(training(run), LABELS, scorer=scores_in_turn(scores, weights))
    assert (result.epoch, result.score) == (best, scores[best - 1])
    assert same(result.model.state_dict(), weights[best - 1])
    assert not same(weights[best - 1], weights[4]) and not result.model.training
    assert result.validation == scores[best - 1].accuracy and result.learning_rate == 0.1


def test_without_held_out_labels_the_last_epoch_is_returned(run: Run) -> None:
    last = fit(training(run, epochs=2), NONE)
    assert last.epoch == 2 and last.validation is None and last.score is not None
    by_hand = training(run, epochs=2)
    assert by_hand.run_epoch(0) and by_hand.run_epoch(1)
    assert same(last.model.state_dict(), by_hand.model.state_dict())


def test_a_training_that_diverges_at_once_has_no_score_and_its_first_weights(run: Run) -> None:
    before = new_classifier(run, "finetune", 3, 0).state_dict()
    recorder = Recorder()
    result = fit(training(run, 1e30), LABELS, recorder)
    assert (result.epoch, result.score, result.validation) == (0, None, None)
    assert same(before, result.model.state_dict())
    assert all(math.isfinite(loss) for loss in losses(recorder)) and len(losses(recorder)) < 8


def test_weights_that_are_not_finite_are_never_used(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last step of an epoch spoils them: no loss tells, and nothing is held out."""
    before = new_classifier(run, "finetune", 3, 0).state_dict()

    def spoil(self: Training, epoch: int, progress: object) -> bool:
        self.model.classifier.weight.data[0, 0] = math.inf
        return True

    monkeypatch.setattr(Training, "run_epoch", spoil)
    result = fit(training(run, epochs=2), NONE)
    assert result.epoch == 0 and same(before, result.model.state_dict())


def test_progress_is_updated_while_an_epoch_is_scored(run: Run) -> None:
    recorder = Recorder()
    fit(training(run, epochs=2), LABELS, recorder)
    scoring = [done for done, numbers in recorder.updates if numbers is None]
    assert scoring == [8, 16] and len(recorder.updates) == 18


# --- Scores ---------------------------------------------------------------------------


def many_images(count: int) -> Labelled:
    """More images than are classified at once, of changing brightness."""
    pixels = (torch.arange(count) * 7 % 256).to(torch.uint8)[:, None, None, None]
    images = ImageSet(
        "many",
        pixels.expand(-1, 1, 8, 8).contiguous(),
        torch.arange(count) % 3,
        ("ant", "bee", "cow"),
        np.full(count, "test"),
        [str(i) for i in range(count)],
    )
    return labelled_rows(images, "test")


@pytest.mark.parametrize("more", [-1, 0, 1, 100])
def test_a_score_is_that_of_one_pass_over_all_images(run: Run, more: int) -> None:
    labelled, updates = many_images(EVALUATION_BATCH + more), []
    model = fit(training(run, epochs=1), LABELS).model.train()
    score = score_on(model, labelled, updates.append)
    assert model.training, "the mode of the model was changed"
    with torch.no_grad():
        logits = model.eval()(as_float(labelled.images.images))
    assert score.accuracy == pytest.approx(
        float((logits.argmax(1) == labelled.target).double().mean())
    )
    expected = F.cross_entropy(logits.double(), labelled.target)
    assert score.cross_entropy == pytest.approx(float(expected), rel=1e-5)
    assert updates == [*([EVALUATION_BATCH] if more > 0 else []), len(labelled)]


def test_no_images_have_no_score(run: Run) -> None:
    score = score_on(new_classifier(run, "finetune", 3, 0), NONE)
    assert math.isnan(score.accuracy) and math.isnan(score.cross_entropy)


@pytest.mark.parametrize(
    ("score", "other", "better"),
    [
        ((0.5, 1.0), None, True),
        ((0.6, 9.0), (0.5, 1.0), True),
        ((0.4, 0.1), (0.5, 1.0), False),
        ((0.5, 0.9), (0.5, 1.0), True),
        ((0.5, 1.1), (0.5, 1.0), False),
        ((0.5, 1.0), (0.5, 1.0), False),
        ((math.nan, math.nan), (math.nan, math.nan), True),
    ],
)
def test_accuracy_counts_before_cross_entropy(
    score: tuple[float, float], other: tuple[float, float] | None, better: bool
) -> None:
    assert Score(*score).beats(None if other is None else Score(*other)) == better


# --- Randomness -----------------------------------------------------------------------


def test_dropout_depends_on_the_seed_alone(run: Run) -> None:
    def with_dropout() -> dict[str, Tensor]:
        model = new_classifier(run, "finetune", 3, 0)
        model.classifier = nn.Sequential(nn.Dropout(0.5), model.classifier)
        return fit(Training(model, LABELS, QUICK, ViewConfig.light(), 0.1), NONE).model.state_dict()

    torch.manual_seed(1)
    one = with_dropout()
    torch.manual_seed(2)
    assert same(one, with_dropout())
