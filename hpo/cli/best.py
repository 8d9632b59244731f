"""`hpo best`: the best trial of a study, and training it for good."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from hpo.cli.options import echo_json, json_option, store_option
from hpo.core.errors import TrackingUnreachable
from hpo.core.plain import flat, printable
from hpo.core.repeats import Mean
from hpo.core.trial import Trial
from hpo.stores import Best, Store, connect

if TYPE_CHECKING:
    from hpo.tracking.mlflow import Location
    from hpo.winner import Winner


@click.command(
    epilog="\b\nExamples:\n  hpo best digits_mlp --json\n"
    "  hpo best digits_mlp --train --on train+validation --test"
)
@click.argument("study")
@store_option
@click.option(
    "--trial", "number", type=click.IntRange(0, 2**31), help="This trial.  [default: the one of lowest loss]"
)
@click.option("--train", "is_trained", is_flag=True, help="Train it for good, into a folder of its own.")
@click.option(
    "--on",
    type=click.Choice(["train", "train+validation"]),
    help="Train on these parts of the data.  [default: train]",
)
@click.option("--test", "is_tested", is_flag=True, help="Evaluate on the test data in the end.")
@click.option("--to", type=click.Path(path_type=Path), help="The folder.  [default: STUDY-best]")
@click.option(
    "--set", "sets", multiple=True, metavar="KEY=VALUE", help="An argument of the objective, as in optimize."
)
@click.option("--gpus", help="The GPUs to train on: 0 or 0,1.")
@json_option
def best(
    study: str,
    store: str,
    number: int | None,
    is_trained: bool,
    on: Literal["train", "train+validation"] | None,
    is_tested: bool,
    to: Path | None,
    sets: tuple[str, ...],
    gpus: str | None,
    as_json: bool,
) -> None:
    """Print the trial of lowest loss of STUDY and its parameters.

    With --train, its objective runs once more with the same parameters, seed and code, outside of the
    search; model, report and figures are in a folder, and in MLflow as a run of their own. A command that
    was killed goes on where it was. On train+validation it trains until the trial's best epoch, or for what
    --set epochs says.

    With --json, a document with `trial`, `loss` and `params`.
    """
    from hpo.winner import best as best_point
    from hpo.winner import chosen

    options = {"--on": on, "--test": is_tested, "--to": to, "--set": sets, "--gpus": gpus}
    if not is_trained and (given := [name for name, value in options.items() if value]):
        raise click.UsageError(f"{' and '.join(given)}: only with --train")
    with contextlib.closing(connect(store)) as catalog:
        opened = catalog.open(study)
        if not is_trained:
            _print(best_point(opened) if number is None else _alone(opened.trial(number)), as_json)
            return
        trial = chosen(opened, number)
        default = f"{study}-best" if number is None else f"{study}-trial-{number}"
        winner = _train(opened, trial, on or "train", is_tested, to or Path(default), sets, gpus)
        location = _log(opened, winner)
        winner.tidy()
    if as_json:
        echo_json(winner.document() | {"mlflow": location and location.document()})
        return
    # Without validation data there is no loss to compare with the trials'.
    kind = "loss" if winner.final.on == "train" else "training loss"
    click.echo(f"trial {trial.number} of {study}, trained on {winner.final.on}: {kind} {winner.loss:.6g}")
    if winner.final.report:
        click.echo(f"\non the test data:\n\n{winner.final.report}")
    click.echo(f"files:  {winner.folder}")
    if winner.final.load_line:
        module = winner.final.load_line.partition(".")[0]
        click.echo(f"load:   import {module}; model = {winner.final.load_line}  # in that folder")
    if location is not None:
        click.echo(f"MLflow: run {location.run_id} in {location.tracking_uri}")


def _alone(trial: Trial) -> Best:
    """A trial for itself, whatever its point's others say."""
    return Best(trial, Mean(trial.number, trial.loss))


def _print(best: Best, as_json: bool) -> None:
    if as_json:
        echo_json(best.document())
        return
    click.echo(f"trial {best.trial.number}, loss {best.mean}")
    for name, value in flat(best.trial.params).items():
        click.echo(printable(f"{name} = {value}"))


def _train(
    store: Store,
    trial: Trial,
    on: Literal["train", "train+validation"],
    is_tested: bool,
    folder: Path,
    sets: tuple[str, ...],
    gpus: str | None,
) -> Winner:
    from hpo.loading import parse_settings
    from hpo.training import Final
    from hpo.winner import epochs_of, train

    devices = tuple(device.strip() for device in gpus.split(",")) if gpus else ()
    settings = parse_settings(sets)
    # Without validation data nothing says when to stop: the trial's best epoch does, or the person.
    epochs = None if on == "train" or "epochs" in settings else epochs_of(store, trial)
    final = Final(on=on, epochs=epochs, test=is_tested)

    def say(text: str) -> None:
        click.echo(text, err=True)

    say(f"training trial {trial.number} of {store.study} on {on}, into {folder}")
    try:
        return train(store, trial, final, folder, settings=settings, gpus=devices, say=say)
    except KeyboardInterrupt:
        say("stopped; the same command goes on")
        raise


def _log(store: Store, winner: Winner) -> Location | None:
    """In MLflow, if it answers: the model is there in any case."""
    from hpo.tracking.mlflow.final import log_final

    tags: dict[str, Any] = {"hpo.trained_on": winner.final.on, "hpo.final_of": str(winner.trial.number)}
    figures = {"seconds": winner.ended - winner.started}
    figures |= {"loss": winner.loss} if winner.final.on == "train" else {}
    figures |= {
        f"test/{name}": value
        for name, value in flat(winner.result.get("test") or {}).items()
        if isinstance(value, int | float)
    }
    try:
        return log_final(
            store,
            name=f"best of {store.study}",
            params=winner.trial.params,
            tags=tags,
            figures=figures,
            epochs=winner.epochs,
            folder=winner.folder,
            logged=winner.logged,
            started=winner.started,
            ended=winner.ended,
        )
    except TrackingUnreachable as error:
        click.echo(f"warning: {error.message}; the files are in {winner.folder}", err=True)
        return None
