"""The sections of a report about certainty: how sure it is, whether it is right, and why it is
unsure.
"""

from collections.abc import Sequence
from typing import Any

from sureclr.reporting.blocks import Block, Figure, Gallery, Note, Tiles, from_key, picture
from sureclr.reporting.charts import (
    Axis,
    Chart,
    Row,
    Series,
    dots,
    heat,
    legend,
    lines,
    reliability,
    told,
)
from sureclr.reporting.pictures import uri
from sureclr.reporting.run_files import Numbers

KEY = legend([("makes it surer", 0), ("makes it less sure", 1)], boxes=True)
SHOWN = 14  # images at each end of the certainty
SCORES = {
    "certainty": ("certainty (learned)", 0),
    "neighbour_similarity": ("nearest-neighbour similarity", 1),
    "feature_norm": ("feature norm", 2),
    "negative_entropy": ("negative entropy of a probe (needs labels)", 3),
    "match_similarity": ("similarity of the match", 4),
    "match_evidence": ("evidence for the match", 5),
}
MAPS = (("raw", "as it is", 0), ("mapped", "after a monotone map", 1))  # key, words, style
CALIBRATED = (
    (
        "calibration",
        "radius",
        "The radius predicts a cosine",
        "predicted: product of two radii",
        "observed: cosine of two views",
    ),
    (
        "evidence",
        "evidence",
        "Evidence as a probability",
        "predicted: same image",
        "observed share",
    ),
)


def sure(run: Numbers) -> list[Block]:
    return [
        *extremes(run),
        *from_key(run, "uncertainty", _uncertainty),
        *from_key(run, "ood", _ood),
    ]


def extremes(run: Numbers) -> list[Block]:
    """The surest and the least sure test images."""
    import numpy as np

    if run.table is None:
        return [
            Note(
                f"There is no embeddings.parquet yet; `sureclr evaluate {run.path}` makes it.",
                missing=True,
            )
        ]
    if run.table.certainty is None:
        return [
            Note("This loss gives no certainty: the baselines stand alone below.", missing=True)
        ]
    certainty = run.table.certainty.numpy()
    test = np.flatnonzero(run.table.split == "test")
    rows = test if len(test) else np.arange(len(certainty))
    order = rows[np.argsort(-certainty[rows], kind="stable")]
    kinds = [("most certain", order[:SHOWN]), ("least certain", order[::-1][:SHOWN])]
    shown = [
        (name, [picture(run, int(row), told(float(certainty[row]))) for row in some])
        for name, some in kinds
    ]
    return [
        Gallery(
            "embeddings",
            "The most and the least certain images",
            f"{'Test' if len(test) else 'All'} images in order of "
            "certainty, label and certainty below each: "
            "the least certain should be hard, cut off or odd to your own eye too.",
            shown,
        )
    ]


def style(score: str) -> tuple[str, int]:
    return SCORES.get(score, (score, 4))


def scores_legend(names: Sequence[str]) -> Any:
    return legend([style(name) for name in names])


def _row(name: str, values: dict[str, float | None]) -> Row:
    return Row(name, [(*style(score), value, None) for score, value in values.items()])


def _uncertainty(run: Numbers, found: dict[str, Any]) -> list[Block]:
    scores = found["scores"]
    blocks = [
        *_knows_mistakes(found, scores),
        *_corruptions(found, scores),
        *_abstaining(found, scores),
        *_calibration(found),
        *_partner(found),
    ]
    return blocks + [Note(f"No {what}: {why}.") for what, why in found.get("skipped", {}).items()]


def _knows_mistakes(found: dict[str, Any], scores: Sequence[str]) -> list[Block]:
    kinds = [
        ("whole images", found["clean"]),
        *((name, one["random"]) for name, one in found["corruptions"].items()),
    ]
    rows = [_row(name, one["r_auroc"]) for name, one in kinds if one.get("r_auroc")]
    ordered = [_row(name, one["random"]["spearman"]) for name, one in found["corruptions"].items()]
    mistakes = dots("R-AUROC", rows, Axis("R-AUROC", None, 1.0), marks=[(0.5, "knows nothing")])
    charts = [("Does it know its mistakes?", mistakes)] if rows else []
    falls = dots("Spearman with strength", ordered, Axis("Spearman", None, 1.0), marks=[(0.0, "")])
    charts.append(("Does it fall with the strength?", falls))
    return [
        Figure(
            "uncertainty.clean uncertainty.corruptions",
            "Certainty beside its plain rivals",
            "Left: how well each score tells images whose nearest training image has the right"
            " class from the others (R-AUROC: 1 ranks perfectly, ½ knows nothing). Right: rank"
            " correlation of each score with how little an image was harmed.",
            charts,
            scores_legend(scores),
        )
    ]


def _corruptions(found: dict[str, Any], scores: Sequence[str]) -> list[Block]:
    less = [(name, _less_certain(name, one, scores)) for name, one in found["corruptions"].items()]
    blocks: list[Block] = []
    if "certainty" in scores:
        mean = [(name, _mean(name, one)) for name, one in found["corruptions"].items()]
        blocks.append(
            Figure(
                "uncertainty.corruptions",
                "Certainty against the strength of four harms",
                "Mean certainty of test images that were cropped, blurred, made noisy or covered:"
                " it should fall from left to right, or for crops from right to left, since there"
                " the strength is the area that remains.",
                mean,
            )
        )
    blocks.append(
        Figure(
            "uncertainty.corruptions",
            "Is a harmed image less certain than it was whole?",
            "Share of images whose score "
            "fell; 1 is a score that always notices, ½ one "
            "that does not.",
            less,
            scores_legend(scores),
        )
    )
    return blocks


def _mean(name: str, one: dict[str, Any]) -> Chart:
    x = [level["strength"] for level in one["levels"]]
    series = Series(
        "mean certainty", x, [level["mean"].get("certainty") for level in one["levels"]]
    )
    return lines(
        f"Mean certainty against {name}",
        [series],
        Axis(one["unit"], min(x), max(x)),
        Axis("mean certainty"),
    )


def _less_certain(name: str, one: dict[str, Any], scores: Sequence[str]) -> Chart:
    x = [level["strength"] for level in one["levels"]]
    series = [
        Series(
            style(s)[0], x, [level["less_certain"].get(s) for level in one["levels"]], style(s)[1]
        )
        for s in scores
    ]
    return lines(
        f"Less certain: {name}",
        series,
        Axis(one["unit"], min(x), max(x)),
        Axis("share of images", 0, 1),
        marks=[(0.5, "")],
    )


def _abstaining(found: dict[str, Any], scores: Sequence[str]) -> list[Block]:
    if not found.get("selective"):
        return []
    charts, table = [], []
    for name, one in found["selective"].items():
        charts.append((f"{name} classifier", _risk(name, one, scores)))
        table.append(_row(name, {s: one["aurc"].get(s) for s in scores}))
    area = dots(
        "Area under the risk-coverage curve", table, Axis("mean error", 0), width=330, left=62
    )
    charts.append(("area under the curve, lower is better", area))
    return [
        Figure(
            "uncertainty.selective",
            "If it may decline to answer",
            "Error among the images of which a score is surest, from few "
            "to all: the lower and the flatter a curve, "
            "the better the score knows where the classifier fails.",
            charts,
            scores_legend(scores),
        )
    ]


def _risk(name: str, one: dict[str, Any], scores: Sequence[str]) -> Chart:
    series = [
        Series(style(s)[0], one["coverage"], one["risk"][s], style(s)[1], markers=False)
        for s in scores
        if s in one["risk"]
    ]
    return lines(
        f"Risk against coverage, {name}",
        series,
        Axis("share of images answered", 0, 1),
        Axis("error rate", 0),
        marks=[(one["error"], "answers all")],
        width=330,
        height=210,
    )


def _bins(
    name: str, style_: int, one: dict[str, Any]
) -> tuple[str, int, list[float], list[float], list[int]]:
    return name, style_, one["predicted"], one["observed"], one["count"]


def _calibration(found: dict[str, Any]) -> list[Block]:
    charts, tiles = [], []
    for key, word, title, x, y in CALIBRATED:
        if found.get(key):
            kinds = [(said, found[key][name], s) for name, said, s in MAPS if found[key].get(name)]
            limits = (0.0, 1.0) if key == "evidence" else (None, None)
            charts.append(
                (
                    title,
                    reliability(
                        title,
                        [_bins(said, s, one) for said, one, s in kinds],
                        Axis(x, *limits),
                        Axis(y),
                    ),
                )
            )
            tiles += [
                (
                    f"uncertainty.{key}",
                    f"{word}, {said}",
                    told(one["error"]),
                    "mean distance from the diagonal",
                )
                for said, one, _ in kinds
            ]
    if not charts:
        return []
    blocks: list[Block] = [
        Figure(
            "uncertainty.calibration uncertainty.evidence",
            "Is it right to be so sure?",
            "On the diagonal a prediction is what is "
            "observed; above it the model was too modest, "
            "below it too sure. The map was fitted on training images, judged on test "
            "images.",
            charts,
            legend([(said, s) for _, said, s in MAPS]),
        ),
        Tiles(tiles),
    ]
    if (evidence := found.get("evidence")) and evidence.get("log_mean_exp") is not None:
        blocks.append(
            Note(
                "If the model were true, the log of the mean of exp(evidence) over different"
                f" images would be 0; it is {told(evidence['log_mean_exp'])} (standard error"
                f" {told(evidence.get('log_mean_exp_standard_error'))}), so raw evidence is not yet"
                " nats that one may bet on."
            )
        )
    return blocks + _probes(found.get("probe_calibration"))


def _probes(found: dict[str, Any] | None) -> list[Block]:
    if not found:
        return []
    names = {"features": "probe on features", "posterior_mean": "probe on direction times radius"}
    return [
        Tiles(
            [
                (
                    f"uncertainty.probe_calibration.{key}",
                    names.get(key, key),
                    told(one["ece"]),
                    f"calibration error of its probabilities; accuracy {told(one['accuracy'])}",
                )
                for key, one in found.items()
            ]
        )
    ]


def _partner(found: dict[str, Any]) -> list[Block]:
    if not found.get("partner"):
        return []
    row = _row("finds the partner", found["partner"]["auroc"])
    chart = dots("Recognising the partner", [row], Axis("AUROC", None, 1.0), marks=[(0.5, "")])
    return [
        Figure(
            "uncertainty.partner",
            "Does it know when it recognises an image?",
            f"A view finds its partner among {found['partner']['n']:,} others in"
            f" {told(found['partner']['instance_match'])} of the cases; the points say how well"
            " each score knows in which.",
            [("", chart)],
            scores_legend(list(found["partner"]["auroc"])),
        )
    ]


def _ood(run: Numbers, found: dict[str, Any]) -> list[Block]:
    rows = [_row(name, one["auroc"]) for name, one in found.items() if "auroc" in one]
    people = [_row(name, one["spearman"]) for name, one in found.items() if "spearman" in one]
    scores = list(dict.fromkeys(score for one in found.values() for score in one.get("auroc", {})))
    notes = [
        f"{name}: {one.get('skipped') or one.get('note')}"
        for name, one in found.items()
        if one.get("skipped") or one.get("note")
    ]
    charts = (
        [
            (
                "",
                dots(
                    "Told from foreign images",
                    rows,
                    Axis("AUROC", None, 1.0),
                    marks=[(0.5, "knows nothing")],
                ),
            )
        ]
        if rows
        else []
    )
    if people:
        charts.append(
            (
                "Unsure where people disagree",
                dots("Spearman with human agreement", people, Axis("Spearman")),
            )
        )
    figure = Figure(
        "ood",
        "Is it less sure of images from elsewhere?",
        "AUROC of each score between test images and foreign ones: 1 if "
        "every foreign image looks less certain than every "
        "own one, below ½ if foreign images look more certain, which is a warning.",
        charts,
        scores_legend(scores),
    )
    return (
        [figure, Note("; ".join(note.rstrip(".") for note in notes) + ".")] if notes else [figure]
    )


# --- Why it is unsure -----------------------------------------------------------------


def unsure(run: Numbers) -> list[Block]:
    return from_key(run, "explanation", _unsure)


def _unsure(run: Numbers, found: dict[str, Any]) -> list[Block]:
    score = found.get("evidence_score", "evidence")
    why = found.get("certainty_skipped")
    skipped = [Note(f"There are no maps of the certainty: {why}", missing=True)] if why else []
    return [
        *skipped,
        *_sanity("explanation.sanity", found.get("sanity"), found["score"]),
        *_maps_of_certainty(run, found),
        *_sanity(
            "explanation.sanity_evidence", None if skipped else found.get("sanity_evidence"), score
        ),
        *_maps_of_evidence(run, found, score),
    ]


def _heat(
    run: Numbers, title: str, rows: Sequence[int], maps: Sequence[Sequence[Sequence[float | None]]]
) -> Chart:
    said = " and ".join(picture(run, row).alt for row in rows)
    crisp = run.images is not None and max(run.images.images.shape[2:]) <= 40
    uris = [uri(run.images, row) if run.images is not None else "" for row in rows]
    return heat(title, list(zip(uris, maps, strict=True)), crisp, text=said)


def _sanity(key: str, check: dict[str, Any] | None, score: str) -> list[Block]:
    if not check:
        return []
    verdict = "passes" if check.get("passed") else "does not pass: do not trust the maps below"
    text = (
        f"Sanity check over {told(check.get('n'))} images: {verdict}. Maps of the same network with"
        f" random weights correlate with these by {told(check.get('rank_correlation_randomised'))}"
        " (should be near 0), maps made with another filling of the patch by"
        f" {told(check.get('rank_correlation_repeat'))} (should be near 1)."
    )
    if not (removal := check.get("deletion")):
        return [Note(text)]
    series = [
        Series("in the order of the map", removal["shares"], removal["by_map"], 0),
        Series("in random order", removal["shares"], removal["at_random"], 2),
    ]
    chart = lines(
        "Covering patches",
        series,
        Axis("share of the image covered", 0),
        Axis(f"mean {score}"),
        width=420,
        height=210,
    )
    return [
        Figure(
            key,
            f"Can the maps of the {score} be trusted?",
            text + " If the maps are right, covering the patches that they "
            "name lowers the score faster than covering random ones.",
            [("", chart)],
            legend([("in the order of the map", 0), ("in random order", 2)]),
        )
    ]


def _maps_of_certainty(run: Numbers, found: dict[str, Any]) -> list[Block]:
    charts = [
        (
            f"{found['score']} {told(one['value'])}",
            _heat(run, "What makes it sure", [one["row"]], [one["map"]]),
        )
        for one in found["certainty"]
    ]
    return (
        [
            Figure(
                "explanation.certainty",
                "Which parts make it sure",
                f"Each patch ({told(found['patch'])} px) is covered in turn: where it is blue the"
                " patch makes the model surer, where orange less sure; colours are scaled to each"
                " image's own largest change.",
                charts,
                KEY,
            )
        ]
        if charts
        else []
    )


def _maps_of_evidence(run: Numbers, found: dict[str, Any], score: str) -> list[Block]:
    unit = " nats" if score == "evidence" else ""
    charts = [
        (
            f"{one['kind']}, {told(one['value'])}{unit}",
            _heat(run, f"{score}, {one['kind']}", one["rows"], one["maps"]),
        )
        for one in found.get("evidence") or []
    ]
    if not charts:
        return [
            Note(
                "Evidence between two images is not told here: this loss has no radius.",
                missing=True,
            )
        ]
    return [
        Figure(
            "explanation.evidence",
            "Which parts speak for the same image",
            f"Pairs of images and their {score}: covering a blue "
            "patch lowers it, covering an orange one raises it.",
            charts,
            KEY,
        )
    ]
