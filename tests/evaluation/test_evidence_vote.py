"""The vote by evidence. Witnesses: loops over pairs, and labels drawn from its own law."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from sureclr.data.embeddings import Embeddings
from sureclr.errors import UserError
from sureclr.evaluation.classifiers import Gallery, fit_temperature
from sureclr.evaluation.evidence_vote import (
    TEMPERATURES,
    EvidenceGallery,
    class_evidence,
    evidence_classifier,
)
from sureclr.evaluation.tables import evidence_against
from sureclr.maths.sphere import evidence_matrix

NAMES = ("a", "b", "c")
KERNEL = 30.0  # dimension


def clusters(n: int, seed: int, noise: float = 0.7, tests: int = 0) -> Embeddings:
    """Three clusters of directions that overlap; radii differ; the last images are for testing."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (n,), generator=g)
    centres = 2 * torch.eye(6)[:3]
    direction = normalize(centres[labels] + noise * torch.randn(n, 6, generator=g), dim=1)
    radius = 0.2 + 0.6 * torch.rand(n, generator=g)
    split = np.where(np.arange(n) < n - tests, "train", "test")
    paths = [str(i) for i in range(n)]
    return Embeddings(direction, direction, radius, radius, labels, NAMES, split, paths, KERNEL)


def all_nats(a: Embeddings, b: Embeddings) -> list[list[float]]:
    """The evidence of all pairs by the formula, in float64."""
    assert a.radius is not None and b.radius is not None
    r = np.outer(a.radius.double(), b.radius.double())
    cosine = a.direction.double().numpy() @ b.direction.double().numpy().T
    found = np.log(1 - r**2) - KERNEL / 2 * np.log(1 - 2 * r * cosine + r**2)
    return found.tolist()  # type: ignore[no-any-return]


def test_class_evidence_is_the_sum_of_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    known, queries = clusters(40, 0), clusters(9, 1)
    known = known.select(known.labels.argsort(stable=True).numpy())
    own = torch.tensor([-1, 3, -1, 39, -1, -1, 0, -1, -1])
    nats = all_nats(queries, known)
    for at_once in (1 << 21, 90):
        monkeypatch.setattr("sureclr.evaluation.evidence_vote.EVIDENCE_AT_ONCE", at_once)
        found = class_evidence(queries, known, own, [1.0, 5.0]).softmax(2)
        for t, temperature in enumerate((1.0, 5.0)):
            for i in range(9):
                sums = [0.0, 0.0, 0.0]
                for j in range(40):
                    if j != int(own[i]):
                        sums[int(known.labels[j])] += math.exp(nats[i][j] / temperature)
                wanted = [value / sum(sums) for value in sums]
                assert np.allclose(found[t, i], wanted, atol=2e-5)


def test_the_classifier_divides_evidence_by_its_two_temperatures() -> None:
    table = clusters(160, 2, tests=40)
    train, test = table.labelled("train"), table.labelled("test")
    fitted = evidence_classifier(table, "made up")
    facts = fitted.facts
    found = fitted.probabilities(None, test)  # type: ignore[arg-type]
    assert facts.evidence_temperature in TEMPERATURES
    nats = all_nats(test, train)
    for i in range(0, 40, 7):
        sums = [0.0, 0.0, 0.0]
        for j in range(len(train)):
            sums[int(train.labels[j])] += math.exp(nats[i][j] / facts.evidence_temperature)
        wanted = np.array(sums) ** (1 / facts.temperature)
        assert np.allclose(found[i], wanted / wanted.sum(), atol=1e-4)
    right = float((found.argmax(1) == test.labels).double().mean())
    assert (facts.name, facts.n_train, facts.n_test) == ("evidence", 120, 40)
    assert facts.accuracy == right > 0.5 and facts.n_held_out == 120
    alone, nats = 0, all_nats(train, train)
    for i in range(120):
        sums = [0.0, 0.0, 0.0]
        for j in range(120):
            if j != i:
                sums[int(train.labels[j])] += math.exp(nats[i][j] / facts.evidence_temperature)
        alone += int(np.argmax(sums)) == int(train.labels[i])
    assert facts.held_out_accuracy == alone / 120


def labels_of_the_law(table: Embeddings, temperature: float, sweeps: int) -> Tensor:
    """Draw each image's label from the vote of all others at T, again and again (Gibbs)."""
    s = evidence_matrix(table.posterior, table.posterior, KERNEL).double()
    weights = torch.exp(s / temperature).fill_diagonal_(0)
    g, labels = torch.Generator().manual_seed(0), table.labels.clone()
    for _ in range(sweeps):
        for i, j in enumerate(weights.multinomial(1, generator=g)[:, 0].tolist()):
            labels[i] = labels[j]  # an image drawn by its weight gives its class
    return labels


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_temperature_of_synthetic_labels_is_recovered(temperature: float) -> None:
    table = clusters(600, 3, noise=0.5)
    labels = labels_of_the_law(table, temperature, 3)
    facts = evidence_classifier(replace(table, labels=labels), "made up").facts
    assert facts.evidence_temperature is not None
    assert temperature / 2 <= facts.evidence_temperature <= 2 * temperature
    assert 0.6 < facts.temperature < 1.6


def test_evidence_is_against_a_sample_of_a_big_gallery() -> None:
    gallery, queries = clusters(50, 4), clusters(5, 5)
    nobody = torch.full((5,), -1)
    whole = EvidenceGallery.of(gallery)
    assert len(whole.images) == 50
    wanted = evidence_against(queries, gallery, nobody)
    assert torch.equal(whole.evidence(queries, nobody), wanted)  # type: ignore[arg-type]
    some = EvidenceGallery.of(gallery, 20)
    kept = (some.place >= 0).nonzero()[:, 0]
    assert list(some.images.paths) == [gallery.paths[i] for i in kept] and len(kept) == 20
    own = torch.tensor([int(kept[3]), int((some.place < 0).nonzero()[0]), -1, -1, -1])
    found = some.evidence(queries, own)
    assert found is not None
    nats = all_nats(queries, some.images)
    for i, left_out in enumerate((3, -1, -1, -1, -1)):
        terms = [math.exp(nats[i][j]) for j in range(20) if j != left_out]
        assert math.isclose(float(found[i]), math.log(sum(terms) / len(terms)), abs_tol=1e-4)
    assert some.evidence(replace(queries, radius=None), own) is None


def test_what_the_vote_cannot_work_with_is_refused() -> None:
    table = clusters(60, 6)
    with pytest.raises(UserError, match="needs a loss with a radius, such as sure"):
        evidence_classifier(replace(table, radius=None), "made up")
    with pytest.raises(UserError, match="label images of at least two classes"):
        evidence_classifier(replace(table, labels=table.labels * 0), "made up")


def test_few_labels_are_answered_at_a_known_temperature() -> None:
    table = clusters(12, 7)
    facts = evidence_classifier(table, "made up", Gallery.of(table)).facts
    assert facts.evidence_temperature == 4 and facts.temperature == 1
    assert "not calibrated, because 12 labelled images" in facts.calibration


def test_the_second_temperature_is_fitted_to_the_images_left_out() -> None:
    table = clusters(200, 8)
    order = table.labels.argsort(stable=True)
    known = table.select(order.numpy())
    facts = evidence_classifier(table, "made up").facts
    assert facts.evidence_temperature is not None
    z = class_evidence(known, known, torch.arange(200), [facts.evidence_temperature])[0]
    assert math.isclose(facts.temperature, fit_temperature(z, known.labels), rel_tol=1e-6)
