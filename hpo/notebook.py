"""`hpo optimize` as a function, for notebooks and scripts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from hpo.cli.drive import drive
from hpo.cli.interrupts import Interrupts
from hpo.cli.optimize import optimize as command
from hpo.cli.optimize import understood
from hpo.core.errors import UsageError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def optimize(file: str, *, spark: str | SparkSession | None = None, **options: Any) -> dict[str, Any]:
    """Search for the best parameters of a training function; what happens is told on standard error.

    ``hpo.optimize("space.py", max_evals=100, set={"epochs": 5})`` is the command with options of those names.

    Args: file: ``FILE.py`` or ``FILE.py:OBJECTIVE``; spark: a Spark session, which is used and left as it is,
    or a master; options: as ``hpo optimize --help`` lists them, ``_`` for ``-``.
    Returns what ``--json`` prints. Raises HpoError; UsageError for an option that does not exist.
    """
    words = [str(file), *_words({**options, "spark": _master(spark)})]
    try:
        with command.make_context("hpo.optimize", words) as context:
            asked = dict(context.params)
            if asked.pop("as_json"):
                raise UsageError("as_json makes no sense here", "the document is what optimize() returns")
            request, how = understood(**asked)
    except click.ClickException as error:
        raise UsageError(error.format_message()) from error
    with Interrupts() as interrupts:
        _, document = drive(request, how, interrupts, "the same call")
    return document


def _master(spark: str | SparkSession | None) -> str | None:
    if spark is None or isinstance(spark, str):
        return spark
    try:
        return str(spark.sparkContext.master)
    except AttributeError as error:
        raise UsageError(
            "a session of Spark Connect can't run trials: they are jobs of a Spark context in this process",
            "run the search where the driver is, or start workers with hpo worker",
        ) from error


def _words(options: Mapping[str, Any]) -> Iterator[str]:
    """The options as words of a command line."""
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, Mapping):
            for key, each in value.items():
                yield from (option, f"{key}={each}")
        elif value is True:
            yield option
        elif value is not None and value is not False:
            yield from (option, str(value))
