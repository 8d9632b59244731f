"""hyperopt expression -> `Space`: find the parameters, check them, and when each is active."""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from typing import Any

import numpy as np
from hyperopt.pyll.base import Apply, Literal, as_apply
from hyperopt.pyll.stochastic import implicit_stochastic_symbols

from hpo.core import plain
from hpo.core.errors import OutsideSpace, SpaceError
from hpo.space.conditions import ALWAYS, NEVER, Conditions, Path, Paths, simplified
from hpo.space.distributions import Categorical, Distribution, Normal, Randint, Uniform
from hpo.space.expression import (
    canonical,
    described,
    draw_of,
    evaluated,
    label_of,
    named_options,
    postorder,
    rewritten,
    switched,
)
from hpo.space.space import Column, Space
from hpo.space.wording import said_option

_FORMAT = 1  # of the description; a new number makes every older study another one
_MOST_PATHS = 1000
_LARGEST_LOG = math.log(np.finfo(float).max)
_SMALLEST_LOG = math.log(np.finfo(float).tiny)

# What hyperopt's distributions take, in their order.
_ARGUMENTS = {
    "uniform": ("low", "high"),
    "loguniform": ("low", "high"),
    "quniform": ("low", "high", "q"),
    "qloguniform": ("low", "high", "q"),
    "normal": ("mu", "sigma"),
    "lognormal": ("mu", "sigma"),
    "qnormal": ("mu", "sigma", "q"),
    "qlognormal": ("mu", "sigma", "q"),
    "randint": ("low", "high"),
    "categorical": ("p",),
}


@dataclass(frozen=True)
class _Fault:
    """What is wrong with a space, and the mend."""

    message: str
    mend: str


class _Faulty(Exception):
    def __init__(self, message: str, mend: str) -> None:
        super().__init__(message)
        self.fault = _Fault(message, mend)


@dataclass(frozen=True)
class _Parameter:
    """A labelled draw of the expression before it is known when it is active."""

    label: str
    node: Apply
    distribution: Distribution
    options: tuple[str, ...] | None


def compile_expression(expression: Any, fixed: Mapping[str, Any]) -> Space:
    """See `hpo.space.compile_space`."""
    try:
        root = rewritten(as_apply(expression), {})  # switches over constants are no choices
        parameters = _parameters(root)
        held = _held(fixed, parameters, root)
        description = _description(root, parameters, held)
        if held:
            replacements: dict[Apply, Apply] = {
                p.node: Literal(held[p.label].raw) for p in parameters if p.label in held
            }
            root = rewritten(root, replacements)
            parameters = _parameters(root)
        return _space(root, parameters, held, description)
    except RecursionError:
        raise SpaceError(
            "the space is nested too deeply for hyperopt to evaluate",
            hint="build sums and chains of many parameters in the objective, not in the space",
        ) from None
    except TypeError as error:
        # as_apply sorts the keys of dicts
        if "not supported between instances" not in str(error):
            raise
        raise SpaceError(
            f"a dict of the space has keys that can't be sorted: {error}", hint="use strings as keys"
        ) from error


def _space(
    root: Apply, parameters: list[_Parameter], held: Mapping[str, _Held], description: Mapping[str, Any]
) -> Space:
    if not parameters and not held:
        raise SpaceError(
            "the space has no parameter: nothing in it varies",
            hint='give it at least one, such as {"lr": hp.loguniform("lr", np.log(1e-5), np.log(1))}',
        )
    paths = _paths(root, parameters)
    uses = _uses(root, parameters)
    columns = [
        Column(
            label=p.label,
            distribution=p.distribution,
            options=p.options,
            conditions=tuple(tuple(path) for path in paths[p.node] if path),
            is_integer=p.options is None
            and (isinstance(p.distribution, Randint) or uses[p.label] == {"int"}),
        )
        for p in parameters
        if paths[p.node]
    ]
    leaves = {p.node: Apply("hyperopt_param", [], []) for p in parameters}
    by_label = {p.label: leaves[p.node] for p in parameters}
    return Space(
        columns=_parents_first(columns),
        expression=root,
        fixed={label: value.shown for label, value in held.items()},
        uses=uses,
        _description=description,
        _evaluate=partial(_evaluate, rewritten(root, leaves), by_label),
    )


def _evaluate(expression: Apply, leaves: Mapping[str, Apply], values: Mapping[str, Any]) -> Any:
    """The expression with every parameter's node replaced by a leaf: hyperopt walks half as many nodes.

    A leaf without a value raises, as `hyperopt_param` misses its arguments.
    """
    return evaluated(expression, {leaves[label]: value for label, value in values.items()})


# --- parameters


def _parameters(root: Apply) -> list[_Parameter]:
    """The labelled draws of the graph in the order they are written. Raises SpaceError with all faults."""
    nodes = postorder(root)
    options: dict[Apply, list[Apply]] = {}
    for node in nodes:
        if node.name == "switch" and node.pos_args[0].name == "hyperopt_param":
            options.setdefault(node.pos_args[0], node.pos_args[1:])
    found: dict[str, _Parameter] = {}
    faults: list[_Fault] = []
    draws = {draw_of(node) for node in nodes if node.name == "hyperopt_param"}
    for node in nodes:
        try:
            if node.name in implicit_stochastic_symbols and node not in draws:
                raise _Faulty(
                    f"scope.{node.name}(...) draws without a label, so nobody knows what it drew",
                    f'give it one: hp.{node.name}("...", ...)',
                )
            if isinstance(node, Literal):
                _refuse_hidden(node.obj)
            if node.name == "hyperopt_param":
                parameter = _parameter(node, options.get(node))
                if parameter.label in found:
                    raise _Faulty(
                        f"the label {parameter.label!r} is used for two parameters",
                        f'give each its own label (such as "svm.{parameter.label}"), or define it once, '
                        "as a variable, and use that in both places",
                    )
                found[parameter.label] = parameter
        except _Faulty as faulty:
            faults.append(faulty.fault)
    by_node = {p.node: p for p in found.values()}
    for node in nodes:
        index = switched(node)
        if index in by_node and (fault := _unanswered(node, by_node[index])):
            faults.append(fault)
    _raise(faults)
    return list(found.values())


def _raise(faults: list[_Fault]) -> None:
    unique = list(dict.fromkeys(faults))
    if len(unique) == 1:
        raise SpaceError(unique[0].message, hint=unique[0].mend)
    if unique:
        lines = [f"{number}. {fault.message}" for number, fault in enumerate(unique, 1)]
        mends = [f"{number}. {fault.mend}" for number, fault in enumerate(unique, 1)]
        raise SpaceError(
            f"the space has {len(unique)} faults:\n  " + "\n  ".join(lines), hint="\n  ".join(["", *mends])
        )


def _parameter(node: Apply, options: list[Apply] | None) -> _Parameter:
    label = label_of(node)
    if not isinstance(label, str):
        raise _Faulty(f"the label {label!r} is a {type(label).__name__}", "labels are strings")
    if not label.strip():
        raise _Faulty("a label is empty", "name every parameter: it is shown by its label")
    if options == []:
        raise _Faulty(f"{label}: the choice has no options", f'hp.choice({label!r}, ["one", "another"])')
    distribution = _distribution(label, draw_of(node))
    if options is None:
        return _Parameter(label, node, distribution, None)
    if isinstance(distribution, Randint) and distribution.low == 0:
        distribution = Categorical((1.0 / distribution.high,) * distribution.high)
    return _Parameter(label, node, distribution, named_options(options))


def _distribution(label: str, draw: Apply) -> Distribution:
    """The checked distribution of a stochastic node."""
    kind = draw.name
    if kind not in _ARGUMENTS:
        raise _Faulty(
            f"{label}: {kind} is no distribution known here",
            f"known are choice, pchoice, {', '.join(name for name in _ARGUMENTS if name != 'categorical')}",
        )
    arguments = {}
    given = [*zip(_ARGUMENTS[kind], draw.pos_args, strict=False), *draw.named_args]
    if len(draw.pos_args) > len(_ARGUMENTS[kind]):
        raise _Faulty(f"{label}: {kind} takes {len(_ARGUMENTS[kind])} arguments", _signature(kind))
    for name, value in given:
        if name not in _ARGUMENTS[kind]:
            raise _Faulty(f"{label}: {kind} takes no {name}", _signature(kind))
        if any(node.name == "hyperopt_param" for node in postorder(value)):
            raise _Faulty(
                f"{label}: its {name} depends on another parameter, which no search here can follow",
                "draw a share, hp.uniform(label, 0, 1), and scale it: low + share * (high - low)",
            )
        try:
            arguments[name] = evaluated(value)
        except Exception as error:
            raise _Faulty(f"{label}: its {name} can't be computed: {error}", "write a number") from error
    missing = [n for n in _ARGUMENTS[kind] if n not in arguments and (kind, n) != ("randint", "high")]
    if missing:
        raise _Faulty(f"{label}: {kind} lacks {' and '.join(missing)}", _signature(kind))
    if kind == "categorical":
        return _categorical(label, arguments["p"])
    if kind == "randint":
        return _randint(label, arguments["low"], arguments.get("high"))
    return _number(
        label, kind, {name: _finite(label, kind, name, value) for name, value in arguments.items()}
    )


def _signature(kind: str) -> str:
    return f"it is hp.{kind}(label, {', '.join(_ARGUMENTS[kind])})"


def _finite(label: str, kind: str, name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(value, str) or not math.isfinite(number):
        hint = (
            "log bounds are logarithms, and np.log(0) is -inf: start above 0"
            if "log" in kind
            else _signature(kind)
        )
        raise _Faulty(f"{label}: its {name} is {value!r}, and must be a finite number", hint)
    return number


def _number(label: str, kind: str, arguments: dict[str, float]) -> Distribution:
    is_log = "log" in kind
    q = arguments.get("q")
    if q is not None and q <= 0:
        raise _Faulty(
            f"{label}: its q is {q:g}", f"q is the step between values, above 0; or use hp.{kind[1:]}"
        )
    if kind.endswith("normal"):
        mu, sigma = arguments["mu"], arguments["sigma"]
        if sigma <= 0:
            raise _Faulty(
                f"{label}: its sigma is {sigma:g}", "sigma is the width of the distribution, above 0"
            )
        if is_log and (mu + 9 * sigma > _LARGEST_LOG or (mu - 9 * sigma < _SMALLEST_LOG and q is None)):
            raise _Faulty(
                f"{label}: {kind}({mu:g}, {sigma:g}) leaves what floats hold; they are of the logarithm",
                f"write hp.{kind}({label!r}, np.log(median), ...)",
            )
        return Normal(mu=mu, sigma=sigma, is_log=is_log, q=q)
    low, high = arguments["low"], arguments["high"]
    if low > high:
        raise _Faulty(
            f"{label}: its bounds are reversed, {low:g} to {high:g}", f"write {high:g} before {low:g}"
        )
    if low == high:
        raise _Faulty(
            f"{label}: its bounds are both {low:g}", f"write the value {low:g} itself instead of hp.{kind}"
        )
    logged = f"hp.{kind}({label!r}, np.log({low:g}), np.log({high:g}), ...)" if low > 0 else "use np.log(...)"
    if is_log and high > _LARGEST_LOG:
        raise _Faulty(f"{label}: exp({high:g}) overflows; {kind}'s bounds are logarithms", logged)
    if is_log and low < _SMALLEST_LOG and q is None:
        raise _Faulty(f"{label}: exp({low:g}) is 0; {kind}'s bounds are logarithms", logged)
    if not math.isfinite(high - low):
        raise _Faulty(f"{label}: the range {low:g} to {high:g} overflows", "narrow it")
    largest = math.exp(high) if is_log else max(abs(low), abs(high))
    if q is not None and largest / q > 2**53:
        raise _Faulty(
            f"{label}: a step of {q:g} is lost in values up to {largest:g}"
            + (f"; {kind}'s bounds are logarithms" if is_log else ""),
            logged if is_log else f"use hp.{kind[1:]}, which has no steps",
        )
    return Uniform(low=low, high=high, is_log=is_log, q=q)


def _randint(label: str, low: Any, high: Any) -> Distribution:
    if high is None:
        low, high = 0, low
    bounds = []
    for name, value in (("low", low), ("high", high)):
        number = _finite(label, "randint", name, value)
        if number != math.floor(number) or abs(number) > 2**53:
            raise _Faulty(f"{label}: its {name} is {value!r}", "randint's bounds are integers below 2**53")
        bounds.append(int(number))
    if bounds[1] <= bounds[0]:
        raise _Faulty(
            f"{label}: no integer is between {bounds[0]} and {bounds[1]}, the latter excluded",
            "hp.randint(label, n) draws 0 to n - 1, hp.randint(label, low, high) low to high - 1",
        )
    if bounds[1] - bounds[0] > 2**53:
        raise _Faulty(f"{label}: the range is wider than 2**53", "narrow it")
    return Randint(*bounds)


def _categorical(label: str, p: Any) -> Distribution:
    mend = "hp.pchoice(label, [(probability, option), ...]) with probabilities that sum to 1"
    try:
        weights = np.asarray(p, dtype=float).ravel()
    except (TypeError, ValueError):
        raise _Faulty(f"{label}: its probabilities are {p!r}", mend) from None
    if not len(weights) or not np.isfinite(weights).all() or (weights < 0).any():
        raise _Faulty(f"{label}: its probabilities are {weights.tolist()}", mend)
    if abs(weights.sum() - 1) > 1e-6:
        raise _Faulty(f"{label}: its probabilities sum to {weights.sum():g}", mend)
    return Categorical(tuple((weights / weights.sum()).tolist()))


def _refuse_hidden(value: Any) -> None:
    """hyperopt looks for parameters in dicts, lists and tuples; elsewhere they would never be drawn."""
    items: list[Any] = []
    if isinstance(value, Mapping):
        items = list(value.values())
    elif isinstance(value, Set):
        items = list(value)
    elif isinstance(value, np.ndarray) and value.dtype == object:
        items = value.ravel().tolist()
    if any(isinstance(item, Apply) for item in items):
        raise _Faulty(
            f"a {type(value).__name__} holds a parameter, and hyperopt doesn't look there",
            "use a dict, a list or a tuple",
        )


def _unanswered(node: Apply, parameter: _Parameter) -> _Fault | None:
    """A switch with fewer options than its parameter has values."""
    options = len(node.pos_args) - 1
    if node.pos_args[0].name == "float":
        return _Fault(
            f"{parameter.label} picks the option of a switch as a float",
            "wrap it: scope.switch(scope.int(...), ...)",
        )
    values = _values(parameter.distribution)
    if values is None or not (odd := sorted(value for value in values if not 0 <= value < options)):
        return None
    return _Fault(
        f"{parameter.label} can be {odd[0]}, and its switch has {options} options",
        "give the switch one option for each value, from 0 on",
    )


def _values(distribution: Distribution) -> frozenset[int] | None:
    """The integers a distribution draws, where they can pick options; None where they can't."""
    if (distribution.cardinality or math.inf) > 10_000:
        return None
    values = distribution.values()
    return frozenset(values.astype(int).tolist()) if (values == np.round(values)).all() else None


# --- when they are active


def _paths(root: Apply, parameters: list[_Parameter]) -> dict[Apply, Paths]:
    """By parameter node, the paths through choices that lead to it."""
    by_node = {p.node: p for p in parameters}
    values = {p.label: found for p in parameters if (found := _values(p.distribution)) is not None}
    reached: dict[Apply, set[Path]] = {root: set(ALWAYS)}
    active: dict[str, Paths] = {}
    result: dict[Apply, Paths] = {}
    for node in reversed(postorder(root)):  # every node after all that take it
        paths = simplified(reached.pop(node, ()), values, active)
        if len(paths) > _MOST_PATHS:
            raise SpaceError(
                f"a part of the space is reached on more than {_MOST_PATHS} combinations of choices",
                hint="define it once outside the choices, or give the branches parameters of their own",
            )
        if node in by_node:
            result[node] = paths
            continue
        switch_on = switched(node)
        index = by_node[switch_on] if switch_on is not None else None
        chooses = index is not None and index.label in values
        if index is not None and chooses:
            # Known before the options are reached: what takes the switch takes its index.
            active[index.label] = active.get(index.label, NEVER) | paths
        for place, child in enumerate(node.inputs()):
            tests = frozenset([(index.label, place - 1)]) if index and chooses and place > 0 else frozenset()
            reached.setdefault(child, set()).update(path | tests for path in paths)
    return result


def _parents_first(columns: list[Column]) -> tuple[Column, ...]:
    """The columns as they are written, but none before a choice it depends on; paths from the outside in."""
    waiting = {column.label: column for column in columns}
    order: list[Column] = []
    while waiting:
        ready = next(
            (
                c
                for c in waiting.values()
                if not any(label in waiting for path in c.conditions for label, _ in path)
            ),
            None,
        )
        if ready is None:
            raise SpaceError(
                f"these choices depend on each other in a circle: {', '.join(waiting)}",
                hint="give the inner choices labels of their own",
            )
        order.append(waiting.pop(ready.label))
    places = {column.label: place for place, column in enumerate(order)}

    def in_order(conditions: Conditions) -> Conditions:
        def key(test: tuple[str, int]) -> tuple[int, int]:
            return places[test[0]], test[1]

        return tuple(
            sorted((tuple(sorted(path, key=key)) for path in conditions), key=lambda p: [*map(key, p)])
        )

    return tuple(replace(column, conditions=in_order(column.conditions)) for column in order)


def _uses(root: Apply, parameters: list[_Parameter]) -> dict[str, frozenset[str]]:
    """By label, the names of the operations that take the value; "" where it is the whole space."""
    takers: dict[Apply, list[Apply]] = {}
    for node in postorder(root):
        for child in node.inputs():
            takers.setdefault(child, []).append(node)

    def uses(node: Apply) -> set[str]:
        names = {""} if node is root else set()
        for taker in takers.get(node, []):
            names |= uses(taker) if taker.name == "float" else {_use(taker, node)}
        return names

    return {p.label: frozenset(uses(p.node)) for p in parameters}


def _use(taker: Apply, node: Apply) -> str:
    return "index" if taker.name == "switch" and taker.pos_args[0] is node else taker.name


# --- what is fixed


@dataclass(frozen=True)
class _Held:
    """A fixed parameter: hyperopt's value, and the one a person reads."""

    raw: int | float
    shown: Any


def _held(fixed: Mapping[str, Any], parameters: list[_Parameter], root: Apply) -> dict[str, _Held]:
    """The fixed values by label. Raises OutsideSpace for what can't be, SpaceError for one without use."""
    by_label = {p.label: p for p in parameters}
    switches = [node for node in postorder(root) if node.name == "switch"]
    options = {node.pos_args[0]: node.pos_args[1:] for node in reversed(switches)}
    held: dict[str, _Held] = {}
    faults: list[_Fault] = []
    for label, value in fixed.items():
        try:
            if label not in by_label:
                near = get_close_matches(str(label), list(by_label), n=1)
                mend = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(by_label) or 'none'}"
                raise _Faulty(f"the space has no parameter {label!r} to fix", mend)
            held[label] = _held_value(value, by_label[label], options.get(by_label[label].node, []))
        except _Faulty as faulty:
            faults.append(faulty.fault)
    if faults:
        raise OutsideSpace("; ".join(f.message for f in faults), hint="; ".join(f.mend for f in faults))
    used = _used_labels(root, {p.node: held[p.label].raw for p in parameters if p.label in held})
    if unused := [label for label in held if label not in used]:
        others = ", ".join(f"{label} = {value.shown}" for label, value in held.items() if label in used)
        raise SpaceError(
            f"{', '.join(unused)} is fixed, but with {others} nothing uses it", hint="fix one or the other"
        )
    return held


def _held_value(value: Any, parameter: _Parameter, options: list[Apply]) -> _Held:
    label, names = parameter.label, parameter.options
    if names is None:
        found, known = _held_number(value, parameter), f"{label} is {parameter.distribution}"
    else:
        found, known = _held_option(value, names, options), f"{label} is one of {', '.join(names)}"
    if found is None:
        raise _Faulty(f"{label} can't be {value!r}", known)
    if complaint := parameter.distribution.complaint(found.raw):
        raise _Faulty(f"{label} can't be {value!r}: {complaint}", known)
    return found


def _held_number(value: Any, parameter: _Parameter) -> _Held | None:
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    if not math.isfinite(number):
        return None
    if isinstance(parameter.distribution, Randint) and number == math.floor(number):
        return _Held(int(number), int(number))
    return _Held(number, number)


def _held_option(value: Any, names: tuple[str, ...], options: list[Apply]) -> _Held | None:
    found = said_option(names, value)
    if found is None:
        return None
    option = options[found]
    return _Held(found, plain.readable(option.obj) if isinstance(option, Literal) else names[found])


def _used_labels(root: Apply, held: Mapping[Apply, int | float]) -> set[str]:
    """The labels that can be reached once these parameters have these values."""
    seen: set[Apply] = set()
    stack = [root]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        index = switched(node)
        if index is not None and index in held:
            stack += [node.pos_args[0], *node.pos_args[1 + int(held[index]) : 2 + int(held[index])]]
        elif node.name != "hyperopt_param":
            stack += node.inputs()
    return {label_of(node) for node in seen if node.name == "hyperopt_param"}


# --- the description


def _description(root: Apply, parameters: list[_Parameter], held: Mapping[str, _Held]) -> dict[str, Any]:
    described_parameters = {}
    for p in parameters:
        options = {"options": list(p.options)} if p.options is not None else {}
        described_parameters[p.label] = {**p.distribution.describe(), **options}
    return {
        "format": _FORMAT,
        "parameters": described_parameters,
        "expression": described(root),
        "fixed": {label: canonical(value.shown) for label, value in held.items()},
    }
