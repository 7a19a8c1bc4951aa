"""What it sees: main directions of the features, clusters, neighbours, and a map of at most 10,000
images.

The map holds all test images first, then training images by seed. Directions of the feature space
are fitted on every image; clusters, neighbours, UMAP and the images at the ends of the directions
are the map's. Neighbours and clusters are by cosine.
"""

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from sureclr.data.counter_rng import hashed
from sureclr.data.embeddings import Embeddings
from sureclr.errors import UserError
from sureclr.files import json_able, writing_atomically
from sureclr.maths import losses, metrics
from sureclr.maths.neighbours import top_k, vote
from sureclr.maths.sphere import Posterior, evidence
from sureclr.progress import SILENT, Progress, reporting

Result = dict[str, Any]

MAP = 10_000  # images on the map at most: what a browser moves smoothly
AXES, SHARES = 5, 10  # directions described, and shares of variance told
ENDS = 8  # images at either end of a direction
NEAREST = 10  # neighbours of an image on the map
UMAP_NEIGHBOURS = 15  # UMAP's own default
VOTERS = 20  # training images that vote on an image's class, as in the knn evaluation
CLUSTERS, MOST_CLUSTERS = 10, 50  # k-means: without classes, and at most
BLOCK = 1024  # images whose neighbours are sought between two looks at the clock
MAPPED = 3001  # stream of seeds


def geometry(
    table: Embeddings, seed: int = 0, progress: Progress = SILENT
) -> tuple[Result, Result]:
    """The result (JSON-able) and the columns of map.parquet (name -> array), both by row of the
    table.

    Args:
        seed: of the training images on the map, of k-means and of UMAP.
        progress: reports how far the work is; may raise to stop.
    Raises:
        UserError: fewer than three images, or features that are not finite.
    """
    check(table)
    rows = map_rows(table, seed)
    here = table.select(rows)
    share, axes = principal_axes(table.features)
    position = project(table.features, axes[:AXES])  # (n, 5)
    cluster = clusters(here, seed)
    flat, why = umap(here.features, seed)
    columns = {
        "row": rows.astype(np.int32),
        **coordinates("pca", position[torch.from_numpy(rows)]),
        **coordinates("umap", flat),
        "cluster": cluster.numpy().astype(np.int16),
        **predictions(table, rows, progress),
        **nearest(here, rows, progress),
    }
    result = {
        "n": len(table),
        "explained": share[:SHARES].tolist(),
        "directions": directions(table, rows, position, share),
        "clusters": clustering(cluster, here.labels),
        "umap": why or True,
        "map_rows": len(rows),
        "seed": seed,
    }
    return json_able(result), columns


def check(table: Embeddings) -> None:
    if len(table) < 3:
        raise UserError(
            f"the geometry of features needs at least 3 images, not {len(table)}; give more."
        )
    if not table.features.isfinite().all():
        raise UserError("features must be finite, and some are not; look for a diverged encoder.")


def map_rows(table: Embeddings, seed: int, most: int = MAP) -> NDArray[np.int64]:
    """(m,) rows on the map, in the table's order: test images first claim a place, then others by
    seed.
    """
    chance = hashed(torch.arange(len(table)) + (seed << 32), MAPPED, 1)[:, 0].numpy()
    order = np.lexsort((chance, table.split != "test"))
    return np.sort(order[:most])


def coordinates(name: str, points: Tensor | None) -> dict[str, Any]:
    """The first two columns as name_x and name_y; nothing where there are no points; 0 where there
    is one column.
    """
    if points is None:
        return {}
    flat = torch.nn.functional.pad(points[:, :2], (0, max(0, 2 - points.shape[1]))).float().numpy()
    return {f"{name}_x": flat[:, 0], f"{name}_y": flat[:, 1]}


# --- Main directions ------------------------------------------------------------------


def principal_axes(features: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of the variance (f,) and unit axes (f, f), rows, largest first, float64; each axis'
    largest entry is positive.

    From the covariance in float64, summed by blocks.
    """
    mean = features.mean(0, dtype=torch.float64)
    covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for rows in features.split(4 * BLOCK):
        centred = rows.double() - mean
        covariance.addmm_(centred.T, centred)
    variance, axes = torch.linalg.eigh(covariance)
    variance, axes = variance.flip(0).clamp_min(0), axes.T.flip(0)
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    return (
        variance / variance.sum().clamp_min(torch.finfo(torch.float64).tiny),
        axes * largest.sign(),
    )


def project(features: Tensor, axes: Tensor) -> Tensor:
    """(n, a) float64 positions along the axes, from the mean of the features."""
    return (
        torch.cat([rows.double() @ axes.T for rows in features.split(4 * BLOCK)])
        - features.mean(0, dtype=torch.float64) @ axes.T
    )


def directions(
    table: Embeddings, rows: NDArray[np.int64], position: Tensor, share: Tensor
) -> list[Result]:
    """Each of the first axes: the map's images at its two ends, and what it goes with over all
    images.

    certainty_correlation: Spearman's; class_eta2: the share of the variance along the axis that
        lies between classes.
    """
    found = []
    for axis, along in enumerate(position.T):
        order = torch.from_numpy(rows)[along[torch.from_numpy(rows)].argsort(stable=True)]
        ends = min(ENDS, len(order) // 2)
        correlation = None if table.certainty is None else metrics.spearman(along, table.certainty)
        found.append(
            {
                "axis": axis,
                "share": float(share[axis]),
                "low": order[:ends].tolist(),
                "high": order.flip(0)[:ends].tolist(),
                "certainty_correlation": correlation,
                "class_eta2": between_classes(along, table.labels),
            }
        )
    return found


def between_classes(values: Tensor, labels: Tensor) -> float | None:
    """Variance of the classes' means over all variance, of the labelled rows (n,), in [0, 1]; None
    below two classes.
    """
    values, labels = values[labels >= 0], labels[labels >= 0]
    total = (values - values.mean()).square().sum()
    if len(labels.unique()) < 2 or total == 0:
        return None
    count = labels.bincount().clamp_min(1).double()
    means = torch.zeros_like(count).index_add_(0, labels, values) / count
    return float((means[labels] - values.mean()).square().sum() / total)


# --- Clusters and UMAP ----------------------------------------------------------------


def clusters(here: Embeddings, seed: int) -> Tensor:
    """(m,) int64: k-means on the features' directions, as many clusters as classes (10 without, 50
    at most).
    """
    from sklearn.cluster import KMeans  # late: 1.4 s

    wanted = len(here.labels[here.labels >= 0].unique()) or CLUSTERS
    points = normalize(here.features, dim=1).numpy()
    k = max(1, min(wanted, MOST_CLUSTERS, len(np.unique(points, axis=0))))
    return torch.from_numpy(KMeans(k, n_init=3, random_state=seed).fit_predict(points)).long()


def clustering(cluster: Tensor, labels: Tensor) -> Result:
    """Sizes; purity: how many labelled images have the class that is most frequent in their
    cluster, beside one cluster of all.
    """
    known = labels >= 0
    sizes = cluster.bincount()
    result: Result = {
        "k": len(sizes),
        "sizes": sizes.tolist(),
        "purity": None,
        "purity_of_one_cluster": None,
    }
    if not known.any():
        return result
    together = torch.zeros(len(sizes), int(labels.max()) + 1, dtype=torch.int64)
    together.index_put_((cluster[known], labels[known]), torch.tensor(1), accumulate=True)
    return {
        **result,
        "purity": int(together.amax(1).sum()) / int(known.sum()),
        "purity_of_one_cluster": int(together.sum(0).max()) / int(known.sum()),
    }


def umap(features: Tensor, seed: int) -> tuple[Tensor | None, str | None]:
    """(m, 2) float32 by UMAP (McInnes et al. 2018), by cosine, or None and why."""
    try:
        from umap import UMAP
    except ImportError:
        return None, "UMAP is not installed: pip install umap-learn, then evaluate again."
    if len(features) < 5:
        return None, f"UMAP needs at least 5 images, and there are {len(features)}."
    k = min(UMAP_NEIGHBOURS, len(features) - 1)
    # That neighbours found elsewhere are no index for new points, and that it will not seek its own
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = UMAP(
            n_neighbors=k,
            metric="cosine",
            random_state=seed,
            n_jobs=1,
            precomputed_knn=with_itself(features, k),
        )
        return (
            torch.from_numpy(np.asarray(made.fit_transform(features.numpy()), dtype=np.float32)),
            None,
        )


def with_itself(features: Tensor, k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """UMAP's idea of the k nearest by cosine: the point itself, at distance 0, and the k - 1
    others; (n, k) indices and 1 - cosine.

    Ours are exact, and spare the user the compilation of UMAP's own search: at 10,000 points most
    of its time.
    """
    similarity, index = top_k(features, features, k - 1, exclude_self=True)
    own = torch.arange(len(features))[:, None]
    distance = torch.cat([torch.zeros(len(features), 1), (1 - similarity.float()).clamp(min=0)], 1)
    return torch.cat([own, index], 1).numpy().astype(np.int32), distance.numpy()


# --- Neighbours -----------------------------------------------------------------------


def predictions(table: Embeddings, rows: NDArray[np.int64], progress: Progress) -> dict[str, Any]:
    """The class that the nearest labelled training images vote for (an image never votes on
    itself), and whether it is right.

    predicted int16: -1 where nobody can vote; correct: only where anything is labelled, null where
        the image is not.
    """
    train = np.flatnonzero((table.split == "train") & (table.labels.numpy() >= 0))
    voters = table.select(train)
    if len(train) < 2 or len(table.classes) == 0:
        return {"predicted": np.full(len(rows), -1, dtype=np.int16)}
    k, own = min(VOTERS, len(train) - 1), torch.full((len(table),), -1)
    own[torch.from_numpy(train)] = torch.arange(len(train))
    votes = []
    with reporting(progress, "Predicting classes", len(rows)) as update:
        for part in torch.from_numpy(rows).split(BLOCK):
            similarity, index = without(
                own[part], *top_k(table.features[part], voters.features, k + 1)
            )
            votes.append(vote(similarity, voters.labels[index], len(table.classes)))
            update(sum(map(len, votes)))
    predicted, truth = torch.cat(votes).numpy(), table.labels.numpy()[rows]
    return {
        "predicted": predicted.astype(np.int16),
        "correct": np.where(truth >= 0, predicted == truth, None),
    }


def without(own: Tensor, similarity: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """(q, k + 1) neighbours, best first -> (q, k) that are not `own` (q,); the last goes where it
    is not among them.
    """
    order = (index == own[:, None]).long().argsort(dim=1, stable=True)[:, :-1]
    return similarity.gather(1, order), index.gather(1, order)


def nearest(here: Embeddings, rows: NDArray[np.int64], progress: Progress) -> dict[str, Any]:
    """The nearest images on the map: rows of the table, cosines of the features, and where there is
    a radius the evidence in nats.
    """
    k, own, parts = min(NEAREST, len(here) - 1), torch.arange(len(here)), []
    with reporting(progress, "Searching neighbours", len(here)) as update:
        for part in own.split(BLOCK):
            parts.append(without(part, *top_k(here.features[part], here.features, k + 1)))
            update(sum(len(s) for s, _ in parts))
    similarity, index = (torch.cat(some) for some in zip(*parts, strict=True))
    columns = {
        "neighbours": rows.astype(np.int32)[index.numpy()],
        "similarity": similarity.float().numpy(),
    }
    if here.radius is None:
        return columns
    first, second = (
        Posterior(here.direction[i], here.radius[i])
        for i in (own.repeat_interleave(k), index.flatten())
    )
    s = evidence(first, second, kernel_dimension(here))
    return {**columns, "evidence": s.view(-1, k).float().numpy()}


def kernel_dimension(table: Embeddings) -> float:
    """m of the run's kernel; where its loss has none, that of these images: 1 / E[c^2] over
    different images (theory 3).
    """
    return table.kernel_dimension or 1 / float(
        losses.mean_squared_cosine(table.direction.repeat(2, 1))
    )


def save_map(path: Any, columns: Result) -> None:
    """Parquet; matrices as lists."""
    import pyarrow as pa
    from pyarrow import parquet

    arrays = {
        name: (
            pa.array(list(c))
            if c.ndim == 2
            else pa.array(c, pa.bool_() if name == "correct" else None)
        )
        for name, c in columns.items()
    }
    with writing_atomically(path) as file:
        parquet.write_table(pa.table(arrays), file)
