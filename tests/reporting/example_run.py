"""A run folder made by hand, with every kind of result: no training and no evaluation is needed.

`results` are typed results of n images; `write_run` writes a whole folder.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from sureclr.config import PretrainConfig, ViewConfig, to_yaml
from sureclr.data.embeddings import Embeddings
from sureclr.data.image_set import ImageSet
from sureclr.data.map_file import MapOrigin, save_map
from sureclr.evaluation import results as r
from sureclr.evaluation.tables import class_numbers

SCORES = ("certainty", "neighbour_similarity", "feature_norm", "negative_entropy")
EPOCHS = (1, 2, 4)


def by_score(first: float, step: float = -0.05) -> r.ByScore:
    """Numbers that differ from score to score."""
    return {name: round(first + i * step, 4) for i, name in enumerate(SCORES)}


# --- Results --------------------------------------------------------------------------


def by_class(classes: tuple[str, ...]) -> r.ClassNumbers:
    """A vote on 60 test images: the last class is best, and the first has no training image."""
    k = max(len(classes), 1)
    truth = torch.arange(60) % k
    named = torch.where(torch.arange(60) % 7 < 3 + truth % 4, truth, (truth + 1) % k)
    trained = truth[truth > 0] if k > 1 else truth
    named = torch.where(named == 0, min(1, k - 1), named)
    return class_numbers(trained, truth, named, classes or ("",))


def knn(classes: tuple[str, ...] = ("cat", "dog")) -> r.KnnResult:
    baselines = r.Baselines(raw_pixels=0.712, untrained=0.655)
    intervals = r.BaselineIntervals(raw_pixels=(0.67, 0.75), untrained=(0.61, 0.7))
    numbers = by_class(classes)
    return r.KnnResult(0.873, (0.84, 0.9), 20, 100, 60, baselines, intervals, numbers)


def linear(classes: tuple[str, ...] = ("cat", "dog")) -> r.LinearResult:
    strengths = ((1e-4, 0.8), (1e-2, None))
    probe = dict(strength=1e-4, strengths=strengths, converged=True, n_train=100, n_test=60)
    baselines = r.Baselines(raw_pixels=0.743, untrained=0.681)
    intervals = r.BaselineIntervals(raw_pixels=(0.7, 0.78), untrained=(0.64, 0.72))
    blocks = tuple(
        r.BlockProbe(
            0.5 + 0.1 * i, (0.45 + 0.1 * i, 0.55 + 0.1 * i), features=16, name=name, **probe
        )
        for i, name in enumerate(("stem", "layer1", "layer2"))
    )
    head = r.PosteriorProbe(0.861, (0.82, 0.89), features=8, of="u", **probe)
    return r.LinearResult(
        0.902,
        (0.87, 0.93),
        features=16,
        posterior_mean=head,
        blocks=blocks,
        baselines=baselines,
        baseline_intervals=intervals,
        by_class=by_class(classes),
        **probe,
    )


def heads() -> r.HeadsResult:
    scores = {
        name: r.ScoreArea(round(0.77 - 0.04 * i, 3), (0.6, 0.85))
        for i, name in enumerate((*SCORES, "evidence"))
    }
    features = r.VoteAccuracy(0.873, (0.84, 0.9))
    directions = r.VoteAccuracy(0.822, (0.78, 0.86))
    return r.HeadsResult(100, 60, 20, features, directions, 60, 0.817, scores, None)


def harmed(less: float, mean: float) -> dict[str, Any]:
    ranking = r.Ranking(60, 0.7, by_score(0.75))
    return dict(ranking=ranking, less_certain=by_score(less), mean=by_score(mean))


def corruption(unit: str, strengths: tuple[float, ...]) -> r.CorruptionResult:
    levels = tuple(
        r.CorruptionLevel(strength=s, **harmed(0.6 + 0.1 * i, 0.6 - 0.1 * i))
        for i, s in enumerate(strengths)
    )
    return r.CorruptionResult(
        unit, levels, r.RandomStrengths(spearman=by_score(0.62), **harmed(0.77, 0.5))
    )


def selective(error: float) -> r.SelectivePrediction:
    coverage = (0.25, 0.5, 0.75, 1.0)
    risk = {name: tuple(error * c for c in coverage) for name in (*SCORES, "random", "best")}
    aurc = {name: error / 2 + 0.01 * i for i, name in enumerate(risk)}
    return r.SelectivePrediction(error, aurc, coverage, risk)


def uncertainty() -> r.UncertaintyResult:
    diagram = dict(count=(5, 9, 0), predicted=(0.2, 0.6, None), observed=(0.3, 0.55, None))
    raw = r.Diagram(error=0.071, **diagram)
    mapped = r.Diagram(error=0.012, **diagram)
    odds = dict(log_loss=0.33, **diagram)
    match = {**by_score(0.8), "match_similarity": 0.83, "match_evidence": 0.88}
    return r.UncertaintyResult(
        n_test=60,
        n_train=100,
        scores=SCORES,
        clean=r.Ranking(60, 0.873, by_score(0.79)),
        corruptions={
            "crop": corruption("share of the area", (0.75, 0.5, 0.25)),
            "blur": corruption("sigma in pixels", (0.5, 1.0, 2.0)),
            "noise": corruption("standard deviation", (0.05, 0.1, 0.2)),
            "occlusion": corruption("share of the area", (0.1, 0.3, 0.5)),
        },
        partner=r.PartnerResult(60, 0.91, 0.93, match),
        information=r.InformationSummary(8, 6.25, (1.5, 4.0, 6.4, 8.0, 11.25)),
        calibration=r.RadiusCalibration(60, 100, raw, mapped, 0.55, 0.57, 0.02),
        evidence=r.EvidenceCalibration(
            60,
            7.5,
            "the run",
            11.8,
            0.4,
            0.1,
            r.ProbabilityDiagram(error=0.2, **odds),
            r.ProbabilityDiagram(error=0.03, **odds),
        ),
        selective={"knn": selective(0.13), "linear": selective(0.1)},
        probe_calibration={
            "features": r.ProbeCalibration(0.9, 0.043),
            "posterior_mean": r.ProbeCalibration(0.86, None),
        },
        skipped={},
    )


def ood(note: str = "255 minus the pixel") -> r.OodResult:
    return r.OodResult(
        {
            "inverted": r.ForeignImages(60, by_score(0.71), note, ""),
            "digits": r.ForeignImages(0, {}, "", "this is the data set that the images come from."),
        },
        None,
    )


def learning(classes: tuple[str, ...]) -> r.LearningResult:
    example = r.NegativeExample(0, (1, 2, 3), (0.31, 0.22, 0.11))
    gradient = r.GradientHistory(
        EPOCHS,
        0.2,
        (31.0, 22.0, 15.0),
        (0.1, 0.2, 0.3),
        (0.11, 0.13, 0.16),
        (0.9, 0.7, 0.5),
        (example,),
        0.1,
    )
    certainty = tuple((0.2, 0.4, 0.5 + 0.01 * i) for i in range(len(classes)))
    return r.LearningResult(
        epochs=EPOCHS,
        images=64,
        temperature=0.2,
        alignment=(1.5, 0.9, 0.7),
        uniformity=(-1.0, -2.0, -2.5),
        effective_rank=(4.0, 9.0, 12.5),
        cosine_different=(0.5, 0.2, 0.05),
        knn=(0.5, 0.7, 0.86),
        radius=(0.3, 0.5, 0.61),
        positives=(1.0, 2.0, 3.0),
        negatives=(0.5, 0.7, 0.9),
        per_class=r.ClassCertainty(classes, certainty),
        gradient=gradient,
        damaged={},
    )


def geometry(n: int) -> r.GeometryResult:
    rows = tuple(range(4))
    directions = (
        r.MainDirection(0, 0.41, rows, tuple(range(n - 4, n)), 0.33, 0.52),
        r.MainDirection(1, 0.22, rows, tuple(range(n - 4, n)), None, None),
    )
    clusters = r.Clustering(2, (n // 2, n - n // 2), 0.84, 0.5)
    why = "UMAP is not installed (pip install umap-learn)."
    return r.GeometryResult(n, (0.41, 0.22, 0.09), directions, clusters, why, n, 0)


def sensitivity() -> r.SensitivityResult:
    responses = r.Responses((0.95, 0.7), (0.02, 0.1), (0.97, 0.8), (-0.4, -1.6), (0.5, 0.3))
    return r.SensitivityResult(
        60,
        {
            "blur": r.TransformationResult(
                "blur", "sigma in pixels", 0.0, (0.5, 2.0), (0.1, 1.0), responses, ""
            ),
            "flip": r.TransformationResult(
                "left-right flip", "0 or 1", 0.0, (0.5, 1.0), True, responses, ""
            ),
            "noise": r.TransformationResult(
                "noise", "standard deviation", 0.0, (0.1, 0.2), False, responses, ""
            ),
            "hue": r.TransformationResult(
                "hue", "turns", 0.0, (0.1,), False, None, "grey images have no colour"
            ),
        },
        0.12,
        0.4,
    )


def explanation() -> r.ExplanationResult:
    deletion = r.DeletionCurve((0.0, 0.5, 1.0), (0.6, 0.3, 0.1), (0.6, 0.5, 0.1))
    check = r.SanityCheck(6, 0.08, 0.91, 0.1, 0.05, deletion, True)
    grid = ((0.5, -0.2), (0.0, 0.1))
    maps = tuple(r.CertaintyMap(row, 0.5 + 0.01 * row, grid) for row in range(3))
    pairs = (
        r.PairMaps((0, 0), "same image", 12.5, (grid, grid)),
        r.PairMaps((0, 1), "different", -3.25, (grid, grid)),
    )
    return r.ExplanationResult(
        "occlusion", 4, 4, (2, 2), "radius", maps, check, "", "evidence", pairs, check
    )


def comparison(first: str = "a", second: str = "b", cka: float = 0.77) -> r.Comparison:
    blocks = r.BlockSimilarity(("stem", "layer1"), ("stem", "layer1"), ((0.9, 0.4), (0.3, None)))
    return r.Comparison((first, second), 60, cka, 0.66, blocks, 0.52, 0.83, 0.4, 0.05)


def provenance() -> r.Provenance:
    return r.Provenance("c0", "i0", "l0", "", "0.1.0", "2026-01-02T03:04:05+00:00", 1.25, {})


def results(
    run: Path, classes: tuple[str, ...], n: int, note: str = "255 minus the pixel"
) -> r.Results:
    """Every result, for n images of these classes."""
    entries = {
        "knn": knn(classes),
        "linear": linear(classes),
        "heads": heads(),
        "uncertainty": uncertainty(),
        "ood": ood(note),
        "learning": learning(classes),
        "geometry": geometry(n),
        "sensitivity": sensitivity(),
        "explanation": explanation(),
    }
    return r.Results(run, entries, {name: provenance() for name in entries})


# --- A run folder ---------------------------------------------------------------------


def embeddings(images: ImageSet, seed: int = 0) -> Embeddings:
    """A table whose directions are those of the pixels, nearly: neighbours look alike."""
    random = torch.Generator().manual_seed(seed)
    pixels = images.images.reshape(len(images), -1).double()
    projection = torch.randn(pixels.shape[1], 16, generator=random, dtype=torch.float64)
    features = ((pixels - pixels.mean(0)) @ projection / 1000).float()
    radius = torch.rand(len(images), generator=random)
    return Embeddings(
        features,
        F.normalize(features[:, :8], dim=1),
        radius,
        radius.clone(),
        images.labels,
        images.classes,
        images.split,
        images.paths,
        8.0,
    )


def write_map(path: Path, table: Embeddings, neighbours: int = 6) -> None:
    """map.parquet: all images, places by the first two features, true nearest neighbours."""
    unit = F.normalize(table.features.double(), dim=1)
    cosine = (unit @ unit.T).fill_diagonal_(-2.0)
    near = cosine.topk(neighbours, dim=1)
    predicted = table.labels[near.indices[:, 0]]
    columns = {
        "row": np.arange(len(table)),
        "pca_x": table.features[:, 0].numpy(),
        "pca_y": table.features[:, 1].numpy(),
        "cluster": (table.features[:, 0] > 0).long().numpy(),
        "predicted": predicted.numpy(),
        "correct": np.asarray(
            [
                None if label < 0 else bool(label == vote)
                for label, vote in zip(table.labels.tolist(), predicted.tolist(), strict=True)
            ]
        ),
        "neighbours": near.indices.numpy(),
        "similarity": near.values.numpy(),
        "evidence": (10 * near.values).numpy(),
    }
    save_map(path, columns, MapOrigin(table.origin, ""))


def write_run(path: Path, images: ImageSet, source: str, note: str = "255 minus the pixel") -> Path:
    """Every file that the page reads."""
    path.mkdir(parents=True)
    config = PretrainConfig(
        source,
        encoder="small",
        projection_dim=8,
        epochs=4,
        batch_size=16,
        size=images.images.shape[-1],
        views=ViewConfig(flip=0.0),
    )
    (path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    (path / "environment.json").write_text(json.dumps({"python": "3.11", "gpu": None}))
    lines = [
        {
            "epoch": step / 3,
            "step": step,
            "loss": 3.0 - 0.1 * step,
            "learning_rate": 0.1,
            "cosine_positive": 0.5,
            "radius_views": 0.6,
            "images_per_second": 1000.0,
            "knn": 0.8,
        }
        for step in range(1, 13)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    table = embeddings(images)
    table.save(path / "embeddings.parquet")
    write_map(path / "map.parquet", table)
    write_results(results(path, table.classes, len(table), note))
    return path


def write_results(some: r.Results) -> None:
    (some.run / "results.json").write_text(json.dumps(some.to_json()))
