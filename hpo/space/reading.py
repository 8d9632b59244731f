"""Parameters as people write them -> hyperopt's numbers: the inverse of `Space.readable`, for parts of a
point, too."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from hyperopt.pyll.base import Apply, Literal

from hpo.core import plain
from hpo.space.distributions import Distribution
from hpo.space.expression import evaluated, label_of, postorder, switched
from hpo.space.space import Space
from hpo.space.wording import said_option, same


@dataclass
class Read:
    """What was read: ``point``, a number by label, and ``faults``, each with its mend."""

    point: dict[str, int | float] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def take(self, other: Read) -> None:
        for label, value in other.point.items():
            if self.point.setdefault(label, value) != value:
                self.faults.append(f"{label} is given as {self.point[label]!r} and as {value!r}: keep one")
        self.faults += other.faults


def read(space: Space, params: Any) -> Read:
    """The numbers that parameters stand for, of as many as are given.

    Args: params: a mapping from labels, a choice as `--set` takes it, or by its option's own parameters; or
    what `Space.readable` gives, nested or under dotted names.
    """
    reader = _Reader(space)
    if not isinstance(params, Mapping):
        return reader.match(space.expression, params, "")
    result, others = Read(), {}
    for key, value in params.items():
        if key in reader.nodes:
            result.take(reader.match(reader.nodes[key], value, key))
        elif key in space.fixed:
            if not same(space.fixed[key], value):
                fixed = f"fixed at {space.fixed[key]!r}"
                result.faults.append(f"{key} is {value!r}, but {fixed}: leave it out, or --set it otherwise")
        else:
            others[str(key)] = value
    if others:
        is_bare = set(others) == {"value"} and space.expression.name != "dict"  # as tables call it
        result.take(reader.match(space.expression, others["value"] if is_bare else _nested(others), ""))
    return result


class _Reader:
    """Matches values with the parts of one space's expression."""

    def __init__(self, space: Space) -> None:
        self._columns = {column.label: column for column in space.columns}
        parameters = [node for node in postorder(space.expression) if node.name == "hyperopt_param"]
        self._choices = {
            index: node
            for node in reversed(postorder(space.expression))
            if node.name == "switch" and (index := switched(node)) is not None
        }
        # By label: the switch of a choice, the parameter itself of a number.
        self.nodes = {
            label_of(node): self._choices.get(node, node)
            if self._columns[label_of(node)].options is not None
            else node
            for node in parameters
            if label_of(node) in self._columns
        }

    def match(self, node: Apply, value: Any, where: str) -> Read:
        """What the value says about the parameters below the node. ``where``: its place, for people."""
        if isinstance(node, Literal):
            constant = plain.readable(node.obj)
            fault = f"{where or 'it'} is {value!r}, but {constant!r} in this space: leave it out"
            return Read() if same(constant, value) else Read(faults=[fault])
        if node.name == "hyperopt_param":
            return self._number(label_of(node), value)
        if node.name in ("int", "float"):
            return self.match(node.inputs()[0], value, where)
        if node.name == "dict" and not node.pos_args:
            return self._items(dict(node.named_args), value, where)
        if node.name == "pos_args":
            return self._items({str(i): child for i, child in enumerate(node.pos_args)}, value, where)
        index = switched(node)
        if index is not None and index in self._choices and self._columns[label_of(index)].options:
            return self._choice(index, node, value, where)
        return self._computed(node, value, where)

    def _items(self, children: Mapping[str, Apply], value: Any, where: str) -> Read:
        items = {str(i): item for i, item in enumerate(value)} if isinstance(value, list | tuple) else value
        if not isinstance(items, Mapping):
            return Read(faults=[f"{where or 'it'} is {value!r}: it has {', '.join(children)}"])
        result = Read()
        for key, item in items.items():
            name = f"{where}.{key}" if where else str(key)
            if key in children:
                result.take(self.match(children[key], item, name))
                continue
            known = [*children] if where else list(dict.fromkeys([*self.nodes, *children]))
            near = get_close_matches(str(key), known, n=1)
            mend = f"did you mean {near[0]!r}?" if near else f"there is {', '.join(known) or 'nothing'}"
            result.faults.append(f"{name} is no parameter: {mend}")
        return result

    def _number(self, label: str, value: Any) -> Read:
        column = self._columns[label]
        number = _as_number(value)
        if number is None:
            return Read(faults=[f"{label} can't be {value!r}: it is {column.distribution}"])
        number = _on_its_step(column.distribution, number)
        if complaint := column.distribution.complaint(number):
            return Read(faults=[f"{label} can't be {value!r}: {complaint}"])
        return Read({label: number})

    def _choice(self, index: Apply, switch: Apply, value: Any, where: str) -> Read:
        label = label_of(index)
        names, options = self._columns[label].options or (), switch.pos_args[1:]
        if not isinstance(value, Mapping):
            named = said_option(names, value)
            if named is None:
                worded = [i for i, option in enumerate(options) if value in _words(option).values()]
                named = worded[0] if len(worded) == 1 else None
            if named is not None:
                return self._possible(label, named)
        found = [self.match(option, value, where or label) for option in options]
        told = [_is_told_by(option, value) for option in options]
        best = min(range(len(found)), key=lambda i: (len(found[i].faults), not told[i], -len(found[i].point)))
        if found[best].faults and not told[best]:
            return Read(faults=[f"{label} can't be {value!r}: it is one of {', '.join(names)}"])
        found[best].take(self._possible(label, best))
        return found[best]

    def _possible(self, label: str, option: int) -> Read:
        complaint = self._columns[label].distribution.complaint(option)
        return Read({label: option}, [f"{label} can't be so: {complaint}"] if complaint else [])

    def _computed(self, node: Apply, value: Any, where: str) -> Read:
        labels = [label_of(n) for n in postorder(node) if n.name == "hyperopt_param"]
        if labels:
            return Read(
                faults=[
                    f"{where or 'it'} is computed from {', '.join(labels)}: give {', '.join(labels)} instead"
                ]
            )
        try:
            constant = plain.readable(evaluated(node))
        except Exception:  # whatever a user's function raises; evaluating the trial will say so
            return Read()
        return Read() if same(constant, value) else Read(faults=[f"{where} is {constant!r} in this space"])


def _nested(params: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names as nested mappings; the inverse of `hpo.core.plain.flat`."""
    result: dict[str, Any] = {}
    for name, value in params.items():
        *parents, last = name.split(".")
        inner = result
        for parent in parents:
            below = inner.setdefault(parent, {})
            if not isinstance(below, dict):
                inner[parent] = below = {}
            inner = below
        inner[last] = value
    return result


def _words(option: Apply) -> dict[str, str]:
    """The strings in an option that is a dict, which tell people what it is."""
    children = dict(option.named_args) if option.name == "dict" else {}
    return {
        key: child.obj
        for key, child in children.items()
        if isinstance(child, Literal) and isinstance(child.obj, str)
    }


def _is_told_by(option: Apply, value: Any) -> bool:
    """Whether the value is certainly this option's, whatever is wrong inside: its words say so."""
    said = {key: word for key, word in _words(option).items() if isinstance(value, Mapping) and key in value}
    return bool(said) and all(same(word, value[key]) for key, word in said.items())


def _as_number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _on_its_step(distribution: Distribution, number: float) -> float:
    """The very number that a draw gives, where the one given is that but for rounding."""
    if not distribution.is_discrete:
        return number
    drawn = float(distribution.from_unit(distribution.to_unit(number)))  # type: ignore[arg-type]
    return drawn if math.isclose(drawn, number, rel_tol=1e-9, abs_tol=1e-12) else number
