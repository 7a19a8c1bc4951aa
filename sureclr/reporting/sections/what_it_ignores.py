"""What it ignores: how the direction and the certainty respond to changes of the image."""

import math
from collections.abc import Sequence

from sureclr.evaluation.results import Number, Responses, SensitivityResult, TransformationResult
from sureclr.reporting import captions
from sureclr.reporting.blocks import Block, Figure, Note, result_blocks
from sureclr.reporting.charts import Interval, Series, legend, lines
from sureclr.reporting.run_files import RunFiles
from sureclr.reporting.svg import Axis, Chart, finite

KEYS = (("direction", 0), ("features", 1))


def draw_invariances(run: RunFiles) -> list[Block]:
    """Return the blocks of the section."""
    return result_blocks(run, "sensitivity", _sensitivity)


def _sensitivity(run: RunFiles, result: SensitivityResult) -> list[Block]:
    measured = [
        (change, change.responses)
        for change in result.transformations.values()
        if change.responses is not None
    ]
    directions = [
        (_heading(change), _direction(change, responses, result.different_images))
        for change, responses in measured
    ]
    certainties = [
        (_heading(change), _certainty(change, responses.certainty))
        for change, responses in measured
        if responses.certainty is not None
    ]
    caption = captions.DIRECTION_KEPT.fill(n=result.n)
    blocks: list[Block] = [Figure("sensitivity", caption, directions, legend(KEYS))]
    if certainties:
        blocks.append(Figure("sensitivity", captions.CERTAINTY_KEPT, certainties))
    else:
        blocks.append(Note(captions.NO_CERTAINTY_KEPT, missing=True))
    if skipped := [change for change in result.transformations.values() if change.skipped]:
        changes = "; ".join(f"{change.label} ({change.skipped.rstrip('.')})" for change in skipped)
        blocks.append(Note(captions.NOT_MEASURED.format(changes=changes)))
    return blocks


def _heading(change: TransformationResult) -> str:
    text = captions.IN_TRAINING if change.trained else captions.NOT_IN_TRAINING
    return text.format(label=change.label)


def _by_strength(
    change: TransformationResult, values: Sequence[Number], at_none: float
) -> tuple[list[float], list[Number]]:
    """Strengths in order, with the one that changes nothing among them, and their values."""
    pairs = [*zip(change.strengths, values, strict=True), (change.none, at_none)]
    pairs.sort(key=lambda pair: pair[0])
    return [x for x, _ in pairs], [y for _, y in pairs]


def _shade(change: TransformationResult) -> Interval | None:
    return None if isinstance(change.trained, bool) else change.trained


def _direction(
    change: TransformationResult, responses: Responses, different_images: float
) -> Chart:
    x, direction = _by_strength(change, responses.direction, 1.0)
    _, band = _by_strength(change, responses.direction_sd, 0.0)
    _, feature = _by_strength(change, responses.feature, 1.0)
    return lines(
        f"Direction against {change.label}",
        [Series("direction", x, direction, 0, band), Series("features", x, feature, 1)],
        Axis(change.unit, min(x), max(x)),
        Axis("cosine", None, 1.0),
        shade=_shade(change),
        references=[(different_images, "different images")],
    )


def _certainty(change: TransformationResult, values: Sequence[Number]) -> Chart:
    """The change, on an axis of at least one deviation each way: noise must not fill the chart."""
    x, y = _by_strength(change, values, 0.0)
    known = finite(y)
    axis = Axis(
        "change in standard deviations",
        min(-1.0, *map(math.floor, known)),
        max(1.0, *map(math.ceil, known)),
    )
    return lines(
        f"Certainty against {change.label}",
        [Series("certainty", x, y)],
        Axis(change.unit, min(x), max(x)),
        axis,
        shade=_shade(change),
        references=[(0.0, "")],
    )
