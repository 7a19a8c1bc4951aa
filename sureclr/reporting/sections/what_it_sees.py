"""What it sees: the map of the images, and what the main directions of the features mean."""

from sureclr.evaluation.results import Clustering, GeometryResult, MainDirection
from sureclr.reporting import captions
from sureclr.reporting.blocks import Block, Figure, Gallery, Note, picture, result_blocks
from sureclr.reporting.charts import bars
from sureclr.reporting.map_data import map_blocks
from sureclr.reporting.run_files import RunFiles
from sureclr.reporting.svg import Axis, number_text, percent_text


def draw_geometry(run: RunFiles) -> list[Block]:
    """Return the blocks of the section."""
    return [*map_blocks(run), *result_blocks(run, "geometry", _geometry)]


def _geometry(run: RunFiles, result: GeometryResult) -> list[Block]:
    names = [str(i) for i in range(1, len(result.explained) + 1)]
    axis = Axis("share of the variance of the features", 0)
    chart = bars("Share of the variance", names, result.explained, axis)
    blocks: list[Block] = [
        _directions(run, result),
        Figure("geometry.explained", captions.EXPLAINED, [("", chart)]),
    ]
    if result.clusters.k:
        blocks.append(Note(_cluster_text(result.clusters)))
    if result.umap_skipped:
        blocks.append(Note(captions.NO_UMAP.format(why=result.umap_skipped.rstrip("."))))
    return blocks


def _cluster_text(clusters: Clustering) -> str:
    text = captions.CLUSTERS.format(
        k=clusters.k, smallest=min(clusters.sizes), largest=max(clusters.sizes)
    )
    if clusters.purity is None or clusters.purity_of_one_cluster is None:
        return text
    return text + captions.CLUSTERS_PURITY.format(
        purity=percent_text(clusters.purity),
        one_cluster=percent_text(clusters.purity_of_one_cluster),
    )


def _directions(run: RunFiles, result: GeometryResult) -> Gallery:
    rows = []
    for direction in result.directions:
        low = captions.DIRECTION_LOW.format(
            number=direction.axis + 1, facts="; ".join(_facts(direction))
        )
        rows.append((low, [picture(run, row) for row in direction.low]))
        rows.append((captions.DIRECTION_HIGH, [picture(run, row) for row in direction.high]))
    return Gallery("geometry.directions", captions.DIRECTIONS, rows, tight=True)


def _facts(direction: MainDirection) -> list[str]:
    facts = [captions.DIRECTION_SHARE.format(share=number_text(direction.share))]
    if direction.certainty_correlation is not None:
        correlation = number_text(direction.certainty_correlation)
        facts.append(captions.DIRECTION_CERTAINTY.format(correlation=correlation))
    if direction.class_eta2 is not None:
        facts.append(captions.DIRECTION_CLASSES.format(share=number_text(direction.class_eta2)))
    return facts
