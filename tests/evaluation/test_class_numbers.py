"""Numbers per class against scikit-learn and scipy; classes of one split (cases F5 and F10)."""

import pytest
import torch
from json_round_trip import read_back
from scipy.stats import binomtest
from sklearn.dummy import DummyClassifier
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score
from torch import Tensor

from sureclr.evaluation.results import ClassNumbers
from sureclr.evaluation.tables import class_numbers

NAMES = ("ant", "bee", "cow", "dog", "eel")


def counts(*per_class: int) -> Tensor:
    """Labels: so many of each class."""
    return torch.arange(len(per_class)).repeat_interleave(torch.tensor(per_class))


def some(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Training labels, test labels and predictions: bee is not tested, eel is not trained on."""
    generator = torch.Generator().manual_seed(seed)
    train, test = counts(5, 9, 20, 3), counts(12, 0, 10, 7, 4)
    return train, test, torch.randint(0, 4, (len(test),), generator=generator)


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_every_number_is_that_of_scikit_learn() -> None:
    train, test, named = some()
    found = class_numbers(train, test, named, NAMES)
    assert found.balanced_accuracy == pytest.approx(balanced_accuracy_score(test, named))
    assert found.macro_f1 == pytest.approx(f1_score(test, named, average="macro", zero_division=0))
    majority = DummyClassifier(strategy="most_frequent").fit(torch.zeros(len(train), 1), train)
    always = majority.predict(torch.zeros(len(test), 1))
    assert found.majority_baseline == pytest.approx(accuracy_score(test, always))
    assert found.majority_class == NAMES[always[0]] == "cow"
    assert [each.name for each in found.classes] == list(NAMES)
    matrix = confusion_matrix(test, named, labels=range(5))
    assert found.confusion == tuple(map(tuple, matrix.tolist()))
    for k, each in enumerate(found.classes):
        own = matrix[k]
        assert (each.n_train, each.n_test) == (int((train == k).sum()), own.sum())
        if each.n_test == 0:
            assert (each.accuracy, each.interval) == (None, None)
            continue
        assert each.accuracy == pytest.approx(own[k] / own.sum())
        exact = binomtest(int(own[k]), int(own.sum())).proportion_ci(0.95, method="wilson")
        assert each.interval == pytest.approx((exact.low, exact.high))
        own[k] = 0
        assert each.mistaken == own.max() == own[NAMES.index(each.taken_for)]


def test_the_top_confusions_are_the_largest_cells_off_the_diagonal() -> None:
    found = class_numbers(*some(), NAMES)
    assert found.confusion is not None
    cells = {
        (NAMES[i], NAMES[j]): count
        for i, row in enumerate(found.confusion)
        for j, count in enumerate(row)
        if i != j and count
    }
    top = {(each.truth, each.predicted): each.count for each in found.top_confusions}
    assert top == cells and list(top.values()) == sorted(cells.values(), reverse=True)


def test_classes_of_one_split_are_named_and_counted_as_wrong() -> None:
    """Case F10."""
    found = class_numbers(*some(), NAMES)
    assert (found.only_test, found.only_train) == (("eel",), ("bee",))
    eel = found.classes[4]
    assert (eel.accuracy, eel.n_train, eel.n_test, eel.precision, eel.f1) == (0.0, 0, 4, None, 0.0)
    assert found.worst[0].name == "eel" and len(found.worst) == 4
    accuracies = [each.accuracy for each in found.worst]
    assert accuracies == sorted(accuracies, key=lambda accuracy: accuracy or 0.0)


def test_classes_without_a_labelled_image_are_left_out() -> None:
    train, test = counts(2, 0, 2), counts(1, 0, 1)
    found = class_numbers(train, test, test, NAMES)
    assert [each.name for each in found.classes] == ["ant", "cow"]
    assert found.confusion == ((1, 0), (0, 1)) and found.top_confusions == ()
    assert found.balanced_accuracy == found.macro_f1 == 1.0
    assert {each.taken_for for each in found.classes} == {""}


def test_always_naming_the_commonest_class_is_the_majority_baseline() -> None:
    """Case F5: 400, 12, 4 and 1 images in four classes; .964 was all that was said."""
    train, test = counts(320, 10, 3, 1), counts(80, 2, 1, 0)
    found = class_numbers(train, test, torch.zeros_like(test), NAMES[:4])
    assert round(found.majority_baseline, 3) == 0.964 and found.majority_class == "ant"
    assert found.balanced_accuracy == pytest.approx(1 / 3)
    assert found.only_train == ("dog",)


def test_many_classes_have_no_matrix_and_are_counted_all_the_same() -> None:
    k = 1000
    train = torch.arange(k)
    found = class_numbers(train, train, (train + 1) % k, [str(i) for i in range(k)])
    assert found.confusion is None and len(found.classes) == k and len(found.top_confusions) == 20
    assert found.classes[999].taken_for == "0" and found.balanced_accuracy == 0
    small = class_numbers(train[:3], train[:3], train[:3], ["a", "b", "c"], matrix=2)
    assert small.confusion is None


def test_they_are_read_back() -> None:
    found = class_numbers(*some(), NAMES)
    assert isinstance(found, ClassNumbers) and read_back(found) == found
