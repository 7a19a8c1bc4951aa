"""Why it is uncertain: which parts of an image raise its certainty, with a sanity check."""

from collections.abc import Sequence

from sureclr.evaluation.results import (
    CertaintyMap,
    ExplanationResult,
    Heatmap,
    PairMaps,
    SanityCheck,
)
from sureclr.reporting import captions
from sureclr.reporting.blocks import Block, Figure, Note, is_small, picture, result_blocks
from sureclr.reporting.charts import Series, legend, lines
from sureclr.reporting.grids import heat
from sureclr.reporting.pictures import data_uri
from sureclr.reporting.run_files import RunFiles
from sureclr.reporting.svg import Axis, Chart, number_text

ORDERS = (("in the order of the map", 0), ("in random order", 2))  # name and style


def draw_explanations(run: RunFiles) -> list[Block]:
    """Return the blocks of the section."""
    return result_blocks(run, "explanation", _explanation)


def _explanation(run: RunFiles, result: ExplanationResult) -> list[Block]:
    blocks: list[Block] = []
    if result.certainty_skipped:
        text = captions.NO_CERTAINTY_MAPS.format(why=result.certainty_skipped)
        blocks.append(Note(text, missing=True))
    if result.score is not None and result.sanity is not None:
        blocks.append(_sanity("explanation.sanity", result.sanity, result.score))
    if result.certainty:
        blocks.append(
            _certainty_maps(run, result.certainty, result.score or "certainty", result.patch)
        )
    check = result.sanity_evidence
    blocks.append(_sanity("explanation.sanity_evidence", check, result.evidence_score))
    if result.evidence:
        blocks.append(_pair_maps(run, result.evidence, result.evidence_score))
    else:
        blocks.append(Note(captions.NO_PAIR_MAPS, missing=True))
    return blocks


def _sanity(key: str, check: SanityCheck, score: str) -> Figure:
    verdict = captions.SANITY_PASSED if check.passed else captions.SANITY_FAILED
    curve, deletion = check.deletion, captions.DELETION_WITHOUT_INTERVAL
    if curve.interval is not None:
        low, high = map(number_text, curve.interval)
        deletion = captions.DELETION.format(area=number_text(curve.area), low=low, high=high)
    caption = captions.SANITY.fill(
        score=score,
        verdict=verdict.format(n=check.n),
        randomised=number_text(check.rank_correlation_randomised),
        repeat=number_text(check.rank_correlation_repeat),
        deletion=deletion,
    )
    series = [
        Series(name, curve.shares, values, style)
        for (name, style), values in zip(ORDERS, (curve.by_map, curve.at_random), strict=True)
    ]
    axes = Axis("share of the image covered", 0), Axis(f"mean {score}")
    chart = lines("Covering patches", series, *axes, width=420, height=210)
    return Figure(key, caption, [("", chart)], legend(ORDERS))


def _certainty_maps(run: RunFiles, maps: Sequence[CertaintyMap], score: str, patch: int) -> Figure:
    title = captions.CERTAINTY_MAPS.title
    charts = [
        (f"{score} {number_text(each.value)}", _heat(run, title, [each.row], [each.map]))
        for each in maps
    ]
    return Figure(
        "explanation.certainty", captions.CERTAINTY_MAPS.fill(patch=patch), charts, _key(score)
    )


def _pair_maps(run: RunFiles, pairs: Sequence[PairMaps], score: str) -> Figure:
    unit = " nats" if score == "evidence" else ""
    charts = [
        (
            f"{pair.kind}, {number_text(pair.value)}{unit}",
            _heat(run, f"{score}, {pair.kind}", pair.rows, pair.maps),
        )
        for pair in pairs
    ]
    return Figure("explanation.evidence", captions.PAIR_MAPS.fill(score=score), charts, _key(score))


def _key(score: str) -> str:
    names = (captions.RAISES, captions.LOWERS)
    return legend([(name.format(score=score), i) for i, name in enumerate(names)], boxes=True)


def _heat(run: RunFiles, title: str, rows: Sequence[int], maps: Sequence[Heatmap]) -> Chart:
    """The images of these rows side by side, each under its map."""
    text = " and ".join(picture(run, row).alt for row in rows)
    uris = [data_uri(run.images, row) if run.images is not None else "" for row in rows]
    return heat(title, list(zip(uris, maps, strict=True)), is_small(run), text=text)
