"""evaluate, knn, linear, heads, uncertainty: numbers of a trained run, and a summary in words."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from sureclr.cli.shared import (
    EVALUATE,
    NO_OPTIONS,
    CommandProgress,
    EvaluationOptions,
    Options,
    RunFolder,
    app,
    mapping_json,
    print_answer,
    quoted,
)
from sureclr.config import FIRST_ENCODERS

if TYPE_CHECKING:
    from sureclr.evaluation.results import (
        ClassNumbers,
        ClassScore,
        CorruptionResult,
        ExplanationResult,
        GeometryResult,
        HeadsResult,
        KnnResult,
        LearningResult,
        LinearResult,
        OodResult,
        PredictionSets,
        Results,
        Sample,
        SensitivityResult,
        UncertaintyResult,
    )

WORST = 5  # classes that are printed


@app.command(group=EVALUATE)
def evaluate(run: RunFolder, /, *, options: Options = NO_OPTIONS) -> None:
    """Run every evaluation that the run does not have yet, and print all results."""
    results = _evaluate(run, None, options)
    page = None if results.kept else Path("report.html")
    if options.out is not None:
        page = options.out / "report.html"
    words = replace(options, data=None, out=page).words  # a report is about the run's own images
    _print_results(results, options, f"sureclr report {quoted(run)}{words}")


@app.command(group=EVALUATE)
def linear(run: RunFolder, /, *, options: Options = NO_OPTIONS) -> None:
    """Train a linear classifier (L-BFGS) on the frozen features and test it.

    The strength of its penalty is chosen on a part of the training images; the test images are used
    once.
    """
    _print_one("linear", run, options, f"sureclr evaluate {quoted(run)}{options.words}")


@app.command(group=EVALUATE)
def knn(run: RunFolder, /, *, options: Options = NO_OPTIONS) -> None:
    """Classify each test image by a vote of its 20 nearest training images."""
    _print_one("knn", run, options, f"sureclr linear {quoted(run)}{options.words}")


@app.command(group=EVALUATE)
def heads(run: RunFolder, /, *, options: Options = NO_OPTIONS) -> None:
    """Compare what the heads put out with the features: all that training adds to a frozen encoder.

    These are the nearest neighbours by the directions, and scores that say which images are hard.
    """
    _print_one("heads", run, options, f"sureclr report {quoted(run)}")


@app.command(group=EVALUATE)
def uncertainty(
    run: RunFolder,
    /,
    *,
    human: Annotated[
        Path | None,
        Parameter(
            help=(
                "What people said of the test images: an array of a row an image and a column a"
                " class (.npy, as CIFAR-10H's), or a file with several labels for an image."
                " Default: that in --labels, where it has several for an image."
            )
        ),
    ] = None,
    options: Options = NO_OPTIONS,
) -> None:
    """Measure how certain the model is of each image, and whether that is right.

    The learned certainty is tested on crops, blur, noise, occlusion and foreign images, next to
    simple scores that need no training.
    """
    results = _evaluate(run, ("uncertainty", "ood"), options, again=True, human=human)
    _print_results(results, options, f"sureclr evaluate {quoted(run)}{options.words}")


def _evaluate(
    run: Path, which: str | tuple[str, ...] | None, options: EvaluationOptions, **more: Any
) -> "Results":
    from sureclr.evaluation.session import evaluate as evaluate_run

    return evaluate_run(
        run,
        which,
        options.data,
        options.label_file,
        checkpoint=options.checkpoint,
        out=options.out,
        device=options.device,
        root=options.root,
        verify=options.verify,
        progress=CommandProgress(),
        **more,
    )


def _print_one(name: str, run: Path, options: EvaluationOptions, next_command: str) -> None:
    """Make one result anew and print it."""
    from sureclr.schema import to_json

    results = _evaluate(run, name, options, again=True)
    text = "\n".join(summaries(results))
    print_answer(options.json, to_json(results[name]), text, next_command)


def _print_results(results: "Results", options: EvaluationOptions, next_command: str) -> None:
    place = [f"All numbers are in {results.file}."] if results.file is not None else []
    text = "\n".join([*summaries(results), *place])
    print_answer(options.json, mapping_json(results), text, next_command)


def summaries(results: Mapping[str, Any]) -> list[str]:
    """Return the results in words, one text for each; those of other packages by name alone."""
    words: dict[str, Callable[[str, Any], str]] = {
        "linear": _linear,
        "knn": _knn,
        "heads": _heads,
        "uncertainty": _uncertainty,
        "ood": _ood,
        "learning": _learning,
        "geometry": _geometry,
        "sensitivity": _sensitivity,
        "explanation": _explanation,
    }
    return [words.get(name, _other)(name, result) for name, result in results.items()]


def _other(name: str, result: Any) -> str:
    return f"{name:7s} {result}"


def _accuracy(name: str, result: "KnnResult | LinearResult") -> str:
    low, high = result.interval
    text = (
        f"{name:7s} accuracy {result.accuracy:.4f}  (95 % interval {low:.4f} to {high:.4f},"
        f" {result.n_test:,} test images)"
    )
    if (baselines := result.baselines) is None:
        return text
    text += f"  raw pixels {baselines.raw_pixels:.4f}  "
    if result.first_encoder == "frozen":
        return text + "(the encoder is frozen: its features are the backbone's own)"
    return text + f"{FIRST_ENCODERS[result.first_encoder]} {baselines.untrained:.4f}"


def _class_rows(result: "KnnResult | LinearResult") -> list[str]:
    """The numbers in which every class counts the same, the majority, and the worst classes."""
    numbers = result.by_class
    if numbers is None:
        return []
    low, high = result.interval
    rows = [
        f"  balanced accuracy {numbers.balanced_accuracy:.4f}, macro F1 {numbers.macro_f1:.4f};"
        f" always naming the commonest class ({numbers.majority_class}) reaches"
        f" {numbers.majority_baseline:.4f}"
    ]
    if low <= numbers.majority_baseline:
        how = "worse than" if high < numbers.majority_baseline else "not clearly better than"
        rows.append(
            f"  The accuracy of {result.accuracy:.4f} is {how} always naming that one class."
        )
    return rows + worst_classes(numbers)


def worst_classes(numbers: "ClassNumbers") -> list[str]:
    """Return lines that name the classes of one split alone, and the worst five classes."""
    rows = []
    if numbers.only_test:
        count = sum(each.n_test for each in numbers.classes if each.name in numbers.only_test)
        rows.append(
            f"  Without a training image, and so counted as wrong: {_listed(numbers.only_test)}"
            f" ({count:,} {_images(count)})"
        )
    if numbers.only_train:
        rows.append(f"  Without a test image, and so not tested: {_listed(numbers.only_train)}")
    worst = [each for each in numbers.worst if each.accuracy != 1][:WORST]
    if worst:
        width = min(32, max(len(each.name) for each in worst))
        rows.append("  The classes with the lowest accuracy:")
        rows += [f"    {each.name:{width}s}  {_class_text(each)}" for each in worst]
    return rows


def _class_text(score: "ClassScore") -> str:
    assert score.accuracy is not None and score.interval is not None  # it has test images
    low, high = score.interval
    text = (
        f"{score.accuracy:.3f}  ({low:.3f} to {high:.3f}, {score.n_test:,} {_images(score.n_test)})"
    )
    return text + f"  {score.mistaken:,} taken for {score.taken_for}" * bool(score.taken_for)


def _images(count: int) -> str:
    return "test image" if count == 1 else "test images"


def _listed(names: Sequence[str]) -> str:
    """The first ten names."""
    return ", ".join(names[:10]) + f" and {len(names) - 10} more" * (len(names) > 10)


def _knn(name: str, result: "KnnResult") -> str:
    return "\n".join([_accuracy(name, result), *_whitened(result), *_class_rows(result)])


def _whitened(result: "KnnResult") -> list[str]:
    """The votes by partially whitened features, a row each; of an older result there are none."""
    if (own := result.whitened) is None:
        return []
    rows = {"partially whitened": own}
    if (baselines := result.whitened_baselines) is not None:
        rows["raw pixels, whitened"] = baselines.raw_pixels
        if result.first_encoder != "frozen":
            rows[f"{FIRST_ENCODERS[result.first_encoder]}, whitened"] = baselines.untrained
    chosen = (
        f"chosen on {own.n_chosen_on:,} training images"
        if own.n_chosen_on
        else "as too few training images have a label to choose one"
    )
    return [
        f"  {title} {_with_interval(vote.accuracy, vote.interval)}, exponent {vote.exponent:g}"
        + f" ({chosen})" * (vote is own)
        for title, vote in rows.items()
    ]


def _linear(name: str, result: "LinearResult") -> str:
    mean = result.posterior_mean
    of = "posterior mean" if mean.of == "u" else "direction (this loss has no radius)"
    rows = [
        _accuracy(name, result),
        f"  on the {of}, {mean.features} numbers: {mean.accuracy:.4f}",
    ]
    if result.blocks:
        blocks = "  ".join(f"{block.name} {block.accuracy:.4f}" for block in result.blocks)
        rows.append(f"  after each block, averaged over positions: {blocks}")
    return "\n".join(rows + _class_rows(result))


def _heads(name: str, result: "HeadsResult") -> str:
    """The neighbours before and after the heads, then a row for each score."""
    votes = (("features", result.knn_features), ("directions", result.knn_directions))
    rows = [
        "heads: what do the heads add to the features? (with 95 % intervals)",
        "  Accuracy of the nearest neighbours: "
        + ", ".join(f"by the {of} {_with_interval(v.accuracy, v.interval)}" for of, v in votes),
        "  Does a score predict that the nearest training image has the right class (R-AUROC)?",
    ]
    rows += [
        f"    {score:24s}{_with_interval(each.auroc, each.interval)}"
        for score, each in result.r_auroc.items()
    ]
    return "\n".join(rows + ([] if result.sample is None else [_sampled(result.sample)]))


def _with_interval(value: float | None, interval: tuple[float, float] | None) -> str:
    span = "" if interval is None else f" ({interval[0]:.3f} to {interval[1]:.3f})"
    return _number(value) + span


def _uncertainty(name: str, result: "UncertaintyResult") -> str:
    """A row for each score, the learned certainty first."""
    rows = [
        "uncertainty: does a score predict that an answer is right? The answers are those of the"
        " nearest training image, of the vote of 20, and of the linear probe.",
        f"  {'(AUROC: 1 is perfect, 0.5 is chance)':40s}{'nearest':>9s}{'vote':>9s}{'probe':>9s}"
        f"{'nearest, of crops':>19s}{'crops scored lower':>20s}",
    ]
    votes = {} if result.selective is None else result.selective
    others = [votes[name].r_auroc if name in votes else {} for name in ("knn", "linear")]
    crop: CorruptionResult | None = result.corruptions.get("crop")  # None: there are no pixels
    for score in result.scores:
        clean = result.clean.r_auroc.get(score) if result.clean else None
        ranking = crop.random.ranking if crop else None
        cropped = ranking.r_auroc.get(score) if ranking else None
        lower = crop.random.less_certain[score] if crop else None
        rows.append(
            f"  {score:40s}{_number(clean):>9s}"
            + "".join(f"{_number(each.get(score)):>9s}" for each in others)
            + f"{_number(cropped):>19s}{_number(lower):>20s}"
        )
    if result.sample:
        rows.append(_sampled(result.sample))
    if result.calibration:
        rows.append(
            f"  Calibration error of the radius: {_number(result.calibration.raw.error)} (0 is"
            " perfect: the product of two certainties is then the mean cosine of the two views)."
        )
    if result.information:
        rows.append(
            f"  Mean information of a test image: {result.information.mean:.1f} nats (0: the model"
            " knows nothing of what it shows)."
        )
    if result.evidence:
        raw, prior = result.evidence.raw.log_loss, result.evidence.log_loss_prior
        worse = ": too sharp to bet on" if raw > prior else ""
        rows.append(
            f"  Log loss of raw evidence as odds: {raw:.4f} nats; of a constant, how rare a match"
            f" is: {prior:.4f}{worse}."
        )
    if shown := {name: value for name, value in result.follows.items() if value is not None}:
        first = max(shown, key=lambda name: abs(shown[name]))
        rows.append(
            f"  In this run the certainty follows the {first} of a picture most: rank correlation"
            f" {shown[first]:+.2f} ("
            + ", ".join(f"{name} {value:+.2f}" for name, value in shown.items() if name != first)
            + ")."
        )
    rows += [_sets(classifier, sets) for classifier, sets in (result.sets or {}).items()]
    return "\n".join(
        rows + [f"  not measured: {what}; {why}" for what, why in result.skipped.items()]
    )


def _sets(classifier: str, sets: "PredictionSets") -> str:
    return (
        f"  Sets of {classifier} that should contain the right class in {sets.coverage:g} of the"
        f" images: observed {_with_interval(sets.observed, sets.interval)} of {sets.n_observed:,},"
        f" mean size {sets.mean_size:.2f} of {sets.classes:,} classes."
    )


def _sampled(sample: "Sample") -> str:
    return (
        f"  These numbers are of {sample.n:,} of the {sample.of:,} test images, in a sample that is"
        " always the same; their neighbours are searched among all training images."
    )


def _ood(name: str, result: "OodResult") -> str:
    """A row for each score, a column for each kind of foreign images."""
    measured = {kind: images for kind, images in result.kinds.items() if not images.skipped}
    scores = list(next(iter(measured.values())).auroc) if measured else []
    rows = [
        "foreign images told from test images (AUROC: 1 is perfect, 0.5 is chance)",
        " " * 24 + "".join(f"{kind:>15s}" for kind in measured),
    ]
    rows += [
        f"  {score:22s}"
        + "".join(f"{_number(images.auroc[score]):>15s}" for images in measured.values())
        for score in scores
    ]
    if result.sample:
        rows.append(_sampled(result.sample))
    if people := result.human_agreement:
        shown = "  ".join(f"{score} {_number(value)}" for score, value in people.spearman.items())
        rows.append(
            f"  rank correlation with the agreement of people ({people.n:,} images): {shown}"
        )
    return "\n".join(rows)


def _learning(name: str, result: "LearningResult") -> str:
    rank = result.effective_rank or (None,)
    negatives = result.gradient.effective_negatives
    return (
        f"learning, first to last of {len(result.epochs)} snapshots: effective rank"
        f" {_number(rank[0])} to {_number(rank[-1])}, negatives that carry the gradient"
        f" {negatives[0]:.0f} to {negatives[-1]:.0f} of {2 * result.images - 2}"
    )


def _geometry(name: str, result: "GeometryResult") -> str:
    clusters = result.clusters
    purity = (
        ""
        if clusters.purity is None or clusters.purity_of_one_cluster is None
        else f" of purity {clusters.purity:.3f} (all images in one cluster:"
        f" {clusters.purity_of_one_cluster:.3f})"
    )
    return (
        f"geometry: the first {len(result.explained)} directions hold {sum(result.explained):.0%}"
        f" of the variance; {clusters.k} clusters{purity}; the map has {result.map_rows:,} images"
    )


def _sensitivity(name: str, result: "SensitivityResult") -> str:
    """A row for each transformation, at the strength that moves the direction most."""
    rows = [
        f"sensitivity: mean cosine to the unchanged image (different images:"
        f" {result.different_images:.3f})",
        f"  {'transformation, at its strongest effect':64s}{'cosine':>8s}"
        f"{'change of certainty (sd)':>26s}",
    ]
    for change in result.transformations.values():
        if change.responses is None:
            rows.append(f"  {change.label:20s} not measured: {change.skipped}")
            continue
        cosines = change.responses.direction
        at = min(range(len(cosines)), key=cosines.__getitem__)
        changes = change.responses.certainty
        certainty = None if changes is None else changes[at]
        strength = f"{change.label:20s} at {change.strengths[at]:<6g} {change.unit}"
        rows.append(f"  {strength:64s}{cosines[at]:>8.3f}{_number(certainty):>26s}")
    return "\n".join(rows)


def _explanation(name: str, result: "ExplanationResult") -> str:
    """A row for the certainty, where there is one, and one for the pairs."""
    rows = [
        f"explanation by occlusion: rank correlation of the maps  {'random weights':>16s}"
        f"{'repeated':>10s}"
    ]
    checks = [(f"{result.evidence_score} of pairs", result.sanity_evidence)]
    if result.sanity is not None:
        checks.insert(0, (result.score or "certainty", result.sanity))
    for what, check in checks:
        verdict = "passed" if check.passed else "failed: do not trust these maps"
        rows.append(
            f"  {what:20s}{check.n:4d} maps{_number(check.rank_correlation_randomised):>43s}"
            f"{_number(check.rank_correlation_repeat):>10s}   sanity check {verdict}"
        )
    return "\n".join(
        [*rows, *([f"  {result.certainty_skipped}"] if result.certainty_skipped else [])]
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
