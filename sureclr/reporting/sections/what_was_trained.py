"""What was trained, and how good it is: accuracies, the curves of the training, the settings."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from sureclr.config import FIRST_ENCODERS, FirstEncoder, PretrainConfig, TrainingPart, ViewConfig
from sureclr.evaluation.results import (
    ClassNumbers,
    HeadsResult,
    Interval,
    KnnResult,
    LinearResult,
    ProbeScore,
)
from sureclr.reporting import captions
from sureclr.reporting.blocks import (
    Block,
    Facts,
    Figure,
    Note,
    Tiles,
    interval_text,
    result_blocks,
    verdict_text,
)
from sureclr.reporting.captions import Caption
from sureclr.reporting.charts import Row, Series, dots, legend, lines
from sureclr.reporting.run_files import RunFiles
from sureclr.reporting.sections.class_by_class import (
    classes_of_one_split,
    draw_classes,
    draw_finetuning,
)
from sureclr.reporting.sections.how_certain import CHANCE, score_style
from sureclr.reporting.svg import DASH, Axis, Chart, number_text

DRAWN_STEPS = 400  # points of a curve at most: of longer ones, every k-th step is drawn
MARKED_STEPS = 30  # points of a curve with markers, at most
TRAINED, RAW, UNTRAINED, HEAD = 0, 1, 2, 3  # styles
PROBES = (("linear", "linear probe"), ("knn", "nearest neighbours"))
CURVES: tuple[tuple[str, str, tuple[tuple[str, str, int], ...]], ...] = (
    ("Loss", "nats", (("loss", "loss", 0),)),
    (
        "Two views of one image",
        "cosine, radius",
        (("cosine_positive", "mean cosine", 0), ("radius_views", "mean radius", 1)),
    ),
    ("Nearest neighbours", "accuracy, held-out training images", (("knn", "kNN", 0),)),
    (
        "Nearest neighbours by directions",
        "accuracy, held-out training images",
        (("knn_directions", "kNN", 0),),
    ),
    ("Kernel dimension", "dimensions in use", (("kernel_dimension", "kernel dimension", 0),)),
    ("Learning rate", "learning rate", (("learning_rate", "learning rate", 2),)),
    ("Speed", "images per second", (("images_per_second", "images per second", 2),)),
)  # title, unit, (column of metrics.jsonl, name, style) of each line
TWO_VIEWS = (("two views: mean cosine", 0), ("two views: mean radius", 1))


def draw_training(run: RunFiles) -> list[Block]:
    """Return the blocks of the section."""
    return [
        summary_tiles(run),
        *result_blocks(run, "linear", _linear),
        *result_blocks(run, "knn", _knn),
        *result_blocks(run, "heads", _heads),
        *(_network_parts(run.results["linear"]) if "linear" in run.results else []),
        *_classes(run),
        *draw_finetuning(run),
        curves(run),
        configuration(run),
    ]


# --- Accuracy -------------------------------------------------------------------------


def summary_tiles(run: RunFiles) -> Tiles:
    """Return both accuracies, the last loss and the number of epochs in large type.

    Loss and epochs are those of the checkpoint that is shown.
    """
    tiles = []
    for name, title in PROBES:
        if name in run.results:
            result: LinearResult | KnnResult = run.results[name]
            text = captions.ACCURACY_TILE.format(interval=interval_text(result.interval))
            tiles.append((f"{name}.accuracy", title, number_text(result.accuracy), text))
    until = [line for line in run.lines if run.step is None or line["step"] <= run.step]
    last = until[-1] if until else {}
    loss = number_text(last.get("loss"))
    epochs = number_text(round(last.get("epoch", 0)))
    planned, size = run.config.all_epochs, run.config.batch_size
    plan = captions.EPOCHS_TILE.format(epochs=planned, batch_size=size)
    tiles.append(("metrics.jsonl", "last loss", loss, captions.LOSS_TILE))
    tiles.append(("metrics.jsonl", "epochs", epochs, plan))
    return Tiles(tiles)


def _linear(run: RunFiles, result: LinearResult) -> list[Block]:
    about = _compared_with(run, result.first_encoder)
    caption = captions.LINEAR.fill(n_train=result.n_train, n_test=result.n_test, **about)
    return [_accuracies("linear", "Linear probe", result, caption, run.config.of_table)]


def _knn(run: RunFiles, result: KnnResult) -> list[Block]:
    about = _compared_with(run, result.first_encoder)
    caption = captions.KNN.fill(k=result.k, n_train=result.n_train, n_test=result.n_test, **about)
    return [_accuracies("knn", "Nearest neighbours", result, caption, run.config.of_table)]


def _compared_with(run: RunFiles, first: FirstEncoder) -> dict[str, str]:
    """What a caption of accuracies says of the points beside the encoder's."""
    if run.config.of_table:
        return {"rivals": captions.RIVALS_OF_TABLE, "distance": captions.DISTANCE_OF_TABLE}
    if first == "frozen":
        return {"rivals": captions.RIVALS_OF_FROZEN, "distance": captions.DISTANCE_OF_FROZEN}
    distance = captions.DISTANCE if first == "untrained" else captions.DISTANCE_FROM_BACKBONE
    article = "an" if first == "untrained" else "the"
    rivals = captions.RIVALS.format(article=article, first=FIRST_ENCODERS[first])
    return {"rivals": rivals, "distance": distance}


def _accuracies(
    key: str,
    title: str,
    result: LinearResult | KnnResult,
    caption: Caption,
    of_table: bool,
) -> Figure:
    """The encoder and its baselines; that of a frozen encoder is the encoder itself."""
    accuracies, intervals = result.baselines, result.baseline_intervals
    first, frozen = FIRST_ENCODERS[result.first_encoder], result.first_encoder == "frozen"
    points = [(first if frozen else "trained encoder", TRAINED, result.accuracy, result.interval)]
    more = captions.NO_PIXELS_OF_FROZEN if frozen else captions.NO_PIXELS
    more = "" if of_table else more
    if accuracies is not None and intervals is not None:
        points.append(("raw pixels", RAW, accuracies.raw_pixels, intervals.raw_pixels))
        if not frozen:
            points.append((first, UNTRAINED, accuracies.untrained, intervals.untrained))
        text = captions.ACCURACY_VERDICT_OF_FROZEN if frozen else captions.ACCURACY_VERDICT
        more = text.format(
            pixels=verdict_text("the raw pixels", result.interval, intervals.raw_pixels),
            first=verdict_text(f"the {first}", result.interval, intervals.untrained),
        )
    if isinstance(result, KnnResult) and result.whitened is not None:
        points += _whitened_points(result, points)
        more = captions.WHITENED.format(exponent=f"{result.whitened.exponent:g}") + more
    rows = [Row(point[0], [point]) for point in points]
    numbers = result.by_class
    majority = [] if numbers is None else [(numbers.majority_baseline, captions.MAJORITY)]
    axis = Axis("accuracy on test images")
    chart = dots(f"{title}: accuracy", rows, axis, references=majority)
    return Figure(key, Caption(caption.title, caption.text + more), [("", chart)], half=True)


def _whitened_points(
    result: KnnResult, plain: Sequence[tuple[str, int, float, Interval]]
) -> list[tuple[str, int, float, Interval]]:
    """The same points by partially whitened features."""
    votes, baselines = [result.whitened], result.whitened_baselines
    if baselines is not None:
        votes += [baselines.raw_pixels, baselines.untrained]
    return [
        (f"{name}, whitened", style, vote.accuracy, vote.interval)
        for (name, style, *_), vote in zip(plain, votes, strict=False)
        if vote is not None
    ]


def _heads(run: RunFiles, result: HeadsResult) -> list[Block]:
    """Neighbours by features and by directions, and each score of certainty."""
    before, after = result.knn_features, result.knn_directions
    votes = [
        Row(name, [(name, style, each.accuracy, each.interval)])
        for name, style, each in (("features", TRAINED, before), ("directions", HEAD, after))
    ]
    scores = [
        Row(score.replace("_", " "), [(*score_style(score), each.auroc, each.interval)])
        for score, each in result.r_auroc.items()
    ]
    caption = captions.HEADS.fill(
        k=result.k,
        n_test=result.n_test,
        n_judged=result.n_judged,
        verdict=verdict_text("the one by the features", after.interval, before.interval),
    )
    axis = Axis("R-AUROC", None, 1.0)
    charts = [
        (captions.HEADS_VOTES, dots("By features and by directions", votes, Axis("accuracy"))),
        (captions.HEADS_SCORES, dots("R-AUROC of each score", scores, axis, references=CHANCE)),
    ]
    return [Figure("heads", caption, charts)]


def _classes(run: RunFiles) -> list[Block]:
    """The numbers of each class, of the linear probe and of the nearest neighbours."""
    blocks: list[Block] = []
    notes: list[Block] = []  # the same of both
    for name, title in PROBES:
        if name not in run.results:
            continue
        numbers: ClassNumbers | None = run.results[name].by_class
        if numbers is None:
            blocks.append(Note(captions.NO_CLASSES.format(name=name, run=run.path), missing=True))
        else:
            blocks += draw_classes(f"{name}.by_class", title.capitalize(), numbers)
            notes = classes_of_one_split(numbers)
    return notes + blocks


def _network_parts(result: LinearResult) -> list[Block]:
    """The same probe after each block of the encoder, and on what the loss sees."""
    of = "posterior mean" if result.posterior_mean.of == "u" else "direction"
    blocks = [_probe_row(block.name, block, TRAINED) for block in result.blocks]
    head = [_probe_row("features", result, TRAINED), _probe_row(of, result.posterior_mean, HEAD)]
    axis = Axis("accuracy on test images")
    figures: list[Block] = []
    if blocks:
        chart = dots("Accuracy by block", blocks, axis)
        figures.append(Figure("linear.blocks", captions.BLOCKS, [("", chart)], half=True))
    chart = dots("Accuracy before and after the head", head, axis)
    caption = captions.HEAD.fill(features=result.posterior_mean.features, of=of)
    figures.append(Figure("linear.posterior_mean", caption, [("", chart)], half=True))
    return figures


def _probe_row(name: str, probe: ProbeScore, style: int) -> Row:
    return Row(name, [(name, style, probe.accuracy, probe.interval)])


# --- Curves ---------------------------------------------------------------------------


def curves(run: RunFiles) -> Block:
    """Return the numbers of metrics.jsonl over the epochs."""
    if not run.lines:
        return Note(captions.NO_STEPS, missing=True)
    charts = [
        (title, _curve(run, title, unit, columns))
        for title, unit, columns in CURVES
        if any(run.column(name)[0] for name, _, _ in columns)
    ]
    if not run.column("radius_views")[0]:
        return Figure("metrics.jsonl", captions.CURVES, charts)
    caption = Caption(captions.CURVES.title, captions.CURVES.text + captions.CURVES_RADIUS)
    return Figure("metrics.jsonl", caption, charts, legend(TWO_VIEWS))


def _curve(run: RunFiles, title: str, unit: str, columns: Sequence[tuple[str, str, int]]) -> Chart:
    series = []
    for column, name, style in columns:
        epochs, values = run.column(column)
        step = max(1, -(-len(epochs) // DRAWN_STEPS))
        markers = len(epochs) <= MARKED_STEPS
        if epochs:
            series.append(Series(name, epochs[::step], values[::step], style, markers=markers))
    return lines(title, series, Axis("epoch", 0), Axis(unit))


# --- Configuration --------------------------------------------------------------------


def configuration(run: RunFiles) -> Facts:
    """Return config.yaml, the origin of the results and environment.json."""
    default = PretrainConfig(run.config.source)
    machine = [
        (name, DASH if value is None else setting_text(value), False)
        for name, value in run.environment.items()
    ]
    groups = [
        ("training", _settings(run.config, default, leave_out="views")),
        ("views", _settings(run.config.views, ViewConfig())),
        ("results", _origins(run)),
        ("machine", machine),
    ]
    return Facts(captions.CONFIGURATION, groups, captions.CONFIGURATION_NOTE)


def _settings(config: Any, default: Any, leave_out: str = "") -> list[tuple[str, str, bool]]:
    """Name, value and whether it differs from the default, of each field of a configuration."""
    rows = []
    for field in fields(config):
        value, usual = getattr(config, field.name), getattr(default, field.name)
        if field.name != leave_out:
            rows.append((field.name, setting_text(value), value != usual))
    return rows


def _origins(run: RunFiles) -> list[tuple[str, str, bool]]:
    """When and with which version each result was made."""
    return [
        (
            name,
            captions.RESULT_MADE.format(
                time=origin.time, seconds=number_text(origin.seconds), version=origin.version
            ),
            False,
        )
        for name, origin in run.results.provenance.items()
    ]


def setting_text(value: Any) -> str:
    """Return a value of a configuration as text; None means the default."""
    if value is None:
        return "default"
    if isinstance(value, tuple):
        if not value or isinstance(value[0], TrainingPart):
            return "; ".join(map(str, value)) or "none"
        if isinstance(value[0], str):
            return ", ".join(value)
        between = " to " if len(value) == 2 else ", "
        return between.join(f"{v:.4g}" for v in value)
    if isinstance(value, dict):
        return ", ".join(f"{name} {text}" for name, text in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)
