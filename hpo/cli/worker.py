"""`hpo worker`: run trials of a study that another process drives."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from hpo.cli.interrupts import Interrupts
from hpo.cli.options import Duration, store_option, worker_slots
from hpo.core.errors import ExitCode
from hpo.core.plain import printable


@click.command(
    epilog="\b\nExamples:\n  hpo optimize spaces/digits_mlp.py --max-evals 20 --workers 0\n"
    "  hpo worker --gpus 0,1\n"
    "  hpo worker --store sqlite:////data/hpo.db --study digits_mlp --idle-timeout 10m"
)
@store_option
@click.option("--study", help="The study to work for.  [default: the only one that wants workers]")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Trials at a time.  [default: one for each entry of --gpus, else 1]",
)
@click.option("--gpus", help="A trial at a time for each entry: 0,1 or 0+1,2+3, as with `hpo optimize`.")
@click.option("--max-trials", type=click.IntRange(min=1), help="Go after so many trials.")
@click.option("--idle-timeout", type=Duration(), help="Go when there was no trial for so long (10m).")
@click.option("--snapshot", metavar="SHA256", help="Run the code of this hash, wherever it comes from.")
@click.option(
    "--tracking-uri",
    envvar="MLFLOW_TRACKING_URI",
    help="The MLflow server that trials may log to: the driver's, as this machine reaches it.",
)
def worker(
    store: str,
    study: str | None,
    workers: int | None,
    gpus: str | None,
    snapshot: str | None,
    tracking_uri: str | None,
    max_trials: int | None,
    idle_timeout: float | None,
) -> int:
    """Run trials of a study that another process drives: hpo optimize FILE.py --workers 0.

    The code comes with the study. It is run if the checkout in this folder has the same, if --snapshot names
    its hash, or if the driver signed it with the HPO_KEY that is set here, too. Ctrl-C finishes the running
    trials, a second one hands them back.
    """
    from hpo.loading import project_root
    from hpo.pulling import SHA256, Asked, End, Puller
    from hpo.tracking.mlflow import is_http
    from hpo.trust import KEY_VARIABLE, Trust

    if snapshot is not None and not SHA256.fullmatch(snapshot):
        raise click.UsageError(
            f"--snapshot {snapshot} is no SHA-256: give all its 64 digits, as a worker that does not know"
            " the code prints them"
        )
    asked = Asked(
        store=store,
        study=study,
        slots=worker_slots(workers, gpus),
        trust=Trust(snapshot, os.environ.get(KEY_VARIABLE), project_root(Path.cwd())),
        max_trials=max_trials,
        idle_timeout_seconds=idle_timeout,
        tracking_uri=tracking_uri if tracking_uri and is_http(tracking_uri) else None,
    )
    with Interrupts() as interrupts:
        try:
            with interrupts.gently(_say, then="they are offered again"):
                end = Puller(asked, interrupts, _say).run()
        except KeyboardInterrupt:
            return interrupts.exit_code
    return ExitCode.DONE if end is End.DONE else interrupts.exit_code


def _say(text: Any) -> None:
    click.echo(printable(text), err=True)
