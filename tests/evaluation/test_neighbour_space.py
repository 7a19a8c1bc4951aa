"""The space of neighbours: an exponent by leave-one-out, and whitened votes.

Witnesses: a leave-one-out loop with numpy's matrices, and scikit-learn's vote of whitened rows.
"""

from dataclasses import replace

import mahalanobis_by_numpy
import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch.nn.functional import normalize

from sureclr.data.embeddings import Embeddings
from sureclr.errors import UserError
from sureclr.evaluation.neighbour_space import EXPONENTS, choose_space
from sureclr.evaluation.neighbour_vote import vote_whitened


def hidden(n: int, seed: int, loud: float) -> Embeddings:
    """Classes in quiet columns beside columns of noise, which are louder for a larger `loud`."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    centres = torch.randn(3, 6, generator=torch.Generator().manual_seed(5))
    quiet = centres[labels] + torch.randn(n, 6, generator=generator)
    x = torch.cat([quiet, loud * torch.randn(n, 3, generator=generator)], 1)
    x = torch.cat([x, torch.full((n, 1), 20.0)], 1)  # so that length 1 changes little
    split = np.where(np.arange(n) % 4 == 3, "test", "train")
    paths = [str(i) for i in range(n)]
    return Embeddings(x, normalize(x), None, None, labels, ("a", "b", "c"), split, paths)


def leave_one_out(table: Embeddings, exponent: float) -> int:
    """By a loop over the labelled training images: how many are named right by 20 others."""
    train = table.labelled("train")
    x = mahalanobis_by_numpy.whitened(train.features, train.features, exponent)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y, right = train.labels.numpy(), 0
    for i in range(len(x)):
        cosine = x @ x[i]
        cosine[i] = -2
        near = np.argsort(-cosine)[:20]
        votes = np.bincount(y[near], np.exp(cosine[near] / 0.1), minlength=3)
        right += int(votes.argmax() == y[i])
    return right


@pytest.mark.parametrize("loud", [0.2, 3.0])
def test_the_exponent_is_that_of_a_leave_one_out_loop(loud: float) -> None:
    table = hidden(240, 0, loud)
    right = [leave_one_out(table, exponent) for exponent in EXPONENTS]
    assert len(set(right)) > 1
    space = choose_space(table)
    assert space.exponent == EXPONENTS[int(np.argmax(right))] and space.n_chosen_on == 180


def test_an_image_does_not_vote_on_itself() -> None:
    """Among many quiet columns of noise, whitening leaves an image alone with its own vote."""
    table = hidden(240, 0, 0.2)
    noise = 0.2 * torch.randn(240, 60, generator=torch.Generator().manual_seed(1))
    table = replace(table, features=torch.cat([table.features, noise], 1))
    right = [leave_one_out(table, exponent) for exponent in EXPONENTS]
    assert choose_space(table).exponent == EXPONENTS[int(np.argmax(right))] < 0.5


def test_test_images_take_no_part_in_the_choice() -> None:
    table = hidden(240, 0, 3.0)
    test = torch.from_numpy(table.split == "test")
    other = replace(
        table,
        features=torch.where(test[:, None], 100 * torch.randn(240, 10), table.features),
        labels=torch.where(test, 0, table.labels),
    )
    one, two = choose_space(table), choose_space(other)
    assert one.exponent == two.exponent and torch.equal(one.axes.axes, two.axes.axes)


def test_with_few_labels_the_exponent_is_a_quarter() -> None:
    table = hidden(240, 0, 3.0)
    few = replace(table, labels=torch.where(torch.arange(240) < 90, table.labels, -1))
    for each in (few, replace(table, labels=torch.full((240,), -1))):
        space = choose_space(each)
        assert (space.exponent, space.n_chosen_on) == (0.25, 0)


def test_the_whitened_vote_is_that_of_scikit_learn() -> None:
    table = hidden(400, 0, 3.0)
    found = vote_whitened(table)
    train, test = table.labelled("train"), table.labelled("test")
    x, tx = (
        mahalanobis_by_numpy.whitened(part.features, train.features, found.exponent)
        for part in (train, test)
    )
    x, tx = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, tx))
    witness = KNeighborsClassifier(20, weights=lambda d: np.exp(-(d**2) / 0.2))
    witness.fit(x, train.labels.numpy())
    assert found.accuracy == witness.score(tx, test.labels.numpy())
    assert found.interval[0] < found.accuracy < found.interval[1]
    with pytest.raises(UserError, match="needs labels"):
        vote_whitened(replace(table, labels=torch.full((400,), -1)))
