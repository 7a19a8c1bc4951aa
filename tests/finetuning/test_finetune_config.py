"""The settings: what is refused, what is accepted at the edge, and the defaults that depend."""

import math
from dataclasses import replace
from typing import Any

import pytest
from few_labels import QUICK

from sureclr.errors import UserError
from sureclr.finetuning.config import FinetuneConfig


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"seeds": 0}, "seeds must be a number from 1 on"),
        ({"seeds": ()}, "seeds must be"),
        ({"seeds": (0, 0)}, "seeds must be"),
        ({"seeds": (0, -1)}, "seeds must be"),
        ({"seeds": 2.5}, "seeds must be"),
        ({"seeds": True}, "seeds must be"),
        ({"learning_rates": ()}, "learning_rates must be"),
        ({"learning_rates": 0.1}, "learning_rates must be different positive numbers"),
        ({"learning_rates": (0.1, -1.0)}, "learning_rates must be"),
        ({"learning_rates": (0.1, 0.0)}, "learning_rates must be"),
        ({"learning_rates": (0.1, 0.1)}, "learning_rates must be"),
        ({"learning_rates": (0.1, math.inf)}, "learning_rates must be"),
        ({"learning_rates": (True,)}, "learning_rates must be"),
        ({"classifier_learning_rate": 0.0}, "classifier_learning_rate must be a positive number"),
        ({"epochs": 0}, "epochs"),
        ({"batch_size": 1}, "batch_size"),
        ({"validation": 1.0}, "validation"),
        ({"validation": 0.0}, "validation"),
        ({"bn": "off"}, "bn must be one of"),
        ({"schedule": "step"}, "schedule"),
        ({"fold": -1}, "fold must be a number from 0 on"),
        ({"labels": "0.1"}, "neither a share nor a count"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"weight_decay": math.nan}, "weight_decay"),
        ({"warmup_epochs": math.inf}, "warmup_epochs"),
        ({"warmup_epochs": -0.5}, "warmup_epochs"),
        ({"momentum": 1.0}, "momentum"),
        ({"momentum": 0.0}, "momentum"),
    ],
)
def test_bad_settings_are_refused_by_name(option: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        replace(QUICK, **option)


@pytest.mark.parametrize(
    "option",
    [
        {"seeds": 1},
        {"epochs": 1},
        {"batch_size": 2},
        {"fold": 0},
        {"weight_decay": 0.0},
        {"warmup_epochs": 0.0},
        {"learning_rates": (1,)},
    ],
)
def test_the_smallest_allowed_values_are_accepted(option: dict[str, Any]) -> None:
    (name, value), *_ = option.items()
    assert getattr(replace(QUICK, **option), name) == value


def test_a_list_of_learning_rates_is_as_good_as_a_tuple() -> None:
    assert replace(QUICK, learning_rates=[0.02, 0.1]) == QUICK


def test_a_tenth_of_the_labels_is_the_default_and_a_whole_fold() -> None:
    assert FinetuneConfig().label_request == "10%"
    assert FinetuneConfig(fold=0).label_request == "100%"
    assert FinetuneConfig(labels="7", fold=0).label_request == "7"
