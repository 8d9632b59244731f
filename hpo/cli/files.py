"""`hpo log` and `hpo files`: what a trial left behind."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import click

from hpo.cli.options import store_option
from hpo.core.errors import UsageError
from hpo.core.files import ARTIFACTS, LOG, is_below
from hpo.stores import Store, connect

trial_argument = click.argument("trial", type=click.IntRange(0, 2**31))


@click.command(epilog="\b\nExample:\n  hpo log digits_mlp 3")
@click.argument("study")
@trial_argument
@store_option
def log(study: str, trial: int, store: str) -> None:
    """Print what TRIAL of STUDY printed, the traceback of its failure too."""
    with contextlib.closing(connect(store)) as catalog:
        text = log_of(catalog.open(study), trial)
    click.echo(f"trial {trial} printed nothing" if text is None else text, nl=text is None, err=text is None)


@click.command(epilog="\b\nExample:\n  hpo files digits_mlp 3 --to best-model")
@click.argument("study")
@trial_argument
@store_option
@click.option("--to", type=click.Path(file_okay=False, path_type=Path), help="Copy them into this folder.")
def files(study: str, trial: int, store: str, to: Path | None) -> None:
    """List the files that TRIAL of STUDY left in run.directory, and its log; --to copies them."""
    with contextlib.closing(connect(store)) as catalog:
        opened = catalog.open(study)
        opened.trial(trial)  # an unknown one is an error, not an empty list
        kept = opened.files(trial)
        if not kept:
            click.echo(f"trial {trial} left no files", err=True)
        for file in kept:
            name = file.name.removeprefix(ARTIFACTS)
            if to is None:
                click.echo(f"{file.size:>12}  {name}")
                continue
            if not is_below(name):
                raise UsageError(
                    f"the store names a file {name!r}", "was it edited by hand? nothing was copied"
                )
            if not opened.get_file(file.name, to / name, trial):
                raise UsageError(
                    f"{name} is listed, but its bytes are gone", "are the files beside the store?"
                )
            click.echo(to / name)


def log_of(store: Store, trial: int) -> str | None:
    """What the trial printed, None if it printed nothing."""
    store.trial(trial)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / LOG
        return path.read_text(errors="replace") if store.get_file(LOG, path, trial) else None
