"""Certainties that are perfect, reversed and random by construction, and the model's own world.

The witnesses are loops, scikit-learn and scipy.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from json_round_trip import read_back
from memory import bytes_of, counted
from scipy import stats
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn.functional import normalize

from sureclr.config import ViewConfig
from sureclr.data.corruptions import CORRUPTIONS, to_uint8
from sureclr.data.embeddings import Embeddings
from sureclr.data.image_set import ImageSet
from sureclr.data.views import one_view
from sureclr.errors import UserError
from sureclr.evaluation import scores
from sureclr.evaluation.calibrated_sets import measure_sets
from sureclr.evaluation.certainty_quality import (
    check_splits,
    measure_uncertainty,
    summarise_information,
)
from sureclr.evaluation.corrupted_images import CORRUPTED, measure_corruption, rank
from sureclr.evaluation.drawn_views import ViewPairs, embed_view_pairs
from sureclr.evaluation.invariances import rotation
from sureclr.evaluation.neighbour_vote import knn_accuracy
from sureclr.evaluation.results import Sample
from sureclr.evaluation.scores import (
    Embed,
    Judged,
    Reference,
    ScoredImages,
    embed_changed,
    image_seeds,
    score_images,
)
from sureclr.evaluation.selective_prediction import (
    calibrate_probes,
    columns,
    decline_by_score,
    observe_sets,
    predict_selectively,
    thin_curve,
)
from sureclr.evaluation.tables import (
    finite_by_score,
    finite_numbers,
    mean_cosine_of_different_images,
)
from sureclr.evaluation.view_pairs import (
    best_evidence,
    calibrate_evidence,
    calibrate_radius,
    find_partners,
    log_loss,
)
from sureclr.maths.neighbours import top_k
from sureclr.maths.sampling import sample, uniform_directions
from sureclr.maths.sphere import Posterior

TRAIN, TEST, CLASSES = 120, 80, 3


def random() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def embeddings(
    features: Tensor,
    labels: Tensor,
    split: list[str],
    radius: Tensor | None = None,
    certainty: Tensor | None = None,
    dimension: float | None = None,
    direction: Tensor | None = None,
) -> Embeddings:
    direction = normalize(features[:, :8], dim=1) if direction is None else direction
    certainty = radius if certainty is None else certainty
    paths = [str(i) for i in range(len(labels))]
    return Embeddings(
        features,
        direction,
        radius,
        certainty,
        labels,
        tuple("abc"),
        np.asarray(split),
        paths,
        dimension,
    )


def table(**more: Tensor) -> Embeddings:
    """Three overlapping clusters: three quarters of the nearest images have the right class."""
    labels = torch.arange(TRAIN + TEST) % CLASSES
    features = torch.randn(TRAIN + TEST, 10, generator=random()) + 1.5 * torch.eye(10)[labels]
    return embeddings(features, labels, ["train"] * TRAIN + ["test"] * TEST, **more)


def right_by_loops(t: Embeddings) -> Tensor:
    train = [i for i in range(len(t)) if t.split[i] == "train"]
    unit = t.features.double() / t.features.double().norm(dim=1, keepdim=True)
    nearest = [
        max(train, key=lambda j: float(unit[i] @ unit[j]))
        for i in range(len(t))
        if t.split[i] == "test"
    ]
    return torch.stack([t.labels[j] for j in nearest]) == t.labels[t.split == "test"]


NOISE = torch.rand(TEST, generator=random())


@pytest.mark.parametrize(
    ("certainty", "expected"),
    [
        (lambda right: right + 0.5 * NOISE, lambda right: 1.0),
        (lambda right: -1.0 * right - 0.5 * NOISE, lambda right: 0.0),
        (lambda right: 0 * NOISE, lambda right: 0.5),
        (lambda right: NOISE, lambda right: roc_auc_score(right, NOISE)),
    ],
    ids=["perfect", "reversed", "constant", "random"],
)
def test_r_auroc_by_scikit_learn(
    certainty: Callable[[Tensor], Tensor], expected: Callable[[Tensor], float]
) -> None:
    t = table()
    right = right_by_loops(t)
    assert 0.3 < right.double().mean() < 0.95  # both kinds, or the test would say nothing
    test = replace(t.select(t.split == "test"), certainty=certainty(right).float())
    scored = score_images(test, Reference.of(t))
    assert torch.equal(scored.correct, right)
    found = rank(scored)
    assert found is not None and found.n == TEST
    assert found.r_auroc["certainty"] == pytest.approx(expected(right), abs=1e-6)
    assert found.recall_at_1 == pytest.approx(float(right.double().mean()))
    by_sklearn = {n: roc_auc_score(right, score.double()) for n, score in scored.scores.items()}
    assert found.r_auroc == pytest.approx(by_sklearn, abs=1e-9)


def test_the_plain_scores_are_what_they_say() -> None:
    t = table()
    reference, test = Reference.of(t), t.select(t.split == "test")
    scores = score_images(test, reference).scores
    unit = normalize(t.features.double(), dim=1)
    assert torch.allclose(
        scores["neighbour_similarity"].double(), (unit[TRAIN:] @ unit[:TRAIN].T).amax(1), atol=1e-6
    )
    assert torch.allclose(scores["feature_norm"], test.features.double().square().sum(1).sqrt())
    assert reference.probe is not None
    assert torch.allclose(
        scores["negative_entropy"],
        -torch.from_numpy(stats.entropy(reference.probe.probabilities, axis=1)),
    )
    assert "certainty" not in scores  # this table has none


def test_an_unlabelled_test_image_is_not_judged() -> None:
    t = table()
    labels = t.labels.clone()
    labels[TRAIN : TRAIN + 30] = -1
    found = rank(
        score_images(
            (part := replace(t, labels=labels)).select(part.split == "test"), Reference.of(part)
        )
    )
    assert found.n == TEST - 30
    assert found.recall_at_1 == pytest.approx(float(right_by_loops(t)[30:].double().mean()))


# --- Corruptions ----------------------------------------------------------------------


def checkers(n: int, side: int = 20) -> ImageSet:
    pixels = (
        ((torch.arange(side)[:, None] + torch.arange(side)) % 2 * 255)
        .to(torch.uint8)
        .expand(n, 1, side, side)
        .contiguous()
    )
    return ImageSet(
        "checkers", pixels, torch.full((n,), -1), (), np.full(n, "test"), [str(i) for i in range(n)]
    )


def seen_through(sign: float) -> Embed:
    """Certainty: sign times the share of pixels that are not occluded (an occluded one has the mean
    colour, 128).
    """

    def embed(images: ImageSet) -> Embeddings:
        visible = (images.images != 128).double().mean((1, 2, 3)).float()
        n = len(images)
        return embeddings(torch.ones(n, 10), images.labels, ["test"] * n, certainty=sign * visible)

    return embed


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_spearman_and_less_certain_follow_a_certainty_that_knows_the_strength(sign: float) -> None:
    images, occlusion = checkers(200), CORRUPTIONS["occlusion"]
    embed, reference = (
        seen_through(sign),
        Reference(embeddings(torch.ones(1, 10), torch.zeros(1).long(), ["train"]), None),
    )
    clean = score_images(embed(images), reference)
    found = measure_corruption(
        embed, images, np.arange(200), occlusion, clean, reference, 0, slice(None)
    )
    seeds = image_seeds(images, 0, CORRUPTED)
    strengths = occlusion.random_strengths(seeds)
    certainty = embed(replace(images, images=occlusion(images.images, seeds, strengths))).certainty
    assert certainty is not None
    spearman = found.random.spearman["certainty"]
    assert spearman == pytest.approx(stats.spearmanr(certainty, -strengths).statistic)
    assert sign * spearman > 0.99  # positive: less certain as it gets worse
    changed = float((certainty != sign).double().mean())
    assert 0.9 < changed <= 1
    assert found.random.less_certain["certainty"] == pytest.approx(changed if sign > 0 else 0.0)
    assert found.random.less_certain["feature_norm"] == 0  # equal is not less
    assert [level.strength for level in found.levels] == list(occlusion.strengths)
    sizes = [round(20 * s**0.5) ** 2 for s in occlusion.strengths]
    assert [level.mean["certainty"] for level in found.levels] == pytest.approx(
        [sign * (1 - s / 400) for s in sizes]
    )


# --- Pairs ----------------------------------------------------------------------------


def world(n: int, d: int = 16, low: float = 0.3, high: float = 0.8, seed: int = 1) -> ViewPairs:
    """Views sampled from the model itself: z uniform, each view's direction from the Poisson kernel
    around z, with its radius.
    """
    generator = torch.Generator().manual_seed(seed)
    z = uniform_directions(n, d, generator).double().repeat(2, 1)
    radius = low + (high - low) * torch.rand(2 * n, generator=generator, dtype=torch.float64)
    mu = sample(Posterior(z, radius), generator)
    return ViewPairs(
        embeddings(
            mu, torch.full((2 * n,), -1), ["test"] * 2 * n, radius=radius, dimension=d, direction=mu
        )
    )


def bent(pair: ViewPairs) -> ViewPairs:
    """The same views with wrong radii, in the right order."""
    assert pair.table.radius is not None
    return ViewPairs(replace(pair.table, radius=pair.table.radius**3))


def test_the_models_own_radius_is_calibrated_and_a_bent_one_only_after_the_map() -> None:
    pair, training = world(4000), world(4000, seed=2)
    found = calibrate_radius(pair, training)
    assert found.raw.error < 0.02
    assert sum(found.raw.count) == 4000
    wrong = calibrate_radius(bent(pair), bent(training))
    assert wrong.raw.error > 0.1
    assert wrong.mapped.error < 0.02
    a, b = (side.direction for side in world(50).sides())
    by_loops = [float(a[i] @ b[j]) for i in range(50) for j in range(50) if i != j]
    assert mean_cosine_of_different_images(a, b) == pytest.approx(np.mean(by_loops))
    different = calibrate_radius(world(50), training).mean_cosine_different
    assert different == pytest.approx(np.mean(by_loops))


def test_the_models_own_evidence_is_in_nats_and_a_bent_one_only_after_the_map() -> None:
    pair, training = world(400, low=0.7, high=0.9), world(400, low=0.7, high=0.9, seed=2)
    found = calibrate_evidence(pair, training)
    assert abs(found.log_mean_exp) < 4 * found.log_mean_exp_standard_error
    assert found.raw.error < 3e-4  # of a rate of 1/400
    assert found.raw.log_loss < 0.6 * found.log_loss_prior
    assert found.raw.log_loss == pytest.approx(found.mapped.log_loss, rel=0.05)
    heavy = [
        (p, o)
        for p, o, n in zip(found.raw.predicted, found.raw.observed, found.raw.count, strict=True)
        if n >= 40
    ]
    assert len(heavy) >= 5
    assert all(abs(p - o) < 0.1 for p, o in heavy)
    wrong = calibrate_evidence(bent(pair), bent(training))
    assert wrong.raw.log_loss > 1.1 * found.raw.log_loss
    assert wrong.mapped.log_loss < wrong.raw.log_loss


def test_the_first_pairs_are_both_views_of_the_first_images() -> None:
    pair = world(50)
    for few, all_ in zip(pair.first(7).sides(), pair.sides(), strict=True):
        assert torch.equal(few.direction, all_.direction[:7])
    assert pair.first(80).n == 50


def test_prior_is_one_pair_in_n() -> None:
    """Radii of 0 know nothing: the posterior is the prior, with the log loss of the rate 1/n."""
    pair = world(60)
    nothing = ViewPairs(replace(pair.table, radius=torch.zeros(120, dtype=torch.float64)))
    found = calibrate_evidence(nothing, nothing)
    assert found.raw.predicted == pytest.approx([1 / 60])
    assert found.raw.log_loss == pytest.approx(stats.entropy([1 / 60, 59 / 60]))
    assert found.log_loss_prior == pytest.approx(found.raw.log_loss)


def test_log_loss_is_scikit_learns() -> None:
    p = torch.rand(500, generator=random(), dtype=torch.float64)
    outcome = torch.rand(500, generator=random()) < 0.3
    assert log_loss(p, outcome) == pytest.approx(sklearn_log_loss(outcome, p))
    assert math.isfinite(log_loss(torch.zeros(2), torch.tensor([True, False])))


def test_partner_knows_which_views_find_their_own() -> None:
    pair = world(60, low=0.7, high=0.95)
    a, b = pair.sides()
    own = torch.stack(
        [torch.stack([x @ y for y in b.direction]).argmax() == i for i, x in enumerate(a.direction)]
    )
    assert 0.2 < own.double().mean() < 0.98
    certainty = torch.cat([own, torch.zeros(60)]).float()
    reference = Reference(a, None)
    found = find_partners(ViewPairs(replace(pair.table, certainty=certainty)), reference)
    assert found.instance_match == pytest.approx(float(own.double().mean()))
    assert found.auroc["certainty"] == 1
    cosine = (a.direction @ b.direction.T).amax(1)
    assert found.auroc["match_similarity"] == pytest.approx(roc_auc_score(own, cosine))
    assert found.auroc["match_evidence"] > 0.5  # in its own world the model's evidence knows
    evidence, index = best_evidence(a.posterior, b.posterior, 16, block=7)
    r = a.posterior.radius[:, None] * b.posterior.radius  # type: ignore[index,operator]
    by_formula = torch.log(1 - r**2) - 8 * torch.log(
        1 - 2 * r * (a.direction @ b.direction.T) + r**2
    )
    assert torch.allclose(evidence, by_formula.amax(1))
    assert torch.equal(index, by_formula.argmax(1))


def test_views_are_paired_row_by_row_and_drawn_by_seed_and_stream() -> None:
    images = pictures(30)
    embed = toy()
    nothing = ViewConfig(
        strength=0, blur_p=0, grey_p=0, crop_area=(1, 1), crop_aspect=(1, 1), flip=0
    )
    a, b = embed_view_pairs(embed, images, np.arange(30), nothing, 0, 1).sides()
    assert torch.equal(a.features, embed(images).features) and torch.equal(
        b.features, a.features
    )  # the image itself
    drawn = [
        embed_view_pairs(embed, images, np.arange(30), ViewConfig(), *at).table.features
        for at in ((0, 1), (0, 1), (1, 1), (0, 2))
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0][:30], drawn[0][30:])  # the two views differ
    assert not torch.equal(drawn[0], drawn[2]) and not torch.equal(drawn[0], drawn[3])


# --- Selective prediction and the probe -----------------------------------------------


def test_abstaining_is_the_error_among_the_surest() -> None:
    right = torch.rand(200, generator=random()) < 0.7
    score = right * 0.3 + torch.rand(200, generator=torch.Generator().manual_seed(1))
    found = decline_by_score(right, {"score": score, "constant": torch.zeros(200)})
    assert found.r_auroc["score"] == pytest.approx(roc_auc_score(right, score))
    assert found.r_auroc["constant"] == 0.5
    order = sorted(range(200), key=lambda i: -float(score[i]))
    risks = [1 - np.mean([bool(right[i]) for i in order[: k + 1]]) for k in range(200)]
    assert found.aurc["score"] == pytest.approx(np.mean(risks))
    assert (
        found.aurc["constant"] == pytest.approx(found.error) == pytest.approx(found.aurc["random"])
    )
    assert found.aurc["best"] < found.aurc["score"] < found.aurc["random"]
    assert found.risk["score"] == pytest.approx([risks[round(200 * c) - 1] for c in found.coverage])
    assert found.coverage[-1] == 1 and found.risk["score"][-1] == pytest.approx(found.error)


def test_a_curve_of_fewer_images_than_points_begins_with_the_most_certain_one() -> None:
    risk = torch.tensor([0.0, 0.5, 0.25])
    curve = thin_curve(risk)
    coverage = [(i + 1) / 20 for i in range(20)]
    assert curve == tuple(float(risk[max(1, round(3 * c)) - 1]) for c in coverage)
    assert curve[0] == 0 and curve[-1] == 0.25


def test_selective_judges_both_classifiers_on_known_images() -> None:
    t = table()
    reference = Reference.of(t)
    judged = score_images(t.select(t.split == "test"), reference)
    found = predict_selectively(judged, reference)
    assert reference.probe is not None
    assert found["linear"].error == pytest.approx(1 - reference.probe.accuracy)
    train, test = t.labelled("train"), judged.table
    errors = [
        1 - knn_accuracy(train.features, train.labels, test.features, test.labels, k).accuracy
        for k in (1, 20)
    ]
    assert found["knn"].error == pytest.approx(errors[1]) != pytest.approx(errors[0])
    some = torch.arange(TEST) >= 30
    part = predict_selectively(
        ScoredImages(judged.table, judged.scores, some, judged.correct), reference
    )
    wrong = reference.probe.predictions[some] != judged.table.labels[some]
    assert part["linear"].error == pytest.approx(float(wrong.double().mean()))


def test_sets_are_measured_of_both_classifiers() -> None:
    t = table()
    reference = Reference.of(t)
    assert reference.probe is not None
    found = observe_sets(t, reference)
    right = columns(reference.probe, t.labelled("test").labels)
    assert found is not None
    assert found["linear"] == measure_sets(reference.probe.probabilities, right)
    train, test = reference.train, t.labelled("test")
    similarity, index = top_k(test.features, train.features, 20)
    votes = torch.full((len(test), CLASSES), 0.03).double()
    for i, (cosines, rows) in enumerate(zip(similarity.double(), index.tolist(), strict=True)):
        share = (cosines / 0.1).softmax(0)
        for weight, row in zip(share, rows, strict=True):
            votes[i, int(train.labels[row])] += weight
    assert found["knn"] == measure_sets(votes / votes.sum(1, keepdim=True), right)
    few = t.select(np.r_[0:TRAIN, TRAIN : TRAIN + 12])
    assert observe_sets(few, Reference.of(few)) is None


def test_ece_finds_the_probes_column_of_each_label() -> None:
    t = table()
    spaced = replace(t, labels=t.labels * 2 + 1, classes=tuple("abcdef"))
    plain, moved = (calibrate_probes(x, Reference.of(x))["features"] for x in (t, spaced))
    assert moved == pytest.approx(plain)
    probe = Reference.of(spaced).probe
    assert probe is not None
    assert columns(probe, torch.tensor([3, 1, 4])).tolist() == [1, 0, -1]


# --- The whole ------------------------------------------------------------------------


def pictures(n: int = TRAIN + TEST, labelled: bool = True) -> ImageSet:
    labels = torch.arange(n) % CLASSES
    bright = torch.rand(n, 1, 12, 12, generator=random()) * 120 + 45 * labels.view(-1, 1, 1, 1)
    return ImageSet(
        "pictures",
        bright.to(torch.uint8),
        labels if labelled else labels * 0 - 1,
        tuple("abc") if labelled else (),
        np.asarray(["train"] * min(n, TRAIN) + ["test"] * max(0, n - TRAIN)),
        [str(i) for i in range(n)],
    )


def toy(radius: bool = True) -> Embed:
    """Pixels as features; a fixed random projection as direction; contrast as radius."""
    weight = torch.randn(144, 8, generator=random())

    def embed(images: ImageSet) -> Embeddings:
        x = images.images.flatten(1).float() / 255
        rho = torch.sigmoid(8 * x.std(1)) if radius else None
        return Embeddings(
            x,
            normalize(x @ weight, dim=1),
            rho,
            rho,
            images.labels,
            images.classes,
            images.split,
            images.paths,
        )

    return embed


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("radius", [True, False])
def test_everything_that_can_be_had_is_there_and_the_rest_is_explained(
    labelled: bool, radius: bool
) -> None:
    images, embed = pictures(labelled=labelled), toy(radius)
    found = measure_uncertainty(embed, images, embed(images), ViewConfig(), levels=slice(0, 2))
    assert read_back(found) == found
    of_radius = (found.information, found.calibration, found.evidence)
    assert [part is not None for part in of_radius] == [radius] * 3
    assert ("certainty" in found.scores) == radius
    of_labels = (found.selective, found.probe_calibration, found.clean, found.sets)
    assert [part is not None for part in of_labels] == [labelled] * 4
    assert (found.n_test, found.n_train) == (TEST, TRAIN)
    assert ("negative_entropy" in found.scores) == labelled
    assert set(found.corruptions) == set(CORRUPTIONS)
    assert all(len(c.levels) == 2 for c in found.corruptions.values())
    assert len(found.skipped) == (not labelled) + 2 * (not radius)
    assert set(found.corruptions["crop"].random.spearman) == set(found.scores)


def test_the_same_seed_gives_the_same_numbers() -> None:
    images, embed = pictures(), toy()
    first, again, other = (
        measure_uncertainty(embed, images, embed(images), ViewConfig(), seed, slice(0, 1))
        for seed in (0, 0, 1)
    )
    assert first == again
    assert first.clean == other.clean
    assert first.corruptions["crop"] != other.corruptions["crop"] and first.partner != other.partner


def test_the_map_is_fitted_on_training_images_alone() -> None:
    images, embed, asked = pictures(), toy(), []

    def recording(some: ImageSet) -> Embeddings:
        asked.append(set(some.split.tolist()))
        return embed(some)

    measure_uncertainty(recording, images, embed(images), ViewConfig(), levels=slice(0, 1))
    assert asked.count({"train"}) == 1 and asked.count({"test"}) == len(asked) - 1


def test_numbers_that_do_not_exist_are_none() -> None:
    """All nearest images have the right class: no AUROC. Equal certainties: no correlation."""
    t = table(certainty=torch.zeros(TRAIN + TEST))
    test = t.select(t.split == "test")
    scored = score_images(test, Reference.of(t))
    ranking = rank(replace(scored, correct=torch.ones(TEST, dtype=torch.bool)))
    assert ranking is not None and set(ranking.r_auroc.values()) == {None}
    assert finite_by_score({"a": math.nan, "b": 1.0, "c": math.inf}) == {
        "a": None,
        "b": 1.0,
        "c": None,
    }
    assert finite_numbers(torch.tensor([0.5, math.nan, -math.inf])) == (0.5, None, None)


def test_a_sample_is_judged_as_if_there_were_no_other_test_images() -> None:
    images, embed = pictures(labelled=False), toy()
    table, judged = embed(images), Judged.among(images.split, 30)
    assert len(judged.rows) == 30 and (np.diff(judged.rows) > 0).all() and judged.rows[0] >= TRAIN
    assert judged.rows.max() > TRAIN + 30  # not the first ones
    found = measure_uncertainty(embed, images, table, ViewConfig(), levels=slice(0, 1), most=30)
    assert found.sample == Sample(30, TEST) and found.n_test == 30
    rows = np.concatenate([np.arange(TRAIN), judged.rows])
    few = images.select(rows)
    alone = measure_uncertainty(embed, few, table.select(rows), ViewConfig(), levels=slice(0, 1))
    assert replace(found, sample=None) == alone
    assert Judged.among(images.split, TEST).sample is None
    assert read_back(found) == found


def test_the_search_grows_with_the_images_and_not_with_their_square() -> None:
    """By a count of the images that are compared with all training images: 8 times harmed ones, and
    two views each of these and of the training images.
    """
    embed = toy()

    def embedded(tests: int) -> int:
        images, asked = pictures(TRAIN + tests), []

        def counting(some: ImageSet) -> Embeddings:
            asked.append(len(some))
            return embed(some)

        table = embed(images)
        measure_uncertainty(counting, images, table, ViewConfig(), levels=slice(0, 1), most=40)
        return sum(asked)

    assert embedded(40) == embedded(160) == 8 * 40 + 2 * 40 + 2 * TRAIN


@pytest.mark.parametrize(("copies", "values"), [(7, 1), (7, 300), (16, 1 << 22)])
def test_copies_in_blocks_are_those_of_all_images_together(
    monkeypatch: pytest.MonkeyPatch, copies: int, values: int
) -> None:
    images, embed, rows = pictures(40), toy(), np.arange(3, 40, 2)
    seeds, noise = image_seeds(rows, 0, CORRUPTED), CORRUPTIONS["noise"]
    some = images.select(rows)
    whole = embed(some.with_pixels(noise(some.images, seeds, 0.2)))
    pairs = embed_view_pairs(embed, images, rows, ViewConfig(), 0, 1).table
    sides = [one_view(some.images, image_seeds(rows, 0, 1), i, ViewConfig()) for i in (0, 1)]
    both = some.select(np.tile(np.arange(len(rows)), 2)).with_pixels(to_uint8(torch.cat(sides)))
    monkeypatch.setattr(scores, "COPIES_AT_ONCE", copies)
    monkeypatch.setattr(scores, "VALUES_AT_ONCE", values)
    parts = embed_changed(
        embed, images, rows, lambda part, places: noise(part.images, seeds[places], 0.2)
    )
    for found, expected in (
        (parts, whole),
        (pairs, embed(both)),
        (embed_view_pairs(embed, images, rows, ViewConfig(), 0, 1).table, pairs),
    ):
        assert torch.equal(found.features, expected.features)  # the pixels
        assert found.radius is not None and expected.radius is not None
        assert torch.allclose(found.radius, expected.radius)
        assert torch.allclose(found.direction, expected.direction, atol=1e-6)
        assert torch.equal(found.labels, expected.labels)
        assert list(found.paths) == list(expected.paths)


@pytest.mark.parametrize("name", ["noise", "views", "rotation"])
def test_no_float_copy_of_all_pixels_is_made(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    n, seeds = 320, torch.arange(320)
    images = checkers(n)
    monkeypatch.setattr(scores, "COPIES_AT_ONCE", 80)
    monkeypatch.setattr(scores, "VALUES_AT_ONCE", 10 * 400)

    def embed(some: ImageSet) -> Embeddings:
        corner = some.images[:, 0, 0, :2].float()
        return embeddings(corner, some.labels, ["test"] * len(some), direction=corner)

    changes = {
        "noise": lambda part, at: CORRUPTIONS["noise"](part.images, seeds[at], 0.3),
        "rotation": lambda part, at: rotation(part.images, seeds[at], 20.0),
    }
    rows = np.arange(n)
    with counted() as memory:
        if name == "views":
            embed_view_pairs(embed, images, rows, ViewConfig(), 0, 1)
        else:
            embed_changed(embed, images, rows, changes[name])
    # Two numbers of 8 bytes for each pixel of 10 of 320 images are half of all pixels
    assert memory.largest < 0.8 * bytes_of(images.images)


@pytest.mark.parametrize("n", [TRAIN, TRAIN + 1])
def test_fewer_than_two_test_images_are_an_error(n: int) -> None:
    images, embed = pictures(n), toy()
    with pytest.raises(UserError, match=f"{n - TRAIN} test images and {TRAIN} training images"):
        measure_uncertainty(embed, images, embed(images), ViewConfig())


def test_two_test_images_and_two_training_images_are_enough() -> None:
    check_splits(pictures(TRAIN + 2))
    two = pictures().select([0, 1, TRAIN, TRAIN + 1])
    check_splits(two)
    with pytest.raises(UserError, match="2 test images and 1 training images"):
        check_splits(two.select([0, 2, 3]))


def test_information_is_the_entropy_that_a_radius_removes() -> None:
    """In two dimensions it is -log(1 - rho^2) nats (theory 6)."""
    radius = torch.linspace(0, 0.9, 101)
    two = embeddings(torch.ones(101, 10), torch.zeros(101).long(), ["test"] * 101, radius)
    two = replace(two, direction=normalize(torch.ones(101, 2), dim=1))
    nats = -np.log1p(-(radius.double().numpy() ** 2))
    summary = summarise_information(two)
    assert summary is not None and summary.dimension == 2
    assert summary.mean == pytest.approx(nats.mean())
    assert summary.quantiles == pytest.approx(np.quantile(nats, [0.05, 0.25, 0.5, 0.75, 0.95]))
    assert summarise_information(replace(two, radius=None)) is None
    certain = summarise_information(replace(two, radius=torch.ones(101)))
    assert certain is not None and math.isfinite(certain.mean) and certain.mean > nats.max()


def test_the_information_is_of_the_test_images() -> None:
    images, embed = pictures(), toy()
    found = measure_uncertainty(embed, images, embed(images), ViewConfig(), levels=slice(0, 1))
    assert found.information == summarise_information(embed(images.test))
