"""Which images to label next: strategies that choose by frozen features and posteriors.

A label should stand for many images (typicality, coverage), and no two labels for the same ones
(diversity). Is a label also worth more on an image of which the model is certain? No
(`python -m benchmarks.label_next --table`; Fashion-MNIST, one run, six seeds of the choice): the
most certain image of each cluster is worth .14 less than the central one at 10 labels and .01 less
at 1,000, the least certain .33 and .01 less, and evidence with every radius alike does as well as
evidence. DEFAULT has the best mean over 10 to 1,000 labels; at 30 labels evidence is ahead.

Every strategy chooses from a pool of at most 8,192 images drawn by the seed, and starts from the
images that are labelled already.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sureclr.config import check_seed
from sureclr.data.counter_rng import sample_rows
from sureclr.data.embeddings import Embeddings
from sureclr.data.image_set import UNLABELLED, ImageSet
from sureclr.data.label_matching import labels_in_file
from sureclr.data.label_request import LabelFile
from sureclr.errors import UserError, unknown
from sureclr.evaluation.clusters import cluster_points, unit_points
from sureclr.maths.coverage import greedy_cover
from sureclr.maths.neighbours import KEY_BLOCK, top_k
from sureclr.maths.sphere import Posterior, evidence_matrix, unit_rows
from sureclr.progress import SILENT, Progress

DEFAULT = "k-means"
WHY = (  # the reason for DEFAULT
    "best of 11 on average over 10 to 1,000 labels of Fashion-MNIST (benchmarks.label_next)"
)
NEIGHBOURS = 20  # of typicality, as in TypiClust
KNOWN = 3006  # stream of seeds
ROWS_AT_ONCE = 1024  # images whose evidence for the witnesses is computed together


@dataclass(frozen=True)
class Limits:
    """How much a strategy computes at most.

    Attributes:
        candidates: images to choose from; twice the budget if that is more.
        witnesses: of the candidates, on which coverage is measured.
        clusters: of k-means, as in TypiClust: smaller clusters say little. Beyond it several images
            of a cluster are chosen.
        known: labelled images that take part in the clusters, in a sample where there are more.
    """

    candidates: int = 8192
    witnesses: int = 4096
    clusters: int = 500
    known: int = 16_384


@dataclass(frozen=True, eq=False)
class Pool:
    """What a strategy chooses from.

    Attributes:
        candidates: n images in an order drawn by the seed, so that ties are broken by chance.
        table: all images.
        rows: (n,) of the candidates in the table.
        known: rows of the images that are labelled already; there may be none.
        seed: of k-means.
        limits: on the computation.
    """

    candidates: Embeddings
    table: Embeddings
    rows: NDArray[np.int64]
    known: NDArray[np.int64]
    seed: int
    limits: Limits = Limits()

    def known_parts(self, rows: int) -> Iterator[Embeddings]:
        """Yield the images that are labelled already, so many at a time: they may be nearly all."""
        for start in range(0, len(self.known), rows):
            yield self.table.select(self.known[start : start + rows])


@dataclass(frozen=True, eq=False)
class Choice:
    """The images to label, the most useful first.

    Attributes:
        rows: (k,) int64, rows of the table (inside a strategy: of the pool's candidates).
        reasons: k phrases that say why.
    """

    rows: NDArray[np.int64]
    reasons: list[str]


def label_next(
    table: Embeddings,
    labelled: NDArray[np.bool_],
    budget: int,
    strategy: str = DEFAULT,
    seed: int = 0,
    limits: Limits = Limits(),
) -> Choice:
    """Choose images to label among those that are neither test images nor labelled.

    Args:
        table: embeddings of all images.
        labelled: (n,) whether the label of a row is known already.
        budget: how many images are chosen.
        strategy: a name in STRATEGIES.
        seed: of the pool, of ties and of k-means; another seed chooses other images.
        limits: on the computation.

    Raises:
        UserError: the strategy is unknown or needs what the run's loss does not have, or the budget
            is below 1 or above the number of images without a label, or the seed is out of range.
    """
    if strategy not in STRATEGIES:
        raise unknown("strategy", strategy, STRATEGIES)
    check_seed(seed)
    free = np.flatnonzero((table.split != "test") & ~labelled)
    _check(table, strategy, budget, len(free))
    order = torch.randperm(len(free), generator=torch.Generator().manual_seed(seed)).numpy()
    rows = free[order[: max(limits.candidates, 2 * budget)]]
    pool = Pool(table.select(rows), table, rows, np.flatnonzero(labelled), seed, limits)
    choice = STRATEGIES[strategy](pool, budget)
    return Choice(rows[choice.rows], choice.reasons)


def labelled_already(
    images: ImageSet, file: LabelFile | None, progress: Progress = SILENT
) -> tuple[NDArray[np.bool_], str]:
    """Return which images have a label already, (n,), and a note for the user or "".

    Args:
        images: of the run.
        file: a file of labels, such as an earlier choice of which some are filled in. Rows without
            a label do not count, and not every class needs a label yet. None means the labels of
            the image set itself; but if every training image has one, none is counted: the question
            is then which labels would have been needed first.
        progress: gets a sentence about everything in the file that was left out or guessed.

    Raises:
        UserError: the file cannot be read, or it names no image of the set.
    """
    labelled = np.zeros(len(images), dtype=bool)
    if file is not None:
        found = labels_in_file(file, images)
        for message in found.messages:
            progress.message(message)
        labelled[found.rows.numpy()] = True
        return labelled, ""
    training = images.split != "test"
    labelled[training] = images.labels.numpy()[training] != UNLABELLED
    if not labelled[training].all():
        return labelled, ""
    return (
        np.zeros(len(images), dtype=bool),
        f"Every training image of {images.name} has a label; the choice ignores these labels.",
    )


def _check(table: Embeddings, strategy: str, budget: int, free: int) -> None:
    if budget < 1:
        raise UserError(
            f"budget is the number of images to label, 1 or more, not {budget}; try 10 for each"
            " class that you expect."
        )
    if free == 0:
        raise UserError(
            "every training image has a label already; leave out the file of known labels, or add"
            " images and train a new run."
        )
    if budget > free:
        raise UserError(
            f"a budget of {budget:,} labels is more than the {free:,} training images without one;"
            f" set budget to {free:,} or less."
        )
    if strategy in NEED_RADIUS and table.radius is None:
        raise UserError(
            f"strategy {strategy} needs the radius of each image, and this run's loss has none;"
            f' use strategy="{DEFAULT}", or train with loss="sure".'
        )
    if strategy in NEED_CERTAINTY and table.certainty is None:
        raise UserError(
            f"strategy {strategy} needs the certainty of each image, and this run's loss has none;"
            f' use strategy="{DEFAULT}", or train with loss="sure".'
        )


def by_chance(pool: Pool, budget: int) -> Choice:
    """Choose at random; every other strategy should be better than this."""
    return Choice(np.arange(budget), ["at random"] * budget)


# --- One of each cluster --------------------------------------------------------------


def k_means(pool: Pool, budget: int) -> Choice:
    """Choose the image nearest to the centre of each k-means cluster."""
    return _of_clusters(pool, budget, "nearest to the centre", lambda distance: -distance)


def typical(pool: Pool, budget: int) -> Choice:
    """Choose the image with the densest neighbourhood in each cluster.

    This is TypiClust (Hacohen, Dekel and Weinshall 2022).
    """
    return _of_clusters(
        pool, budget, "most typical", lambda _: typicality(pool.candidates.features)
    )


def certain(pool: Pool, budget: int) -> Choice:
    """Choose the image in each cluster of which the model is most certain."""
    return _of_clusters(pool, budget, "most certain", lambda _: _certainty(pool))


def uncertain(pool: Pool, budget: int) -> Choice:
    """Choose the image in each cluster of which the model is least certain."""
    return _of_clusters(pool, budget, "least certain", lambda _: -_certainty(pool))


def certain_typical(pool: Pool, budget: int) -> Choice:
    """Choose the image in each cluster that is both typical and certain.

    The two ranks in the pool, by typicality and by certainty, are added.
    """
    return _of_clusters(
        pool,
        budget,
        "most typical and certain",
        lambda _: _ranks(typicality(pool.candidates.features)) + _ranks(_certainty(pool)),
    )


def typicality(features: Tensor) -> Tensor:
    """Return 1 / the mean distance to the 20 nearest others on the unit sphere, (n,).

    Source: Hacohen et al. 2022, equation 1.
    """
    k = min(NEIGHBOURS, len(features) - 1)
    if k == 0:
        return torch.ones(len(features))
    similarity, _ = top_k(features, features, k, exclude_self=True)
    return 1 / (2 - 2 * similarity).clamp_min(1e-12).sqrt().mean(1)


def _of_clusters(pool: Pool, budget: int, what: str, score: Callable[[Tensor], Tensor]) -> Choice:
    """Choose the best image of each cluster, then the second best, and so on.

    Clusters with the fewest labels come first, and among those the largest. There are as many
    clusters as there will be labels, of candidates and known images together, by k-means on the
    unit sphere. Of the known images `limits.known` take part at most, in a sample.

    Args:
        pool: what is chosen from.
        budget: how many images are chosen.
        what: the property of the best image, for the reasons.
        score: distances (n,) of the candidates to the centre of their cluster -> (n,), the higher
            the better.
    """
    n, most = len(pool.candidates), min(budget + len(pool.known), pool.limits.clusters)
    known = sample_rows(torch.from_numpy(pool.known), pool.limits.known, KNOWN, pool.seed).numpy()
    points = unit_points(pool.table.features, np.concatenate([pool.rows, known]))
    found, centres = cluster_points(points, most, seed=pool.seed % 2**32, steps=100)
    away = unit_points(pool.candidates.features) - centres[found[:n]]
    distance = torch.from_numpy(np.linalg.norm(away.numpy(), axis=1))
    every = found.numpy()
    cluster, labels = every[:n], np.bincount(every[n:], minlength=every.max() + 1)
    size = np.bincount(cluster, minlength=len(labels))[cluster]
    better_first = np.lexsort((-score(distance).numpy(), cluster))
    rank = np.empty(n, dtype=np.int64)
    rank[better_first] = _count_up(cluster[better_first])
    order = np.lexsort((-size, labels[cluster] + rank))[:budget]
    return Choice(
        order, [f"{_ordinal(int(rank[i]))}{what} of a cluster of {size[i]} images" for i in order]
    )


def _count_up(group: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the place of each member in its group, of sorted groups.

    >>> _count_up(np.array([2, 2, 5, 5, 5])).tolist()
    [0, 1, 0, 1, 2]
    """
    start = np.flatnonzero(np.diff(group, prepend=-1))
    return np.arange(len(group)) - np.repeat(start, np.diff(start, append=len(group)))


def _ordinal(rank: int) -> str:
    return "" if rank == 0 else f"number {rank + 1} of the "


def _certainty(pool: Pool) -> Tensor:
    assert pool.candidates.certainty is not None  # _check
    return pool.candidates.certainty


def _ranks(score: Tensor) -> Tensor:
    return score.argsort().argsort().double()


# --- Coverage -------------------------------------------------------------------------


def k_center(pool: Pool, budget: int) -> Choice:
    """Choose the image that is farthest from all labelled ones, again and again.

    This is k-center greedy (Sener and Savarese 2018). Without labels the first image is random.
    """
    points = unit_points(pool.candidates.features)
    # The cosine of each candidate to the nearest image with a label
    cosine = torch.full((len(points),), -1.0)
    for part in pool.known_parts(KEY_BLOCK):
        nearest = top_k(points, unit_points(part.features), 1)[0][:, 0]
        cosine = torch.maximum(cosine, nearest)
    rows: list[int] = []
    reasons: list[str] = []
    for _ in range(budget):
        best = int(cosine.argmin())
        reasons.append(
            f"cosine {cosine[best]:.2f} to the nearest before it"
            if rows or len(pool.known)
            else "the first, at random"
        )
        rows.append(best)
        cosine = torch.maximum(cosine, points @ points[best])
        cosine[best] = torch.inf
    return Choice(np.array(rows), reasons)


def most_evidence(pool: Pool, budget: int) -> Choice:
    """Choose greedily so that images have much evidence s(u, u') for a labelled one (theory 2).

    This strategy is ours. It raises the mean over images i of max(0, max_{j labelled} s(u_i, u_j))
    in nats: an image without evidence for any labelled one counts 0, as s(0, u') = 0 does. An
    uncertain image stands for few others, and few others for it. The kernel's dimension is the
    run's.
    """
    return _by_evidence(pool, budget, lambda table: table.posterior)


def most_evidence_with_equal_radii(pool: Pool, budget: int) -> Choice:
    """Do what `most_evidence` does with every radius at the pool's mean: without certainty."""
    assert pool.candidates.radius is not None  # _check
    mean = pool.candidates.radius.mean()
    return _by_evidence(
        pool, budget, lambda table: Posterior(table.direction, mean.expand(len(table)))
    )


def _by_evidence(pool: Pool, budget: int, posterior: Callable[[Embeddings], Posterior]) -> Choice:
    return _covering(
        pool,
        budget,
        "adds {:.2g} nats of evidence per image",
        lambda images, others: evidence_matrix(
            posterior(images), posterior(others), pool.candidates.kernel_dimension
        ),
    )


def facility(pool: Pool, budget: int) -> Choice:
    """Choose greedily so that images are near to a labelled one (facility location).

    It raises the mean over images of the cosine of their features to those of the nearest labelled
    image. Posteriors are not used.
    """
    return _covering(pool, budget, "raises the mean cosine to the nearest label by {:.2g}", _cosine)


def ball(pool: Pool, budget: int) -> Choice:
    """Choose greedily so that many images lie in balls around labelled ones.

    All balls have one size, as in ProbCover (Yehuda et al. 2022); here the size at which a ball
    has one k-th of all images on average, for k labels.
    """
    cosines = _cosine(next(_parts(pool.candidates)), _witnesses(pool))
    pairs = cosines.fill_diagonal_(-torch.inf)[cosines.isfinite()]  # a single image has no pair
    share = 1 / (budget + len(pool.known))
    least = (
        pairs.kthvalue(max(1, round((1 - share) * len(pairs)))).values if len(pairs) else torch.inf
    )
    return _covering(
        pool,
        budget,
        "has another {:.2g} of the images in its ball",
        lambda images, others: (_cosine(images, others) >= least).float(),
    )


def _cosine(images: Embeddings, others: Embeddings) -> Tensor:
    return unit_rows(images.features) @ unit_rows(others.features).T


def _covering(
    pool: Pool, budget: int, reason: str, between: Callable[[Embeddings, Embeddings], Tensor]
) -> Choice:
    """Choose greedily to raise the mean over witnesses i of max(0, max_{j labelled} between_ji).

    Args:
        pool: what is chosen from.
        budget: how many images are chosen.
        reason: with a place for what an image adds to that mean.
        between: n images, m others -> (n, m), how well the first stand for the second.
    """
    witnesses = _witnesses(pool)
    near = torch.empty(len(pool.candidates), len(witnesses))  # (n, m)
    for part, rows in zip(near.split(ROWS_AT_ONCE), _parts(pool.candidates), strict=True):
        part.copy_(between(rows, witnesses))
    covered = torch.zeros(len(witnesses), dtype=near.dtype)
    for part in pool.known_parts(ROWS_AT_ONCE):
        covered = torch.maximum(covered, between(part, witnesses).amax(0))
    chosen, gains = greedy_cover(near, covered, budget)
    return Choice(chosen, [reason.format(gain / len(witnesses)) for gain in gains])


def _witnesses(pool: Pool) -> Embeddings:
    return pool.candidates.select(np.arange(min(pool.limits.witnesses, len(pool.candidates))))


def _parts(table: Embeddings) -> Iterator[Embeddings]:
    """Yield a table in pieces, so that evidence for many images needs little memory."""
    rows = np.arange(len(table))
    return (
        table.select(rows[start : start + ROWS_AT_ONCE])
        for start in range(0, len(table), ROWS_AT_ONCE)
    )


STRATEGIES: dict[str, Callable[[Pool, int], Choice]] = {
    "random": by_chance,
    "typical": typical,
    "k-means": k_means,
    "k-center": k_center,
    "certain": certain,
    "uncertain": uncertain,
    "certain-typical": certain_typical,
    "evidence": most_evidence,
    "evidence-equal": most_evidence_with_equal_radii,
    "facility": facility,
    "ball": ball,
}
NEED_CERTAINTY = ("certain", "uncertain", "certain-typical")
NEED_RADIUS = ("evidence", "evidence-equal")
