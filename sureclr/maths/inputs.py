"""What losses, the sphere and tables accept: types and shapes, and ranges of numbers.

Types, shapes and plain numbers are always checked, which costs nothing. The values of a tensor are
checked where reading them is cheap: on a CPU, outside of torch.compile and torch.func.vmap. A GPU
would have to be waited for in every step, so there a value outside its range makes the result NaN
instead: never a plausible number. Functions of tables wait in any case, and check everything.
"""

import math
from collections.abc import Callable, Mapping
from numbers import Integral, Real

import torch
from torch import Tensor

from sureclr.config import LARGEST, LARGEST_NUMBER, LEAST_TEMPERATURE
from sureclr.errors import UserError

LARGEST_OPTION = LARGEST_NUMBER["temperature"]  # of a loss, whatever it is
NUMBERS_AT_ONCE = 1 << 20  # of a table that are looked at together
LONGEST = 1.01  # of a direction: half precision rounds a length of 1 to at most 1.008


class OutOfRange(UserError):
    """A value of a tensor is NaN or infinite, or lies outside its range."""


# Plain numbers


def above(name: str, value: float, bound: float, way_out: str = "choose a larger one") -> float:
    """Return the value of the argument `name` if it is a finite number above the bound.

    Args:
        name: of the argument.
        value: of it.
        bound: that it must exceed.
        way_out: the end of the sentence.

    Raises:
        UserError: it is not, or it is above `LARGEST_OPTION`, where float32 would overflow.
    """
    if not _is_number(value) or not bound < value < math.inf:
        raise UserError(
            f"{name} must be a finite number above {bound:g}, and is {value}; {way_out}."
        )
    return _small_enough(name, value)


def not_negative(name: str, value: float) -> float:
    """Return the value of the argument `name` if it is a finite number, 0 or more.

    Raises:
        UserError: it is not, or it is above `LARGEST_OPTION`, where float32 would overflow.
    """
    if not _is_number(value) or not 0 <= value < math.inf:
        raise UserError(
            f"{name} must be a finite number, 0 or more, and is {value}; 0 switches its term off."
        )
    return _small_enough(name, value)


def checked_temperature(value: float) -> float:
    """Return the temperature tau if it is a number that a loss can divide by.

    Raises:
        UserError: it is not a finite number above 0, or it is so small or large that float32 would
            overflow.
    """
    if above("temperature", value, 0) < LEAST_TEMPERATURE:
        raise UserError(
            f"temperature must be at least {LEAST_TEMPERATURE:g}, and is {value}; choose a larger"
            " one."
        )
    return value


def checked_count(name: str, value: int) -> int:
    """Return the value of the argument `name` if it is a whole number from 1 to 65,536.

    Raises:
        UserError: it is not.
    """
    most = LARGEST["samples"]
    if not _is_number(value) or not 1 <= value <= most or value != int(value):
        raise UserError(
            f"{name} must be a whole number from 1 to {most:,}, and is {value}; choose for example"
            " 16."
        )
    return int(value)


def checked_share(name: str, value: float, meaning: str) -> float:
    """Return the value of the argument `name` if it lies in [0, 1].

    Args:
        name: of the argument.
        value: of it.
        meaning: what 0 stands for, as the end of the sentence.

    Raises:
        UserError: it does not.
    """
    if not _is_number(value) or not 0 <= value <= 1:
        raise UserError(f"{name} must lie in [0, 1], and is {value}; {meaning}.")
    return value


def is_whole(value: object) -> bool:
    """Whether it is one whole number, of Python or numpy, and no truth value."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    """Whether it is one real number: also numpy's, and a tensor without a dimension."""
    return (isinstance(value, Real) and not isinstance(value, bool)) or (
        isinstance(value, Tensor) and value.ndim == 0 and not value.is_complex()
    )


def _small_enough(name: str, value: float) -> float:
    if value > LARGEST_OPTION:
        raise UserError(
            f"{name} must be at most {LARGEST_OPTION:,}, and is {value}; choose a smaller one."
        )
    return value


# Tensors


def check_tensor(name: str, x: object) -> None:
    """Raise a `UserError` unless x, the argument `name`, is a tensor."""
    if not isinstance(x, Tensor):
        raise UserError(
            f"{name} must be a torch tensor, and is a {type(x).__module__}.{type(x).__name__};"
            " convert it with torch.as_tensor(...)."
        )


def check_floating(name: str, x: object) -> None:
    """Raise a `UserError` unless x, the argument `name`, is a floating-point tensor."""
    check_tensor(name, x)
    if isinstance(x, Tensor) and not x.is_floating_point():
        raise UserError(
            f"{name} must have a floating-point type, and has {x.dtype}; convert it with .float()."
        )


def check_rows(name: str, x: object) -> None:
    """Raise a `UserError` unless x is a floating-point tensor of two dimensions."""
    check_floating(name, x)
    if isinstance(x, Tensor) and x.ndim != 2:
        raise UserError(
            f"{name} must have the shape (rows, coordinates), and have {tuple(x.shape)}; reshape"
            " them."
        )


def check_numbers(name: str, x: object, rows: Tensor, of: str = "directions") -> None:
    """Raise a `UserError` unless x is floating-point, with one number for each of the rows.

    Args:
        name: of the argument.
        x: its value.
        rows: (..., d), on the device where x must be, too.
        of: the name of the rows.
    """
    check_floating(name, x)
    if not isinstance(x, Tensor):
        return
    shape = tuple(rows.shape[:-1])
    if tuple(x.shape) != shape:
        way_out = f", for example with {name}.flatten()" if x.numel() == math.prod(shape) else ""
        raise UserError(
            f"{name} must have the shape {shape}, one number for each row of {of}, and has"
            f" {tuple(x.shape)}; reshape it{way_out}."
        )
    if x.device != rows.device:
        raise UserError(f"{name} is on {x.device} and {of} are on {rows.device}; move one of them.")


def pairs(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Split (2n, ...) into the first and the second view of each image, (n, ...) each.

    Raises:
        UserError: the rows do not make at least two pairs.
    """
    if len(rows) % 2 or len(rows) < 4:
        raise UserError(
            "a loss needs two views of each of 2 images or more, so 4, 6, 8, ... rows, not"
            f" {len(rows)}; add images."
        )
    first, second = rows.chunk(2)
    return first, second


# Values of tensors

Rule = tuple[str, Callable[[Tensor], Tensor]]  # in words, and which values or rows keep it
FROM_ZERO: Rule = ("must be finite and 0 or more", lambda x: (x >= 0) & (x < math.inf))
FINITE: Rule = ("must be finite", torch.isfinite)
RULES: Mapping[str, Rule] = {  # by the name of the argument
    "directions": (
        "must be rows of length 1, which sureclr.maths.sphere.unit_rows makes",
        lambda x: torch.linalg.vector_norm(x, dim=-1) <= LONGEST,
    ),
    "kappas": FROM_ZERO,
    "sharpness": FROM_ZERO,
    "temperatures": ("must be finite and above 0", lambda x: (x > 0) & (x < math.inf)),
    "presences": ("must lie in [0, 1]", lambda x: (x >= 0) & (x <= 1)),
    "predictions": FINITE,
    "projections": FINITE,
    "k": FINITE,
}


def check_views(directions: object, numbers: Mapping[str, object]) -> Tensor | None:
    """Check the views that a loss gets: types and shapes, and values where that is cheap.

    Args:
        directions: (2n, d), d >= 2, rows of length 1. Shorter ones pass: zeros stay zeros when
            they are normalised, and posterior means are short.
        numbers: by the name of the argument, (2n,) each: radii, gaps or a key of `RULES`.

    Returns:
        as `check_values`.

    Raises:
        UserError: a type or a shape does not fit.
        OutOfRange: a value lies outside its range.
    """
    check_rows("directions", directions)
    assert isinstance(directions, Tensor)
    pairs(directions)
    check_dimension(directions.shape[1])
    tensors = {"directions": directions}
    for name, value in numbers.items():
        check_numbers(name, value, directions)
        if isinstance(value, Tensor):
            tensors[name] = value
    return check_values(tensors)


def check_values(tensors: Mapping[str, Tensor | None]) -> Tensor | None:
    """Check the values of tensors where that is cheap; None is passed over.

    Args:
        tensors: by the name of the argument: radii, gaps or a key of `RULES`.

    Returns:
        None, or where values are not read a scalar to be added to the result: 0, and NaN if a
        value lies outside its range.

    Raises:
        OutOfRange: a value lies outside its range.
    """
    added = None
    for name, x in tensors.items():
        if x is None or name == "gaps":
            continue
        x = x.detach()
        words, kept = _radii(x, tensors.get("gaps")) if name == "radii" else _by_rule(name, x)
        fine = kept.all()
        if not _readable(fine):
            unusable = torch.where(fine, 0.0, math.nan)
            added = unusable if added is None else added + unusable
        elif not fine:
            raise OutOfRange(_sentence(name, words, kept, x))
    return added


def all_finite(x: Tensor) -> bool:
    """Whether all numbers are finite, without a copy of them; it waits for a GPU."""
    return x.numel() == 0 or bool(torch.stack(torch.aminmax(x)).isfinite().all())


def check_finite(x: Tensor, rule: str) -> None:
    """Raise an `OutOfRange` with this rule if a number is not finite; it waits for a GPU."""
    if not all_finite(x):
        bad = int((~x.isfinite()).sum())
        raise OutOfRange(
            f"{rule}, but {bad} of {x.numel()} break this rule; leave them out, or find out where"
            " they come from."
        )


def check_dimension(dimension: float) -> None:
    """Raise a `UserError` below two coordinates: S^0 is two points and has no Poisson kernel."""
    if not 2 <= dimension < math.inf:
        raise UserError(
            f"a posterior on the sphere needs at least 2 coordinates, not {dimension}; use 2 or"
            " more."
        )


def _by_rule(name: str, x: Tensor) -> tuple[str, Tensor]:
    words, holds = RULES[name]
    return words, holds(x)


def _radii(radii: Tensor, gaps: Tensor | None) -> tuple[str, Tensor]:
    """The rule of radii in words, and which keep it.

    A radius may be 1 where its gap says by how much it has been rounded.
    """
    if gaps is None:
        return (
            "must lie in [0, 1); where their type rounds one to 1, pass a wider type or gaps",
            (radii >= 0) & (radii < 1),
        )
    gaps = gaps.detach()
    return (
        "must lie in [0, 1), with gaps of 1 - radii above 0",
        (radii >= 0) & (radii <= 1) & (gaps > 0) & (gaps <= 1),
    )


def _readable(flag: Tensor) -> bool:
    """Whether a flag can be read without waiting for a GPU and outside of a compiled graph."""
    if flag.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    try:
        bool(flag)
    except RuntimeError:  # in vmap, and of a tensor that has a shape but no values
        return False
    return True


def _sentence(name: str, words: str, kept: Tensor, x: Tensor) -> str:
    """The sentence of an `OutOfRange`: rule, how many break it, and the first that does."""
    broken = (~kept).flatten().nonzero()[:, 0]
    first = x.reshape(kept.numel(), -1)[broken[0]]
    if len(first) == 1:
        found = f"{float(first):g}"
    elif first.isfinite().all():
        found = f"a row of length {float(torch.linalg.vector_norm(first.double())):g}"
    else:
        found = "a row with NaN or infinity"
    return (
        f"{name} {words}; {len(broken)} of {kept.numel()} break this rule, the first is {found}"
        f" at index {int(broken[0])}. Find out where they come from."
    )


# Tables


def rows_not_finite(x: Tensor) -> int:
    """Return how many rows of a table have a number that is not finite; few are copied at once."""
    if all_finite(x):
        return 0
    blocks = x.split(max(1, NUMBERS_AT_ONCE // max(1, x.shape[1])))
    return sum(int((~rows.isfinite().all(1)).sum()) for rows in blocks)


def check_table(name: str, x: object, least: int = 1) -> None:
    """Raise a `UserError` unless x is a table of finite numbers, (n, f) with f >= 1.

    Args:
        name: of the argument.
        x: its value, of any real type.
        least: number of rows that it must have.
    """
    if not isinstance(x, Tensor) or x.ndim != 2 or x.is_complex() or not x.shape[1]:
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise UserError(
            f"{name} must be a real torch tensor of the shape (rows, columns), with a column or"
            f" more, and are {got}; reshape or convert them."
        )
    if len(x) < least:
        raise UserError(
            f"{name} must have {least} row{'s' * (least > 1)} or more, and have {len(x)}; add rows."
        )
    if bad := rows_not_finite(x):
        raise UserError(
            f"{name} must be finite, and {bad} of {len(x)} rows are not; find out where they come"
            " from."
        )


def check_columns(**columns: object) -> None:
    """Raise a `UserError` unless the arguments are tensors (n,) of one length n >= 1, all finite.

    The keywords are the names of the arguments.
    """
    lengths = {}
    for name, x in columns.items():
        if not isinstance(x, Tensor) or x.ndim != 1 or x.is_complex():
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise UserError(
                f"{name} must be a real torch tensor of the shape (n,), and is {got}; reshape or"
                " convert it."
            )
        if bad := int((~x.isfinite()).sum()):
            raise UserError(
                f"{name} must be finite, and {bad} of {len(x)} values are not finite; leave them"
                " out."
            )
        lengths[name] = len(x)
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        counts = " and ".join(f"{name} has {n}" for name, n in lengths.items())
        raise UserError(f"there must be rows, as many of each: {counts}; add the missing ones.")


def check_shares(name: str, x: Tensor) -> None:
    """Raise a `UserError` unless all values lie in [0, 1], as those of a truth value do."""
    if not ((x >= 0) & (x <= 1)).all():
        raise UserError(
            f"{name} must lie in [0, 1] (bool, or 0 and 1), and some values do not; compare them"
            " with what is right first."
        )


def check_classes(name: str, labels: Tensor, classes: int) -> None:
    """Raise a `UserError` unless labels are whole numbers in 0..classes - 1."""
    if labels.is_floating_point() or labels.is_complex():
        raise UserError(
            f"{name} must be whole numbers, and have the type {labels.dtype}; convert them with"
            " .long()."
        )
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise UserError(
            f"{name} must be classes in 0..{classes - 1}, and lie in {int(labels.min())}.."
            f"{int(labels.max())}; number the classes anew."
        )
