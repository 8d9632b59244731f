"""How the parts of a description are said to people."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


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
