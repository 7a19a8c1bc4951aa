"""How it learned: the representation, the certainty of classes and the gradient, by epoch."""

from collections.abc import Sequence

from sureclr.evaluation.results import (
    ClassCertainty,
    GradientHistory,
    LearningResult,
    NegativeExample,
    Number,
)
from sureclr.reporting import captions
from sureclr.reporting.blocks import Block, Figure, Gallery, Note, Picture, picture, result_blocks
from sureclr.reporting.charts import Series, legend, lines
from sureclr.reporting.run_files import RunFiles
from sureclr.reporting.svg import Axis, Chart, finite, number_text

FEW_CLASSES = 6  # lines of certainty over time that one chart holds
PARTS = (("loss: logit of the partner", 0), ("loss: logits of other images", 1))
ClassLine = tuple[str, Sequence[Number]]  # its name and its certainty by epoch


def draw_learning(run: RunFiles) -> list[Block]:
    """Return the blocks of the section."""
    return result_blocks(run, "learning", _learning)


def _learning(run: RunFiles, result: LearningResult) -> list[Block]:
    certainty = result.per_class
    return [
        _representation(run, result),
        *(
            [Note(captions.NO_CLASS_CERTAINTY, missing=True)]
            if certainty is None
            else class_certainty(certainty, result.epochs)
        ),
        *gradient(run, result.gradient),
    ]


def _representation(run: RunFiles, result: LearningResult) -> Figure:
    quantities = (
        ("Alignment", "squared distance of two views", result.alignment),
        ("Uniformity", "log of the mean kernel", result.uniformity),
        ("Effective rank", "dimensions in use", result.effective_rank),
        ("Cosine of different images", "cosine", result.cosine_different),
        ("Nearest neighbours", "accuracy, held-out training images", result.knn),
        (
            "Nearest neighbours by directions",
            "accuracy, held-out training images",
            result.knn_directions,
        ),
        ("Radius", "mean radius of whole images", result.radius),
    )
    charts = [
        (title, _curve(title, unit, [Series(title.lower(), result.epochs, values)]))
        for title, unit, values in quantities
        if values is not None
    ]
    parts = [
        Series(name, result.epochs, values, style)
        for (name, style), values in zip(PARTS, (result.positives, result.negatives), strict=True)
    ]
    charts.append(("The loss in two parts", _curve("The loss in two parts", "nats", parts)))
    rank_of = captions.RANK_OF_FEATURES
    if run.config.first_encoder == "frozen":
        rank_of = captions.RANK_OF_DIRECTIONS
    caption = captions.SHAPE.fill(temperature=f"{result.temperature:g}", rank_of=rank_of)
    return Figure("learning", caption, charts, legend(PARTS))


def _curve(title: str, unit: str, series: Sequence[Series]) -> Chart:
    return lines(title, series, Axis("epoch", 0), Axis(unit))


# --- Certainty by class ---------------------------------------------------------------


def class_certainty(result: ClassCertainty, epochs: Sequence[float]) -> list[Block]:
    """Return the certainty of each class over time; of many classes, those at both ends."""
    classes: list[ClassLine] = sorted(
        zip(result.classes, result.certainty, strict=True), key=lambda pair: -(pair[1][-1] or 0)
    )
    groups = [("", classes)]
    if len(classes) > FEW_CLASSES:
        half = min(FEW_CLASSES, len(classes) // 2)
        groups = [
            (captions.MOST_CERTAIN_CLASSES, classes[:half]),
            (captions.LEAST_CERTAIN_CLASSES, classes[-half:]),
        ]
    axis = _common_axis([values for _, group in groups for _, values in group])
    return [
        Figure(
            "learning.per_class",
            captions.CLASS_CERTAINTY.fill(which=which),
            [("", _class_lines(which, group, epochs, axis))],
            legend([(name, style) for style, (name, _) in enumerate(group)]),
            half=True,
        )
        for which, group in groups
    ]


def _common_axis(lines_of_values: Sequence[Sequence[Number]]) -> Axis:
    """An axis on which all charts of classes can be compared, with a little room at both ends."""
    known = finite(v for values in lines_of_values for v in values) or [0.0, 1.0]
    low, high = min(known), max(known)
    room = 0.04 * (high - low)
    return Axis("mean certainty", low - room, high + room)


def _class_lines(
    which: str, classes: Sequence[ClassLine], epochs: Sequence[float], axis: Axis
) -> Chart:
    series = [Series(name, epochs, values, style) for style, (name, values) in enumerate(classes)]
    return lines(f"Certainty by class{which}", series, Axis("epoch", 0), axis, width=460)


# --- Gradient -------------------------------------------------------------------------


def gradient(run: RunFiles, result: GradientHistory) -> list[Block]:
    """Return which negatives carry the gradient, and those that weigh most."""
    chance = result.chance_same_class
    quantities: list[tuple[str, str, Sequence[Number], Sequence[tuple[float, str]]]] = [
        ("Effective number of negatives", "negatives", result.effective_negatives, ()),
        ("Weight of the hardest 1 %", "share of the weight", result.top_share, ()),
        (
            "Weight of the anchor's own class",
            "share of the weight",
            result.same_class_share,
            () if chance is None else [(chance, "chance")],
        ),
        ("Remaining push", "1 minus the softmax of the partner", result.remaining, ()),
    ]
    charts = []
    for title, unit, values, references in quantities:
        if finite(values):
            series = [Series(title.lower(), result.epochs, values)]
            axes = Axis("epoch", 0), Axis(unit, 0)
            charts.append((title, lines(title, series, *axes, references=references)))
    blocks: list[Block] = [Figure("learning.gradient", captions.GRADIENT, charts)]
    if result.examples:
        rows = [
            (captions.ANCHOR_ROW.format(number=i), _example(run, example))
            for i, example in enumerate(result.examples, 1)
        ]
        key = "learning.gradient.examples"
        blocks.append(Gallery(key, captions.HEAVIEST, rows, tight=True))
    return blocks


def _example(run: RunFiles, example: NegativeExample) -> list[Picture]:
    negatives = zip(example.negatives, example.weights, strict=True)
    return [
        picture(run, example.anchor, "anchor"),
        *(picture(run, row, number_text(weight)) for row, weight in negatives),
    ]
