"""`hpo space`: check and draw a search space."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from hpo.cli.options import echo_json, json_option

if TYPE_CHECKING:
    from rich.tree import Tree

    from hpo.space import Column, Space


@click.command(epilog="\b\nExample:\n  hpo space spaces/classifiers.py --sample 5")
@click.argument("file", metavar="FILE.py[:OBJECTIVE]")
@click.option("--sample", type=click.IntRange(min=1), help="Draw so many points, as the objective gets them.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the sample.")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Fix a parameter, or an argument.")
@json_option
def space(file: str, sample: int | None, seed: int, sets: tuple[str, ...], as_json: bool) -> None:
    """Check the search space of FILE.py and draw it as a tree.

    Warnings come with their mend; a space that can't be searched is an error.
    """
    import numpy as np

    from hpo.loading import load, locate, parse_settings
    from hpo.space import lint

    loaded = load(locate(file), parse_settings(sets)).space
    warnings = lint(loaded)
    rows = loaded.sample(np.random.default_rng(seed), sample or 0)
    samples = [loaded.readable(loaded.point(row)) for row in rows]
    if as_json:
        echo_json(
            {
                "labels": loaded.labels,
                "points": loaded.cardinality,
                "fingerprint": loaded.fingerprint,
                "warnings": [{"label": w.label, "message": w.message, "mend": w.mend} for w in warnings],
                "samples": samples,
            }
        )
        return
    from rich.console import Console

    console = Console(highlight=False, emoji=False)
    console.print(draw(loaded))
    many = "infinitely many" if loaded.cardinality is None else loaded.cardinality
    console.print(f"{len(loaded.columns)} parameters, {many} points", markup=False)
    for warning in warnings:
        console.print(f"warning: {warning}", markup=False)
    for point in samples:
        console.print(point, markup=False, soft_wrap=True)


def draw(loaded: Space) -> Tree:
    """The columns as a tree: under each choice its options, under each option what it activates."""
    from rich.markup import escape
    from rich.tree import Tree

    root = Tree("space")
    options: dict[tuple[str, int], Tree] = {}
    for column in loaded.columns:
        for parent in _parents(column, options) or [root]:
            what = "choice" if column.options else column.distribution
            branch = parent.add(escape(f"{column.label}: {what}"))
            for index, option in enumerate(column.options or ()):
                options[column.label, index] = branch.add(escape(str(option)))
    return root


def _parents(column: Column, options: dict[tuple[str, int], Any]) -> list[Tree]:
    """Where a column hangs: under the last option of each way that activates it."""
    ways = [options.get(conditions[-1]) for conditions in column.conditions if conditions]
    return [way for way in dict.fromkeys(ways) if way is not None]
