"""`predict`: the answers, their probabilities, what is familiar, the file, and what is refused.

Witnesses: scikit-learn's logistic regression, scipy's minimiser, loops over all pairs, csv, json,
and pyarrow.
"""

import csv
import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import mahalanobis_by_numpy
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.optimize import minimize_scalar
from sklearn.linear_model import LogisticRegression
from tiny import train
from torch import Tensor

import sureclr
from sureclr.data.embeddings import Embeddings
from sureclr.data.image_set import ImageSet
from sureclr.data.label_matching import labels_in_file
from sureclr.data.label_request import LabelFile
from sureclr.errors import UserError
from sureclr.evaluation import classified_images, classifiers, prediction, prediction_table
from sureclr.evaluation.classifiers import (
    ONE_FOLD_FROM,
    FittedClassifier,
    calibration_loss,
    fit_linear,
    fit_temperature,
    knn_classifier,
    linear_classifier,
    neighbours_without,
)
from sureclr.evaluation.evidence_vote import TEMPERATURES
from sureclr.evaluation.prediction import predict
from sureclr.evaluation.prediction_table import Predictions
from sureclr.evaluation.probes import linear_probe
from sureclr.files import sealed
from sureclr.maths.neighbours import vote
from sureclr.progress import SILENT, SilentProgress

QUIET: dict[str, Any] = {"device": "cpu", "progress": SILENT}
CLASSES = ("bright", "dark", "middle")


class Messages(SilentProgress):
    """Remembers its messages."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


def write_classes(folder: Path, per_class: int, seed: int) -> Path:
    """Noise whose brightness says the class, but not always: the three overlap."""
    random = np.random.default_rng(seed)
    for name, middle in zip(CLASSES, (150, 100, 125), strict=True):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(per_class):
            level = random.normal(middle, 12)
            pixels = random.normal(level, 30, (8, 8, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i:03d}.png")
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a folder of three classes, and new photographs beside it."""
    place = tmp_path_factory.mktemp("predict")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SURECLR_CACHE", str(place / "cache"))
        write_classes(place / "photos" / "train", 24, 0)
        write_classes(place / "photos" / "test", 8, 2)
        source = f"folder:{place / 'photos'}"
        train(place / "run", None, source=source, size=8, batch_size=24, epochs=2)
    write_classes(place / "new", 10, 1)
    return place


@pytest.fixture
def place(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run that a test may change, and the photographs at their old place."""
    monkeypatch.setenv("SURECLR_CACHE", str(trained / "cache"))
    shutil.copytree(trained / "run", tmp_path / "run", ignore=shutil.ignore_patterns("classifiers"))
    return tmp_path


@pytest.fixture(scope="module")
def answers(trained: Path) -> Predictions:
    """Of the new photographs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SURECLR_CACHE", str(trained / "cache"))
        return predict(trained / "run", trained / "new", **QUIET)


@pytest.fixture(scope="module")
def tables(trained: Path, answers: Predictions) -> tuple[Embeddings, Embeddings]:
    """The run's own table, and that of the new photographs."""
    own = Embeddings.read(trained / "run" / "embeddings.parquet")
    new = sureclr.load(trained / "run", "cpu").embed(trained / "new")
    return own, new


def made_up(n: int, features: int, noise: float, seed: int, classes: int = 3) -> Embeddings:
    """A table of clusters that overlap; a fifth of it is the test split."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    centres = torch.randn(classes, features, generator=generator)
    x = centres[labels] + noise * torch.randn(n, features, generator=generator)
    split = np.where(np.arange(n) % 5 == 4, "test", "train")
    names = tuple("abcdefgh"[:classes])
    unit = x / x.norm(dim=1, keepdim=True)
    return Embeddings(x, unit, None, None, labels, names, split, [f"{i}" for i in range(n)])


# --- The linear classifier --------------------------------------------------------------


def test_probabilities_are_those_of_scikit_learn_at_the_temperature(
    answers: Predictions, tables: tuple[Embeddings, Embeddings]
) -> None:
    own, new = tables
    rows = own.labelled("train")
    x, y = rows.features.double().numpy(), rows.labels.numpy()
    mean, scale = x.mean(0), x.std(0)
    scale[scale < 1e-9] = 1
    probe = linear_probe(rows.features, rows.labels, rows.features, rows.labels, seed=0)
    model = LogisticRegression(C=1 / (len(x) * probe.strength), tol=1e-10, max_iter=5000)
    model.fit((x - mean) / scale, y)
    logits = model.decision_function((new.features.double().numpy() - mean) / scale)
    z = logits / answers.classifier.temperature
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    order = np.argsort(-p, axis=1)
    assert answers.label.tolist() == order[:, 0].tolist()
    assert answers.second.tolist() == order[:, 1].tolist()
    best = np.take_along_axis(p, order, 1)
    assert np.allclose(answers.probability, best[:, 0], atol=2e-3)
    assert np.allclose(answers.second_probability, best[:, 1], atol=2e-3)
    assert answers.paths == list(new.paths) and answers.classes == CLASSES


def test_the_temperature_is_that_of_scipy_and_of_the_loss_written_out() -> None:
    random = np.random.default_rng(0)
    for scale in (0.2, 1.0, 8.0):
        y = random.integers(0, 4, 90)
        z = random.normal(size=(90, 4))
        z[np.arange(90), y] += 1.5
        z *= scale

        def loss(log_t: float, z: Any = z, y: Any = y) -> float:
            total = 0.0
            for row, truth in zip(z / np.exp(log_t), y, strict=True):
                log_p = row - np.log(np.exp(row).sum())
                q = [(90 + 1) / (90 + 4) if k == truth else 1 / (90 + 4) for k in range(4)]
                total -= sum(qk * pk for qk, pk in zip(q, log_p, strict=True))
            return total / 90

        found = minimize_scalar(loss, bounds=(-4, 4), method="bounded", options={"xatol": 1e-9})
        logits, target = torch.from_numpy(z), torch.from_numpy(y)
        temperature = fit_temperature(logits, target)
        assert np.isclose(np.log(temperature), found.x, atol=1e-5)
        assert np.isclose(calibration_loss(logits, target, temperature), found.fun)


def test_right_answers_alone_do_not_make_certain() -> None:
    """25 of 25 right with wide margins: the probability stays near Laplace's 26 / 27."""
    target = torch.arange(25) % 2
    logits = torch.nn.functional.one_hot(target, 2).double() * 5
    p = (logits / fit_temperature(logits, target)).softmax(1).amax(1)
    assert torch.allclose(p, torch.full_like(p, 26 / 27))


def test_calibration_lowers_the_loss_on_images_that_nobody_has_seen() -> None:
    """On average over data sets whose features are so many that the plain probe is too sure."""
    gains = []
    for seed in range(6):
        table = made_up(300, 40, 2.5, seed)
        parameters, facts = fit_linear(table, "made up")
        test = table.labelled("test")
        z = linear_classifier(parameters, facts).logits(None, test)  # type: ignore[arg-type]
        plain, calibrated = (
            float(torch.nn.functional.cross_entropy(z / t, test.labels))
            for t in (1.0, facts.temperature)
        )
        gains.append(plain - calibrated)
    assert np.mean(gains) > 0.02 and sum(gain >= 0 for gain in gains) >= 5


def test_held_out_logits_come_from_probes_that_did_not_see_the_image() -> None:
    """Labels without any meaning: an honest held-out accuracy is chance."""
    generator = torch.Generator().manual_seed(0)
    table = made_up(400, 200, 1.0, 0)
    nonsense = torch.randint(0, 3, (400,), generator=generator)
    table = Embeddings(**{**vars(table), "labels": nonsense})
    _, facts = fit_linear(table, "made up")
    assert facts.n_held_out == facts.n_train == 320 and facts.held_out_accuracy is not None
    assert abs(facts.held_out_accuracy - 1 / 3) < 0.09 and facts.temperature > 1.5


def test_few_labels_are_not_calibrated_and_many_are_split_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, few = fit_linear(made_up(20, 5, 1.0, 0), "few")
    assert few.temperature == 1 and few.n_held_out == 16 and "16 labelled images" in few.calibration
    assert ONE_FOLD_FROM == 5000
    monkeypatch.setattr(classifiers, "ONE_FOLD_FROM", 240)
    _, many = fit_linear(made_up(300, 5, 1.0, 0), "many")
    assert many.n_train == 240 and many.n_held_out == 48 and "a fifth" in many.calibration


def test_a_class_with_one_label_can_be_answered_and_is_never_held_out() -> None:
    table = made_up(150, 5, 0.5, 0)
    labels = torch.where(table.labels == 2, -1, table.labels)
    labels[2] = 2  # of the training split
    table = Embeddings(**{**vars(table), "labels": labels})
    _, facts = fit_linear(table, "one")
    assert facts.classes == ("a", "b", "c") and facts.n_held_out == facts.n_train - 1


# --- Neighbours -----------------------------------------------------------------------


def brute(query: Tensor, keys: Tensor, without: int) -> list[tuple[float, int]]:
    unit = [key / key.norm() for key in keys.double()]
    q = query.double() / query.double().norm()
    pairs = [(float(q @ key), j) for j, key in enumerate(unit) if j != without]
    return sorted(pairs, key=lambda pair: (-pair[0], pair[1]))


def test_nearest_labelled_images_are_those_of_a_loop(
    answers: Predictions, tables: tuple[Embeddings, Embeddings]
) -> None:
    """By the whitened cosine, with numpy's matrices; few labels, so the exponent is 1/4."""
    own, new = tables
    rows = own.labelled("train")
    assert answers.labelled_paths == rows.paths
    known = mahalanobis_by_numpy.whitened(rows.features, own.features[own.split == "train"])
    asked = mahalanobis_by_numpy.whitened(new.features, own.features[own.split == "train"])
    for i in range(0, len(new), 7):
        wanted = brute(torch.from_numpy(asked[i]), torch.from_numpy(known), -1)[:3]
        assert np.allclose(answers.nearest_cosine[i], [c for c, _ in wanted], atol=1e-5)
        assert answers.nearest[i].tolist() == [j for _, j in wanted]
    row = next(answers.rows())
    first = answers.nearest[0].tolist()
    assert [row[f"nearest_{k}"] for k in (1, 2, 3)] == [rows.paths[j] for j in first]
    assert row["nearest_2_label"] == own.classes[int(rows.labels[first[1]])]


def test_a_query_does_not_find_the_key_that_it_must_not() -> None:
    keys = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    excluded = torch.tensor([0, -1, 5, 3])
    queries = torch.stack([keys[0], keys[1], keys[5], torch.ones(4)])
    for k in (1, 3, 8, 20):
        cosine, rows = neighbours_without(queries, excluded, keys, k)
        assert rows.shape == (4, min(k, 8))
        for i in range(4):
            wanted = brute(queries[i], keys, int(excluded[i]))[: min(k, 8)]
            assert rows[i].tolist() == [j for _, j in wanted]
            assert np.allclose(cosine[i], [c for c, _ in wanted], atol=1e-6)
    assert neighbours_without(keys[:1], torch.tensor([0]), keys[:1], 3)[1].shape == (1, 0)


def test_knn_answers_as_the_vote_and_its_probabilities_are_shares() -> None:
    table = made_up(200, 6, 1.2, 3)
    train, test = table.labelled("train"), table.labelled("test")
    fitted = knn_classifier(table, "made up")
    p = fitted.probabilities(None, test)  # type: ignore[arg-type]
    hits = 0
    for i in range(len(test)):
        share, best = np.zeros(3), brute(test.features[i], train.features, -1)[:20]
        for cosine, j in best:
            share[int(train.labels[j])] += np.exp(cosine / 0.1)
        share = share / share.sum() + 0.03
        wanted = share ** (1 / fitted.facts.temperature)
        assert np.allclose(p[i], wanted / wanted.sum(), atol=1e-5)
        similarity = torch.tensor([[c for c, _ in best]])
        voted = int(vote(similarity, train.labels[torch.tensor([[j for _, j in best]])], 3))
        assert int(p[i].argmax()) == voted
        hits += voted == int(test.labels[i])
    assert fitted.facts.accuracy == hits / len(test) and fitted.facts.n_held_out == len(train)
    alone = 0
    for i in range(len(train)):
        share = np.zeros(3)
        for cosine, j in brute(train.features[i], train.features, i)[:20]:
            share[int(train.labels[j])] += np.exp(cosine / 0.1)
        alone += int(share.argmax()) == int(train.labels[i])
    assert fitted.facts.held_out_accuracy == alone / len(train)


# --- Familiarity ----------------------------------------------------------------------


def test_familiar_is_the_share_of_test_images_that_are_as_far(
    answers: Predictions, tables: tuple[Embeddings, Embeddings]
) -> None:
    own, new = tables
    train, test = own.features[own.split != "test"], own.features[own.split == "test"]
    assert answers.n_compared == len(test) and answers.compared_with == "test images"
    wanted = mahalanobis_by_numpy.p_values(new.features, train, test)
    assert (abs(answers.familiar.numpy() - wanted) < 1.5 / (len(test) + 1)).all()


def test_training_images_that_are_held_out_for_labels_are_not_compared_with(
    place: Path, answers: Predictions, tables: tuple[Embeddings, Embeddings]
) -> None:
    """Only labels of training images: a part of them is tested, and the encoder knows them."""
    own, _ = tables
    labels = [
        own.classes[k] if split == "train" else -1
        for k, split in zip(own.labels.tolist(), own.split, strict=True)
    ]
    rows = [f"{path},{k}" for path, k in zip(own.paths, labels, strict=True) if k != -1]
    (place / "labels.csv").write_text("\n".join(["path,label", *rows]), encoding="utf-8")
    with open(place / "labels.csv", "a", encoding="utf-8") as file:
        file.write(f"\n{own.paths[-1]},another\n")  # so that the test images lose their labels
    write_classes(place / "more", 1, 9)
    found = predict(place / "run", place / "more", labels=place / "labels.csv", **QUIET)
    assert found.classifier.n_test > 1
    assert found.n_compared == answers.n_compared == int((own.split == "test").sum())
    assert found.sets is found.coverage is None and "set" not in next(found.rows())
    assert "need 9 labelled images or more that neither the encoder nor" in found.no_sets
    with pytest.raises(UserError, match="and there are 0; label test images, or ask for a lower"):
        predict(place / "run", place / "more", labels=place / "labels.csv", coverage=0.9, **QUIET)


def test_strange_images_are_marked_and_keep_their_class(place: Path) -> None:
    strange = np.zeros((4, 8, 8, 3), np.uint8)
    strange[:, ::2, :, 0] = 255
    answers = predict(place / "run", strange, unfamiliar=0.06, **QUIET)
    assert answers.unfamiliar.all() and (answers.label >= 0).all()
    assert float(answers.familiar.max()) == 1 / (answers.n_compared + 1)
    assert [row["unfamiliar"] for row in answers.rows()] == [True] * 4


# --- Sets and evidence ----------------------------------------------------------------


def loop_sets(p: Tensor, target: Tensor, new: Tensor, coverage: float) -> list[set[int]]:
    """By the conformal p-value of each class, number by number, all classes together."""
    right = [float(row[k]) for row, k in zip(p, target.tolist(), strict=True)]

    def p_value(value: float) -> float:
        return (1 + sum(other <= value + 1e-9 for other in right)) / (len(right) + 1)

    return [
        {k for k, value in enumerate(row.tolist()) if p_value(value) > 1 - coverage + 1e-9}
        for row in new
    ]


def test_sets_are_those_of_a_loop_over_the_test_images(
    answers: Predictions, tables: tuple[Embeddings, Embeddings]
) -> None:
    own, new = tables
    fitted = linear_classifier(*fit_linear(own, "photos"))
    test = own.labelled("test")
    p, new_p = (fitted.probabilities(None, part) for part in (test, new))  # type: ignore[arg-type]
    assert answers.sets is not None and answers.coverage is not None
    wanted = loop_sets(p, test.labels, new_p, 0.9)
    assert [{CLASSES.index(name) for name in names} for names in answers.sets] == wanted
    for names, row in zip(answers.sets, new_p, strict=True):
        chances = [float(row[CLASSES.index(name)]) for name in names]
        assert chances == sorted(chances, reverse=True)
    found, sizes = answers.coverage, [len(members) for members in wanted]
    assert (found.coverage, found.n_calibration, found.n, found.classes) == (0.9, 24, 30, 3)
    assert found.mean_size == np.mean(sizes) and found.full == np.mean(np.array(sizes) == 3)
    assert found.empty == np.mean(np.array(sizes) == 0) and found.own_thresholds == 0
    hits = [own in names for own, names in zip(answers.own_label, answers.sets, strict=True)]
    assert found.n_observed == 30 and found.observed == np.mean(hits) and found.n_unknown == 0
    rows = list(answers.rows())
    assert [row["set"] for row in rows] == ["|".join(names) for names in answers.sets]
    assert [row["set_size"] for row in rows] == sizes


def test_calibration_images_are_judged_by_the_other_half_and_by_copies_alike(
    place: Path, trained: Path
) -> None:
    own = predict(place / "run", coverage=0.5, **QUIET)
    test = predict(place / "run", trained / "photos" / "test", coverage=0.5, **QUIET)
    assert own.sets is not None and test.sets is not None and test.coverage is not None
    rows = [i for i, row in enumerate(own.rows()) if not row["learned_from"]]
    assert [own.sets[i] for i in rows] == test.sets  # found by their pixels
    assert own.coverage is not None and own.coverage.n_observed == 24 == len(rows)
    hits = [own.own_label[i] in own.sets[i] for i in rows]
    assert own.coverage.observed == test.coverage.observed == np.mean(hits)
    assert "these are judged half by half" in own.coverage.note == test.coverage.note
    table = Embeddings.read(place / "run" / "embeddings.parquet")
    p = linear_classifier(*fit_linear(table, "photos")).probabilities(
        None,  # type: ignore[arg-type]
        table.labelled("test"),
    )
    together = loop_sets(p, table.labelled("test").labels, p, 0.5)
    assert [{CLASSES.index(name) for name in names} for names in test.sets] != together


def test_a_class_name_may_contain_the_divider(place: Path, answers: Predictions) -> None:
    facts = replace(answers.classifier, classes=("a|b", "c\\", "d"))
    odd = replace(answers, classifier=facts, set_members=torch.tensor([0, 1, 2]))
    odd = replace(odd, set_sizes=torch.tensor([2, 0, 1] + [0] * 27))
    rows = list(odd.rows())
    assert [row["set"] for row in rows[:3]] == ["a\\|b|c\\\\", "", "d"]
    assert [row["set_size"] for row in rows[:3]] == [2, 0, 1]


def test_evidence_is_the_log_mean_of_a_loop(
    place: Path, answers: Predictions, tables: tuple[Embeddings, Embeddings]
) -> None:
    own, new = tables
    gallery = own.select(own.split != "test")
    m = own.kernel_dimension
    assert m is not None and gallery.radius is not None and answers.evidence is not None

    def evidence(table: Embeddings, i: int, without: int = -1) -> float:
        assert table.radius is not None and gallery.radius is not None
        terms = []
        for j in range(len(gallery)):
            r = float(table.radius[i]) * float(gallery.radius[j])
            c = float(table.direction[i].double() @ gallery.direction[j].double())
            if j != without:
                terms.append((1 - r * r) / (1 - 2 * r * c + r * r) ** (m / 2))
        return float(np.log(np.mean(terms)))

    for i in range(0, 30, 6):
        assert np.isclose(float(answers.evidence[i]), evidence(new, i), atol=1e-3)
    assert answers.n_evidence == len(gallery) == 72
    itself = predict(place / "run", classifier="evidence", **QUIET)
    row = int(np.flatnonzero(own.split == "train")[5])
    assert itself.evidence is not None
    assert np.isclose(float(itself.evidence[row]), evidence(own, row, 5), atol=1e-3)
    assert itself.classifier.name == "evidence" and itself.classifier.n_train == 72
    assert itself.classifier.evidence_temperature in TEMPERATURES


def test_a_temperature_that_saw_the_test_images_is_taken_out_of_sets() -> None:
    z = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).double()
    facts = replace(knn_classifier(made_up(60, 4, 1.0, 0), "made up").facts, temperature=3.0)
    plain = FittedClassifier(lambda *_: z, facts)
    p = plain.probabilities(None, None)  # type: ignore[arg-type]
    assert torch.equal(plain.without_test_images(p), p)
    assert torch.allclose(
        replace(plain, tempered_on_test=True).without_test_images(p), z.softmax(1)
    )


# --- The run's own images ---------------------------------------------------------------


def test_an_image_that_was_learned_from_is_said_so_and_does_not_find_itself(place: Path) -> None:
    answers = predict(place / "run", **QUIET)
    own = Embeddings.read(place / "run" / "embeddings.parquet")
    learned = (own.split == "train") & (own.labels.numpy() >= 0)
    assert answers.learned_from.tolist() == learned.tolist() and answers.paths == own.paths
    for row in answers.rows():
        assert row["path"] not in (row["nearest_1"], row["nearest_2"], row["nearest_3"])
    known, unseen = own.features[own.split == "train"], own.features[own.split == "test"]
    wanted = mahalanobis_by_numpy.p_values(own.features, known, unseen)
    assert (abs(answers.familiar.numpy() - wanted) < 1.5 / (len(unseen) + 1)).all()
    test = [row for row in answers.rows() if not row["learned_from"]]
    right = sum(row["label"] == row["own_label"] for row in test)
    assert answers.accuracy is not None and answers.accuracy.n == len(test)
    assert answers.accuracy.accuracy == right / len(test) == answers.classifier.accuracy
    again = predict(
        place / "run", sureclr.load_images(sureclr.load(place / "run").source, size=8), **QUIET
    )
    assert list(again.rows()) == list(answers.rows())


def test_the_answers_do_not_depend_on_how_many_are_made_at_once(
    place: Path, trained: Path, answers: Predictions, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("IMAGES_AT_ONCE", "FILES_AT_ONCE"):
        monkeypatch.setattr(classified_images, name, 7)
    monkeypatch.setattr(prediction_table, "ROWS_AT_ONCE", 7)
    files = [trained / "new" / path for path in answers.paths]
    for source in (trained / "new", files):
        some = predict(place / "run", source, **QUIET)
        assert torch.equal(some.label, answers.label) and torch.equal(some.nearest, answers.nearest)
        assert torch.allclose(some.probability, answers.probability, atol=1e-5)
        assert len(list(some.rows())) == 30


def test_without_the_pixels_of_the_training_images_their_features_tell(
    place: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the images are gone and the run's table is left."""
    run = sureclr.load(place / "run", "cpu")
    files = [
        trained / "photos" / "train" / "dark" / "000.png",
        trained / "new" / "dark" / "000.png",
    ]
    wanted = list(predict(run, files, **QUIET).rows())
    answering = prediction._Answering.of

    def without_pixels(*about: Any) -> Any:
        return replace(answering(*about), row_of=None)

    monkeypatch.setattr(prediction._Answering, "of", staticmethod(without_pixels))
    assert list(predict(run, files, **QUIET).rows()) == wanted
    assert [row["learned_from"] for row in wanted] == [True, False]


def test_own_labels_count_only_where_names_match(place: Path, trained: Path) -> None:
    images = sureclr.load_images(f"folder:{trained / 'new'}", size=8)
    answers = predict(place / "run", images, **QUIET)
    right = sum(row["label"] == row["own_label"] for row in answers.rows())
    assert answers.accuracy is not None and answers.accuracy.accuracy == right / 30
    other = sureclr.as_image_set(images.images, labels=["cat", "dog"] * 15)
    assert predict(place / "run", other, **QUIET).accuracy is None


# --- The classifier that is kept --------------------------------------------------------


def fits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count how often a linear classifier is fitted."""
    made: list[int] = []

    def counting(table: Embeddings, source: str, seed: int = 0) -> Any:
        made.append(len(table))
        return fit_linear(table, source, seed)

    monkeypatch.setattr(classifiers, "fit_linear", counting)
    return made


def test_the_classifier_is_fitted_once_for_each_origin(
    place: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = fits(monkeypatch)
    first = predict(place / "run", trained / "new", **QUIET)
    again = predict(place / "run", trained / "new", **QUIET)
    assert len(made) == 1 and list(first.rows()) == list(again.rows())
    assert first.classifier == again.classifier
    own = Embeddings.read(place / "run" / "embeddings.parquet")
    swapped = [(int(k) + 1) % 3 for k in own.labels]
    other = predict(place / "run", trained / "new", swapped, **QUIET)
    assert len(made) == 2 and (other.label != first.label).any()
    predict(place / "run", trained / "new", **QUIET)
    assert len(made) == 2 and len(list((place / "run" / "classifiers").iterdir())) == 4


def test_after_more_training_the_kept_classifier_is_not_used(
    place: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = fits(monkeypatch)
    predict(place / "run", trained / "new", **QUIET)
    kept = {file.name for file in (place / "run" / "classifiers").iterdir()}
    saved = place / "kept"
    shutil.copytree(place / "run" / "classifiers", saved)
    source = f"folder:{trained / 'photos'}"
    train(place / "run", None, source=source, size=8, batch_size=24, epochs=1, overwrite=True)
    assert not (place / "run" / "classifiers").exists()
    shutil.copytree(saved, place / "run" / "classifiers")  # a user puts them back
    predict(place / "run", trained / "new", **QUIET)
    now = {file.name for file in (place / "run" / "classifiers").iterdir()}
    assert len(made) == 2 and len(now) == 2 and not now & kept


@pytest.mark.parametrize("ending", [".json", ".safetensors"])
def test_a_damaged_classifier_is_made_anew_and_said(
    place: Path, trained: Path, ending: str
) -> None:
    first = predict(place / "run", trained / "new", **QUIET)
    file = next((place / "run" / "classifiers").glob(f"*{ending}"))
    data = bytearray(file.read_bytes())
    data[-9 if ending == ".safetensors" else 2] ^= 64
    file.write_bytes(data)
    progress = Messages()
    again = predict(place / "run", trained / "new", device="cpu", progress=progress)
    assert any("it is made anew" in message for message in progress.messages)
    assert list(first.rows()) == list(again.rows())


@pytest.mark.parametrize("change", [lambda p: p[1:], lambda p: p.float(), lambda p: p / 0])
def test_a_kept_classifier_of_another_form_is_made_anew(
    place: Path, trained: Path, change: Any
) -> None:
    """Its checksums are right, as a stranger's are."""
    from safetensors.torch import load_file, save_file

    run, files = place / "run", [next((trained / "new" / "dark").iterdir())]
    first = predict(run, files, **QUIET)
    (weights,) = (run / "classifiers").glob("*.safetensors")
    save_file({"parameters": change(load_file(weights)["parameters"])}, weights)
    record = weights.with_suffix(".json")
    content = json.loads(record.read_text())
    content["parameters_sha256"] = hashlib.sha256(weights.read_bytes()).hexdigest()
    record.write_text(json.dumps(sealed(content, record.name)))
    assert list(predict(run, files, **QUIET).rows()) == list(first.rows())


# --- The file -------------------------------------------------------------------------


def test_all_formats_hold_the_same_rows(place: Path, trained: Path) -> None:
    import pyarrow.parquet

    odd = place / 'a "quoted", name\nof two lines .png'
    Image.fromarray(np.full((8, 8, 3), 140, np.uint8)).save(odd)
    (place / "cut.png").write_bytes(b"\x89PNG and nothing else")
    files = [str(odd), str(place / "cut.png"), *map(str, (trained / "new" / "dark").iterdir())]
    answers = predict(place / "run", files, **QUIET)
    rows = list(answers.rows())
    assert len(rows) == 12 and len(answers) == 11
    assert rows[-1]["path"] == str(place / "cut.png") and rows[-1]["error"]
    assert rows[-1]["label"] is rows[-1]["probability"] is rows[-1]["unfamiliar"] is None
    lines = answers.save(place / "a.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows
    parquet = pyarrow.parquet.read_table(answers.save(place / "a.parquet"))
    assert parquet.to_pylist() == rows
    with answers.save(place / "a.CSV").open(newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    words = {None: "", True: "true", False: "false"}
    assert read == [
        {name: words[v] if v is None or isinstance(v, bool) else str(v) for name, v in row.items()}
        for row in rows
    ]


def test_no_cell_of_a_csv_file_is_a_formula(place: Path, answers: Predictions) -> None:
    names = ("=1+1.png", "-2+3.png", "@SUM(1).png", " +1.png", "'=1.png", "-5", "a=1.png")
    paths = (*names, *answers.paths[len(names) :])
    classes = ('=HYPERLINK("x")', "-c", *answers.classes[2:])
    facts = replace(answers.classifier, classes=classes)
    evil = replace(answers, paths=paths, classifier=facts)
    file = evil.save(place / "evil.csv")
    with file.open(newline="", encoding="utf-8") as opened:
        rows = list(csv.DictReader(opened))
    cells = [cell.strip() for row in rows for cell in row.values() if cell]
    assert {cell for cell in cells if cell.startswith(("=", "+", "-", "@"))} <= {"-5"}
    assert rows[0]["path"] == "'=1+1.png" and rows[6]["path"] == "a=1.png"
    n = len(paths)
    blank, unknown = torch.zeros(n, 3, 1, 1, dtype=torch.uint8), torch.full((n,), -1)
    images = ImageSet("mine", blank, unknown, evil.classes, np.full(n, "train"), paths)
    read = labels_in_file(LabelFile(file), images)
    assert read.rows.tolist() == list(range(n)) and read.own_classes
    assert torch.equal(read.target, evil.label)


def test_rows_of_files_that_cannot_be_read_write_nothing_to_a_terminal(
    place: Path, trained: Path
) -> None:
    shutil.copytree(trained / "new" / "dark", place / "odd")
    (place / "odd" / "\x1b[2Jcut\n.png").write_bytes(b"\x89PNG and nothing else")
    answers = predict(place / "run", place / "odd", **QUIET)
    assert list(answers.errors) == [r"\x1b[2Jcut\n.png"]


def test_a_file_that_exists_is_kept_unless_it_may_be_replaced(
    place: Path, answers: Predictions
) -> None:
    out = place / "mine.csv"
    out.write_text("labels of mine")
    with pytest.raises(UserError, match="exists already; give another out=, or overwrite=True"):
        answers.save(out)
    assert out.read_text() == "labels of mine"
    answers.save(out, overwrite=True)
    assert out.read_text().startswith("path,label,probability")
    assert [file.name for file in place.glob(".mine*")] == []


@pytest.mark.parametrize(
    ("out", "sentence"),
    [
        ("a.xlsx", "must end in .csv, .jsonl or .parquet"),
        ("none/a.csv", "does not exist; make it"),
        ("folder.csv", "is a folder"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused(
    place: Path, answers: Predictions, out: str, sentence: str
) -> None:
    (place / "folder.csv").mkdir()
    with pytest.raises(UserError, match=sentence):
        answers.save(place / out)


# --- Other networks, and what is refused ------------------------------------------------


class Constant:
    """Answers b with .7 for every image."""

    classes = ("dark", "middle")

    def probabilities(self, images: Any, /) -> Tensor:
        return torch.tensor([[0.3, 0.7]]).expand(len(images), 2)


def test_a_network_of_ones_own_classifies(place: Path, trained: Path) -> None:
    answers = predict(place / "run", trained / "new", classifier=Constant(), **QUIET)
    own = Embeddings.read(place / "run" / "embeddings.parquet").labelled("test")
    share = float((own.labels == own.classes.index("middle")).double().mean())
    assert answers.counts == {"middle": 30} and answers.classifier.accuracy == share
    assert (
        answers.classifier.temperature == 1 and "not calibrated" in answers.classifier.calibration
    )
    assert torch.allclose(answers.probability, torch.full((30,), 0.7).double())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"classifier": "lienar"}, "unknown classifier 'lienar': did you mean linear"),
        ({"classifier": "finetuned"}, "pass classifier=sureclr.load_finetuned"),
        ({"unfamiliar": 1.5}, "unfamiliar must be a share of at least 0 and below 1, not 1.5"),
        ({"coverage": 1.5}, "coverage must be a share above 0 and below 1, and is 1.5; try 0.9"),
        ({"coverage": 0.99}, "0.99 need 99 labelled images or more .* there are 24; label test"),
        ({"labels": [-1] * 96}, "needs labelled images, and .* has none"),
        ({"labels": ["dark"] * 96}, "belong to the class 'dark'; label images of at least two"),
        ({"images": "nowhere"}, "unknown image file, folder or data source 'nowhere'"),
    ],
)
def test_bad_input_is_one_sentence(
    place: Path, trained: Path, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence) as error:
        predict(place / "run", **{"images": trained / "new", **options}, **QUIET)
    assert "\n" not in str(error.value)


def test_files_of_which_none_can_be_read_are_refused(place: Path) -> None:
    for name in "ab":
        (place / f"{name}.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match="none of the 2 files can be read as an image: .*a.png"):
        predict(place / "run", [place / "a.png", place / "b.png"], **QUIET)


def test_images_that_are_gone_are_not_needed(place: Path, trained: Path) -> None:
    """The table of the run is enough, and an image of the run is known by its features."""
    kept = trained / "photos" / "train" / "dark" / "000.png"
    (place / "one.png").write_bytes(kept.read_bytes())
    files = [place / "one.png", trained / "new" / "dark" / "000.png"]
    wanted = list(predict(place / "run", files, **QUIET).rows())
    (trained / "photos").rename(trained / "moved")
    try:
        assert list(predict(place / "run", files, **QUIET).rows()) == wanted
        own = predict(place / "run", classifier="knn", **QUIET)
    finally:
        (trained / "moved").rename(trained / "photos")
    assert len(own) == 96 and int(own.learned_from.sum()) == 72
    assert [row["learned_from"] for row in wanted] == [True, False]


def test_files_of_a_folder_that_cannot_be_read_have_a_row(place: Path) -> None:
    """Also where they are more than a tenth of all."""
    write_classes(place / "some", 2, 5)
    for i in range(3):
        (place / "some" / "dark" / f"bad{i}.png").write_bytes(b"nothing")
    answers = predict(place / "run", place / "some", **QUIET)
    assert len(answers) == 6 and set(answers.errors) == {f"dark/bad{i}.png" for i in range(3)}


def test_every_picture_of_a_folder_is_classified_and_no_split_is_spoken_of(place: Path) -> None:
    """Training leaves out copies in the test split, and pictures beside the split folders."""
    write_classes(place / "some" / "train", 2, 5)
    write_classes(place / "some" / "test", 2, 6)
    write_classes(place / "some" / "val", 1, 7)
    original = place / "some" / "train" / "dark" / "000.png"
    for name in ("test/dark/copy.png", "beside.png"):
        (place / "some" / name).write_bytes(original.read_bytes())
    (place / "some" / "bad.png").write_bytes(b"nothing")
    files = {file.relative_to(place / "some").as_posix() for file in place.rglob("some/**/*.png")}
    progress = Messages()
    for images in (place / "some", f"folder:{place / 'some'}"):
        answers = predict(place / "run", images, device="cpu", progress=progress)
        assert {*answers.paths, *answers.errors} == files and set(answers.errors) == {"bad.png"}
        row = dict(zip(answers.paths, answers.probability.tolist(), strict=True))
        assert row["beside.png"] == row["test/dark/copy.png"] == row["train/dark/000.png"]
        assert "Splits" not in answers.note
    assert not [text for text in progress.messages if "some" in text and "train," in text]
