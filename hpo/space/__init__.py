"""Search spaces: a hyperopt expression compiled once into columns, conditions, values and a fingerprint.

The only room that knows pyll; hyperopt is imported by the first `compile_space`, not by this package.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hpo.space.difference import difference
from hpo.space.distributions import Distribution
from hpo.space.lint import Warning, lint
from hpo.space.space import Axes, Column, Space

__all__ = [
    "Axes",
    "Column",
    "Distribution",
    "Space",
    "Warning",
    "compile_space",
    "difference",
    "lint",
    "read_point",
]


def compile_space(expression: Any, fixed: Mapping[str, Any] | None = None) -> Space:
    """The space that a hyperopt expression declares.

    Args: fixed: by label, the value a parameter is held at, as a person writes it (a choice by its option's
    value); such parameters are no columns, and those that no longer can be active neither.
    Raises SpaceError, with all faults in one report, for a space that can't be searched; OutsideSpace for a
    fixed value that its parameter can't have.
    """
    from hpo.space.compile import compile_expression

    return compile_expression(expression, fixed or {})


def read_point(space: Space, params: Any) -> tuple[dict[str, int | float], list[str]]:
    """The numbers by label that parameters stand for, and what is wrong with them, each with its mend.

    Args: params: as many parameters as a person gives: by label, a choice by its option's value; or as
    `Space.readable` gives them, nested or under dotted names.
    """
    from hpo.space.reading import read

    found = read(space, params)
    return found.point, found.faults
