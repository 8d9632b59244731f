"""Which shown parameters a study searches over, from its space's description (`Space.describe`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

LOG_KINDS = ("loguniform", "qloguniform", "lognormal", "qlognormal")
KEEPING = ("int", "float", "round", "maximum", "minimum")  # operations after which a log scale still is one


@dataclass(frozen=True, slots=True)
class Searched:
    """One leaf of the parameters. ``is_varied``: it is no constant; ``is_log``: drawn on a log scale;
    ``is_always``: every trial has it, whatever was chosen; ``is_number``: all its values are numbers."""

    is_varied: bool
    is_log: bool
    is_always: bool
    is_number: bool


def searched(description: Any) -> dict[str, Searched]:
    """The searched parameters by the names people see: ``conv.num_blocks``. Empty where the description is
    none (a store that was edited)."""
    try:
        found = dict(_walk(description["expression"], description["parameters"], ""))
    except (KeyError, TypeError, AttributeError, RecursionError):
        return {}
    return {name or "value": parameter for name, parameter in found.items() if parameter.is_varied}


def _walk(node: Any, parameters: Mapping[str, Any], path: str) -> Iterator[tuple[str, Searched]]:
    if isinstance(node, list):
        node = {"dict": {str(place): item for place, item in enumerate(node)}}
    if not isinstance(node, Mapping):
        yield path, Searched(False, False, True, isinstance(node, int | float))
    elif "dict" in node:
        for name, child in node["dict"].items():
            yield from _walk(child, parameters, f"{path}.{name}" if path else str(name))
    elif "parameter" in node:
        kind = parameters[node["parameter"]]["kind"]
        yield path, Searched(True, kind in LOG_KINDS, True, True)
    elif "choice" in node:
        options = [dict(_walk(option, parameters, path)) for option in node.get("options", [[]])]
        for name in dict.fromkeys(name for option in options for name in option):
            here = [option[name] for option in options if name in option]
            yield (
                name,
                Searched(
                    is_varied=True,
                    is_log=all(one.is_log for one in here),
                    is_always=len(here) == len(options) and all(one.is_always for one in here),
                    is_number=all(one.is_number for one in here),
                ),
            )
    elif "operation" in node:
        inner = [found for argument in node["arguments"] for _, found in _walk(argument, parameters, path)]
        varied = [one for one in inner if one.is_varied]
        is_log = len(varied) == 1 and varied[0].is_log and node["operation"] in KEEPING
        base = Searched(bool(varied), is_log, True, True)
        yield path, replace(base, is_number=all(one.is_number for one in inner))
    else:
        yield path, Searched(False, False, True, False)
