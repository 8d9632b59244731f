"""What changed between two descriptions of a space, in lines for people."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any

from hpo.space.wording import operation, text


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Lines that say how the space described by ``new`` differs from ``old``; empty if it doesn't.

    Args: old, new: what `Space.describe` gives. Parameters first, then what is fixed, then the expression
    around the parameters, named by its place as in the parameters of a trial (``conv.kernel``).
    """
    if _same(old, new):
        return []
    if old.get("format") != new.get("format"):
        return [f"described in format {old.get('format')}, now in format {new.get('format')}"]
    lines = [*_parameters(old["parameters"], new["parameters"]), *_fixed(old["fixed"], new["fixed"])]
    lines += _Places(old["parameters"], new["parameters"]).compared(old["expression"], new["expression"], "")
    return list(dict.fromkeys(lines)) or ["the same parameters in another expression"]


def _parameters(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for label in [*old, *(label for label in new if label not in old)]:
        if label not in new:
            yield f"removed: {label} {text(old[label])}"
        elif label not in old:
            yield f"added: {label} {text(new[label])}"
        elif old[label] != new[label]:
            before, after = text(old[label]), text(new[label])
            if before == after:  # they differ in a digit that people are not shown
                before, after = _arguments(old[label]), _arguments(new[label])
            yield f"{label}: {before} -> {after}"


def _arguments(description: Mapping[str, Any]) -> str:
    return f"{description['kind']}({', '.join(f'{k}={v!r}' for k, v in description.items() if k != 'kind')})"


def _fixed(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for label in [*old, *(label for label in new if label not in old)]:
        if label not in new:
            yield f"{label}: fixed at {old[label]!r} -> searched"
        elif label not in old:
            yield f"{label}: searched -> fixed at {new[label]!r}"
        elif not _same(old[label], new[label]):
            yield f"{label}: fixed at {old[label]!r} -> {new[label]!r}"


class _Places:
    """Compares two described expressions place by place, leaving out what the parameters' lines said."""

    def __init__(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        self._old = old
        self._new = new

    def compared(self, old: Any, new: Any, place: str) -> Iterator[str]:
        if _same(old, new):
            return
        if _has(old, "dict") and _has(new, "dict"):
            yield from self._keys(old["dict"], new["dict"], place)
        elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
            for i, (before, after) in enumerate(zip(old, new, strict=True)):
                yield from self.compared(before, after, f"{place}.{i}" if place else str(i))
        elif _has(old, "choice") and _has(new, "choice") and old["choice"] == new["choice"]:
            yield from self._options(old, new, place)
        elif _has(old, "operation") and _has(new, "operation") and _shape(old) == _shape(new):
            pairs = [pair for pair in zip(_inputs(old), _inputs(new), strict=True) if not _same(*pair)]
            if len(pairs) == 1 and all(isinstance(tree, dict | list) for tree in pairs[0]):
                yield from self.compared(*pairs[0], place)
            else:
                yield self._line(old, new, place)
        elif _label(old) is None or _label(old) != _label(new):
            yield self._line(old, new, place)

    def _line(self, old: Any, new: Any, place: str) -> str:
        return f"{place or 'the space'}: {_text(old)} -> {_text(new)}"

    def _keys(self, old: Mapping[str, Any], new: Mapping[str, Any], place: str) -> Iterator[str]:
        for key in [*old, *(key for key in new if key not in old)]:
            here = f"{place}.{key}" if place else key
            if key not in new:
                if not _labels(old[key]) - self._new.keys():
                    yield f"removed: {here} = {_text(old[key])}"
            elif key not in old:
                if not _labels(new[key]) - self._old.keys():
                    yield f"added: {here} = {_text(new[key])}"
            else:
                yield from self.compared(old[key], new[key], here)

    def _options(self, old: Mapping[str, Any], new: Mapping[str, Any], place: str) -> Iterator[str]:
        """Options are matched by name; those without a match are in the parameter's line."""
        label = old["choice"]
        before = dict(zip_longest(self._old[label]["options"], old.get("options", [])))
        after = dict(zip_longest(self._new[label]["options"], new.get("options", [])))
        for name in before:
            if name in after:
                yield from self.compared(before[name], after[name], f"{place or label}[{name}]")


def _same(old: Any, new: Any) -> bool:
    """Equal as JSON, where 1, 1.0 and true differ."""
    return json.dumps(old, sort_keys=True) == json.dumps(new, sort_keys=True)


def _has(tree: Any, key: str) -> bool:
    return isinstance(tree, dict) and key in tree


def _shape(tree: Mapping[str, Any]) -> Any:
    return tree["operation"], len(tree["arguments"]), sorted(tree.get("named", {}))


def _inputs(tree: Mapping[str, Any]) -> list[Any]:
    return [*tree["arguments"], *(item for _, item in sorted(tree.get("named", {}).items()))]


def _label(tree: Any) -> str | None:
    """The parameter that a place holds, be it a number, an integer or a choice."""
    if not isinstance(tree, dict):
        return None
    return tree.get("parameter") or tree.get("choice")


def _labels(tree: Any) -> set[str]:
    if isinstance(tree, list):
        return set().union(*map(_labels, tree))
    if not isinstance(tree, dict):
        return set()
    own = {label} if (label := _label(tree)) else set()
    return own.union(*map(_labels, (tree.get("dict") or tree).values()))


def _text(tree: Any) -> str:
    if isinstance(tree, list):
        return f"[{', '.join(map(_text, tree))}]"
    if not isinstance(tree, dict):
        return repr(tree)
    if label := _label(tree):
        return label
    if "dict" in tree:
        return "{" + ", ".join(f"{key}: {_text(item)}" for key, item in tree["dict"].items()) + "}"
    if "operation" in tree:
        named = [f"{name}={_text(item)}" for name, item in tree.get("named", {}).items()]
        return operation(tree["operation"], [*map(_text, tree["arguments"]), *named])
    # an object, by its name and what else tells it from others: see `expression.canonical`
    told = [value for key, value in tree.items() if key != "type"]
    return " ".join(value if isinstance(value, str) else _text(value) for value in told)
