"""`hpo show`: what the store knows."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click

from hpo.cli.files import log_of
from hpo.cli.options import echo_json, json_option, store_option
from hpo.core.errors import UsageError
from hpo.core.plain import flat, printable
from hpo.core.pruning import full_epochs, has_won, saving, summary
from hpo.core.repeats import Mean
from hpo.core.study import AUTO_NOTE, PRUNER_NOTE, StudyRecord
from hpo.core.trial import Report, State, Trial
from hpo.stores import Catalog, Store, best_of, connect, means_of

LOG_LINES = 12  # of a failed trial
MIN_WIDTH = 12  # of a table's last column
WIDE_TERMINAL = 100  # columns
SORTS = ("loss", "number", "seconds", "started", "state")


@click.command(
    epilog="\b\nExamples:\n  hpo show\n  hpo show digits_mlp --sort -seconds --limit 5\n"
    "  hpo show digits_mlp 17"
)
@click.argument("study", required=False)
@click.argument("trial", type=click.IntRange(0, 2**31), required=False)
@store_option
@click.option(
    "--sort",
    default="loss",
    show_default=True,
    help=f"{', '.join(SORTS)}, a parameter or result.NAME; a leading - reverses.",
)
@click.option(
    "--limit", type=click.IntRange(min=1), default=20, show_default=True, help="Show so many trials."
)
@click.option("--all", "is_all", is_flag=True, help="Show all trials.")
@json_option
def show(
    study: str | None, trial: int | None, store: str, sort: str, limit: int, is_all: bool, as_json: bool
) -> None:
    """List the studies, the trials of STUDY by loss, or all about one TRIAL."""
    with contextlib.closing(connect(store)) as catalog:
        if study is None:
            _show_studies(catalog, as_json)
        elif trial is None:
            _show_trials(catalog.open(study), sort, None if is_all else limit, as_json)
        else:
            _show_trial(catalog.open(study), trial, as_json)


def _show_studies(catalog: Catalog, as_json: bool) -> None:
    rows: list[dict[str, Any]] = []
    for name in catalog.names():
        study = catalog.open(name)
        record, found = study.record(), best_of(study)
        rows.append(
            {
                "study": name,
                **{state: record.counts[state] for state in ("completed", "pruned", "failed", "running")},
                "best": None if found is None else found.loss,
                "created": record.created,
            }
        )
    if as_json:
        rows = [row | {"created": _iso(row["created"])} for row in rows]
        echo_json(rows)
    elif not rows:
        click.echo("no studies yet; start one: hpo optimize FILE.py --max-evals 20")
    else:
        table = _table(["study", "completed", "pruned", "failed", "running", "best loss", "created"])
        for row in rows:
            local = datetime.fromtimestamp(row.pop("created")).strftime("%Y-%m-%d %H:%M")
            table.add_row(*(_short(value) for value in row.values()), local)
        _print(table)


def _show_trials(store: Store, sort: str, limit: int | None, as_json: bool) -> None:
    record = store.record()
    repeats = record.identity.repeats
    means = _means(store, repeats)
    trials = _sorted(list(store.trials()), sort, means)
    if as_json:
        full = full_epochs(trials)
        echo_json([document(trial, full) | _mean_document(trial, repeats, means) for trial in trials])
        return
    shown = trials[:limit]
    is_terminal = sys.stdout.isatty()
    columns = {
        "trial": [str(trial.number) for trial in shown],
        "state": [str(trial.state) for trial in shown],
        "loss": [_short(trial.loss) for trial in shown],
        "seconds": [_short(trial.seconds, 4) for trial in shown],
    }
    if repeats > 1:
        columns["mean loss"] = [str(means.get(trial.number, "-")) for trial in shown]
    if any(times := [_epoch_time(trial) for trial in shown]):
        if is_terminal and shutil.get_terminal_size().columns < WIDE_TERMINAL:
            # What people compare are the parameters: they get the room.
            del columns["seconds"]
            if {trial.state for trial in shown} == {State.COMPLETED}:
                del columns["state"]
        columns["epoch s"] = [_short(one.get("median_epoch"), 3) for one in times]
        columns["cause"] = [printable(_short(one.get("cause"))) for one in times]
    columns["parameters or error"] = [printable(_parameters_or_error(trial)) for trial in shown]
    table = _table(columns, is_cut=is_terminal)
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*cells)
    _print(table)
    if len(trials) > len(shown):
        click.echo(f"{len(trials) - len(shown)} more: --all, or --limit N")
    if (pruning := summary(trials)) is not None:
        click.echo(pruning)
    click.echo(_search(record))


def _search(record: StudyRecord) -> str:
    """How the trials were chosen, in a line."""
    identity, notes = record.identity, record.notes
    picked = f" ({notes[AUTO_NOTE]})" if AUTO_NOTE in notes else ""
    parts = [
        f"search: {identity.algorithm}{picked}",
        f"pruner {notes.get(PRUNER_NOTE, 'none')}",
        f"seed {identity.seed}",
        *([f"{identity.repeats} repeats"] if identity.repeats > 1 else []),
        *([] if identity.warm_start is None else [f"warm start from {identity.warm_start}"]),
    ]
    return ", ".join(parts)


def _means(store: Store, repeats: int) -> dict[int, Mean]:
    """By trial, the mean of its point where all of its trials have ended; empty where a trial is a point."""
    means = means_of(store, repeats) if repeats > 1 else ()
    return {number: mean for mean in means for number in range(mean.number, mean.number + repeats)}


def _mean_document(trial: Trial, repeats: int, means: Mapping[int, Mean]) -> dict[str, Any]:
    if repeats == 1:
        return {}
    mean = means.get(trial.number)
    return {
        "point": trial.number - trial.number % repeats,
        "mean_loss": mean and mean.loss,
        "standard_error": mean and mean.standard_error,
    }


def _parameters_or_error(trial: Trial) -> str:
    if trial.error is not None:
        return f"{trial.error.kind}: {trial.error.reason}"
    return " ".join(f"{name}={_short(value, 4)}" for name, value in flat(trial.params).items())


def _show_trial(store: Store, number: int, as_json: bool) -> None:
    trial = store.trial(number)
    full = None if trial.verdict is None else full_epochs(list(store.trials(State.COMPLETED)))
    if as_json:
        echo_json(document(trial, full))
        return
    lines: dict[str, Any] = {
        "trial": f"{number} of {store.study}",
        "state": trial.state,
        "loss": _short(trial.loss),
        "started": None if trial.started is None else _iso(trial.started),
        "seconds": _short(trial.seconds),
        "worker": trial.worker,
        "attempts": trial.attempts,
        "code": trial.snapshot and trial.snapshot[:12],
    }
    if trial.gpus:
        lines["gpus"] = ", ".join(trial.gpus)
    if trial.error is not None:
        lines["error"] = f"{trial.error.kind}: {trial.error.reason}"
    lines |= _pruning(trial, full)
    lines |= {f"  {name}": value for name, value in flat(trial.params).items()}
    shown = {"epoch_time": _times(_epoch_time(trial)), "dataset": _data(trial.result.get("dataset"))}
    lines |= shown["epoch_time"] | shown["dataset"]
    result = {name: value for name, value in trial.result.items() if not shown.get(name)}
    lines |= {f"result.{name}": value for name, value in flat(result).items()} if result else {}
    width = max(len(name) for name in lines)
    for name, value in lines.items():
        click.echo(f"{name:<{width}}  {'-' if value is None else printable(str(value))}")
    if reports := store.reports(number):
        names = _headline(reports)
        table = _table(["epoch", "loss", *names])
        for report in reports:
            values = [report.loss, *(report.metrics.get(name) for name in names)]
            table.add_row(str(report.epoch), *(_short(value, 4) for value in values))
        _print(table)
    if trial.error is not None and (log := log_of(store, number)):
        click.echo(f"the end of its log (all of it: hpo log {store.study} {number}):")
        for line in log.splitlines()[-LOG_LINES:]:
            click.echo(f"  {printable(line)}")
    if files := store.files(number):
        click.echo(printable("files: " + ", ".join(f"{file.name} ({file.size} bytes)" for file in files)))


def _epoch_time(trial: Trial) -> dict[str, Any]:
    """The trial's `epoch_time`; empty where it has none, or somebody returned another thing by that name."""
    found = trial.result.get("epoch_time")
    return found if isinstance(found, dict) else {}


def _times(times: dict[str, Any]) -> dict[str, Any]:
    """Where an epoch's time went, in lines for people."""
    if not times:
        return {}
    shares = times.get("shares")
    parts = shares.items() if isinstance(shares, dict) else ()
    median, first = _short(times.get("median_epoch"), 3), _short(times.get("first_epoch"), 3)
    return {
        "epoch time": f"{median} s, the median of {times.get('epochs')} (the first {first} s)",
        "of it": ", ".join(f"{name} {share:.0%}" for name, share in parts if isinstance(share, float | int)),
        "cause": times.get("cause"),
        "advice": times.get("advice") or None,
    }


def _pruning(trial: Trial, full: float | None) -> dict[str, Any]:
    """What the pruner said of the trial and what came of it, in a line."""
    if trial.verdict is None:
        return {}
    text = f"after epoch {trial.verdict.epoch}, with a chance of {trial.verdict.chance:.1%} to win"
    if (saved := saving(trial, full)) is not None:
        text += f"; saved about {saved.epochs:.0f} epochs, {_short(saved.seconds, 3)} s"
    if trial.state is State.PRUNED:
        return {"pruned": text}
    outcome = (
        "" if trial.state is not State.COMPLETED else " and won" if has_won(trial) else " and did not win"
    )
    ran_on = "it ran on to check" if trial.verdict.is_spared else "it ended first"
    return {"to prune": f"{text}; {ran_on}{outcome}"}


def _data(dataset: Any) -> dict[str, Any]:
    """What it was trained on, in a line."""
    if not isinstance(dataset, dict):
        return {}
    parts = dataset.get("examples")
    counts = ", ".join(f"{part} {count}" for part, count in parts.items()) if isinstance(parts, dict) else ""
    return {"data": f"{dataset.get('name')} ({counts})" + (f" {d}" if (d := dataset.get("digest")) else "")}


def _headline(reports: Sequence[Report], most: int = 3) -> list[str]:
    """The metrics to show of each epoch: as they were told first, those of classes and machines left out."""
    names = dict.fromkeys(name for report in reports for name in report.metrics)
    told = [name for name in names if "/" not in name] or list(names)
    timed = [name for name in ("time/epoch_seconds",) if name in names]
    return list(dict.fromkeys([*told[:most], *timed]))


def document(trial: Trial, full: float | None = None) -> dict[str, Any]:
    """A trial as `--json` shows it. ``full``: the number of epochs of a trial that is not pruned."""
    return {
        "number": trial.number,
        "state": trial.state.value,
        "loss": trial.loss,
        "params": trial.params,
        "epochs": trial.epochs,
        "started": None if trial.started is None else _iso(trial.started),
        "seconds": trial.seconds,
        "worker": trial.worker,
        "attempts": trial.attempts,
        "epoch_time": trial.result.get("epoch_time"),
        "error": None if trial.error is None else {"kind": trial.error.kind, "reason": trial.error.reason},
        **({"gpus": list(trial.gpus)} if trial.gpus else {}),
    } | _pruning_document(trial, full)


def _pruning_document(trial: Trial, full: float | None) -> dict[str, Any]:
    """What the pruner said; nothing of a trial on which it was silent."""
    if trial.verdict is None:
        return {}
    saved = saving(trial, full)
    return {
        "pruning": {
            "epoch": trial.verdict.epoch,
            "chance": trial.verdict.chance,
            "is_spared": trial.verdict.is_spared,
            "saved_epochs": saved and saved.epochs,
            "saved_seconds": saved and saved.seconds,
        }
    }


def _sorted(trials: list[Trial], sort: str, means: Mapping[int, Mean]) -> list[Trial]:
    """By a column or a parameter; what has no value comes last either way. A loss is the point's."""
    name, is_reversed = sort.removeprefix("-"), sort.startswith("-")
    keys: dict[int, Any]
    if name == "loss" and means:
        keys = {trial.number: means[trial.number].loss if trial.number in means else None for trial in trials}
    elif name in SORTS:
        keys = {trial.number: getattr(trial, name) for trial in trials}
    else:
        keys = {trial.number: _values(trial).get(name) for trial in trials}
        if trials and all(key is None for key in keys.values()):
            known = sorted({value for trial in trials for value in _values(trial)})
            raise UsageError(f"--sort {name}: no such column", f"there are {', '.join([*SORTS, *known])}")
    valued = [trial for trial in trials if keys[trial.number] is not None]
    without = [trial for trial in trials if keys[trial.number] is None]
    try:
        valued.sort(key=lambda trial: keys[trial.number], reverse=is_reversed)
    except TypeError:  # a parameter of numbers here and words there
        valued.sort(key=lambda trial: str(keys[trial.number]), reverse=is_reversed)
    return valued + without


def _values(trial: Trial) -> dict[str, Any]:
    """What a trial can be sorted by beside its columns: its parameters, and what its objective returned."""
    return flat(trial.params) | (
        {f"result.{k}": v for k, v in flat(trial.result).items()} if trial.result else {}
    )


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _short(value: Any, digits: int = 6) -> str:
    if value is None:
        return "-"
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def _table(columns: Iterable[str], *, is_cut: bool = False) -> Any:
    """``is_cut``: the last column ends in an ellipsis where the terminal does, so that a row is a line."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    *narrow, wide = columns
    for column in narrow:
        table.add_column(column, no_wrap=True)
    table.add_column(wide, overflow="ellipsis" if is_cut else "fold", no_wrap=is_cut)
    return table


def _print(table: Any) -> None:
    from rich.console import Console
    from rich.measure import Measurement

    # Piped, a table is as wide as it needs to be: nothing is cut or wrapped for grep.
    console = Console(
        highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 100_000
    )
    # On a terminal the last column alone gives way.
    last = table.columns[-1]
    last.max_width = 0
    narrow = Measurement.get(console, console.options, table).maximum
    last.max_width = max(console.width - narrow, MIN_WIDTH)
    console.print(table)
