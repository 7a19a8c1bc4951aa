"""The sections of a report about training: what was trained, how it learned, what it ignores, and
two runs beside each other.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, fields
from functools import partial
from typing import Any

from sureclr.config import PretrainConfig, ViewConfig
from sureclr.reporting.blocks import (
    Block,
    Facts,
    Figure,
    Gallery,
    Note,
    Tiles,
    from_key,
    interval,
    picture,
    range_text,
)
from sureclr.reporting.charts import (
    DASH,
    Axis,
    Chart,
    Row,
    Series,
    dots,
    finite,
    legend,
    lines,
    matrix,
    told,
)
from sureclr.reporting.run_files import Numbers

THINNED = 400  # points of a curve at most: every k-th step is drawn
TRAINED, RAW, UNTRAINED, SEEN = 0, 1, 2, 3  # styles
FEW_CLASSES = 6  # lines of certainty over time that one chart holds
PROBES = (("linear", "linear probe"), ("knn", "nearest neighbours"))


# --- What was trained -----------------------------------------------------------------


def trained(run: Numbers) -> list[Block]:
    return [
        _tiles(run),
        *accuracies(run),
        *parts_of_the_network(run),
        *curves(run),
        configuration(run),
    ]


def _tiles(run: Numbers) -> Tiles:
    tiles = [
        (
            f"{name}.accuracy",
            title,
            told(found.get("accuracy")),
            f"accuracy, {range_text(found.get('interval'))}",
        )
        for name, title in PROBES
        if (found := run.results.get(name))
    ]
    last = run.lines[-1] if run.lines else {}
    tiles.append(
        ("metrics.jsonl", "last loss", told(last.get("loss")), "nats, mean over both views")
    )
    tiles.append(
        (
            "metrics.jsonl",
            "epochs",
            told(round(last.get("epoch", 0))),
            f"of {run.config.epochs:,} planned, batches of {run.config.batch_size:,}",
        )
    )
    return Tiles(tiles)


def accuracies(run: Numbers) -> list[Block]:
    """Linear and kNN accuracy beside both baselines; a sentence for each that is missing."""
    blocks: list[Block] = []
    for name, title in PROBES:
        blocks += from_key(run, name, partial(_accuracy, name, title))
    return blocks


def _accuracy(name: str, title: str, run: Numbers, found: dict[str, Any]) -> list[Block]:
    base, spans = found["baselines"], found.get("baseline_intervals", {})
    rows = [
        Row(
            "trained encoder",
            [("trained encoder", TRAINED, found["accuracy"], interval(found["interval"]))],
        ),
        Row(
            "raw pixels",
            [("raw pixels", RAW, base["raw_pixels"], interval(spans.get("raw_pixels")))],
        ),
        Row(
            "untrained encoder",
            [("untrained encoder", UNTRAINED, base["untrained"], interval(spans.get("untrained")))],
        ),
    ]
    neighbours = f"a vote of the {found.get('k', 20)} nearest training images"
    how = "logistic regression on the frozen features" if name == "linear" else neighbours
    caption = (
        f"The class by {how}, {found['n_train']:,} training and {found['n_test']:,} test images:"
        " how far the first point lies from the other two is what contrasting taught. Bars are 95"
        " % intervals."
    )
    chart = dots(f"{title}: accuracy", rows, Axis("accuracy on test images"))
    heading = (
        f"Accuracy of {'a linear probe' if name == 'linear' else 'neighbours'}, beside doing"
        " nothing"
    )
    return [Figure(name, heading, caption, [("", chart)], half=True)]


def parts_of_the_network(run: Numbers) -> list[Block]:
    """The same probe after each block of the encoder, and on what the loss sees."""
    return (
        from_key(run, "linear", _parts) if run.results.get("linear") else []
    )  # that it is missing has been said


def _parts(run: Numbers, found: dict[str, Any]) -> list[Block]:
    if not found.get("blocks") or not found.get("posterior_mean"):
        return [
            Note(
                f"Accuracy block by block is not in results.json; `sureclr linear {run.path}`"
                " makes it.",
                missing=True,
            )
        ]
    rows = [
        Row(one["name"], [(one["name"], TRAINED, one["accuracy"], interval(one.get("interval")))])
        for one in found["blocks"]
    ]
    mean = found["posterior_mean"]
    of = "posterior mean" if mean["of"] == "u" else "direction"
    seen = [
        Row("features", [("features", TRAINED, found["accuracy"], interval(found["interval"]))]),
        Row(of, [(of, SEEN, mean["accuracy"], interval(mean.get("interval")))]),
    ]
    return [
        Figure(
            "linear.blocks",
            "Where the classes become linear",
            "The same probe after each block of the encoder, first to last, averaged over"
            " positions: if the last block does not lead, a shallower network would do.",
            [("", dots("Accuracy by block", rows, Axis("accuracy on test images")))],
            half=True,
        ),
        Figure(
            "linear.posterior_mean",
            "Before and after the head",
            f"The same probe on the features and on the {mean['features']:,} numbers of the {of},"
            " which the loss sees: what the head throws away lies between the two.",
            [
                (
                    "",
                    dots(
                        "Accuracy before and after the head", seen, Axis("accuracy on test images")
                    ),
                )
            ],
            half=True,
        ),
    ]


def curves(run: Numbers) -> list[Block]:
    if not run.lines:
        return [Note("metrics.jsonl holds no line: the run has not made a step.", missing=True)]
    wanted = [
        ("Loss", "nats", [("loss", "loss", 0)]),
        (
            "Two views of one image",
            "cosine, radius",
            [
                ("cosine_positive", "mean cosine of two views", 0),
                ("radius_views", "mean radius", 1),
            ],
        ),
        (
            "Neighbours among training images",
            "accuracy",
            [("knn", "kNN, held-out training images", 0)],
        ),
        (
            "Dimension that directions use",
            "kernel dimension m",
            [("kernel_dimension", "kernel dimension", 0)],
        ),
        ("Learning rate", "learning rate", [("learning_rate", "learning rate", 2)]),
        ("Speed", "images a second", [("images_per_second", "images a second", 2)]),
    ]
    charts = [
        _curve(run, *one) for one in wanted if any(run.column(name)[0] for name, *_ in one[2])
    ]
    both = run.column("radius_views")[0]
    caption = (
        "Every step of training. The loss has no natural zero; what counts is whether it still"
        " falls at the end."
        + (
            " The radius of two views is on average what squared predicts their cosine."
            if both
            else ""
        )
    )
    names = [("two views: mean cosine", 0), ("two views: mean radius", 1)] if both else []
    return [Figure("metrics.jsonl", "Training, step by step", caption, charts, legend(names))]


def _curve(
    run: Numbers, title: str, unit: str, wanted: Sequence[tuple[str, str, int]]
) -> tuple[str, Chart]:
    series = []
    for name, told_as, style in wanted:
        epochs, values = run.column(name)
        step = max(1, -(-len(epochs) // THINNED))
        series.append(
            Series(told_as, epochs[::step], values[::step], style, markers=len(epochs) <= 30)
        )
    return title, lines(title, [one for one in series if one.x], Axis("epoch", 0), Axis(unit))


def configuration(run: Numbers) -> Facts:
    """config.yaml and environment.json; what differs from the defaults is marked."""
    default = PretrainConfig(run.config.source)
    own = [
        (f.name, getattr(run.config, f.name), getattr(default, f.name))
        for f in fields(PretrainConfig)
        if f.name != "views"
    ]
    views = [
        (f.name, getattr(run.config.views, f.name), getattr(ViewConfig(), f.name))
        for f in fields(ViewConfig)
    ]
    groups = [
        (title, [(name, plain(value), value != usual) for name, value, usual in part])
        for title, part in (("training", own), ("views", views))
    ]
    groups.append(
        (
            "machine",
            [
                (name, DASH if value is None else plain(value), False)
                for name, value in run.environment.items()
            ],
        )
    )
    return Facts("Configuration and machine", groups)


def plain(value: Any) -> str:
    if value is None:
        return "default"
    return (
        " to ".join(f"{v:.4g}" for v in value)
        if isinstance(value, tuple)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


# --- How it learned -------------------------------------------------------------------


def learned(run: Numbers) -> list[Block]:
    return from_key(run, "learning", _learned)


def _learned(run: Numbers, found: dict[str, Any]) -> list[Block]:
    def chart(title: str, unit: str, *names: tuple[str, str, int]) -> tuple[str, Chart]:
        series = [
            Series(told_as, found["epochs"], found[name], style) for name, told_as, style in names
        ]
        return title, lines(title, series, Axis("epoch", 0), Axis(unit))

    wanted = [
        ("alignment", "Alignment", "squared distance of two views"),
        ("uniformity", "Uniformity", "log mean kernel"),
        ("effective_rank", "Effective rank", "dimensions in use"),
        ("cosine_different", "Cosine of different images", "cosine"),
        ("knn", "Neighbours vote", "accuracy, held-out training images"),
        ("radius", "Radius", "mean radius, whole images"),
    ]
    shape = [
        chart(title, unit, (name, title.lower(), 0))
        for name, title, unit in wanted
        if found.get(name)
    ]
    shape.insert(
        4,
        chart(
            "The loss in two parts",
            "nats",
            ("positives", "positives", 0),
            ("negatives", "negatives", 1),
        ),
    )
    caption = (
        "Alignment falls as views of one image meet, uniformity as images spread over the sphere;"
        " the effective rank (RankMe) counts the directions of feature space in use, and its fall"
        " to a few is collapse. The loss is the distance between what speaks for the partner and"
        " the log-mean evidence of the negatives, here at temperature"
        f" {told(found.get('temperature'))} for every run."
    )
    names = [("the loss: positives", 0), ("the loss: negatives, log of the mean", 1)]
    figure = Figure("learning", "The shape of the representation", caption, shape, legend(names))
    return [
        figure,
        *class_certainty(found.get("per_class"), found["epochs"]),
        *gradient(run, found["gradient"]),
    ]


def class_certainty(found: dict[str, Any] | None, epochs: list[float]) -> list[Block]:
    if not found:
        return [
            Note(
                "Certainty by class is not told here: it needs labels, and a loss that has a"
                " certainty.",
                missing=True,
            )
        ]
    named = sorted(
        zip(found["classes"], found["certainty"], strict=True), key=lambda pair: -(pair[1][-1] or 0)
    )
    half = min(FEW_CLASSES, len(named) // 2)
    groups = (
        [("the surest", named[:half]), ("the least sure", named[-half:])]
        if len(named) > FEW_CLASSES
        else [("", named)]
    )
    known = [v for _, group in groups for _, values in group for v in values if v is not None] or [
        0.0,
        1.0,
    ]
    panels = [
        Figure(
            "learning.per_class",
            f"Certainty over time, by class{': ' + title if title else ''}",
            "Mean certainty of whole "
            "training images of a class; one that stays "
            "low is one whose views look alike, or like those of another class.",
            [("", _classes(title, group, epochs, known))],
            legend([(name, i) for i, (name, _) in enumerate(group)]),
            half=True,
        )
        for title, group in groups
    ]
    return [*panels]


def _classes(
    title: str, group: Sequence[tuple[str, Any]], epochs: list[float], known: list[float]
) -> Chart:
    series = [Series(name, epochs, values, i) for i, (name, values) in enumerate(group)]
    low, high = min(known), max(known)
    room = 0.04 * (high - low)
    axis = Axis("mean certainty", low - room, high + room)
    return lines(f"Certainty by class {title}".strip(), series, Axis("epoch", 0), axis, width=460)


def gradient(run: Numbers, found: dict[str, Any]) -> list[Block]:
    epochs, chance = found["epochs"], found.get("chance_same_class")
    wanted = [
        ("effective_negatives", "How many negatives count", "effective negatives", ()),
        ("top_share", "The hardest 1 %", "share of the weight", ()),
        (
            "same_class_share",
            "Of the anchor's own class",
            "share of the weight",
            [] if chance is None else [(chance, "by chance")],
        ),
        ("remaining", "How much push is left", "1 minus softmax of the partner", ()),
    ]
    charts = [
        (
            title,
            lines(
                title,
                [Series(title.lower(), epochs, found[name])],
                Axis("epoch", 0),
                Axis(unit, 0),
                marks=marks,
            ),
        )
        for name, title, unit, marks in wanted
        if found.get(name)
    ]
    blocks: list[Block] = [
        Figure(
            "learning.gradient",
            "Which negatives carry the gradient",
            "Each negative pushes in proportion to its softmax weight. Few effective negatives mean"
            " that the push comes from look-alikes; above chance, many of them show the same class,"
            " which contrasting wrongly pushes apart.",
            charts,
        )
    ]
    if found.get("examples"):
        rows = [
            (
                f"anchor {i + 1}",
                [
                    picture(run, one["anchor"], "anchor"),
                    *(
                        picture(run, row, told(w))
                        for row, w in zip(one["negatives"], one["weights"], strict=True)
                    ),
                ],
            )
            for i, one in enumerate(found["examples"])
        ]
        blocks.append(
            Gallery(
                "learning.gradient.examples",
                "The heaviest negatives of some images",
                "First the anchor, then the images "
                "that it is pushed away from most, with their "
                "share of the push: are these mistakes, or twins?",
                rows,
                tight=True,
            )
        )
    return blocks


# --- What it ignores ------------------------------------------------------------------


def ignored(run: Numbers) -> list[Block]:
    return from_key(run, "sensitivity", _ignored)


def _ignored(run: Numbers, found: dict[str, Any]) -> list[Block]:
    different = (found.get("reference") or {}).get("different_images")
    known = {name: one for name, one in found["transformations"].items() if not one.get("skipped")}
    blocks: list[Block] = [
        Figure(
            "sensitivity",
            "Does the direction stay?",
            f"Cosine between an image and its altered self, mean of {found['n']:,} (1: ignored"
            " altogether); the band is one standard deviation over images, the shade the range"
            " seen in training, the dashed line two different images.",
            [(_heading(one), _direction(one, different)) for one in known.values()],
            legend([("direction", 0), ("features", 1)]),
        )
    ]
    certain = {name: one for name, one in known.items() if one.get("certainty")}
    if certain:
        blocks.append(
            Figure(
                "sensitivity",
                "Does the certainty fall?",
                "Mean change of certainty in standard deviations over unaltered "
                "images: an alteration that hides content "
                "should lower it, one that hides nothing should leave it at "
                "zero.",
                [(_heading(one), _certainty(one)) for one in certain.values()],
            )
        )
    else:
        blocks.append(
            Note("This loss has no certainty; only directions and features are told.", missing=True)
        )
    left_out = [
        f"{one.get('label', name)} ({one['skipped']})"
        for name, one in found["transformations"].items()
        if one.get("skipped")
    ]
    return blocks + ([Note(f"Left out: {'; '.join(left_out)}.")] if left_out else [])


def _heading(one: dict[str, Any]) -> str:
    return f"{one['label']}, {'in training' if one.get('trained') else 'never in training'}"


def _sorted(
    one: dict[str, Any], values: Sequence[float | None], at_none: float
) -> tuple[list[float], list[float | None]]:
    """Strengths in order with the one that changes nothing among them."""
    pairs = sorted(
        [*zip(one["strengths"], values, strict=True), (one["none"], at_none)],
        key=lambda pair: pair[0],
    )
    return [x for x, _ in pairs], [y for _, y in pairs]


def _shade(one: dict[str, Any]) -> tuple[float, float] | None:
    trained = one.get("trained")
    return (trained[0], trained[1]) if isinstance(trained, list) else None


def _direction(one: dict[str, Any], different: float | None) -> Chart:
    x, direction = _sorted(one, one["direction"], 1.0)
    _, band = _sorted(one, one["direction_sd"], 0.0)
    _, feature = _sorted(one, one["feature"], 1.0)
    marks = [(different, "different images")] if different is not None else []
    return lines(
        f"Direction against {one['label']}",
        [Series("direction", x, direction, 0, band), Series("features", x, feature, 1)],
        Axis(one["unit"], min(x), max(x)),
        Axis("cosine", None, 1.0),
        shade=_shade(one),
        marks=marks,
    )


def _certainty(one: dict[str, Any]) -> Chart:
    """One deviation either way at least: what changes next to nothing must not fill its panel."""
    x, y = _sorted(one, one["certainty"], 0.0)
    known = finite(y)
    axis = Axis(
        "change, standard deviations",
        min(-1.0, *map(math.floor, known)),
        max(1.0, *map(math.ceil, known)),
    )
    return lines(
        f"Certainty against {one['label']}",
        [Series("certainty", x, y)],
        Axis(one["unit"], min(x), max(x)),
        axis,
        shade=_shade(one),
        marks=[(0.0, "")],
    )


# --- Compare --------------------------------------------------------------------------


def compared(a: Numbers, b: Numbers, found: dict[str, Any] | None, why: str) -> list[Block]:
    blocks: list[Block] = [differences(a, b), *_both_accuracies(a, b)]
    if not found:
        return [*blocks, Note(f"The representations are not compared: {why}", missing=True)]
    tiles = [
        ("CKA of features", "cka_features"),
        ("CKA of directions", "cka_directions"),
        ("certainties, Spearman", "certainty_spearman"),
        ("kNN agreement", "agreement_knn"),
    ]
    blocks.append(
        Tiles(
            [
                (
                    f"comparison.{key}",
                    title,
                    told(found.get(key)),
                    f"over {told(found.get('n'))} images of both",
                )
                for title, key in tiles
                if found.get(key) is not None
            ]
        )
    )
    blocks.append(
        Note(
            "CKA is 1 where two representations are the same up to rotation and scale, and near 0"
            " where they have nothing in common."
        )
    )
    if blocks_cka := found.get("cka_blocks"):
        chart = matrix(
            "CKA of blocks", blocks_cka["names_a"], blocks_cka["names_b"], blocks_cka["matrix"]
        )
        blocks.append(
            Figure(
                "comparison.cka_blocks",
                "Block by block",
                f"Rows are the stages of {a.name}, columns those of {b.name}; a "
                "strong diagonal says "
                "that both do the same in the same place.",
                [("", chart)],
            )
        )
    return blocks


def differences(a: Numbers, b: Numbers) -> Facts:
    one, other = (
        {**asdict(run.config), **{f"views.{k}": v for k, v in asdict(run.config.views).items()}}
        for run in (a, b)
    )
    rows = [
        (name, f"{plain(one[name])} → {plain(other[name])}", True)
        for name in one
        if name != "views" and one[name] != other[name]
    ]
    rows = rows or [("nothing", "the configurations are equal", False)]
    return Facts("What was set differently", [(f"{a.name} → {b.name}", rows)], open=True)


def _both_accuracies(a: Numbers, b: Numbers) -> list[Block]:
    rows = [
        Row(
            title,
            [
                (run.name, style, found["accuracy"], interval(found.get("interval")))
                for style, run in enumerate((a, b))
                if (found := run.results.get(name)) and "accuracy" in found
            ],
        )
        for name, title in PROBES
    ]
    if not any(row.points for row in rows):
        return []
    chart = dots("Accuracy of both runs", rows, Axis("accuracy"))
    return [
        Figure(
            "knn linear",
            "Which one is better?",
            "Accuracy of both runs with 95 % intervals; where intervals overlap widely, the "
            "test set cannot tell "
            "them apart.",
            [("", chart)],
            legend([(a.name, 0), (b.name, 1)]),
        )
    ]
