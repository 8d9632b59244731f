"""How the parts of a description are said to people, and what people say is meant."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hpo.core import plain


def text(description: Mapping[str, Any]) -> str:
    """A distribution's description for people: log bounds are shown as the values they stand for."""
    kind = description["kind"]
    if kind == "categorical":
        names = description.get("options") or [str(i) for i in range(len(description["probabilities"]))]
        weights = description["probabilities"]
        if len(set(weights)) <= 1:
            return f"choice({', '.join(names)})"
        return f"pchoice({', '.join(f'{name}: {p:g}' for name, p in zip(names, weights, strict=True))})"
    arguments = {name: value for name, value in description.items() if name not in ("kind", "options")}
    is_log = kind in ("loguniform", "qloguniform")
    shown = [_number(math.exp(v) if is_log and name != "q" else v) for name, v in arguments.items()]
    return f"{kind}({', '.join(shown)})"


def _number(value: float) -> str:
    return f"{value:.10g}" if isinstance(value, float) else str(value)


_INFIX = {"add": "+", "sub": "-", "mul": "*", "truediv": "/", "floordiv": "//", "pow": "**"}


def operation(name: str, arguments: list[str]) -> str:
    """``mul, [a, 2]`` as ``a * 2``; other operations as calls."""
    if name in _INFIX and len(arguments) == 2:
        return f" {_INFIX[name]} ".join(arguments)
    return f"{name}({', '.join(arguments)})"


def said_option(names: Sequence[str], value: Any) -> int | None:
    """The option that is this value, or reads like it: by name, as Python writes it, or but for case."""
    shown = plain.readable(value)
    said = shown if isinstance(shown, str) else str(shown)
    tests: list[Callable[[int], bool]] = [
        lambda i: names[i] == said,
        lambda i: same(names[i], said),
        lambda i: names[i].casefold() == said.casefold(),
    ]
    for test in tests:
        if found := [i for i in range(len(names)) if test(i)]:
            return found[0]
    return None


def same(one: Any, other: Any) -> bool:
    """Whether two values mean the same, each as it is or as text that writes it: ``True`` and ``"True"``."""
    one, other = _meant(one), _meant(other)
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def _meant(value: Any) -> Any:
    """The Python value a text writes, or the text."""
    if not isinstance(value, str):
        return plain.readable(value)
    try:
        return plain.readable(ast.literal_eval(value))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value
