"""How certain it is, and whether that is right: the certainty beside scores that cost nothing."""

from collections.abc import Mapping, Sequence

import numpy as np

from sureclr.evaluation.results import (
    CorruptionResult,
    Diagram,
    EvidenceCalibration,
    InformationSummary,
    Number,
    OodResult,
    PartnerResult,
    ProbeCalibration,
    Sample,
    SelectivePrediction,
    UncertaintyResult,
)
from sureclr.reporting import captions
from sureclr.reporting.blocks import Block, Figure, Gallery, Note, Tiles, picture, result_blocks
from sureclr.reporting.captions import Caption
from sureclr.reporting.charts import Bins, Row, Series, dots, legend, lines, reliability
from sureclr.reporting.run_files import RunFiles
from sureclr.reporting.svg import Axis, Chart, number_text, percent_text

SHOWN = 14  # images at each end of the certainty
OTHER_STYLE = 4  # of a score without a style of its own
SCORES = {
    "certainty": ("certainty (learned)", 0),
    "radius": ("radius: how precisely (learned)", 4),
    "presence": ("presence: whether anything is there (learned)", 4),
    "evidence": ("evidence of the training images (learned)", 5),
    "familiarity": ("familiarity of the features", 4),
    "neighbour_similarity": ("similarity of the nearest neighbour", 1),
    "mean_similarity": ("mean similarity of the 20 nearest", 1),
    "feature_norm": ("norm of the features", 2),
    "negative_entropy": ("negative entropy of a probe (needs labels)", 3),
    "match_similarity": ("similarity of the match", 4),
    "match_evidence": ("evidence for the match", 5),
}  # name and style
CLASSIFIERS = {"knn": "kNN vote", "linear": "linear probe"}
PROBES = {"features": "probe on the features", "posterior_mean": "probe on the posterior mean"}
MAPS = (("raw", 0), ("calibrated", 1))  # name and style
CHANCE = ((0.5, "chance"),)


def draw_certainty(run: RunFiles) -> list[Block]:
    """Return the blocks of the section."""
    return [
        extremes(run),
        *result_blocks(run, "uncertainty", _uncertainty),
        *result_blocks(run, "ood", _ood),
    ]


def extremes(run: RunFiles) -> Block:
    """Return the most and the least certain test images."""
    if run.table is None:
        return Note(captions.NO_TABLE.format(run=run.path), missing=True)
    if run.table.certainty is None:
        return Note(captions.NO_CERTAINTY, missing=True)
    certainty = run.table.certainty.numpy()
    test = np.flatnonzero(run.table.split == "test")
    rows = test if len(test) else np.arange(len(certainty))
    order = rows[np.argsort(-certainty[rows], kind="stable")]
    ends = ((captions.MOST_CERTAIN, order), (captions.LEAST_CERTAIN, order[::-1]))
    shown = [
        (name, [picture(run, int(row), number_text(float(certainty[row]))) for row in end[:SHOWN]])
        for name, end in ends
    ]
    caption = captions.EXTREMES.fill(which="Test" if len(test) else "All", follows=_follows(run))
    return Gallery("embeddings", caption, shown)


def _follows(run: RunFiles) -> str:
    """Say which property of pictures the certainty follows in this run; "" if not measured."""
    result = run.results.get("uncertainty")
    measured = result.follows if isinstance(result, UncertaintyResult) else {}
    shown = {name: value for name, value in measured.items() if value is not None}
    if not shown:
        return ""
    first = max(shown, key=lambda name: abs(shown[name]))
    others = ", ".join(f"{name} {value:+.2f}" for name, value in shown.items() if name != first)
    return captions.FOLLOWS.format(name=first, value=f"{shown[first]:+.2f}", others=others)


def _uncertainty(run: RunFiles, result: UncertaintyResult) -> list[Block]:
    return [
        *_sample(result.sample),
        *([] if result.information is None else [information(result.information)]),
        _compared_scores(result),
        *(_corruptions(result) if result.corruptions else ()),  # a table has no pixels
        *([] if result.selective is None else [_selective(result.selective, result.scores)]),
        *_calibration(result),
        *([] if result.probe_calibration is None else [_probes(result.probe_calibration)]),
        _partner(result.partner),
        *(
            Note(captions.NOT_SCORED.format(what=what, why=why.rstrip(".")))
            for what, why in result.skipped.items()
        ),
    ]


def _sample(sample: Sample | None) -> list[Block]:
    """Say of how many test images the numbers are, where these are not all."""
    return [] if sample is None else [Note(captions.SAMPLED.format(n=sample.n, of=sample.of))]


def information(result: InformationSummary) -> Tiles:
    """Return what an image says about its latent point, in nats."""
    lowest, _, median, _, highest = map(number_text, result.quantiles)
    tiles = (
        ("median image", median, captions.INFORMATION_MEDIAN.format(mean=number_text(result.mean))),
        ("uncertain image", lowest, captions.INFORMATION_LOW),
        ("certain image", highest, captions.INFORMATION_HIGH),
    )
    caption = captions.INFORMATION.fill(median=median, dimension=result.dimension)
    return Tiles([("uncertainty.information", *tile) for tile in tiles], caption)


# --- Scores compared ------------------------------------------------------------------


def score_style(score: str) -> tuple[str, int]:
    """Return the name and the style of a score, the same in the whole page."""
    return SCORES.get(score, (score, OTHER_STYLE))


def _scores_legend(scores: Sequence[str]) -> str:
    return legend([score_style(score) for score in scores])


def _score_row(name: str, values: Mapping[str, Number]) -> Row:
    return Row(name, [(*score_style(score), value, None) for score, value in values.items()])


def _compared_scores(result: UncertaintyResult) -> Figure:
    rankings = [("original images", result.clean)]
    rankings += [(name, each.random.ranking) for name, each in result.corruptions.items()]
    mistakes = [_score_row(name, known.r_auroc) for name, known in rankings if known is not None]
    falls = [_score_row(name, each.random.spearman) for name, each in result.corruptions.items()]
    charts = []
    if mistakes:
        chart = dots("R-AUROC", mistakes, Axis("R-AUROC", None, 1.0), references=CHANCE)
        charts.append((captions.PREDICTS_MISTAKES, chart))
    if falls:
        axis = Axis("Spearman's correlation", None, 1.0)
        chart = dots("Spearman's correlation", falls, axis, references=[(0.0, "chance")])
        charts.append((captions.FALLS_WITH_CORRUPTION, chart))
    key = "uncertainty.clean uncertainty.corruptions"
    return Figure(key, captions.SCORES, charts, _scores_legend(result.scores))


def _corruptions(result: UncertaintyResult) -> list[Block]:
    key, blocks = "uncertainty.corruptions", list[Block]()
    if "certainty" in result.scores:
        means = [(name, _mean_certainty(name, each)) for name, each in result.corruptions.items()]
        blocks.append(Figure(key, captions.MEAN_CERTAINTY, means))
    less = [
        (name, _less_certain(name, each, result.scores))
        for name, each in result.corruptions.items()
    ]
    return [*blocks, Figure(key, captions.LESS_CERTAIN, less, _scores_legend(result.scores))]


def _mean_certainty(name: str, result: CorruptionResult) -> Chart:
    x = [level.strength for level in result.levels]
    series = Series("mean certainty", x, [level.mean.get("certainty") for level in result.levels])
    axes = Axis(result.unit, min(x), max(x)), Axis("mean certainty")
    return lines(f"Mean certainty against {name}", [series], *axes)


def _less_certain(name: str, result: CorruptionResult, scores: Sequence[str]) -> Chart:
    x = [level.strength for level in result.levels]
    series = []
    for score in scores:
        title, style = score_style(score)
        shares = [level.less_certain.get(score) for level in result.levels]
        series.append(Series(title, x, shares, style))
    axes = Axis(result.unit, min(x), max(x)), Axis("share of images", 0, 1)
    return lines(f"Less certain: {name}", series, *axes, references=[(0.5, "")])


def _selective(results: Mapping[str, SelectivePrediction], scores: Sequence[str]) -> Figure:
    charts, areas = [], []
    for name, result in results.items():
        title = CLASSIFIERS.get(name, name)
        charts.append((title, _risk(title, result, scores)))
        areas.append(_score_row(title, {score: result.aurc.get(score) for score in scores}))
    axis = Axis("mean error rate", 0)
    chart = dots("Area under the risk-coverage curve", areas, axis, width=330, left=84)
    charts.append((captions.SELECTIVE_AREA, chart))
    return Figure("uncertainty.selective", captions.SELECTIVE, charts, _scores_legend(scores))


def _risk(title: str, result: SelectivePrediction, scores: Sequence[str]) -> Chart:
    series = []
    for score in scores:
        if score in result.risk:
            name, style = score_style(score)
            series.append(Series(name, result.coverage, result.risk[score], style, markers=False))
    return lines(
        f"Risk against coverage, {title}",
        series,
        Axis("share of images answered", 0, 1),
        Axis("error rate", 0),
        references=[(result.error, "all answered")],
        width=330,
        height=210,
    )


# --- Calibration ----------------------------------------------------------------------


def _calibration(result: UncertaintyResult) -> list[Block]:
    charts, tiles, notes = [], [], list[Block]()
    if (radius := result.calibration) is not None:
        axes = Axis("predicted: product of two certainties"), Axis("observed: cosine of two views")
        title = captions.RADIUS_CALIBRATION
        charts.append((title, _reliability(title, (radius.raw, radius.mapped), *axes)))
        tiles += _error_tiles("calibration", "radius", (radius.raw, radius.mapped))
    if (evidence := result.evidence) is not None:
        axes = Axis("predicted: same image", 0.0, 1.0), Axis("observed share")
        title = captions.EVIDENCE_CALIBRATION
        charts.append((title, _reliability(title, (evidence.raw, evidence.mapped), *axes)))
        tiles += _error_tiles("evidence", "evidence", (evidence.raw, evidence.mapped))
        notes += _evidence_note(evidence)
    if not charts:
        return []
    key = "uncertainty.calibration uncertainty.evidence"
    return [Figure(key, captions.CALIBRATION, charts, legend(MAPS)), Tiles(tiles), *notes]


def _reliability(title: str, diagrams: Sequence[Diagram], x: Axis, y: Axis) -> Chart:
    bins: list[Bins] = [
        (name, style, diagram.predicted, diagram.observed, diagram.count)
        for (name, style), diagram in zip(MAPS, diagrams, strict=True)
    ]
    return reliability(title, bins, x, y)


def _error_tiles(
    key: str, title: str, diagrams: Sequence[Diagram]
) -> list[tuple[str, str, str, str]]:
    return [
        (
            f"uncertainty.{key}",
            f"{title}, {name}",
            number_text(diagram.error),
            captions.CALIBRATION_TILE,
        )
        for (name, _), diagram in zip(MAPS, diagrams, strict=True)
    ]


def _evidence_note(result: EvidenceCalibration) -> list[Block]:
    """Whether evidence is a log odds, as far as two standard errors can tell."""
    value, error = result.log_mean_exp, result.log_mean_exp_standard_error or 0.0
    if value is None:
        return []
    text = captions.EVIDENCE_TOO_LARGE if value > 0 else captions.EVIDENCE_TOO_SMALL
    if abs(value) <= 2 * error:
        text = captions.EVIDENCE_FAIR
    shown = number_text(result.log_mean_exp_standard_error)
    return [Note(text.format(value=number_text(value), error=shown))]


def _probes(results: Mapping[str, ProbeCalibration]) -> Tiles:
    return Tiles(
        [
            (
                f"uncertainty.probe_calibration.{key}",
                PROBES.get(key, key),
                number_text(result.ece),
                captions.PROBE_TILE.format(accuracy=number_text(result.accuracy)),
            )
            for key, result in results.items()
        ]
    )


def _partner(result: PartnerResult) -> Figure:
    row = _score_row("same image", result.auroc)
    chart = dots("Recognising the image", [row], Axis("AUROC", None, 1.0), references=CHANCE)
    caption = captions.PARTNER.fill(share=percent_text(result.instance_match), n=result.n)
    names = _scores_legend(list(result.auroc))
    return Figure("uncertainty.partner", caption, [("", chart)], names)


# --- Images from elsewhere ------------------------------------------------------------


def _ood(run: RunFiles, result: OodResult) -> list[Block]:
    known = {name: kind for name, kind in result.kinds.items() if not kind.skipped}
    rows = [_score_row(name, kind.auroc) for name, kind in known.items()]
    scores = list(dict.fromkeys(score for kind in known.values() for score in kind.auroc))
    charts, caption = [], captions.FOREIGN
    if rows:
        axis = Axis("AUROC", None, 1.0)
        charts.append(("", dots("AUROC of foreign images", rows, axis, references=CHANCE)))
    if (people := result.human_agreement) is not None:
        people_row = _score_row(f"{people.n:,} images", people.spearman)
        chart = dots("Agreement of people", [people_row], Axis("Spearman's correlation"))
        charts.append((captions.PEOPLE_CHART, chart))
        caption = Caption(caption.title, caption.text + captions.PEOPLE)
    blocks = _sample(result.sample)
    if charts:
        blocks.append(Figure("ood", caption, charts, _scores_legend(scores)))
    notes = {name: kind.note for name, kind in known.items() if kind.note}
    skipped = {name: kind.skipped for name, kind in result.kinds.items() if kind.skipped}
    if notes:
        blocks.append(Note(captions.FOREIGN_NOTE.format(notes=_listed(notes))))
    if skipped:
        blocks.append(Note(captions.FOREIGN_SKIPPED.format(notes=_listed(skipped))))
    return blocks


def _listed(notes: Mapping[str, str]) -> str:
    return "; ".join(f"{name} ({text.rstrip('.')})" for name, text in notes.items())
