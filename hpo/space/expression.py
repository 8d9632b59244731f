"""hyperopt's expression graphs: reading, rewriting and describing them. Nothing here knows `Space`."""

from __future__ import annotations

import ast
import hashlib
import linecache
import math
import re
from collections.abc import Mapping, Set
from enum import Enum
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import numpy as np
from hyperopt.pyll.base import Apply, Literal, rec_eval

from hpo.core import plain
from hpo.space.wording import operation

# Descriptions of objects inside objects end here: an option may be a whole neural network.
_DEEPEST = 8


def postorder(root: Apply) -> list[Apply]:
    """Every node once, inputs before the nodes that take them, in the order they are written."""
    order: list[Apply] = []
    seen: set[Apply] = set()
    stack: list[tuple[Apply, bool]] = [(root, False)]
    while stack:
        node, is_expanded = stack.pop()
        if is_expanded:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((child, False) for child in reversed(node.inputs()))
    return order


def evaluated(node: Apply, memo: Mapping[Apply, Any] | None = None) -> Any:
    """The node's value by hyperopt's own evaluation, given those in ``memo``; its errors pass through."""
    return rec_eval(node, memo=dict(memo or {}), memo_gc=False, print_node_on_error=False)


def label_of(parameter: Apply) -> Any:
    """The label of a ``hyperopt_param`` node: a string, or whatever else was written."""
    node = parameter.pos_args[0] if parameter.pos_args else dict(parameter.named_args)["label"]
    return node.obj if isinstance(node, Literal) else node


def draw_of(parameter: Apply) -> Apply:
    """The stochastic node inside a ``hyperopt_param`` node."""
    return parameter.pos_args[1] if len(parameter.pos_args) > 1 else dict(parameter.named_args)["obj"]


def switched(node: Apply) -> Apply | None:
    """The parameter whose value alone picks the option of a switch; None for another node or expression."""
    if node.name != "switch":
        return None
    index = node.pos_args[0]
    while index.name in ("int", "float") and len(index.inputs()) == 1:
        index = index.inputs()[0]
    return index if index.name == "hyperopt_param" else None


def rewritten(root: Apply, replacements: Mapping[Apply, Apply]) -> Apply:
    """The graph with nodes replaced; a switch whose index becomes constant becomes its option.

    What doesn't change is not copied, so that shared nodes stay shared.
    """
    new: dict[Apply, Apply] = {}
    varies: set[Apply] = set()  # the new nodes with a parameter inside
    for node in postorder(root):
        if node in replacements:
            result = replacements[node]
        elif node.name == "hyperopt_param":
            result = node
        else:
            result = _with_inputs(node, [new[child] for child in node.inputs()])
            if result.name == "switch" and result.pos_args[0] not in varies:
                result = _taken_option(result)
        if result.name == "hyperopt_param" or any(child in varies for child in result.inputs()):
            varies.add(result)
        new[node] = result
    return new[root]


def _taken_option(switch: Apply) -> Apply:
    """The option that a constant index takes; the switch itself where the index can't be computed."""
    index, *options = switch.pos_args
    try:
        value = evaluated(index)
    except Exception:  # whatever a user's function raises; evaluating a trial will say so
        return switch
    is_place = isinstance(value, int | np.integer) and 0 <= value < len(options)
    return options[int(value)] if is_place else switch


def _with_inputs(node: Apply, inputs: list[Apply]) -> Apply:
    if all(old is new for old, new in zip(node.inputs(), inputs, strict=True)):
        return node
    positional, named = inputs[: len(node.pos_args)], inputs[len(node.pos_args) :]
    names = [name for name, _ in node.named_args]
    return Apply(
        node.name,
        positional,
        list(zip(names, named, strict=True)),
        o_len=node.o_len,
        pure=node.pure,
        define_params=node.define_params,
    )


# --- for people


def named_options(options: list[Apply]) -> tuple[str, ...]:
    """One short name for each option of a choice, no two the same.

    Where every option is a dict and one of its keys alone tells them apart by a string (``{"model": "svm",
    ...}``), that string; else the option as it is written, parameters by their labels.
    """
    names = _telling_values(options) or [written(option) for option in options]
    seen: dict[str, int] = {}
    unique = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        unique.append(name if seen[name] == 1 else f"{name} #{seen[name]}")
    return tuple(unique)


def _telling_values(options: list[Apply]) -> list[str] | None:
    if any(option.name != "dict" or option.pos_args for option in options):
        return None
    dicts = [dict(option.named_args) for option in options]
    for key in dicts[0]:
        values = [d[key].obj if key in d and isinstance(d[key], Literal) else None for d in dicts]
        if all(isinstance(value, str) for value in values) and len(set(values)) == len(values):
            return [str(value) for value in values]
    return None


def written(node: Apply) -> str:
    """The expression in short, for people: ``{'C': C, 'kernel': 'rbf'}``, ``2 ** depth``."""
    value = _readable(node)
    return value if isinstance(value, str) else str(value)


class _Words(str):
    """Text that stands for a computed value: shown without quotes inside dicts and lists."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _readable(node: Apply) -> Any:
    if isinstance(node, Literal):
        is_named = callable(node.obj) and not isinstance(node.obj, type)
        value = plain.readable(node.obj)
        return _Words(value) if is_named and isinstance(value, str) else value
    if node.name == "hyperopt_param":
        return _Words(label_of(node))
    if node.name == "dict" and not node.pos_args:
        return {name: _readable(child) for name, child in node.named_args}
    if node.name == "pos_args":
        return [_readable(child) for child in node.pos_args]
    if (parameter := switched(node)) is not None:
        return _Words(label_of(parameter))
    if node.name in ("int", "float"):
        return _readable(node.inputs()[0])
    return _Words(operation(node.name, [repr(_readable(child)) for child in node.inputs()]))


# --- for the fingerprint


def described(root: Apply) -> Any:
    """The expression as JSON, the same wherever and whenever it is built.

    A choice that stands in several places is described in the first and named in the others.
    """
    seen: set[Apply] = set()

    def inner(node: Apply) -> Any:
        if isinstance(node, Literal):
            return canonical(node.obj)
        if node.name == "hyperopt_param":
            return {"parameter": label_of(node)}
        if node.name == "float" and node.inputs()[0].name == "hyperopt_param":
            return inner(node.inputs()[0])  # hyperopt's own wrapping, which differs by version
        if node.name == "dict" and not node.pos_args:
            return {"dict": {name: inner(child) for name, child in node.named_args}}
        if node.name == "pos_args":
            return [inner(child) for child in node.pos_args]
        if node.name == "switch" and node.pos_args[0].name == "hyperopt_param":
            choice = {"choice": label_of(node.pos_args[0])}
            if node in seen:
                return choice
            seen.add(node)
            return {**choice, "options": [inner(option) for option in node.pos_args[1:]]}
        result: dict[str, Any] = {"operation": node.name, "arguments": [inner(a) for a in node.pos_args]}
        if node.named_args:
            result["named"] = {name: inner(child) for name, child in node.named_args}
        return result

    return inner(root)


def canonical(value: Any, depth: int = 0) -> Any:
    """Any Python value as JSON that tells it from others and never depends on addresses or hash seeds."""
    if isinstance(value, np.generic) and not isinstance(value.item(), np.generic):
        value = value.item()
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"float": str(value)}
    if depth > _DEEPEST:
        return {"object": _name(type(value))}

    def inner(item: Any) -> Any:
        return canonical(item, depth + 1)

    if isinstance(value, np.ndarray):
        content = (
            hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
            if value.dtype != object
            else None
        )
        return {
            "array": content or inner(value.tolist()),
            "dtype": value.dtype.str,
            "shape": list(value.shape),
        }
    if isinstance(value, Enum):
        return {"enum": _name(type(value)), "member": value.name}
    if isinstance(value, Mapping):
        items = [[inner(key), inner(item)] for key, item in value.items()]
        return {"mapping": sorted(items, key=repr), "type": _name(type(value))}
    if isinstance(value, Set):
        return {"set": sorted((inner(item) for item in value), key=repr), "type": _name(type(value))}
    if isinstance(value, list | tuple):
        return {"sequence": [inner(item) for item in value], "type": _name(type(value))}
    if isinstance(value, partial):
        return {"partial": inner(value.func), "arguments": inner(value.args), "named": inner(value.keywords)}
    if isinstance(value, FunctionType):
        text = (
            {"lambda": lambda_source(value)} if value.__name__ == "<lambda>" else {"function": _name(value)}
        )
        cells = [inner(cell.cell_contents) for cell in value.__closure__ or () if _is_filled(cell)]
        return {**text, "closure": cells} if cells else text
    if isinstance(value, type | BuiltinFunctionType | MethodType):
        return {"function": _name(value)}
    shown = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))
    if shown == repr(value):
        return {"object": _name(type(value)), "repr": shown}
    return {"object": _name(type(value)), "state": inner(dict(getattr(value, "__dict__", {})))}


def _name(value: Any) -> str:
    return f"{getattr(value, '__module__', None)}.{getattr(value, '__qualname__', type(value).__qualname__)}"


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def lambda_source(function: FunctionType) -> str:
    """The lambda as it is written, whatever its layout; without source a digest of its byte code."""
    code = function.__code__
    linecache.checkcache(code.co_filename)
    try:
        tree = ast.parse("".join(linecache.getlines(code.co_filename)))
    except SyntaxError:
        tree = ast.Module([], [])
    on_line = [n for n in ast.walk(tree) if isinstance(n, ast.Lambda) and n.lineno == code.co_firstlineno]
    places = {p[:1] + p[2:3] for p in code.co_positions() if p[0] is not None and p[2] is not None}
    inside = [n for n in on_line if (n.body.lineno, n.body.col_offset) in places]
    found = on_line if len(on_line) == 1 else inside
    if len(found) == 1:
        return ast.unparse(found[0])
    constants = [constant for constant in code.co_consts if not hasattr(constant, "co_code")]
    return hashlib.sha256(repr((code.co_code, code.co_names, constants)).encode()).hexdigest()
