"""Python values as JSON holds them, and nested parameters as flat names."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator, Mapping
from typing import Any

MAX_BITS = 1024  # beyond every float; and Python writes no number of more than 4300 digits


def plain(value: Any) -> Any:
    """The value as JSON can hold it, exactly; raises TypeError, naming the place, where JSON can't.

    NumPy scalars and arrays become numbers and lists, tuples become lists. NaN and infinity stay floats.
    """
    return _plain(value, "result", strict=True)


def readable(value: Any) -> Any:
    """The value for a person: like `plain`, but a function or a class is its name, anything else its repr."""
    return _plain(value, "", strict=False)


def _plain(value: Any, where: str, *, strict: bool) -> Any:
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int):
        if value.bit_length() > MAX_BITS:
            raise TypeError(f"{where or 'a parameter'} is a whole number of {value.bit_length()} bits")
        return value
    if isinstance(value, float):
        return float(value)
    if isinstance(value, Mapping):
        if strict and (odd := [key for key in value if not isinstance(key, str)]):
            raise TypeError(f"{where} has the key {odd[0]!r}, and JSON's keys are strings")
        return {str(key): _plain(item, f"{where}[{key!r}]", strict=strict) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{i}]", strict=strict) for i, item in enumerate(value)]
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    # NumPy's arrays and scalars (its bool is no number) and tensors all have tolist.
    tolist = getattr(value, "tolist", None)
    if callable(tolist):
        return _plain(tolist(), where, strict=strict)
    if strict:
        raise TypeError(f"{where} is a {type(value).__name__}, which JSON can't hold")
    name = getattr(value, "__name__", None)
    return name if isinstance(name, str) else repr(value)


def printable(text: str) -> str:
    """The text without what would move a terminal's cursor or change its colours: one line, as it reads."""
    return "".join(c if c.isprintable() else " " for c in text)


def without_nonfinite(value: Any) -> Any:
    """The JSON value with NaN and infinity as null: what strict JSON readers accept."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: without_nonfinite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nonfinite(item) for item in value]
    return value


def as_float(value: Any) -> float:
    """The number as a float, infinite where it is an int beyond every float."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def flat(params: Any, prefix: str = "") -> dict[str, Any]:
    """Nested parameters under dotted names: ``{"conv": {"num_blocks": 2}}`` is ``{"conv.num_blocks": 2}``.

    Items of lists are named by their index. A parameter that is no dict and no list is called ``value``.
    """
    return dict(_flat(params, prefix)) if isinstance(params, Mapping | list | tuple) else {"value": params}


def _flat(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        items: Any = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        yield prefix, value
        return
    for key, item in items:
        yield from _flat(item, f"{prefix}.{key}" if prefix else str(key))
