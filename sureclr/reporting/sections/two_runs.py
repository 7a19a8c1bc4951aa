"""Two runs compared: their settings, their accuracies and how similar their representations are."""

from sureclr.evaluation.results import Comparison
from sureclr.reporting import captions
from sureclr.reporting.blocks import Block, Facts, Figure, Note, Tiles, verdict_text
from sureclr.reporting.charts import Row, dots, legend
from sureclr.reporting.grids import matrix
from sureclr.reporting.run_files import RunFiles
from sureclr.reporting.sections.what_was_trained import PROBES, setting_text
from sureclr.reporting.svg import Axis, number_text


def draw_comparison(a: RunFiles, b: RunFiles, comparison: Comparison | str) -> list[Block]:
    """Return the blocks of the section; `comparison` is a sentence where there is none."""
    blocks: list[Block] = [differences(a, b), *both_accuracies(a, b)]
    if isinstance(comparison, str):
        return [*blocks, Note(captions.NOT_COMPARED.format(why=comparison), missing=True)]
    return [*blocks, *_similarity(a, b, comparison)]


def differences(a: RunFiles, b: RunFiles) -> Facts:
    """Return the settings that differ."""
    first, second = (
        {**vars(run.config), **{f"views.{k}": v for k, v in vars(run.config.views).items()}}
        for run in (a, b)
    )
    rows = [
        (name, f"{setting_text(value)} → {setting_text(second[name])}", True)
        for name, value in first.items()
        if name != "views" and value != second[name]
    ]
    rows = rows or [("nothing", "the configurations are equal", False)]
    return Facts(captions.DIFFERENCES, [(f"{a.name} → {b.name}", rows)], open=True)


def both_accuracies(a: RunFiles, b: RunFiles) -> list[Block]:
    """Return the accuracies of both runs in one chart, or nothing where neither has one."""
    rows = [
        Row(
            title,
            [
                (run.name, style, run.results[name].accuracy, run.results[name].interval)
                for style, run in enumerate((a, b))
                if name in run.results
            ],
        )
        for name, title in PROBES
    ]
    if not any(row.points for row in rows):
        return []
    chart = dots("Accuracy of both runs", rows, Axis("accuracy"))
    names = legend([(a.name, 0), (b.name, 1)])
    verdicts = [
        captions.BOTH_VERDICT.format(
            title=title,
            first=b.name,
            verdict=verdict_text(a.name, b.results[name].interval, a.results[name].interval),
        )
        for name, title in PROBES
        if name in a.results and name in b.results
    ]
    figure = Figure("knn linear", captions.BOTH_ACCURACIES, [("", chart)], names)
    return [figure, *map(Note, verdicts)]


def _similarity(a: RunFiles, b: RunFiles, comparison: Comparison) -> list[Block]:
    n = comparison.n
    cka_text = captions.CKA_TILE.format(n=n)
    chance = number_text(comparison.neighbour_overlap_chance)
    numbers = (
        ("cka_features", "CKA of features", cka_text),
        ("cka_directions", "CKA of directions", cka_text),
        ("certainty_spearman", "same certainties", captions.SPEARMAN_TILE.format(n=n)),
        ("agreement_knn", "same votes", captions.AGREEMENT_TILE.format(n=n)),
        ("neighbour_overlap", "same neighbours", captions.OVERLAP_TILE.format(chance=chance)),
    )
    tiles = [
        (f"comparison.{key}", title, number_text(getattr(comparison, key)), text)
        for key, title, text in numbers
        if getattr(comparison, key) is not None
    ]
    blocks: list[Block] = [Tiles(tiles), Note(captions.CKA)]
    if (cka := comparison.cka_blocks) is not None:
        chart = matrix("CKA of blocks", cka.names_a, cka.names_b, cka.matrix)
        caption = captions.CKA_BLOCKS.fill(first=a.name, second=b.name)
        blocks.append(Figure("comparison.cka_blocks", caption, [("", chart)]))
    return blocks
