"""The comparison over seeds: what it may use and what it must not, that both networks are treated
alike, and that a stopped one continues as if unbroken.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from few_labels import (
    IMAGES,
    ONE_RATE,
    ONE_TRAINING,
    QUICK,
    Halt,
    Recorder,
    inverted,
    same,
    states,
    timeless,
    tune,
)
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
)
from torch import Tensor

from sureclr.config import ViewConfig
from sureclr.data.image_set import ImageSet
from sureclr.data.label_request import LabelRequest
from sureclr.data.labels import choose_labels, labelled_rows, read_labels
from sureclr.errors import UserError
from sureclr.evaluation.probes import linear_probe, stratified_split
from sureclr.evaluation.results import read_results
from sureclr.finetuning.draws import label_draws
from sureclr.finetuning.experiment import Experiment, best_fit, new_classifier
from sureclr.finetuning.results import FinetuningResult
from sureclr.finetuning.store import load_finetuned
from sureclr.finetuning.train import Fit, Score, Training, fit
from sureclr.training.building import build
from sureclr.training.run import Run

LABELS = labelled_rows(IMAGES, "train")
CHOSEN = choose_labels(IMAGES, LabelRequest.of("18"), None, 0)  # by seed 0
HELD_OUT = stratified_split(CHOSEN.target, 0.2, torch.Generator().manual_seed(0))


# --- What it starts from --------------------------------------------------------------


def test_the_head_is_gone_and_the_run_stays_as_it_was(run: Run) -> None:
    before = states(run)
    model = new_classifier(run, "finetune", 3, 0)
    tensors = model.state_dict()
    assert {name.split(".")[0] for name in tensors} == {"encoder", "classifier"}
    assert same(
        {n: t for n, t in before.items() if n.split(".")[0] == "encoder"},
        {n: t for n, t in tensors.items() if not n.startswith("classifier")},
    )
    fit(Training(model, LABELS, QUICK, ViewConfig.light(), 0.1), LABELS)
    assert same(before, states(run)), "the pretrained model was trained along"
    assert not torch.equal(
        model.encoder.backbone.layer1.body[0].weight,
        run.encoder.backbone.layer1.body[0].weight,
    )
    model.encoder.mean.add_(1), model.encoder.std.add_(1)
    assert same(before, states(run)), "the classifier shares the run's statistics of pixels"


def test_scratch_is_the_same_network_with_fresh_weights_of_its_seed(run: Run) -> None:
    one, again, other = (new_classifier(run, "scratch", 3, seed).state_dict() for seed in (3, 3, 4))
    fresh = build(replace(run.config, seed=3), 1, run.model.mean, run.model.std)[
        0
    ].encoder.state_dict()
    assert same(one, again) and same(
        fresh, {n.removeprefix("encoder."): t for n, t in one.items() if n.startswith("encoder.")}
    )
    assert not torch.equal(
        one["encoder.backbone.layer1.body.0.weight"], other["encoder.backbone.layer1.body.0.weight"]
    )
    assert torch.equal(one["encoder.mean"], run.model.mean) and {
        n: t.shape for n, t in one.items()
    } == {n: t.shape for n, t in new_classifier(run, "finetune", 3, 0).state_dict().items()}


def test_frozen_bn_is_for_the_pretrained_network_alone(run: Run) -> None:
    def statistics(model: Any) -> dict[str, Tensor]:
        return {n: t for n, t in model.encoder.state_dict().items() if "running" in n}

    experiment = Experiment(run, replace(ONE_TRAINING, bn="frozen"), labelled_rows(IMAGES, "test"))
    (finetuned,) = experiment.search("finetune", CHOSEN, CHOSEN, 0, [0.1])
    (scratch,) = experiment.search("scratch", CHOSEN, CHOSEN, 0, [0.1])
    assert same(statistics(finetuned.model), statistics(run.model))
    fresh = statistics(new_classifier(run, "scratch", 3, 0))
    assert not any(torch.equal(t, fresh[n]) for n, t in statistics(scratch.model).items())


def with_views(run: Run, views: ViewConfig) -> Run:
    return replace(run, config=replace(run.config, views=views))


def trained_weights(run: Run, arm: Any) -> dict[str, Tensor]:
    experiment = Experiment(run, ONE_TRAINING, labelled_rows(IMAGES, "test"))
    return experiment.search(arm, CHOSEN, CHOSEN, 0, [0.1])[0].model.state_dict()


@pytest.mark.parametrize("arm", ["finetune", "scratch"])
def test_views_are_light_and_flip_only_where_the_run_did(run: Run, arm: str) -> None:
    """The colours and crops of pretraining do not matter; its flips do."""
    plain = trained_weights(with_views(run, ViewConfig(flip=0.0)), arm)
    strong = ViewConfig(flip=0.0, strength=0.1, crop_area=(0.9, 1.0), blur_p=0.0, grey_p=1.0)
    assert same(plain, trained_weights(with_views(run, strong), arm))
    assert not same(plain, trained_weights(with_views(run, ViewConfig(flip=0.5)), arm))


# --- What it uses ---------------------------------------------------------------------


def test_only_labelled_rows_and_test_images_are_touched(run: Run) -> None:
    """Every other image may be anything."""
    config = replace(QUICK, seeds=1)
    others = torch.ones(len(IMAGES), dtype=torch.bool)
    others[CHOSEN.rows], others[64:] = False, False
    one = timeless(tune(run, config))
    assert int(others.sum()) == 46 and one == timeless(
        tune(run, config, inverted(others), again=True)
    )
    others[CHOSEN.rows[0]] = True
    assert one != timeless(tune(run, config, inverted(others), again=True)), (
        "the test cannot see a difference"
    )


def test_the_choice_never_uses_the_test_set(run: Run) -> None:
    labels = IMAGES.labels.clone()
    labels[64:] = labels[64:].roll(1)
    one, other = tune(run), tune(run, images=replace(IMAGES, labels=labels), again=True)

    def choices(result: FinetuningResult) -> Any:
        return [
            (arm.learning_rate, arm.epoch, arm.validation, arm.tried, seed.linear.strength)
            for seed in result.per_seed
            for arm in (seed.finetune, seed.scratch)
        ]

    assert choices(one) == choices(other) and one.weights == other.weights
    assert one.accuracies != other.accuracies


def test_held_out_labels_are_not_trained_on(run: Run) -> None:
    """With a single epoch of a single training, held-out images cannot change the weights."""
    assert IMAGES.labels[CHOSEN.rows[HELD_OUT]].bincount().tolist() == [1, 1, 1]
    result = tune(run, ONE_TRAINING)
    changed = inverted(CHOSEN.rows[HELD_OUT])
    other = tune(run, ONE_TRAINING, changed, again=True)
    assert other.weights.sha256 == result.weights.sha256
    assert other.accuracies == result.accuracies
    assert other.baseline_accuracies.scratch == result.baseline_accuracies.scratch
    assert other.per_seed[0].n_validation == 3
    trained_on = inverted(CHOSEN.rows[~HELD_OUT][:1])
    assert tune(run, ONE_TRAINING, trained_on, again=True).weights != result.weights


@pytest.mark.parametrize("arm", ["finetune", "scratch"])
def test_each_network_is_trained_on_the_labels_that_are_not_held_out(run: Run, arm: Any) -> None:
    seed = tune(run, ONE_TRAINING).per_seed[0]
    experiment = Experiment(run, ONE_TRAINING, labelled_rows(IMAGES, "test"))
    score, _ = experiment.run_arm(arm, CHOSEN[~HELD_OUT], CHOSEN[HELD_OUT], 0, [0.1])
    assert timeless(getattr(seed, arm)) == timeless(score)


def test_the_probe_is_fitted_on_the_frozen_features_of_all_labels(run: Run) -> None:
    result = tune(run, replace(ONE_TRAINING, seeds=3))
    test = run.embed(IMAGES.select(np.arange(64, 94))).features
    of_seed_0 = []
    for seed in result.per_seed:
        chosen = choose_labels(IMAGES, LabelRequest.of("18"), None, seed.seed)
        train = run.embed(IMAGES.select(chosen.rows)).features
        probe = linear_probe(train, chosen.target, test, IMAGES.labels[64:], seed=seed.seed)
        assert (seed.linear.accuracy, seed.linear.strength) == (probe.accuracy, probe.strength)
        other = linear_probe(train, chosen.target, test, IMAGES.labels[64:], seed=0)
        of_seed_0.append(other.strength == probe.strength)
    assert not all(of_seed_0), "the test cannot see the seed"


# --- The choice -----------------------------------------------------------------------


def test_the_best_learning_rate_is_taken_and_each_chosen_network_is_tested_once(run: Run) -> None:
    recorder = Recorder()
    result = tune(run, replace(QUICK, learning_rates=(1e-6, 0.1)), progress=recorder)
    for seed in result.per_seed:
        for arm in (seed.finetune, seed.scratch):
            assert [attempt.learning_rate for attempt in arm.tried] == [1e-6, 0.1]
            assert arm.validation == max(attempt.validation for attempt in arm.tried)
            assert (arm.learning_rate, arm.epoch, arm.validation) in {
                (attempt.learning_rate, attempt.epoch, attempt.validation) for attempt in arm.tried
            }
    tests = [task for task in recorder.tasks if task[0].endswith("test")]
    assert tests == [
        (f"Seed {seed}, {arm}: test", 30)
        for seed in (0, 1)
        for arm in ("fine-tuned", "from scratch")
    ]
    trainings = [task for task in recorder.tasks if "learning rate" in task[0]]
    assert len(trainings) == 8 and {steps for _, steps in trainings} == {4}
    assert recorder.open == 0 and len(recorder.messages) == 4


def fits(*scores: tuple[float, float] | None) -> list[Fit]:
    return [
        Fit(float(number), 1, None if pair is None else Score(*pair), torch.nn.Identity())
        for number, pair in enumerate(scores)
    ]


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([(0.5, 1.0), (0.5, 1.0)], 0),
        ([(0.5, 1.0), (0.5, 0.9), (0.4, 0.1)], 1),
        ([None, (0.1, 3.0), None], 1),
        ([(0.1, 3.0), None, (0.2, 3.0)], 2),
    ],
)
def test_the_first_of_equally_good_trainings_is_best(
    scores: list[tuple[float, float] | None], best: int
) -> None:
    assert best_fit(fits(*scores)).learning_rate == best


def test_one_label_a_class_leaves_nothing_to_choose_on(run: Run) -> None:
    config = replace(QUICK, labels="3", learning_rates=(0.1, 0.01, 0.03), seeds=1)
    seed = tune(run, config).per_seed[0]
    assert seed.n_validation == 0
    for arm in (seed.finetune, seed.scratch):
        assert [(a.learning_rate, a.epoch, a.validation) for a in arm.tried] == [
            (0.03, QUICK.epochs, None)
        ]


def test_the_first_seed_can_choose_for_all(run: Run) -> None:
    first, second = tune(run, replace(QUICK, tune="first")).per_seed
    for name in ("finetune", "scratch"):
        chosen = getattr(first, name)
        assert len(chosen.tried) == 2
        assert [a.learning_rate for a in getattr(second, name).tried] == [chosen.learning_rate]


def test_the_second_seed_searches_again_by_default(run: Run) -> None:
    assert all(len(seed.finetune.tried) == 2 for seed in tune(run).per_seed)


def test_divergence_is_passed_over_or_an_error(run: Run) -> None:
    one = replace(QUICK, seeds=1)
    rates = replace(one, learning_rates=(1e30, 0.1))
    assert tune(run, rates).per_seed[0].finetune.learning_rate == 0.1
    with pytest.raises(
        UserError, match=r"diverged at every learning rate that was tried \(1e\+30\); set"
    ):
        tune(run, replace(one, learning_rates=(1e30,)))


# --- Labels ---------------------------------------------------------------------------


def test_each_seed_draws_its_own_labels() -> None:
    draws = label_draws(IMAGES, replace(QUICK, seeds=3))
    assert [(draw.seed, draw.fold) for draw in draws] == [(0, None), (1, None), (2, None)]
    assert len({draw.labelled.digest for draw in draws}) == 3


def test_one_fold_can_serve_all_seeds() -> None:
    draws = label_draws(IMAGES, replace(QUICK, labels="6", fold=1))
    assert [(draw.seed, draw.fold) for draw in draws] == [(0, 1), (1, 1)]
    assert all(int(draw.labelled.rows.min()) >= 18 for draw in draws)


def test_each_fold_can_be_a_repetition(run: Run) -> None:
    config = replace(ONE_TRAINING, labels=None, fold="all", seeds=7)
    result = tune(run, config)
    assert [(seed.seed, seed.fold, seed.n_labels) for seed in result.per_seed] == [
        (0, 0, 18),
        (1, 1, 18),
    ]
    digests = [choose_labels(IMAGES, LabelRequest.of("100%"), fold).digest for fold in (0, 1)]
    assert [seed.labels_sha256 for seed in result.per_seed] == digests
    assert "finetune:100%:fold-all" in read_results(run.path) and result.complete
    with pytest.raises(UserError, match="no folds of its own"):
        tune(run, replace(QUICK, fold="all"), replace(IMAGES, folds=None))


def test_without_labelled_test_images_there_is_nothing_to_compare(run: Run) -> None:
    with pytest.raises(UserError, match="needs labelled test images, and made has none"):
        tune(run, images=IMAGES.select(np.arange(64)))


def test_labels_of_a_file_may_name_images_that_had_none(run: Run, tmp_path: Path) -> None:
    names = [(i, ["ant", "bee", "cow"][i % 3]) for i in range(46, 64)]
    lines = "".join(f"{i:02d}.png,{name}\n" for i, name in names)
    (tmp_path / "mine.csv").write_text("path,label\n" + lines)
    recorder = Recorder()
    config = replace(ONE_TRAINING, labels=str(tmp_path / "mine.csv"))
    result = tune(run, config, progress=recorder)
    assert result.n_labels == 18 and result.per_seed[0].labels_differing == 0
    assert not any("those in the file are used" in text for text in recorder.messages)
    (tmp_path / "mine.csv").write_text("path,label\n" + lines.replace("46.png,bee", "46.png,cow"))
    changed = tune(run, config, progress=recorder)
    assert changed.per_seed[0].labels_differing == 1, "the labels of the old file were used"
    assert any("1 of 18 labels in the file are not those of" in t for t in recorder.messages)


def file_of(folder: Path, rows: range) -> str:
    """A file that gives these rows the classes by which they were made."""
    lines = "".join(f"{i:02d}.png,{['ant', 'bee', 'cow'][i % 3]}\n" for i in rows)
    (folder / "mine.csv").write_text("path,label\n" + lines)
    return str(folder / "mine.csv")


BARE = replace(IMAGES, labels=torch.full_like(IMAGES.labels, -1), classes=())


def test_without_labels_of_its_own_a_set_is_tested_on_a_part_of_the_files(
    run: Run, tmp_path: Path
) -> None:
    result = tune(run, replace(ONE_TRAINING, labels=file_of(tmp_path, range(40))), BARE)
    (seed,) = result.per_seed
    assert (result.n_test, result.n_labels) == (seed.n_test, 40 - seed.n_test)
    assert 8 <= result.n_test <= 13 and result.accuracy is not None and not result.not_tested
    request = LabelRequest.of(file_of(tmp_path, range(40)))
    labelled = read_labels(request.file, BARE, run.config.seed)
    tested = labelled_rows(labelled.images, "test")
    assert not set(labelled.rows.tolist()) & set(tested.rows.tolist())
    assert (seed.labels_sha256, seed.test_sha256) == (labelled.digest, tested.digest)


def test_too_few_labels_train_a_classifier_that_is_not_tested(run: Run, tmp_path: Path) -> None:
    recorder = Recorder()
    config = replace(ONE_TRAINING, labels=file_of(tmp_path, range(12)))
    result = tune(run, config, BARE, progress=recorder)
    (seed,) = result.per_seed
    assert "12 labels are too few" in result.not_tested and "label 8 more" in result.not_tested
    assert any(result.not_tested in message for message in recorder.messages)
    assert (result.accuracy, result.interval, result.baselines, result.gain) == (None,) * 4
    assert (seed.scratch, seed.linear, seed.finetune.accuracy, seed.n_test) == (None, None, None, 0)
    assert seed.finetune.validation is not None and "from scratch" not in str(recorder.tasks)
    assert read_results(run.path)[f"finetune:{config.labels}"] == result
    loaded = load_finetuned(run.path, str(config.labels), device="cpu")
    assert loaded.classes == ("ant", "bee", "cow") and "not tested" in repr(loaded)
    assert tune(run, config, BARE) == result, "a finished seed was trained again"
    grown = replace(config, labels=file_of(tmp_path, range(40)))
    assert tune(run, grown, BARE).n_test > 0, "the file has more labels now"


# --- Stopping and continuing ----------------------------------------------------------


def test_a_stopped_one_continues_as_if_unbroken(run: Run) -> None:
    unbroken = Recorder()
    whole = tune(run, ONE_RATE, progress=unbroken)
    weights = (run.path / whole.weights.file).read_bytes()
    assert tune(run, ONE_RATE, progress=Recorder(halt_at=1)) == whole, "a seed was trained again"
    with pytest.raises(Halt):
        tune(
            run,
            ONE_RATE,
            again=True,
            progress=Recorder(halt_at=round(0.7 * len(unbroken.updates))),
        )
    half = read_results(run.path)["finetune:18"]
    assert half.seeds == 1 and not half.complete and half.accuracies == whole.accuracies[:1]
    rest = Recorder()
    assert timeless(tune(run, ONE_RATE, progress=rest)) == timeless(whole)
    assert 0 < len(rest.updates) < 0.6 * len(unbroken.updates)
    assert rest.messages[0].startswith("1 of 2 seeds are finished already")
    assert (run.path / whole.weights.file).read_bytes() == weights


def test_more_seeds_continue_and_fewer_forget_nothing(run: Run) -> None:
    one = tune(run, replace(ONE_RATE, seeds=1))
    two = tune(run, ONE_RATE)
    assert two.per_seed[0] == one.per_seed[0] and two.seeds == 2 and two.complete
    assert tune(run, replace(ONE_RATE, seeds=1)).accuracies == one.accuracies
    assert read_results(run.path)["finetune:18"].seeds == 2, (
        "asking for fewer forgot a finished one"
    )


def test_the_weights_of_a_better_seed_outlive_a_worse_one(run: Run) -> None:
    result = tune(run, replace(ONE_RATE, seeds=3, epochs=1))
    validations = [seed.finetune.validation or 0 for seed in result.per_seed]
    assert len(set(validations)) > 1, "the test cannot see a difference"
    assert result.weights.seed == validations.index(max(validations))
    assert load_finetuned(run.path, "18", "cpu").record.seed == result.weights.seed


def rolled() -> Any:
    """Other labels of the test images."""
    labels = IMAGES.labels.clone()
    labels[64:] = labels[64:].roll(1)
    return replace(IMAGES, labels=labels)


@pytest.mark.parametrize(
    ("config", "images"),
    [
        (replace(ONE_TRAINING, epochs=2), IMAGES),
        (replace(ONE_TRAINING, learning_rates=(0.2,)), IMAGES),
        (ONE_TRAINING, rolled()),
        (ONE_TRAINING, inverted(slice(64, 94))),
    ],
    ids=["epochs", "learning rates", "test labels", "test pixels"],
)
def test_another_question_starts_anew(run: Run, config: Any, images: Any) -> None:
    first = tune(run, ONE_TRAINING)
    second = tune(run, config, images)
    assert timeless(second) == timeless(tune(run, config, images, again=True))
    assert second.per_seed != first.per_seed


def test_seeds_of_another_checkpoint_are_trained_again(run: Run) -> None:
    tune(run, ONE_TRAINING)
    recorder = Recorder()
    tune(run, ONE_TRAINING, progress=recorder)
    assert not recorder.tasks
    tune(replace(run, checkpoint="of later weights"), ONE_TRAINING, progress=recorder)
    assert recorder.tasks


# --- Class by class -------------------------------------------------------------------


def without_training_labels(k: int) -> ImageSet:
    """IMAGES in which only test images are of class k."""
    labels = IMAGES.labels.clone()
    labels[torch.from_numpy(IMAGES.split == "train") & (labels == k)] = -1
    return replace(IMAGES, labels=labels)


def test_a_class_that_only_test_images_have_is_left_out_named_and_counted_as_wrong(
    run: Run,
) -> None:
    """Case F10: fine-tuning refused it."""
    images, recorder = without_training_labels(1), Recorder()
    result = tune(run, ONE_TRAINING, images, progress=recorder)
    assert result.n_test == 30 and result.accuracy <= 20 / 30
    assert result.by_class is not None and result.by_class.only_test == ("bee",)
    assert [each.accuracy for each in result.by_class.classes if each.name == "bee"] == [0.0]
    assert [text for text in recorder.messages if "class bee" in text and "10 test images" in text]
    saved = load_finetuned(run.path, "18", "cpu")
    assert saved.classes == ("ant", "cow")
    named = [saved.classes[k] for k in saved.probabilities(images.test).argmax(1)]
    truth = [images.classes[k] for k in images.test.labels]
    assert result.accuracy == accuracy_score(truth, named)


def test_numbers_per_class_are_those_of_the_saved_classifier(run: Run) -> None:
    result = tune(run, ONE_RATE)
    saved = load_finetuned(run.path, "18", "cpu")
    truth, named = IMAGES.test.labels, saved.probabilities(IMAGES.test).argmax(1)
    found, means = result.by_class, result.class_means
    assert found is not None and means is not None
    assert found.balanced_accuracy == pytest.approx(balanced_accuracy_score(truth, named))
    assert found.macro_f1 == pytest.approx(f1_score(truth, named, average="macro"))
    assert found.confusion == tuple(map(tuple, confusion_matrix(truth, named).tolist()))
    assert [each.n_train for each in found.classes] == [6, 6, 6]
    for arm, mean in (
        ("finetune", means.balanced_accuracy),
        ("scratch", means.baseline_balanced_accuracy.scratch),
        ("linear", means.baseline_balanced_accuracy.linear),
    ):
        scores = [getattr(seed, arm) for seed in result.per_seed]
        assert mean == pytest.approx(np.mean([score.balanced_accuracy for score in scores]))
        # every class has ten test images, so the balanced accuracy is the accuracy
        assert all(score.balanced_accuracy == pytest.approx(score.accuracy) for score in scores)
    assert means.majority_baseline == pytest.approx(1 / 3)


def test_seeds_of_two_precisions_are_not_averaged(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`auto` is bfloat16 on one machine and float32 on another; the result says which it was."""
    for amx, options in ((True, {"precision": "bfloat16"}), (False, {})):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda has=amx: has)
        tune(run, ONE_TRAINING, progress=(said := Recorder()))
        assert any("this CPU has AMX" in text for text in said.messages) == amx
        assert not any("finished already" in text for text in said.messages)
        found = read_results(run.path).provenance["finetune:18"].options
        assert {key: found[key] for key in found if key == "precision"} == options
