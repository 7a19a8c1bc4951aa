"""Which images to label next: strategies that look at the frozen features and posteriors of images
without labels.

A label should stand for many images (typicality, coverage), and no two labels for the same ones
(diversity). Is it also better spent on an image of which the model is sure? No (`python -m
benchmarks.label_next --table`; Fashion-MNIST, one run, six seeds of the choice): the surest of each
cluster are worth .14 less than the central ones at 10 labels and .01 less at 1,000, the least sure
.33 and .01 less, and evidence with every radius alike does as well as evidence. DEFAULT has the
best mean over 10 to 1,000 labels; at 30 evidence is ahead.

Every strategy chooses from a pool, at most POOL images drawn by the seed, and starts from the
images already labelled.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from sureclr.data.embeddings import Embeddings
from sureclr.data.image_set import UNLABELLED, ImageSet
from sureclr.errors import UserError, unknown
from sureclr.maths.coverage import greedy_cover
from sureclr.maths.neighbours import top_k
from sureclr.maths.sphere import Posterior, evidence_matrix

DEFAULT = "k-means"
WHY = (  # why DEFAULT is it
    "best of 11 on average over 10 to 1,000 labels of Fashion-MNIST (benchmarks.label_next)"
)
POOL = 8192  # candidates; twice the budget where that is more
WITNESSES = 4096  # of the pool, on which coverage is counted
MOST_CLUSTERS = (
    500  # as TypiClust: smaller clusters say little; then several of one cluster are chosen
)
NEIGHBOURS = 20  # of typicality, as TypiClust


@dataclass(frozen=True, eq=False)
class Pool:
    """What a strategy sees.

    Attributes:
        candidates: n images in an order drawn by the seed, so that ties are broken by chance.
        known: the images already labelled; may be empty.
        seed: of k-means.
    """

    candidates: Embeddings
    known: Embeddings
    seed: int


@dataclass(frozen=True, eq=False)
class Choice:
    """The images to label, the most useful first.

    Attributes:
        rows: (k,) int64, rows of the table chosen from (inside a strategy: of the pool's
            candidates).
        reasons: k phrases, why each.
    """

    rows: NDArray[np.int64]
    reasons: list[str]


def label_next(
    table: Embeddings,
    labelled: NDArray[np.bool_],
    budget: int,
    strategy: str = DEFAULT,
    seed: int = 0,
) -> Choice:
    """Choose `budget` images among those of the table that are not test images and not labelled.

    Args:
        labelled: (n,) whether the label of a row is known already.
        strategy: a name of STRATEGIES. seed: of the pool, of ties and of k-means: another seed
            chooses others.

    Raises:
        UserError: unknown strategy, one that needs what the run's loss does not give, or a budget
            below 1 or above the images there are.
    """
    if strategy not in STRATEGIES:
        raise unknown("strategy", strategy, STRATEGIES)
    free = np.flatnonzero((table.split != "test") & ~labelled)
    _check(table, strategy, budget, len(free))
    order = torch.randperm(len(free), generator=torch.Generator().manual_seed(seed)).numpy()
    rows = free[order[: max(POOL, 2 * budget)]]
    found = STRATEGIES[strategy](Pool(table.select(rows), table.select(labelled), seed), budget)
    return Choice(rows[found.rows], found.reasons)


def labelled_already(images: ImageSet, file: Path | None) -> tuple[NDArray[np.bool_], str]:
    """(n,) which images have a label, and a note where that needs one.

    Args:
        file: CSV `path,label`; labels need not be of every class yet, nor classes be known. None:
            what the image set itself says; but if
            every training image has a label, none is taken to have one: the question is then which
            would have been needed first.

    Raises:
        UserError: the file is bad, or labels test images.
    """
    labelled = np.zeros(len(images), dtype=bool)
    if file is not None:
        labelled[read_labelled_rows(file, images)] = True
        return labelled, ""
    mine = images.split != "test"
    labelled[mine] = images.labels.numpy()[mine] != UNLABELLED
    if not labelled[mine].all():
        return labelled, ""
    return (
        np.zeros(len(images), dtype=bool),
        f"every training image of {images.name} has a label; chosen as if none had",
    )


def read_labelled_rows(file: Path, images: ImageSet) -> list[int]:
    """The images of a label file, once each."""
    from sureclr.data.labels import label_lines

    places = {path: row for row, path in enumerate(images.paths)}
    found = {
        places.get(path, -1): f"{file}, line {line}: {path}" for line, path, _ in label_lines(file)
    }
    if -1 in found:
        example = images.paths[int(np.flatnonzero(images.split != "test")[0])]
        raise UserError(
            f"{found[-1]} is no image of {images.name}; its training images are called like"
            f" {example}."
        )
    if tests := [row for row in found if images.split[row] == "test"]:
        raise UserError(
            f"{found[tests[0]]} is a test image, which must not be trained on; delete the line."
        )
    return sorted(found)


def _check(table: Embeddings, strategy: str, budget: int, free: int) -> None:
    if budget < 1:
        raise UserError(
            f"a budget is a number of images to label, 1 or more, not {budget}; try 10 for each"
            " class that you expect."
        )
    if budget > free:
        raise UserError(
            f"a budget of {budget:,} labels is more than the {free:,} training images without one;"
            f" ask for {free:,} or fewer."
        )
    if strategy in NEED_RADIUS and table.radius is None:
        raise UserError(
            f"strategy {strategy} needs the radius of each image, and this run's loss has none;"
            f" take --strategy {DEFAULT}, or train with --loss sure."
        )
    if strategy in NEED_CERTAINTY and table.certainty is None:
        raise UserError(
            f"strategy {strategy} needs the certainty of each image, and this run's loss has none;"
            f" take --strategy {DEFAULT}, or train with --loss sure."
        )


def random(pool: Pool, budget: int) -> Choice:
    """By chance: what every other strategy has to beat."""
    return Choice(np.arange(budget), ["by chance"] * budget)


# --- One of each cluster --------------------------------------------------------------


def k_means(pool: Pool, budget: int) -> Choice:
    """The image nearest to the centre of each k-means cluster."""
    return _of_clusters(pool, budget, "nearest to the centre", lambda distance: -distance)


def typical(pool: Pool, budget: int) -> Choice:
    """TypiClust (Hacohen, Dekel and Weinshall 2022): of each cluster the image with the densest
    neighbourhood.
    """
    return _of_clusters(
        pool, budget, "most typical", lambda _: typicality(pool.candidates.features)
    )


def certain(pool: Pool, budget: int) -> Choice:
    """Of each cluster the image of which the model is surest."""
    return _of_clusters(pool, budget, "most certain", lambda _: _certainty(pool))


def uncertain(pool: Pool, budget: int) -> Choice:
    """Of each cluster the image of which the model is least sure."""
    return _of_clusters(pool, budget, "least certain", lambda _: -_certainty(pool))


def certain_typical(pool: Pool, budget: int) -> Choice:
    """Of each cluster the image with the best sum of its two ranks in the pool, typicality's and
    certainty's.
    """
    return _of_clusters(
        pool,
        budget,
        "most typical and certain",
        lambda _: _ranks(typicality(pool.candidates.features)) + _ranks(_certainty(pool)),
    )


def typicality(features: Tensor) -> Tensor:
    """(n,) 1 / the mean distance to the NEIGHBOURS nearest others on the unit sphere (Hacohen et
    al. 2022, equation 1).
    """
    k = min(NEIGHBOURS, len(features) - 1)
    if k == 0:
        return torch.ones(len(features))
    similarity, _ = top_k(features, features, k, exclude_self=True)
    return 1 / (2 - 2 * similarity).clamp_min(1e-12).sqrt().mean(1)


def _of_clusters(pool: Pool, budget: int, what: str, score: Callable[[Tensor], Tensor]) -> Choice:
    """The best image of each cluster, clusters with fewest labels first and of those the largest;
    then the second best, and so on.

    Clusters, one for each label there will be, are of candidates and known images together, by
    k-means on the unit sphere.

    Args:
        score: from the distances (n,) of the candidates to the centre of their cluster, how good
            each is (n,).
    """
    cluster, distance = _clusters(pool, min(budget + len(pool.known), MOST_CLUSTERS))
    n = len(pool.candidates)
    mine, labels = cluster[:n], np.bincount(cluster[n:], minlength=cluster.max() + 1)
    size = np.bincount(mine, minlength=len(labels))[mine]
    better_first = np.lexsort((-score(distance[:n]).numpy(), mine))
    rank = np.empty(n, dtype=np.int64)
    rank[better_first] = _count_up(mine[better_first])
    order = np.lexsort((-size, labels[mine] + rank))[:budget]
    return Choice(
        order, [f"{_ordinal(int(rank[i]))}{what} of a cluster of {size[i]} images" for i in order]
    )


def _clusters(pool: Pool, count: int) -> tuple[NDArray[np.int64], Tensor]:
    """(n + known,) cluster of each image, and its distance to the centre."""
    from sklearn.cluster import KMeans

    points = normalize(torch.cat([pool.candidates.features, pool.known.features]), dim=1).numpy()
    count = min(count, len(np.unique(points, axis=0)))
    found = KMeans(count, n_init=1, max_iter=100, random_state=pool.seed % 2**32).fit(points)
    return found.labels_.astype(np.int64), torch.from_numpy(
        np.linalg.norm(points - found.cluster_centers_[found.labels_], axis=1)
    )


def _count_up(group: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of sorted groups, the place of each member in its own: [2, 2, 5, 5, 5] -> [0, 1, 0, 1, 2]."""
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
    """k-center greedy (Sener and Savarese 2018): each time the image farthest from all labelled
    ones; the first by chance.
    """
    points, known = (normalize(table.features, dim=1) for table in (pool.candidates, pool.known))
    far = (
        top_k(points, known, 1)[0][:, 0] if len(known) else torch.full((len(points),), -1.0)
    )  # cosine of the nearest labelled
    rows: list[int] = []
    reasons: list[str] = []
    for _ in range(budget):
        best = int(far.argmin())
        reasons.append(
            f"cosine {far[best]:.2f} to the nearest before it"
            if rows or len(known)
            else "the first, by chance"
        )
        rows.append(best)
        far = torch.maximum(far, points @ points[best])
        far[best] = torch.inf
    return Choice(np.array(rows), reasons)


def evidence(pool: Pool, budget: int) -> Choice:
    """Ours: greedily, the most evidence s(u, u') that an image shows the same as one that is
    labelled, in nats (theory 2).

    Maximised is sum_i max(0, max_{j labelled} s(u_i, u_j)): an image for which no label speaks
    counts 0, as s(0, u') = 0 does. Unsure images stand for few others, and few others for them. The
    kernel's dimension is the run's.
    """
    return _by_evidence(pool, budget, lambda table: table.posterior)


def evidence_equal(pool: Pool, budget: int) -> Choice:
    """`evidence` with every radius at the pool's mean: what remains of it without certainty."""
    assert pool.candidates.radius is not None  # _check
    mean = pool.candidates.radius.mean()
    return _by_evidence(
        pool, budget, lambda table: Posterior(table.direction, mean.expand(len(table)))
    )


def _by_evidence(pool: Pool, budget: int, posterior: Callable[[Embeddings], Posterior]) -> Choice:
    return _covering(
        pool,
        budget,
        "adds {:.2g} nats of evidence an image",
        lambda some, others: evidence_matrix(
            posterior(some), posterior(others), pool.candidates.kernel_dimension
        ),
    )


def facility(pool: Pool, budget: int) -> Choice:
    """Greedily, the highest mean cosine of an image's features to those of its nearest label:
    facility location, no posterior.
    """
    return _covering(pool, budget, "raises the mean cosine to the nearest label by {:.2g}", _cosine)


def ball(pool: Pool, budget: int) -> Choice:
    """As ProbCover (Yehuda et al. 2022): most images inside balls of one size; here the size that
    holds one k-th of them, for k labels.
    """
    sample = _cosine(next(_parts(pool.candidates)), _witnesses(pool))
    pairs = sample.fill_diagonal_(-torch.inf)[sample.isfinite()]
    share = 1 / (budget + len(pool.known))
    least = (
        pairs.kthvalue(max(1, round((1 - share) * len(pairs)))).values if len(pairs) else torch.inf
    )  # one image has no pair
    return _covering(
        pool,
        budget,
        "has another {:.2g} of the images in its ball",
        lambda some, others: (_cosine(some, others) >= least).float(),
    )


def _cosine(some: Embeddings, others: Embeddings) -> Tensor:
    return normalize(some.features, dim=1) @ normalize(others.features, dim=1).T


def _covering(
    pool: Pool, budget: int, reason: str, between: Callable[[Embeddings, Embeddings], Tensor]
) -> Choice:
    """Greedily raises the mean over WITNESSES of the pool of max(0, max_{j labelled} between_ij).

    Args:
        reason: with a place for what a choice adds to that mean. between: (n, m) how well n images
            stand for m.
    """
    some = _witnesses(pool)
    near = torch.cat([between(part, some) for part in _parts(pool.candidates)])  # (n, m)
    covered = torch.zeros(len(some), dtype=near.dtype)
    for part in _parts(pool.known):
        covered = torch.maximum(covered, between(part, some).amax(0))
    rows, gains = greedy_cover(near, covered, budget)
    return Choice(rows, [reason.format(gain / len(some)) for gain in gains])


def _witnesses(pool: Pool) -> Embeddings:
    return pool.candidates.select(np.arange(min(WITNESSES, len(pool.candidates))))


def _parts(table: Embeddings, rows: int = 1024) -> Iterator[Embeddings]:
    """A table in pieces, so that evidence against many images needs little memory beside its
    result.
    """
    return (
        table.select(np.arange(start, min(start + rows, len(table))))
        for start in range(0, len(table), rows)
    )


STRATEGIES: dict[str, Callable[[Pool, int], Choice]] = {
    "random": random,
    "typical": typical,
    "k-means": k_means,
    "k-center": k_center,
    "certain": certain,
    "uncertain": uncertain,
    "certain-typical": certain_typical,
    "evidence": evidence,
    "evidence-equal": evidence_equal,
    "facility": facility,
    "ball": ball,
}
NEED_CERTAINTY = ("certain", "uncertain", "certain-typical")
NEED_RADIUS = ("evidence", "evidence-equal")
