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
    assert list(found) == ["uniform-noise", "inverted", "flipped", "digits", "fashion-mnist"]
    assert found["inverted"].auroc["certainty"] == 1  # the bright half becomes the dark one
    assert found["uniform-noise"].auroc["certainty"] == 1
    assert found["flipped"].auroc["certainty"] == pytest.approx(
        0.5, abs=0.01
    )  # upside down, left and right stay
    assert found["digits"].n == 797
    assert "resized from 8 to 12" in found["digits"].note
    assert set(found["inverted"].auroc) == {
        "certainty",
        "neighbour_similarity",
        "feature_norm",
        "negative_entropy",
    }


def test_auroc_is_scikit_learns_with_the_own_images_positive() -> None:
    images = pictures()
    table = embed(images)
    foreign = ood.alter("uniform-noise", images.test, 0)
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


def test_the_alterations_are_what_they_say() -> None:
    test = pictures(n=900).test
    assert np.array_equal(
        ood.alter("flipped", test, 0).images.numpy(), test.images.numpy()[:, :, ::-1, :]
    )
    assert np.array_equal(ood.alter("inverted", test, 0).images.numpy(), 255 - test.images.numpy())
    noise = ood.alter("uniform-noise", test, 0).images
    assert noise.shape == test.images.shape
    assert stats.chisquare(np.bincount(noise.flatten().numpy(), minlength=256)).pvalue > 1e-3
    assert len(noise.flatten(1).unique(dim=0)) == len(noise)  # every image another
    assert torch.equal(noise, ood.alter("uniform-noise", test, 0).images)
    assert not torch.equal(noise, ood.alter("uniform-noise", test, 1).images)


def test_the_own_data_set_and_a_missing_one_are_skipped_with_the_reason() -> None:
    images = pictures("digits")
    found = ood.measure_ood(embed, images, embed(images), without_fashion(images))
    assert (found["digits"].n, found["digits"].auroc) == (0, {})
    assert [kind for kind, result in found.items() if not result.skipped] == list(ood.ALTERATIONS)
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


# --- CIFAR-10H ------------------------------------------------------------------------


def probabilities() -> np.ndarray:
    return np.random.default_rng(0).dirichlet(np.full(10, 0.3), 10_000)


def test_human_entropies_are_scipys(tmp_path: Path) -> None:
    p = probabilities()
    p[0] = np.eye(10)[3]  # all agree
    np.save(tmp_path / "good.npy", p)
    found = ood.read_human_entropies(tmp_path / "good.npy")
    assert np.allclose(found, stats.entropy(p, axis=1)) and found[0] == 0


def negative_probability() -> np.ndarray:
    p = probabilities()
    p[5, :2] = p[5, :2].sum() + 0.1, -0.1
    return p


@pytest.mark.parametrize(
    "content",
    [
        probabilities()[:50],
        probabilities() * 50,
        negative_probability(),
        np.array([{"not": "data"}], dtype=object),
        "hello",
        None,
    ],
    ids=["few", "counts", "negative", "pickled", "text", "absent"],
)
def test_other_files_than_human_probabilities_are_refused(tmp_path: Path, content: Any) -> None:
    file = tmp_path / "file.npy"
    if isinstance(content, np.ndarray):
        np.save(file, content, allow_pickle=True)
    elif content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match="CIFAR-10H"):
        ood.read_human_entropies(file)


def test_certainty_follows_minus_the_human_entropy() -> None:
    entropies = torch.from_numpy(stats.entropy(probabilities(), axis=1))
    features = torch.rand(10_020, 4, generator=torch.Generator().manual_seed(0))
    certainty = torch.cat([torch.zeros(20), -(entropies.float() ** 3)])
    split = np.repeat(["train", "test"], [20, 10_000])
    table = Embeddings(
        features,
        normalize(features, dim=1),
        None,
        certainty,
        torch.arange(10_020) % 2,
        ("a", "b"),
        split,
        [str(i) for i in range(10_020)],
    )
    images = pictures("cifar10")
    found = ood.correlate_with_humans(images, table, entropies)
    assert found.n == 10_000 and found.spearman["certainty"] > 0.999
    norm = stats.spearmanr(features[20:].norm(dim=1), -entropies).statistic
    assert found.spearman["feature_norm"] == pytest.approx(norm, abs=1e-6)
    with pytest.raises(UserError, match="cifar10"):
        ood.correlate_with_humans(pictures("digits"), table, entropies)


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
