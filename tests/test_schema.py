"""Dataclasses as JSON: the witness is `json` itself, and values of every kind that a result has."""

import json
import math
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from sureclr.schema import SchemaError, from_json, to_json


@dataclass(frozen=True)
class Inner:
    name: str
    value: float | None


@dataclass(frozen=True)
class Outer:
    count: int
    share: float
    ready: bool
    pair: tuple[int, float]
    many: tuple[Inner, ...]
    by_name: dict[str, float | None]
    kind: Literal["a", "b"]
    trained: tuple[float, float] | bool
    anything: Any
    maybe: Inner | None = None


VALUE = Outer(
    3, 0.5, True, (1, 2.0), (Inner("x", 1.0), Inner("y", None)), {"k": 0.1}, "a", False, {"z": [1]}
)
JSON: dict[str, Any] = {
    "count": 3,
    "share": 0.5,
    "ready": True,
    "pair": [1, 2.0],
    "many": [{"name": "x", "value": 1.0}, {"name": "y", "value": None}],
    "by_name": {"k": 0.1},
    "kind": "a",
    "trained": False,
    "anything": {"z": [1]},
    "maybe": None,
}


def test_fields_are_keys() -> None:
    assert to_json(VALUE) == JSON


def test_what_was_written_is_read_back() -> None:
    assert from_json(Outer, json.loads(json.dumps(to_json(VALUE)))) == VALUE


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_null(value: float) -> None:
    assert json.dumps(to_json(Inner("x", value)), allow_nan=False) == '{"name": "x", "value": null}'


def test_a_whole_number_serves_as_a_float_but_a_truth_value_does_not() -> None:
    assert from_json(Inner, {"name": "x", "value": 2}) == Inner("x", 2.0)
    with pytest.raises(SchemaError, match="value"):
        from_json(Inner, {"name": "x", "value": True})


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"count": 3.5}, "count"),
        ({"count": True}, "count"),
        ({"ready": 1}, "ready"),
        ({"pair": [1]}, "pair"),
        ({"pair": [1, 2.0, 3]}, "pair"),
        ({"many": [{"name": "x"}]}, "many[0].value"),
        ({"many": [{"name": "x", "value": "1"}]}, "many[0].value"),
        ({"many": {"name": "x"}}, "many"),
        ({"by_name": {"k": "no"}}, "by_name.k"),
        ({"by_name": [1]}, "by_name"),
        ({"kind": "c"}, "kind"),
        ({"trained": "yes"}, "trained"),
        ({"maybe": 3}, "maybe"),
        ({"unknown": 1}, "unknown"),
        ({"share": None}, "share"),
    ],
)
def test_another_form_is_refused_where_it_differs(change: dict[str, Any], where: str) -> None:
    with pytest.raises(SchemaError) as error:
        from_json(Outer, {**JSON, **change})
    assert where in str(error.value)


@pytest.mark.parametrize("key", [key for key in JSON if key != "maybe"])
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(SchemaError, match=f"{key} is missing"):
        from_json(Outer, {name: value for name, value in JSON.items() if name != key})


def test_a_key_whose_field_has_a_default_may_be_missing_because_older_files_lack_it() -> None:
    assert from_json(Outer, {name: value for name, value in JSON.items() if name != "maybe"}) == (
        VALUE
    )


@pytest.mark.parametrize("value", [None, 3, [1], "text"])
def test_something_that_is_no_object_is_refused(value: Any) -> None:
    with pytest.raises(SchemaError, match="an object belongs"):
        from_json(Inner, value, "here")
