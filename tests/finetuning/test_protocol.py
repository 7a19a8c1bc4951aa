"""Fine-tuning: what it may touch and what it must not, that a stopped one goes on as if unbroken,
and the numbers over seeds.
"""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from tiny import train
from torch import Tensor, nn

from sureclr.config import ViewConfig
from sureclr.data.image_set import ImageSet
from sureclr.data.label_request import LabelRequest
from sureclr.data.labels import choose_labels, labelled_rows
from sureclr.errors import UserError
from sureclr.finetuning import train as supervised
from sureclr.finetuning.config import FinetuneConfig
from sureclr.finetuning.protocol import finetune, interval, result_key, start
from sureclr.finetuning.store import load_finetuned
from sureclr.finetuning.train import Fit, Score, Training, fit
from sureclr.progress import SilentProgress as Silent
from sureclr.training.building import build
from sureclr.training.run import Run, load

QUICK = FinetuneConfig(labels="18", seeds=2, epochs=2, batch_size=6, lr=(0.02, 0.1))
ONE_RATE = replace(QUICK, lr=(0.1,))


def labelled_set(seed: int = 0) -> ImageSet:
    """3 classes, each bright in other rows: 60 training images, 12 of them without a label, 4 never
    meant to have one, 30 test images.
    """
    generator = torch.Generator().manual_seed(seed)
    kind = torch.arange(94) % 3
    pixels = torch.randint(0, 120, (94, 1, 8, 8), dtype=torch.uint8, generator=generator)
    for k in range(3):
        pixels[kind == k, :, 2 * k : 2 * k + 3] += 70
    split = np.array(["train"] * 60 + ["unlabelled"] * 4 + ["test"] * 30)
    labels = kind.clone()
    labels[48:64] = -1
    return ImageSet(
        "made",
        pixels,
        labels,
        ("ant", "bee", "cow"),
        split,
        [f"{i:02d}.png" for i in range(94)],
        folds=torch.stack([torch.arange(0, 18), torch.arange(18, 36)]),
    )


IMAGES = labelled_set()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(tmp_path_factory.mktemp("finetune") / "run")


@pytest.fixture
def run(trained: Run, tmp_path: Path) -> Run:
    """The same run in a folder of its own."""
    from shutil import copytree

    copytree(trained.path, tmp_path / "run")
    return load(tmp_path / "run", "cpu")


def tune(
    run: Run, config: FinetuneConfig = QUICK, images: ImageSet = IMAGES, **options: Any
) -> dict[str, Any]:
    return finetune(run, images, config, **{"reporter": Silent(), **options})


def timeless(value: Any) -> Any:
    """Without what depends on the clock."""
    if isinstance(value, dict):
        return {key: timeless(entry) for key, entry in value.items() if "seconds" not in key}
    return [timeless(entry) for entry in value] if isinstance(value, list | tuple) else value


def states(run: Run) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in run.model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(tensor, other[name]) for name, tensor in one.items()
    )


# --- What it starts from --------------------------------------------------------------


def test_the_head_is_gone_and_the_run_stays_as_it_was(run: Run) -> None:
    before, labels = states(run), labelled_rows(IMAGES, "train")
    model = start(run, "finetune", labels, 0)
    tensors = model.state_dict()
    assert {name.split(".")[0] for name in tensors} == {"encoder", "classifier", "mean", "std"}
    assert same(
        {n: t for n, t in before.items() if n.split(".")[0] in ("encoder", "mean", "std")},
        {n: t for n, t in tensors.items() if not n.startswith("classifier")},
    )
    fit(model, labels, labels, QUICK, ViewConfig.light(), 0.1, 0, False, lambda numbers: None)
    assert same(before, states(run)), "the pretrained model was trained along"
    assert not torch.equal(
        model.encoder.layer1.body[0].weight, run.model.encoder.backbone.layer1.body[0].weight
    )


def test_scratch_is_the_same_network_with_fresh_weights_of_its_seed(run: Run) -> None:
    labels = labelled_rows(IMAGES, "train")
    one, again, other = (start(run, "scratch", labels, seed).state_dict() for seed in (3, 3, 4))
    fresh = build(replace(run.config, seed=3), 1, run.model.mean, run.model.std)[
        0
    ].encoder.backbone.state_dict()
    assert same(one, again) and same(
        fresh, {n.removeprefix("encoder."): t for n, t in one.items() if n.startswith("encoder.")}
    )
    assert not torch.equal(
        one["encoder.layer1.body.0.weight"], other["encoder.layer1.body.0.weight"]
    )
    assert torch.equal(one["mean"], run.model.mean) and {n: t.shape for n, t in one.items()} == {
        n: t.shape for n, t in start(run, "finetune", labels, 0).state_dict().items()
    }


def test_at_the_start_every_class_is_equally_likely(run: Run) -> None:
    labels, losses = labelled_rows(IMAGES, "train"), []
    fit(
        start(run, "finetune", labels, 0),
        labels,
        labels,
        QUICK,
        ViewConfig.light(),
        0.005,
        0,
        False,
        lambda numbers: losses.extend([numbers["loss"]] if numbers else []),
    )
    assert losses[0] == pytest.approx(math.log(3)) and np.mean(losses[-8:]) < losses[0]


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_bn_keeps_its_statistics_and_nothing_else(frozen: bool, run: Run) -> None:
    labels = labelled_rows(IMAGES, "train")
    model = start(run, "finetune", labels, 0)
    fit(model, labels, labels, QUICK, ViewConfig.light(), 0.005, 0, frozen, lambda numbers: None)
    before, after = run.model.encoder.backbone.state_dict(), model.encoder.state_dict()
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


def test_frozen_bn_is_for_the_pretrained_arm_alone(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def spy(*arguments: Any) -> Fit:
        seen.append(arguments[7])
        return fit(*arguments)

    monkeypatch.setattr("sureclr.finetuning.protocol.fit", spy)
    tune(run, replace(QUICK, bn="frozen", seeds=1, lr=(0.1,)))
    assert seen == [True, False]


def test_views_are_light_and_flip_only_where_the_run_did(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[ViewConfig] = []
    real = supervised.one_view

    def spy(images: Tensor, seeds: Tensor, view: int, config: ViewConfig) -> Tensor:
        seen.append(config)
        return real(images, seeds, view, config)

    monkeypatch.setattr(supervised, "one_view", spy)
    quick = replace(QUICK, seeds=1, epochs=1, lr=(0.1,))
    tune(run, quick)
    tune(
        replace(run, config=replace(run.config, views=ViewConfig(flip=0.3))),
        replace(quick, labels="20"),
    )
    assert {config.flip for config in seen} == {0.0, 0.3} and all(
        c.jitter_p == c.blur_p == c.grey_p == 0 for c in seen
    )


# --- What it looks at -----------------------------------------------------------------


def test_only_labelled_rows_and_test_images_are_touched(run: Run) -> None:
    """Every other image may be anything."""
    config = replace(QUICK, seeds=1)
    chosen = choose_labels(IMAGES, LabelRequest.of("18"), None, 0).rows
    others = torch.ones(len(IMAGES), dtype=torch.bool)
    others[chosen], others[64:] = False, False
    pixels = IMAGES.images.clone()
    pixels[others] = 255 - pixels[others]
    one = timeless(tune(run, config))
    assert int(others.sum()) == 46 and one == timeless(
        tune(run, config, replace(IMAGES, images=pixels), again=True)
    )
    pixels[chosen[0]] = 255 - pixels[chosen[0]]
    assert one != timeless(tune(run, config, replace(IMAGES, images=pixels), again=True)), (
        "the test cannot see a difference"
    )


def test_the_choice_never_looks_at_the_test_set(run: Run) -> None:
    labels = IMAGES.labels.clone()
    labels[64:] = labels[64:].roll(1)
    one, other = tune(run), tune(run, images=replace(IMAGES, labels=labels), again=True)

    def without_accuracy(result: dict[str, Any]) -> Any:
        return [
            {
                arm: {k: v for k, v in entry[arm].items() if k != "accuracy" and "seconds" not in k}
                for arm in ("finetune", "scratch")
            }
            | {"strength": entry["linear"]["strength"]}
            for entry in result["per_seed"]
        ]

    assert without_accuracy(one) == without_accuracy(other) and one["weights"] == other["weights"]
    assert one["accuracies"] != other["accuracies"]


def test_held_out_labels_are_not_trained_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def spy(model: Any, part: Any, held_out: Any, *rest: Any) -> Fit:
        seen.append((part.rows, held_out.rows))
        return fit(model, part, held_out, *rest)

    monkeypatch.setattr("sureclr.finetuning.protocol.fit", spy)
    tune(run, replace(ONE_RATE, seeds=1, epochs=1))
    chosen = choose_labels(IMAGES, LabelRequest.of("18"), None, 0)
    for part, held_out in seen:  # both arms
        assert torch.equal(torch.cat([part, held_out]).sort().values, chosen.rows)
        assert IMAGES.labels[held_out].bincount().tolist() == [1, 1, 1]
    assert len(seen) == 2 and torch.equal(seen[0][1], seen[1][1])


def test_the_best_epoch_on_held_out_labels_is_returned_to(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels, scores = (
        labelled_rows(IMAGES, "train"),
        [
            Score(0.2, 1.0),
            Score(0.9, 1.5),
            Score(0.9, 1.2),
            Score(0.9, 1.2),
            Score(0.5, 0.1),
        ],
    )
    kept: list[dict[str, Tensor]] = []

    def judge(model: nn.Module, held_out: Any, poll: Callable[[], None]) -> Score:
        kept.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return scores[len(kept) - 1]

    monkeypatch.setattr(supervised, "judge", judge)
    found = fit(
        start(run, "finetune", labels, 0),
        labels,
        labels,
        replace(QUICK, epochs=5),
        ViewConfig.light(),
        0.1,
        0,
        False,
        lambda numbers: None,
    )
    assert (found.epoch, found.score) == (3, scores[2]) and same(found.model.state_dict(), kept[2])
    assert not same(kept[2], kept[4]) and not found.model.training


def test_the_best_learning_rate_is_taken_and_each_chosen_model_meets_the_test_set_once(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = []
    real = supervised.judge

    def spy(model: nn.Module, labelled: Any, poll: Callable[[], None]) -> Score:
        judged.append(sorted(set(labelled.images.split[labelled.rows.numpy()].tolist())))
        return real(model, labelled, poll)

    monkeypatch.setattr(supervised, "judge", spy)
    monkeypatch.setattr("sureclr.finetuning.protocol.judge", spy)
    result = tune(run, replace(QUICK, lr=(1e-6, 0.1)))
    assert (
        judged.count(["test"]) == 2 * 2
        and judged.count(["train"]) == 2 * 2 * 2 * QUICK.epochs
        and len(judged) == 20
    )
    for entry in result["per_seed"]:
        for arm in ("finetune", "scratch"):
            best = max(value for _, _, value in entry[arm]["tried"])
            assert [entry[arm][k] for k in ("lr", "epoch", "validation")] in entry[arm][
                "tried"
            ] and entry[arm]["validation"] == best


def test_one_label_a_class_leaves_nothing_to_choose_on(run: Run) -> None:
    entry = tune(run, replace(QUICK, labels="3", lr=(0.1, 0.01, 0.03), seeds=1))["per_seed"][0]
    assert entry["n_validation"] == 0 and entry["finetune"]["tried"] == [[0.03, QUICK.epochs, None]]


def test_the_first_seed_can_choose_for_all(run: Run) -> None:
    first, second = tune(run, replace(QUICK, tune="first"))["per_seed"]
    for arm in ("finetune", "scratch"):
        assert len(first[arm]["tried"]) == 2 and [lr for lr, _, _ in second[arm]["tried"]] == [
            first[arm]["lr"]
        ]


def test_divergence_is_passed_over_or_told(run: Run) -> None:
    one = replace(QUICK, seeds=1)
    assert tune(run, replace(one, lr=(1e30, 0.1)))["per_seed"][0]["finetune"]["lr"] == 0.1
    with pytest.raises(
        UserError, match=r"diverged at every learning rate \(1e\+30\); give smaller"
    ):
        tune(run, replace(one, lr=(1e30,)))


# --- Schedule and precision -----------------------------------------------------------


def training(run: Run, **options: Any) -> Training:
    labels = labelled_rows(IMAGES, "train")
    return Training(
        start(run, "finetune", labels, 0),
        labels,
        replace(QUICK, epochs=5, **options),
        ViewConfig.light(),
        0.1,
        0,
        False,
    )


def test_the_rate_warms_up_and_falls_to_zero_or_stays(run: Run) -> None:
    cosine, constant = (
        training(run, warmup_epochs=2),
        training(run, warmup_epochs=2, schedule="constant"),
    )
    assert cosine.per_epoch == 8
    for step in range(40):
        wanted = (step + 1) / 16 if step < 16 else (1 + math.cos(math.pi * (step - 16) / 24)) / 2
        assert cosine.rate(step) == pytest.approx(wanted)
        assert constant.rate(step) == pytest.approx(min(1, (step + 1) / 16))


def test_a_step_is_nesterovs_with_decay_on_matrices_alone(run: Run) -> None:
    """Two steps against the formula b <- mu b + g, w <- w - lr (g + mu b), on the classifier."""
    made = training(run, warmup_epochs=0, weight_decay=0.1, schedule="constant", momentum=0.8)
    weight, bias = made.model.classifier.weight, made.model.classifier.bias
    expected = {"weight": weight.detach().clone(), "bias": bias.detach().clone()}
    buffer = {"weight": torch.zeros_like(weight), "bias": torch.zeros_like(bias)}
    made.model.train()
    for step in range(2):
        made.step(0, step)
        for name, p, decay in (("weight", weight, 0.1), ("bias", bias, 0.0)):
            gradient = p.grad + decay * expected[name]
            buffer[name] = 0.8 * buffer[name] + gradient
            expected[name] = expected[name] - 0.1 * (gradient + 0.8 * buffer[name])
            torch.testing.assert_close(p.detach(), expected[name], rtol=1e-5, atol=1e-7)
    assert float(expected["weight"].abs().max()) > 0


def test_bfloat16_is_for_the_network_alone(run: Run) -> None:
    made, seen = training(run, precision="bfloat16"), []
    made.model.classifier.register_forward_hook(
        lambda module, inputs, output: seen.append(output.dtype)
    )
    made.step(0, 0)
    assert seen == [torch.bfloat16] and all(
        p.grad is not None and p.grad.dtype == torch.float32 for p in made.model.parameters()
    )


# --- Stopping and going on ------------------------------------------------------------


class Halt(Exception):
    """What a poll raises."""


def halting(after: int) -> tuple[Callable[[], None], list[int]]:
    calls: list[int] = []

    def poll() -> None:
        calls.append(1)
        if len(calls) == after:
            raise Halt

    return poll, calls


def test_a_stopped_one_goes_on_as_if_unbroken(run: Run, tmp_path: Path) -> None:
    poll, all_calls = halting(-1)
    whole = tune(run, ONE_RATE, poll=poll)
    weights = (run.path / whole["weights"]["file"]).read_bytes()
    assert tune(run, ONE_RATE, poll=halting(1)[0]) == whole, "finished seeds were trained again"
    with pytest.raises(Halt):
        tune(run, ONE_RATE, again=True, poll=halting(round(0.7 * len(all_calls)))[0])
    half = json.loads((run.path / "results.json").read_text())["finetune:18"]
    assert (
        half["seeds"] == 1
        and not half["complete"]
        and half["accuracies"] == whole["accuracies"][:1]
    )
    poll, calls = halting(-1)
    assert timeless(tune(run, ONE_RATE, poll=poll)) == timeless(whole) and 0 < len(
        calls
    ) < 0.6 * len(all_calls)
    assert (run.path / whole["weights"]["file"]).read_bytes() == weights


def test_more_seeds_continue_and_another_question_starts_anew(run: Run) -> None:
    one = tune(run, replace(ONE_RATE, seeds=1))
    two = tune(run, ONE_RATE)
    assert two["per_seed"][0] == one["per_seed"][0] and two["seeds"] == 2 and two["complete"]
    assert tune(run, replace(ONE_RATE, seeds=1))["accuracies"] == one["accuracies"]
    assert run.directory.results_so_far()["finetune:18"]["seeds"] == 2, (
        "asking for fewer forgot a finished one"
    )
    assert tune(run, replace(ONE_RATE, seeds=1, epochs=1))["per_seed"] != one["per_seed"]
    labels = IMAGES.labels.clone()
    labels[64:] = labels[64:].roll(1)
    one = tune(run, replace(ONE_RATE, seeds=1))
    assert (
        tune(run, replace(ONE_RATE, seeds=1), replace(IMAGES, labels=labels))["accuracy"]
        != one["accuracy"]
    ), "an old test set's result"


# --- Results and weights --------------------------------------------------------------


def test_the_weights_that_are_kept_give_the_accuracy_that_is_told(run: Run) -> None:
    result = tune(run, data="made")
    loaded = load_finetuned(run.path, "18:made", "cpu")
    best = max(result["per_seed"], key=lambda entry: entry["finetune"]["validation"])
    probabilities = loaded.probabilities(IMAGES.test)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(30))
    assert float((probabilities.argmax(1) == IMAGES.test.labels).double().mean()) == pytest.approx(
        best["finetune"]["accuracy"]
    )
    assert (
        loaded.classes == IMAGES.classes
        and loaded.about["seed"] == best["seed"]
        and len(list((run.path / "finetuned").iterdir())) == 2
    )
    with pytest.raises(UserError, match="unknown fine-tuned classifier '18'"):
        load_finetuned(run.path, "18", "cpu")
    file = run.path / result["weights"]["file"]
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match="does not match its sha256"):
        load_finetuned(run.path, "18:made", "cpu")


def test_the_result_is_in_results_json_beside_the_others(run: Run) -> None:
    run.directory.add_result("linear", {"accuracy": 0.5})
    result = tune(run)
    kept = run.directory.results_so_far()
    assert (
        kept["linear"] == {"accuracy": 0.5}
        and kept["finetune:18"]["accuracy"] == result["accuracy"]
    )
    assert (
        result["accuracy"] == pytest.approx(np.mean(result["accuracies"]))
        and result["n_labels"] == 18
        and result["n_test"] == 30
    )
    gains = np.array(result["accuracies"]) - result["baseline_accuracies"]["scratch"]
    assert result["gain"]["mean"] == pytest.approx(gains.mean()) and result["complete"]
    assert result["cpu_seconds"] > 0 and set(result["baselines"]) == {"scratch", "linear"}


def test_intervals_are_students(run: Run) -> None:
    values = [0.81, 0.84, 0.79, 0.85, 0.83]
    span = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert interval(values, 100) == pytest.approx([span.low, span.high])
    assert interval([0.99, 1.0], 100)[1] == 1.0
    wilson = stats.binomtest(83, 100).proportion_ci(0.95, method="wilson")
    assert interval([0.83], 100) == pytest.approx([wilson.low, wilson.high]), (
        "one seed: over test images"
    )


def test_each_fold_can_be_a_repetition(run: Run) -> None:
    result = tune(run, replace(QUICK, labels=None, fold="all", seeds=7, epochs=1, lr=(0.1,)))
    assert [(entry["fold"], entry["n_labels"]) for entry in result["per_seed"]] == [
        (0, 18),
        (1, 18),
    ]
    digests = [choose_labels(IMAGES, LabelRequest.of("100%"), fold).digest for fold in (0, 1)]
    assert [entry["labels_sha256"] for entry in result["per_seed"]] == digests
    assert "finetune:100%:fold-all" in run.directory.results_so_far()
    with pytest.raises(UserError, match="no folds of its own"):
        tune(run, replace(QUICK, fold="all"), replace(IMAGES, folds=None))


def test_keys_tell_questions_apart() -> None:
    assert result_key(QUICK, None) == "finetune:18"
    assert result_key(replace(QUICK, labels="10 %", fold=3), "stl10") == "finetune:10%:fold-3:stl10"


def test_without_labelled_test_images_there_is_nothing_to_say(run: Run) -> None:
    with pytest.raises(UserError, match="needs labelled test images, and made has none"):
        tune(run, images=IMAGES.select(np.arange(64)))


def test_labels_of_a_file_may_name_images_that_had_none(run: Run, tmp_path: Path) -> None:
    names = [(i, ["ant", "bee", "cow"][i % 3]) for i in range(46, 64)]
    (tmp_path / "mine.csv").write_text(
        "path,label\n" + "".join(f"{i:02d}.png,{name}\n" for i, name in names)
    )
    result = tune(run, replace(QUICK, labels=str(tmp_path / "mine.csv"), seeds=1))
    assert result["n_labels"] == 18 and result["per_seed"][0]["labels_differing"] == 0


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"lr": ()}, "lr must be"),
        ({"lr": (0.1, -1.0)}, "lr must be"),
        ({"lr": (0.1, 0.1)}, "lr must be"),
        ({"epochs": 0}, "epochs"),
        ({"batch_size": 1}, "batch_size"),
        ({"validation": 1.0}, "validation"),
        ({"bn": "off"}, "bn must be one of"),
        ({"schedule": "step"}, "schedule"),
        ({"fold": -1}, "fold must be 0"),
        ({"labels": "0.1"}, "neither a share nor a count"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"warmup_epochs": math.inf}, "warmup_epochs"),
        ({"momentum": 1.0}, "momentum"),
    ],
)
def test_bad_settings_are_refused_by_name(option: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        replace(QUICK, **option)
