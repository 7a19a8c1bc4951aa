"""Frozen dataclasses as JSON and back, checked against their type hints.

Results are kept as JSON that other programs read, and are dataclasses inside this package. The two
forms have the same names: a field is a key, a tuple is a list, and a number that is not finite is
null, because JSON has no NaN.
"""

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Record = TypeVar("Record")


class SchemaError(ValueError):
    """JSON that does not have the form of the dataclass it should become; the text names where."""


def to_json(value: Any) -> Any:
    """Return dicts, lists, strings, booleans, None and finite numbers for a value of ours.

    >>> to_json({"interval": (0.5, float("nan"))})
    {'interval': [0.5, None]}
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def from_json(record: type[Record], value: Any, where: str = "") -> Record:
    """Return the dataclass that `to_json` turned into this value.

    Args:
        record: the dataclass.
        value: parsed JSON.
        where: the place of the value, for the error message.

    Raises:
        SchemaError: a key is missing or unknown, or a value has another type. A key whose field has
            a default may be missing, because older files lack it.
    """
    if not isinstance(value, dict):
        raise SchemaError(f"{where or record.__name__} is {value!r:.40} where an object belongs")
    hints: dict[str, Any] = _hints(record)  # type: ignore[arg-type]  # a class is hashable
    for key in value:
        if key not in hints:
            raise SchemaError(f"{where}.{key} is not known".lstrip("."))
    for key in _required(record):  # type: ignore[arg-type]  # a class is hashable
        if key not in value:
            raise SchemaError(f"{where}.{key} is missing".lstrip("."))
    values = {
        key: _parsed(hints[key], value[key], f"{where}.{key}".lstrip("."))
        for key in hints
        if key in value
    }
    return record(**values)


@cache
def _hints(record: type[Any]) -> dict[str, Any]:
    """Each field's type; cached, because a result holds hundreds of small records."""
    hints = get_type_hints(record)
    return {field.name: hints[field.name] for field in fields(record)}


@cache
def _required(record: type[Any]) -> tuple[str, ...]:
    """The names of the fields without a default."""
    return tuple(
        field.name
        for field in fields(record)
        if field.default is MISSING and field.default_factory is MISSING
    )


def _parsed(hint: Any, value: Any, where: str) -> Any:
    """Return the value as its type hint wants it."""
    origin = get_origin(hint)
    if hint is Any:
        return value
    if origin in (Union, UnionType):
        return _parsed_union(get_args(hint), value, where)
    if is_dataclass(hint) and isinstance(hint, type):
        return from_json(hint, value, where)
    if origin is tuple and isinstance(value, list):
        parts = get_args(hint)
        if len(parts) == 2 and parts[1] is Ellipsis:
            parts = (parts[0],) * len(value)
        if len(parts) == len(value):
            pairs = zip(parts, value, strict=True)
            return tuple(_parsed(part, v, f"{where}[{i}]") for i, (part, v) in enumerate(pairs))
    if origin is dict and isinstance(value, dict):
        inner = get_args(hint)[1]
        return {key: _parsed(inner, v, f"{where}.{key}") for key, v in value.items()}
    if origin is Literal and value in get_args(hint):
        return value
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint in (int, str, bool, NoneType) and type(value) is hint:
        return value
    raise SchemaError(f"{where} is {value!r:.40}, which is not of type {hint}")


def _parsed_union(choices: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and NoneType in choices:
        return None
    failures = []
    for choice in choices:
        if choice is NoneType:
            continue
        try:
            return _parsed(choice, value, where)
        except SchemaError as error:
            failures.append(error)
    raise failures[0]
