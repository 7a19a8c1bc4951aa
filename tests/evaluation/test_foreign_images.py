"""Foreign images made and met, against scikit-learn's AUROC and scipy's Spearman."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from json_round_trip import read_back
from scipy import stats
from sklearn.metrics import roc_auc_score
from torch.nn.functional import normalize

from sureclr.data.embeddings import Embeddings
from sureclr.data.image_set import ImageSet
from sureclr.errors import UserError
from sureclr.evaluation import foreign_images as ood
from sureclr.evaluation.inputs import load_test_images
from sureclr.evaluation.results import OodResult
from sureclr.evaluation.scores import Reference, score_images

N, SIDE = 90, 12


def pictures(name: str = "pictures", n: int = N) -> ImageSet:
    """A bright left half with noise; a third are test images."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 60, (n, 1, SIDE, SIDE), generator=generator)
    pixels[..., : SIDE // 2] += 180
    split = np.asarray(["test" if i % 3 == 0 else "train" for i in range(n)])
    return ImageSet(
        name,
        pixels.to(torch.uint8),
        torch.arange(n) // 3 % 2,
        ("a", "b"),
        split,
        [str(i) for i in range(n)],
    )


def embed(images: ImageSet) -> Embeddings:
    """Pixels as features; certainty is the brightness of the left half less that of the right."""
    x = images.images.float() / 255
    certainty = x[..., : SIDE // 2].mean((1, 2, 3)) - x[..., SIDE // 2 :].mean((1, 2, 3))
    flat = x.flatten(1)
    return Embeddings(
        flat,
        normalize(flat, dim=1),
        None,
        certainty,
        images.labels,
        images.classes,
        images.split,
        images.paths,
    )


def without_fashion(like: ImageSet) -> Callable[[str], ImageSet]:
    def other_test_images(name: str) -> ImageSet:
        if name == "fashion-mnist":
            raise UserError("fashion-mnist is not here")
        return load_test_images(name, like, None)

    return other_test_images


def test_a_certainty_that_knows_its_own_images_separates_them_from_others() -> None:
    images = pictures()
    found = ood.measure_ood(embed, images, embed(images), without_fashion(images))
    assert read_back(OodResult(found, None)) == OodResult(found, None)
    assert list(found) == [*MADE, "digits", "fashion-mnist"]
    assert found["inverted"].auroc["certainty"] == 1  # the bright half becomes the dark one
    assert found["uniform-noise"].auroc["certainty"] == 1
    assert found["flipped"].auroc["certainty"] == pytest.approx(
        0.5, abs=0.01
    )  # upside down, left and right stay
    assert found["digits"].n == 797
    assert "resized from 8 to 12" in found["digits"].note
    assert set(found["inverted"].auroc) == {
        "certainty",
        "familiarity",
        "neighbour_similarity",
        "mean_similarity",
        "feature_norm",
        "negative_entropy",
    }


def test_auroc_is_scikit_learns_with_the_own_images_positive() -> None:
    images = pictures()
    table = embed(images)
    foreign = altered("uniform-noise", images.test)
    reference = Reference.of(table)
    own, other = (
        score_images(table.select(table.split == "test"), reference),
        score_images(embed(foreign), reference),
    )
    found = ood.separate(own, other, "").auroc
    for name, score in own.scores.items():
        truth = np.repeat([1, 0], [len(score), len(other.scores[name])])
        assert found[name] == pytest.approx(
            roc_auc_score(truth, torch.cat([score, other.scores[name]]).double())
        )


MADE = ("uniform-noise", "constant", "smooth-noise", "tiles", "inverted", "flipped")


def test_constant_smooth_and_tiled_images_are_what_they_say() -> None:
    test = pictures(n=900).test
    pixels = test.images[:]
    s = pixels.shape[-1]
    colours = altered("constant", test).images
    assert torch.equal(colours, colours[:, :, :1, :1].expand_as(colours))
    assert (
        stats.chisquare(np.bincount(colours[:, 0, 0, 0].numpy() // 32, minlength=8)).pvalue > 1e-3
    )
    side = s // 4
    tiled = altered("tiles", test).images
    for before, after in zip(pixels, tiled, strict=True):
        cut = [
            [
                x[:, i : i + side, j : j + side].numpy().tobytes()
                for i in range(0, 4 * side, side)
                for j in range(0, 4 * side, side)
            ]
            for x in (before, after)
        ]
        assert sorted(cut[0]) == sorted(cut[1])
    assert not torch.equal(tiled, pixels)
    smooth = altered("smooth-noise", test).images.double()
    power = (torch.fft.fft2(smooth - smooth.mean((2, 3), keepdim=True)).abs() ** 2).mean((0, 1))
    along = power[0, 1 : s // 2].log() - power[0, 1].log()
    steps = torch.arange(1, s // 2).double().log()
    assert float(along @ steps / (steps @ steps)) == pytest.approx(-2, abs=0.3)  # amplitude 1 / f


def altered(name: str, test: ImageSet, seed: int = 0) -> ImageSet:
    note, change = ood.alterations(np.arange(len(test)), seed)[name]
    return test.with_pixels(change(test, torch.arange(len(test))), note=note)


def test_the_alterations_are_what_they_say() -> None:
    test = pictures(n=900).test
    assert np.array_equal(
        altered("flipped", test).images.numpy(), test.images.numpy()[:, :, ::-1, :]
    )
    assert np.array_equal(altered("inverted", test).images.numpy(), 255 - test.images.numpy())
    noise = altered("uniform-noise", test).images
    assert noise.shape == test.images.shape
    assert stats.chisquare(np.bincount(noise.flatten().numpy(), minlength=256)).pvalue > 1e-3
    assert len(noise.flatten(1).unique(dim=0)) == len(noise)  # every image another
    assert torch.equal(noise, altered("uniform-noise", test).images)
    assert not torch.equal(noise, altered("uniform-noise", test, 1).images)


def test_the_own_data_set_and_a_missing_one_are_skipped_with_the_reason() -> None:
    images = pictures("digits")
    found = ood.measure_ood(embed, images, embed(images), without_fashion(images))
    assert (found["digits"].n, found["digits"].auroc) == (0, {})
    assert [kind for kind, result in found.items() if not result.skipped] == list(MADE)
    assert "the images come from" in found["digits"].skipped
    assert found["fashion-mnist"].skipped == "fashion-mnist is not here"


def test_other_images_come_as_the_run_takes_them() -> None:
    colour = replace(pictures(), images=torch.zeros(N, 3, 20, 20, dtype=torch.uint8))
    foreign = load_test_images("digits", colour, None)
    assert foreign.images.shape == (797, 3, 20, 20)
    assert set(foreign.split.tolist()) == {"test"}
    assert "resized from 8 to 20" in foreign.note
    small = replace(pictures(), images=torch.zeros(N, 1, 8, 8, dtype=torch.uint8))
    assert load_test_images("digits", small, None).note == ""


# --- People ---------------------------------------------------------------------------

TESTS = 300


def people(n: int = TESTS) -> np.ndarray:
    return np.random.default_rng(0).dirichlet(np.full(10, 0.3), n)


def judged() -> tuple[ImageSet, Embeddings]:
    """20 training and 300 test images; the certainty falls with what people disagree on."""
    n = 20 + TESTS
    features = torch.rand(n, 4, generator=torch.Generator().manual_seed(0))
    entropy = torch.from_numpy(stats.entropy(people(), axis=1)).float()
    split, names = np.repeat(["train", "test"], [20, TESTS]), [f"{i}.png" for i in range(n)]
    labels = torch.arange(n) % 2
    certainty = torch.cat([torch.zeros(20), -(entropy**3)])
    direction = normalize(features, dim=1)
    pixels = torch.zeros(n, 1, 2, 2, dtype=torch.uint8)
    return (
        ImageSet("mine", pixels, labels, ("a", "b"), split, names),
        Embeddings(features, direction, None, certainty, labels, ("a", "b"), split, names),
    )


@pytest.mark.parametrize("factor", [1, 50])
def test_people_may_have_given_probabilities_or_counts(tmp_path: Path, factor: int) -> None:
    images, _ = judged()
    np.save(tmp_path / "good.npy", people() * factor)
    shares = ood.read_human_shares(tmp_path / "good.npy", images)
    assert np.allclose(shares, people()) and shares.shape == (TESTS, 10)


def test_a_file_of_labels_gives_the_shares_that_its_rows_have(tmp_path: Path) -> None:
    """The test images are rows 20 to 319; image 21 got three votes and image 25 one."""
    images, _ = judged()
    (tmp_path / "votes.csv").write_text(
        "path,label\n21.png,a\n21.png,b\n21.png,b\n25.png,b\n3.png,a\n"
    )
    shares = ood.read_human_shares(tmp_path / "votes.csv", images)
    assert shares[1].tolist() == pytest.approx([1 / 3, 2 / 3]) and shares[5].tolist() == [0, 1]
    assert float(shares.sum()) == pytest.approx(2), "nothing is known of the others"


def negative_probability() -> np.ndarray:
    p = people()
    p[5, :2] = p[5, :2].sum() + 0.1, -0.1
    return p


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (people(50), "a row for each of the 300 test images of mine"),
        (people()[:, 0], "has the shape"),
        (people() * np.inf, "must hold counts or probabilities"),
        (negative_probability(), "must hold counts or probabilities"),
        (np.array([{"not": "data"}], dtype=object), "cannot be read"),
        ("hello", "cannot be read"),
        (None, "cannot be read"),
    ],
    ids=["few", "flat", "infinite", "negative", "pickled", "text", "absent"],
)
def test_other_files_than_human_shares_are_refused(
    tmp_path: Path, content: Any, words: str
) -> None:
    file = tmp_path / "file.npy"
    if isinstance(content, np.ndarray):
        with np.errstate(invalid="ignore"):
            np.save(file, content, allow_pickle=True)
    elif content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=words):
        ood.read_human_shares(file, judged()[0])


def test_certainty_follows_minus_the_human_entropy() -> None:
    images, table = judged()
    found = ood.correlate_with_humans(images, table, torch.from_numpy(people()))
    assert found.n == TESTS and found.spearman["certainty"] > 0.999
    norm = table.features[20:].norm(dim=1)
    truth = stats.spearmanr(norm, -stats.entropy(people(), axis=1)).statistic
    assert found.spearman["feature_norm"] == pytest.approx(truth, abs=1e-6)


def test_images_that_nobody_labelled_do_not_count() -> None:
    images, table = judged()
    shares = torch.from_numpy(people())
    shares[::3] = 0
    found, known = ood.correlate_with_humans(images, table, shares), np.arange(TESTS) % 3 > 0
    norm = table.features[20:].norm(dim=1)[torch.from_numpy(known)]
    truth = stats.spearmanr(norm, -stats.entropy(people()[known], axis=1)).statistic
    assert found.n == 200 and found.spearman["feature_norm"] == pytest.approx(truth, abs=1e-6)
    with pytest.raises(UserError, match="people labelled 0 test images of mine"):
        ood.correlate_with_humans(images, table, torch.zeros(TESTS, 2))


@pytest.mark.parametrize("split", ["train", "test"])
def test_images_without_a_test_or_a_training_split_are_refused(split: str) -> None:
    images = ImageSet(
        "mine",
        torch.zeros(4, 1, 8, 8, dtype=torch.uint8),
        torch.full((4,), -1),
        (),
        np.full(4, split),
        ["a", "b", "c", "d"],
    )
    with pytest.raises(UserError, match="mine needs both"):
        ood.measure_ood(fail, images, fail, fail)


def fail(*_: object) -> None:
    raise AssertionError("nothing may be computed")
