"""The shape of the features: main directions, clusters, neighbours, and a map of the images.

The map has at most 10,000 images: all test images first, then training images by seed. The main
directions are fitted on every image; clusters, neighbours, UMAP and the images at the ends of the
directions are those of the map. Neighbours and clusters are by cosine.
"""

import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from sureclr.data.counter_rng import hashed
from sureclr.data.embeddings import Embeddings
from sureclr.data.map_file import Columns, MapOrigin, save_map
from sureclr.errors import UserError
from sureclr.evaluation.clusters import cluster_points, unit_points
from sureclr.evaluation.neighbour_vote import VOTERS
from sureclr.evaluation.results import Clustering, GeometryResult, MainDirection, Number
from sureclr.evaluation.tables import evidence_in, finite_or_none
from sureclr.maths import metrics
from sureclr.maths.neighbours import top_k, vote
from sureclr.progress import SILENT, Progress, report_progress

if TYPE_CHECKING:
    from sureclr.evaluation.inputs import EvaluationInputs

MAP = 10_000  # images on the map at most: as many as a browser moves smoothly
AXES, SHARES = 5, 10  # directions that are described, and shares of variance in the result
ENDS = 8  # images at either end of a direction
NEAREST = 10  # neighbours of an image on the map
UMAP_NEIGHBOURS = 15  # UMAP's own default
CLUSTERS, MOST_CLUSTERS = 10, 50  # of k-means: without classes, and at most
BLOCK = 1024  # images whose neighbours are searched between two reports of progress
ROWS_AT_ONCE = 4096  # images whose features exist in float64 at the same time
MAPPED = 3001  # stream of seeds


def evaluate_geometry(inputs: "EvaluationInputs") -> GeometryResult:
    """Describe the shape of the features, and save the map of the images as map.parquet.

    Raises:
        UserError: the images are not those that the run was trained on, there are fewer than three,
            or features are not finite.
    """
    inputs.require_own_images("geometry")
    result, columns = describe_geometry(inputs.table, progress=inputs.progress)
    if not inputs.run.not_kept:
        origin = MapOrigin.of(inputs.table.origin, inputs.catalogue)
        save_map(inputs.run.results_folder / "map.parquet", columns, origin)
    return result


def describe_geometry(
    table: Embeddings, seed: int = 0, progress: Progress = SILENT
) -> tuple[GeometryResult, Columns]:
    """Describe the shape of the features of a table.

    Args:
        table: the embeddings.
        seed: of the training images on the map, of k-means and of UMAP.
        progress: reports how far the work is; it may raise to stop.

    Returns:
        The result, and the columns of map.parquet.

    Raises:
        UserError: there are fewer than three images, or features are not finite.
    """
    check_features(table)
    rows = map_rows(table, seed)
    mapped = table.select(rows)
    share, axes = principal_axes(table.features)
    position = project(table.features, axes[:AXES])  # (n, 5)
    cluster = assign_clusters(mapped, seed)
    layout, umap_skipped = umap_layout(mapped.features, seed)
    columns = {
        "row": rows.astype(np.int32),
        **coordinates("pca", position[torch.from_numpy(rows)]),
        **coordinates("umap", layout),
        "cluster": cluster.numpy().astype(np.int16),
        **predict_classes(table, rows, progress),
        **nearest_images(mapped, rows, progress),
    }
    result = GeometryResult(
        n=len(table),
        explained=tuple(share[:SHARES].tolist()),
        directions=describe_directions(table, rows, position, share),
        clusters=describe_clusters(cluster, mapped.labels),
        umap_skipped=umap_skipped,
        map_rows=len(rows),
        seed=seed,
    )
    return result, columns


def check_features(table: Embeddings) -> None:
    """Raise a UserError unless there are three images with finite features."""
    if len(table) < 3:
        raise UserError(
            f"the geometry of features needs at least 3 images, and there are {len(table)}; add"
            " images."
        )
    # Finite float32 numbers cannot add up to infinity in float64
    if not mean_of_rows(table.features).isfinite().all():
        raise UserError(
            "features must be finite, and some are not; check whether the encoder has diverged."
        )


def map_rows(table: Embeddings, seed: int, most: int = MAP) -> NDArray[np.int64]:
    """Return the rows of the images on the map, (m,) ascending.

    Test images come first, then others in an order drawn by the seed, until there are `most`.
    """
    chance = hashed(torch.arange(len(table)) + (seed << 32), MAPPED, 1)[:, 0].numpy()
    order = np.lexsort((chance, table.split != "test"))
    return np.sort(order[:most])


def coordinates(name: str, points: Tensor | None) -> Columns:
    """Return the first two columns of points as NAME_x and NAME_y; 0 for a column that is missing.

    Without points there are no columns.
    """
    if points is None:
        return {}
    plane = pad(points[:, :2], (0, max(0, 2 - points.shape[1]))).float().numpy()
    return {f"{name}_x": plane[:, 0], f"{name}_y": plane[:, 1]}


# --- Main directions ------------------------------------------------------------------


def principal_axes(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return the principal axes of the features.

    The covariance is summed in float64, block by block.

    Args:
        features: (n, f).

    Returns:
        Shares of the variance (f,), the largest first, and unit axes (f, f) as rows; both float64.
        The largest entry of each axis is positive.
    """
    mean = mean_of_rows(features)
    covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for rows in features.split(ROWS_AT_ONCE):
        centred = rows.double() - mean
        covariance.addmm_(centred.T, centred)
    variance, axes = torch.linalg.eigh(covariance)
    variance, axes = variance.flip(0).clamp_min(0), axes.T.flip(0)
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    total = variance.sum().clamp_min(torch.finfo(torch.float64).tiny)
    return variance / total, axes * largest.sign()


def project(features: Tensor, axes: Tensor) -> Tensor:
    """Return positions along axes (a, f), from the mean of the features (n, f): (n, a) float64."""
    along = torch.cat([rows.double() @ axes.T for rows in features.split(ROWS_AT_ONCE)])
    return along - mean_of_rows(features) @ axes.T


def mean_of_rows(features: Tensor) -> Tensor:
    """Return the mean of rows (n, f), (f,) float64, without a float64 copy of them."""
    total = torch.zeros(features.shape[1], dtype=torch.float64)
    for rows in features.split(ROWS_AT_ONCE):
        total += rows.sum(0, dtype=torch.float64)
    return total / len(features)


def describe_directions(
    table: Embeddings, rows: NDArray[np.int64], position: Tensor, share: Tensor
) -> tuple[MainDirection, ...]:
    """Describe the first axes: the map's images at both ends, and what correlates over all images.

    Args:
        table: all images.
        rows: those on the map.
        position: (n, a) positions along the axes.
        share: of the variance, by axis.
    """
    directions = []
    for axis, along in enumerate(position.T):
        order = torch.from_numpy(rows)[along[torch.from_numpy(rows)].argsort(stable=True)]
        ends = min(ENDS, len(order) // 2)
        correlation = None if table.certainty is None else metrics.spearman(along, table.certainty)
        directions.append(
            MainDirection(
                axis=axis,
                share=float(share[axis]),
                low=tuple(order[:ends].tolist()),
                high=tuple(order.flip(0)[:ends].tolist()),
                certainty_correlation=finite_or_none(correlation),
                class_eta2=share_between_classes(along, table.labels),
            )
        )
    return tuple(directions)


def share_between_classes(values: Tensor, labels: Tensor) -> Number:
    """Return the variance of the classes' means over all variance (eta squared), in [0, 1].

    Args:
        values: (n,).
        labels: (n,); rows with -1 are left out.

    Returns:
        None if there are fewer than two classes, or no variance.
    """
    values, labels = values[labels >= 0], labels[labels >= 0]
    total = (values - values.mean()).square().sum()
    if len(labels.unique()) < 2 or total == 0:
        return None
    count = labels.bincount().clamp_min(1).double()
    means = torch.zeros_like(count).index_add_(0, labels, values) / count
    return float((means[labels] - values.mean()).square().sum() / total)


# --- Clusters and UMAP ----------------------------------------------------------------


def assign_clusters(mapped: Embeddings, seed: int) -> Tensor:
    """Return the k-means cluster of each image, (m,) int64, from the directions of the features.

    There are as many clusters as classes, 50 at most, and 10 without classes.
    """
    classes = len(mapped.labels[mapped.labels >= 0].unique()) or CLUSTERS
    points = unit_points(mapped.features)
    return cluster_points(points, min(classes, MOST_CLUSTERS), seed=seed, starts=3)[0]


def describe_clusters(cluster: Tensor, labels: Tensor) -> Clustering:
    """Return the sizes of clusters, and how far they agree with the labels (-1: unknown)."""
    known, sizes = labels >= 0, cluster.bincount()
    if not known.any():
        return Clustering(len(sizes), tuple(sizes.tolist()), None, None)
    together = torch.zeros(len(sizes), int(labels.max()) + 1, dtype=torch.int64)
    together.index_put_((cluster[known], labels[known]), torch.tensor(1), accumulate=True)
    return Clustering(
        k=len(sizes),
        sizes=tuple(sizes.tolist()),
        purity=int(together.amax(1).sum()) / int(known.sum()),
        purity_of_one_cluster=int(together.sum(0).max()) / int(known.sum()),
    )


def umap_layout(features: Tensor, seed: int) -> tuple[Tensor | None, str]:
    """Return positions by UMAP with the cosine (McInnes et al. 2018), (m, 2) float32, and "".

    If UMAP cannot be used they are None, and the reason follows.
    """
    try:
        from umap import UMAP
    except ImportError:
        return None, "UMAP is not installed; install umap-learn to see its layout"
    if len(features) < 5:
        return None, f"UMAP needs at least 5 images, and there are {len(features)}"
    k = min(UMAP_NEIGHBOURS, len(features) - 1)
    with warnings.catch_warnings():
        # UMAP warns that neighbours from elsewhere cannot place new points, which nobody asks for
        warnings.simplefilter("ignore")
        layout = UMAP(
            n_neighbors=k,
            metric="cosine",
            random_state=seed,
            n_jobs=1,
            precomputed_knn=neighbours_with_self(features, k),
        )
        positions = np.asarray(layout.fit_transform(features.numpy()), dtype=np.float32)
    return torch.from_numpy(positions), ""


def neighbours_with_self(features: Tensor, k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Return the k nearest by cosine as UMAP counts them: the point itself and the k - 1 others.

    These are exact, and the user need not wait for the compilation of UMAP's own search, which at
    10,000 points takes most of its time.

    Returns:
        (n, k) indices, and (n, k) distances 1 - cosine, 0 for the point itself.
    """
    similarity, index = top_k(features, features, k - 1, exclude_self=True)
    own = torch.arange(len(features))[:, None]
    distance = torch.cat([torch.zeros(len(features), 1), (1 - similarity.float()).clamp(min=0)], 1)
    return torch.cat([own, index], 1).numpy().astype(np.int32), distance.numpy()


# --- Neighbours -----------------------------------------------------------------------


def predict_classes(
    table: Embeddings, rows: NDArray[np.int64], progress: Progress = SILENT
) -> Columns:
    """Predict the class of images by a vote of the nearest labelled training images.

    An image never votes on itself.

    Returns:
        `predicted`, int16: -1 where no image can vote. `correct`, bool: only if images are
        labelled; None for an image that is not.
    """
    train = np.flatnonzero((table.split == "train") & (table.labels.numpy() >= 0))
    voters = table.select(train)
    if len(train) < 2 or len(table.classes) == 0:
        return {"predicted": np.full(len(rows), -1, dtype=np.int16)}
    k, own = min(VOTERS, len(train) - 1), torch.full((len(table),), -1)
    own[torch.from_numpy(train)] = torch.arange(len(train))
    votes: list[Tensor] = []
    with report_progress(progress, "Predicting classes", len(rows)) as update:
        for part in torch.from_numpy(rows).split(BLOCK):
            similarity, index = leave_out(
                own[part], *top_k(table.features[part], voters.features, k + 1)
            )
            votes.append(vote(similarity, voters.labels[index], len(table.classes)))
            update(sum(map(len, votes)))
    predicted, truth = torch.cat(votes).numpy(), table.labels.numpy()[rows]
    return {
        "predicted": predicted.astype(np.int16),
        "correct": np.where(truth >= 0, predicted == truth, np.array(None)),
    }


def leave_out(own: Tensor, similarity: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Leave the image itself out of its neighbours, or the farthest one if it is not among them.

    Args:
        own: (q,) the index of each image itself.
        similarity: (q, k + 1) of its neighbours, the nearest first.
        index: (q, k + 1) theirs.

    Returns:
        (q, k) of both.
    """
    order = (index == own[:, None]).long().argsort(dim=1, stable=True)[:, :-1]
    return similarity.gather(1, order), index.gather(1, order)


def nearest_images(
    mapped: Embeddings, rows: NDArray[np.int64], progress: Progress = SILENT
) -> Columns:
    """Return the nearest images on the map for each of its images.

    Returns:
        `neighbours`: rows of the table. `similarity`: cosines of the features. `evidence` in nats,
        where there is a radius.
    """
    k, own, nats = min(NEAREST, len(mapped) - 1), torch.arange(len(mapped)), evidence_in(mapped)
    parts: list[tuple[Tensor, Tensor, Tensor | None]] = []
    with report_progress(progress, "Searching neighbours", len(mapped)) as update:
        for part in own.split(BLOCK):
            near, index = leave_out(part, *top_k(mapped.features[part], mapped.features, k + 1))
            parts.append((near, index, None if nats is None else nats(part, index)))
            update(sum(len(near) for near, *_ in parts))
    columns: Columns = {
        "neighbours": rows.astype(np.int32)[torch.cat([index for _, index, _ in parts]).numpy()],
        "similarity": torch.cat([near for near, *_ in parts]).float().numpy(),
    }
    of_pairs = [s for *_, s in parts if s is not None]
    return {**columns, "evidence": torch.cat(of_pairs).float().numpy()} if of_pairs else columns
