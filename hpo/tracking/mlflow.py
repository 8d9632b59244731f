"""The study in MLflow: the study is a parent run, each trial that was claimed a child run.

The store is authoritative; MLflow is a projection of it. `Projection.catch_up` is live tracking, ``hpo mlflow
sync`` and rebuilding at once: it reads the store's changes after the revision MLflow has reached, writes them
and only then notes the new revision. Whatever stops it in between, the next call does the same batch again,
and all it writes is idempotent:

- runs are found again by their tags (``hpo.id``; ``mlflow.parentRunId`` and ``hpo.trial``);
- metrics carry times and steps from the store, so that a point written twice is one row;
- a child run is ended last: one that has ended is whole.

What a child run shows: parameters under flat names; per epoch ``loss`` and the reported metrics, step =
epoch; at the end ``seconds``, the numbers of the result as ``result/NAME``, and the loss the objective
returned as last point of ``loss``, one step after the last epoch, unless the last epoch reported just that.
So the table's ``loss`` is always the one the search has learned from.

Importing mlflow takes a second: it happens inside functions, in the observer's thread.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import logging
import math
import os
import re
import sqlite3
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from hpo.core.errors import HpoError, TrackingUnreachable, UsageError
from hpo.core.files import ARTIFACTS, LOG, SNAPSHOT
from hpo.core.plain import flat
from hpo.core.study import StudyRecord
from hpo.core.trial import ENDED, Changes, Report, State, Trial
from hpo.stores import connect as connect_store
from hpo.stores.protocol import Catalog, Store, StoredFile

log = logging.getLogger("hpo.tracking")

NOTE = "mlflow"  # the store's note that says where the study is in MLflow and how far
NAME_LIMIT, PARAM_LIMIT, TAG_LIMIT = 250, 6000, 8000  # characters; MLflow refuses more
PAGE = 1000
PING_SECONDS = 5.0
NOISY = ("mlflow", "alembic", "urllib3")  # loggers
OFF = "leave MLflow out with --tracking-uri none"

STATUS = {State.COMPLETED: "FINISHED", State.PRUNED: "KILLED", State.FAILED: "FAILED"}


@dataclass(frozen=True, slots=True)
class Location:
    """Where a study is in MLflow: ``run_id`` is its parent run."""

    tracking_uri: str
    experiment_id: str
    run_id: str

    @property
    def url(self) -> str | None:
        """The page that compares the trials; None where no server runs (see `ui_command`)."""
        return self.page(self.tracking_uri) if _is_http(self.tracking_uri) else None

    def page(self, server: str) -> str:
        """The same on an MLflow server at this address: trials by loss. Sorting by a metric lists child runs
        one by one, which else hide under their parent; without the workflow MLflow 3 shows traces."""
        view = "workflowType=machine_learning&orderByKey=metrics.%60loss%60&orderByAsc=true"
        return f"{server.rstrip('/')}/#/experiments/{self.experiment_id}/runs?{view}"


def location_of(record: StudyRecord) -> Location | None:
    """Where MLflow has this study, as the store remembers it."""
    note = record.notes.get(NOTE)
    return None if note is None else Location(note["tracking_uri"], note["experiment_id"], note["run_id"])


def default_tracking_uri(store_url: str) -> str:
    """``mlflow.db`` beside the store's file; in the working directory where the store is no file."""
    path = _sqlite_path(store_url) or Path("hpo.db")
    return f"sqlite:///{path.absolute().parent / 'mlflow.db'}"


def check_reachable(tracking_uri: str) -> None:
    """Raises TrackingUnreachable, within seconds, where no server answers or no database can be.

    MLflow's own client would try for minutes. Does not import mlflow.
    """
    if _is_http(tracking_uri):
        _ping(tracking_uri)
    elif (path := _sqlite_path(tracking_uri)) is not None:
        try:
            _open_database(path)
        except (OSError, sqlite3.DatabaseError) as error:
            raise TrackingUnreachable(f"{path} can't be MLflow's database: {error}", OFF) from error


def sync(store: Store, tracking_uri: str, experiment: str | None = None) -> Location:
    """Bring MLflow up to date with the store and wait for it; on an empty MLflow, rebuild it.

    Only where no driver lives: there is one writer, and the parent run is ended.
    Raises TrackingUnreachable; what was written until then stays, and the next call goes on.
    """
    projection = Projection(store, tracking_uri, experiment)
    with _silence(), _explained(tracking_uri):
        while not projection.catch_up():
            pass
        counts = store.record().counts
        is_open = counts[State.WAITING] + counts[State.RUNNING]
        projection.end("KILLED" if is_open else "FINISHED")
        while not projection.upload():
            pass
        assert projection.location is not None
        return projection.location


def ui_command(
    tracking_uri: str, host: str = "127.0.0.1", port: int = 5000
) -> tuple[list[str], dict[str, str]]:
    """The command, and what to add to its environment, that serves MLflow's pages from a database."""
    try:
        importlib.metadata.version("mlflow")  # mlflow-skinny has neither the server nor the pages
    except importlib.metadata.PackageNotFoundError:
        raise UsageError("MLflow's user interface is not installed", "pip install 'hpo[ui]'") from None
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", _absolute(tracking_uri)]
    command += ["--host", host, "--port", str(port), "--workers", "1"]
    # Without its job queue the server takes 2 processes and 0.5 GB, not 10 and 2.5.
    return command, {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}


# --- the projection


@dataclass(slots=True)
class _Child:
    """A child run that has not ended. ``logged``: which report (attempt, revision) stands for each epoch."""

    run_id: str
    tags: dict[str, str]
    params: set[str]
    logged: dict[int, tuple[int, int]] = field(default_factory=dict)
    last_epoch: int = -1
    last_loss: float | None = None
    is_refused: bool = False

    def keep(self, report: Report) -> None:
        self.logged[report.epoch] = (report.attempt, report.revision)
        if report.epoch >= self.last_epoch:
            self.last_epoch, self.last_loss = report.epoch, report.loss

    def fits(self, reports: Sequence[Report]) -> bool:
        """Whether these epochs can follow: none of them replaces one, or ends an earlier attempt's curve."""
        for report in reports:
            if report.epoch > self.last_epoch:
                continue
            stands = self.logged.get(report.epoch)
            if stands is not None and stands != (report.attempt, report.revision):
                return False
            if any(e > report.epoch and attempt < report.attempt for e, (attempt, _) in self.logged.items()):
                return False
        return True


@dataclass(slots=True)
class _Reached:
    """Where MLflow is: the note, and what the ended trials up to there sum up to."""

    location: Location
    revision: int
    artifacts: int  # ended trials up to this revision have their files in MLflow
    doubt: int  # trials that changed up to this revision may have a child run this object has not made
    left: dict[int, Any] = field(default_factory=dict)  # running child runs that an earlier process left
    counts: dict[State, int] = field(default_factory=lambda: dict.fromkeys(ENDED, 0))
    best: Trial | None = None
    last_ended: float | None = None
    has_code: bool = False


class Projection:
    """One study of a store, written to MLflow batch by batch. One object serves one thread.

    Args: experiment: its name, by default the study's; make_client: gives an ``MlflowClient`` for a URI.
    After any exception the object starts anew from the store's note.
    """

    def __init__(
        self,
        store: Store,
        tracking_uri: str,
        experiment: str | None = None,
        *,
        make_client: Callable[[str], Any] | None = None,
    ) -> None:
        self._store = store
        self._uri = _absolute(tracking_uri)
        self._experiment = experiment or store.study
        self._make_client = make_client or _client
        self._client: Any = None
        self._reached: _Reached | None = None
        self._children: dict[int, _Child] = {}
        self._uploads: deque[tuple[int, int, str | None]] = deque()  # (revision, trial, run id if known)
        self.progress = (0, 0, 0)  # revision, trials of the next batch, revision of files: grows or stalls

    @property
    def location(self) -> Location | None:
        return None if self._reached is None else self._reached.location

    def catch_up(self, limit: int = 200) -> bool:
        """Write one batch of about ``limit`` trials and epochs; True when nothing was left to write.

        Raises whatever the store or MLflow raises; call it again later.
        """
        with self._from_the_note_after_errors():
            reached = self._open()
            changes = self._store.changes(since=reached.revision, limit=limit)
            if changes.revision == reached.revision:
                return True
            self._write_children(changes, reached)
            self._write_parent([trial for trial in changes.trials if trial.state.has_ended], reached)
            reached.revision = changes.revision
            self._note(reached)
            self.progress = (reached.revision, 0, reached.artifacts)
            return False

    def upload(self) -> bool:
        """Upload the files of the study or of one trial, behind `catch_up`; True when none are left."""
        with self._from_the_note_after_errors():
            reached = self._open()
            if not reached.has_code:
                self._upload_code(reached)
                return False
            if not self._uploads:
                return True
            revision, number, run_id = self._uploads[0]
            if files := [file for file in self._store.files(number) if _is_artifact(file)]:
                run_id = run_id or self._find_child(number, reached)
                if run_id is not None:
                    self._upload_files(number, run_id, files)
            self._uploads.popleft()
            reached.artifacts = revision
            self.progress = (reached.revision, 0, reached.artifacts)
            if files or not self._uploads:
                self._note(reached)
            return False

    def end(self, status: str) -> None:
        """The study is not driven any more: ``FINISHED``, or ``KILLED`` where it was interrupted."""
        with self._from_the_note_after_errors():
            reached = self._open()
            ended = _milliseconds(reached.last_ended or time.time())
            self._do("set_terminated", reached.location.run_id, status, ended)

    # --- the parent run

    def _open(self) -> _Reached:
        """Find or make the experiment and the parent run, and see how far MLflow is."""
        check_reachable(self._uri)
        if self._reached is not None:
            return self._reached
        self._client = self._make_client(self._uri)
        record = self._store.record()
        note = record.notes.get(NOTE) or {}
        parent = None
        if note.get("tracking_uri") == self._uri and note.get("experiment") == self._experiment:
            parent = self._living(note["run_id"])
        since = note["revision"] if parent is not None else 0
        artifacts = note["artifacts"] if parent is not None else 0
        experiment_id = self._experiment_id() if parent is None else parent.info.experiment_id
        doubt = record.revision
        if parent is None:
            # A crash may have come between making it and noting it; or MLflow was somewhere else meanwhile.
            found = self._search(experiment_id, f"tags.`hpo.id` = '{_study_id(record)}'")
            parent = next(found, None)
        if parent is None:
            parent = self._do(
                "create_run",
                experiment_id,
                start_time=_milliseconds(record.created),
                tags=_parent_tags(record),
                run_name=_text(record.identity.study, NAME_LIMIT),
            )
            doubt = 0
        elif parent.info.status != "RUNNING":
            self._do("update_run", parent.info.run_id, status="RUNNING")
        params = _params(record.identity.arguments)
        self._log(parent.info.run_id, [], params, parent.data.params, _parent_tags(record), parent.data.tags)
        location = Location(self._uri, experiment_id, parent.info.run_id)
        reached = _Reached(location, since, artifacts, doubt)
        if doubt:
            reached.left = self._search_children(reached, "attributes.status = 'RUNNING'")
        self._recount(reached)
        self._note(reached)
        self._reached = reached
        return reached

    def _living(self, run_id: str) -> Any:
        """The run, or None where it was deleted or its database is another one by now."""
        try:
            run = self._client.get_run(run_id)
        except Exception as error:
            if getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return run if run.info.lifecycle_stage == "active" else None

    def _experiment_id(self) -> str:
        experiment = self._client.get_experiment_by_name(self._experiment)
        if experiment is None:
            try:
                return str(self._do("create_experiment", self._experiment, _artifact_folder(self._uri)))
            except Exception as error:
                if getattr(error, "error_code", "") != "RESOURCE_ALREADY_EXISTS":
                    raise
                experiment = self._client.get_experiment_by_name(self._experiment)  # made by somebody else
        if experiment.lifecycle_stage != "active":
            raise UsageError(
                f"the MLflow experiment {self._experiment!r} was deleted",
                f"MLFLOW_TRACKING_URI={self._uri} mlflow experiments restore -x {experiment.experiment_id}"
                ", or name another one with MLFLOW_EXPERIMENT_NAME",
            )
        return str(experiment.experiment_id)

    def _recount(self, reached: _Reached) -> None:
        """Sum up the trials MLflow has already; queue those whose files it has not."""
        waiting: list[tuple[int, int, str | None]] = []
        for trial in sorted(
            (t for t in map(_slim, self._store.trials(*ENDED)) if t.revision <= reached.revision),
            key=lambda trial: trial.revision,
        ):
            _count(trial, reached)
            if trial.revision > reached.artifacts:
                waiting.append((trial.revision, trial.number, None))
        self._uploads = deque(waiting)

    def _write_parent(self, ended: Sequence[Trial], reached: _Reached) -> None:
        """The best loss and the counts after each trial that ended; step = trials ended so far."""
        metrics = []
        before = reached.best
        for trial in ended:
            _count(trial, reached)
            step = sum(reached.counts.values())
            values = {f"trials/{trial.state.value}": float(reached.counts[trial.state])}
            if trial.state is State.COMPLETED and reached.best is not None:
                values["best_loss"] = _number(reached.best.loss)
            metrics += _metrics(values, step, trial.ended or trial.created)
        tags = {}
        if reached.best is not None and reached.best is not before:
            tags["hpo.best_trial"] = str(reached.best.number)
        self._log(reached.location.run_id, metrics, {}, (), tags, {})

    def _note(self, reached: _Reached) -> None:
        value = asdict(reached.location) | {"experiment": self._experiment}
        self._store.note(NOTE, value | {"revision": reached.revision, "artifacts": reached.artifacts})

    # --- child runs

    def _write_children(self, changes: Changes, reached: _Reached) -> None:
        changed = {trial.number for trial in changes.trials}
        trials = {trial.number: trial for trial in changes.trials}
        reports: dict[int, list[Report]] = {number: [] for number in trials}
        for report in changes.reports:
            if report.number not in trials:
                # Epochs come in an earlier batch than the trial's row, which moves to its last change.
                trials[report.number] = self._store.trial(report.number)
            reports.setdefault(report.number, []).append(report)
        found = self._find_ended(trials.values(), reached)
        for done, (number, trial) in enumerate(trials.items(), start=1):
            if number in found:
                if number in changed:
                    self._uploads.append((trial.revision, number, found[number]))
            elif trial.state is not State.WAITING or trial.attempts > 0:
                self._write_child(trial, reports[number], is_changed=number in changed, reached=reached)
            self.progress = max(self.progress, (reached.revision, done, reached.artifacts))

    def _write_child(
        self, trial: Trial, reports: Sequence[Report], *, is_changed: bool, reached: _Reached
    ) -> None:
        number = trial.number
        child = self._children.get(number)
        if child is None:
            child, reports = self._adopt(trial, reached)
        elif not child.fits(reports):
            # A later attempt has reported epochs anew. Points can't be taken back, runs can.
            self._do("delete_run", child.run_id, about=child, number=number)
            child = self._create(trial, reached)
            reports = self._store.reports(number)
        reports = [r for r in reports if child.logged.get(r.epoch) != (r.attempt, r.revision)]
        metrics = [metric for report in reports for metric in _report_metrics(report)]
        for report in reports:
            child.keep(report)
        has_ended = is_changed and trial.state.has_ended
        if has_ended:
            metrics += _final_metrics(trial, child)
        tags = _child_tags(trial, reached) if is_changed else {}
        params = _params(trial.params)
        self._children[number] = child
        self._log(child.run_id, metrics, params, child.params, tags, child.tags, child, number)
        child.tags |= tags
        child.params |= params.keys()
        if has_ended:
            ended = _milliseconds(trial.ended or trial.created)
            self._do("set_terminated", child.run_id, STATUS[trial.state], ended, about=child, number=number)
            del self._children[number]
            self._uploads.append((trial.revision, number, child.run_id))

    def _adopt(self, trial: Trial, reached: _Reached) -> tuple[_Child, Sequence[Report]]:
        """The trial's child run, made or taken over from an earlier process, and the epochs it lacks."""
        reports = self._store.reports(trial.number) if trial.epochs else []
        run = reached.left.pop(trial.number, None)
        if run is None:
            return self._create(trial, reached), reports
        points = {report.epoch: set(map(_point, _report_metrics(report))) for report in reports}
        expected = set().union(*points.values())
        keys = {key for key, *_ in expected} & set(run.data.metrics)
        logged = {_point(m) for key in keys for m in self._client.get_metric_history(run.info.run_id, key)}
        child = _Child(run.info.run_id, dict(run.data.tags), set(run.data.params))
        if logged - expected:  # an earlier attempt's epochs, or an end half written: begin again
            self._do("delete_run", child.run_id, about=child, number=trial.number)
            return self._create(trial, reached), reports
        for report in reports:
            if points[report.epoch] <= logged:
                child.keep(report)
        return child, reports

    def _create(self, trial: Trial, reached: _Reached) -> _Child:
        tags = _child_tags(trial, reached)
        run = self._do(
            "create_run",
            reached.location.experiment_id,
            start_time=_milliseconds(trial.started or trial.created),
            tags=tags,
            run_name=f"trial {trial.number}",
        )
        return _Child(run.info.run_id, tags, set())

    def _find_ended(self, trials: Iterable[Trial], reached: _Reached) -> dict[int, str]:
        """Run ids of the ended trials among these that have an ended child run already.

        One search for a batch, and only where a batch may have been written before: by the end times, which
        are the store's.
        """
        if reached.revision >= reached.doubt:
            return {}
        ends = {t.number: _milliseconds(t.ended or t.created) for t in trials if t.state.has_ended}
        if not ends:
            return {}
        low, high = min(ends.values()), max(ends.values())
        span = f"attributes.end_time >= {low} and attributes.end_time <= {high}"
        found = self._search_children(reached, span)
        return {number: run.info.run_id for number, run in found.items() if number in ends}

    def _find_child(self, number: int, reached: _Reached) -> str | None:
        found = self._search_children(reached, f"tags.`hpo.trial` = '{number}'")
        return found[number].info.run_id if number in found else None

    def _search_children(self, reached: _Reached, condition: str) -> dict[int, Any]:
        parent = f"tags.`mlflow.parentRunId` = '{reached.location.run_id}'"
        runs = self._search(reached.location.experiment_id, f"{parent} and {condition}")
        return {int(run.data.tags["hpo.trial"]): run for run in runs if "hpo.trial" in run.data.tags}

    def _search(self, experiment_id: str, condition: str) -> Iterator[Any]:
        token = None
        while True:
            page = self._client.search_runs(
                [experiment_id], condition, max_results=PAGE, page_token=token, order_by=["start_time ASC"]
            )
            yield from page
            token = page.token
            if not token:
                return

    # --- files

    def _upload_code(self, reached: _Reached) -> None:
        run_id = reached.location.run_id
        snapshots = [file for file in self._store.files() if file.name.startswith(SNAPSHOT)]
        if snapshots:
            there = {PurePosixPath(info.path).name for info in self._client.list_artifacts(run_id, "code")}
            for file in snapshots:
                if PurePosixPath(file.name).name not in there:
                    self._upload_file(file, run_id, "code")
        reached.has_code = True

    def _upload_files(self, number: int, run_id: str, files: Sequence[StoredFile]) -> None:
        for file in files:
            folder = PurePosixPath(file.name.removeprefix(ARTIFACTS)).parent
            try:
                self._upload_file(file, run_id, None if folder == PurePosixPath() else str(folder))
            except Exception as error:
                if not _is_refusal(error):
                    raise
                log.warning("MLflow refuses the file %s of trial %d: %s", file.name, number, error)

    def _upload_file(self, file: StoredFile, run_id: str, folder: str | None) -> None:
        with tempfile.TemporaryDirectory(prefix="hpo-") as temporary:
            path = Path(temporary) / PurePosixPath(file.name).name
            if self._store.get_file(file.name, path, file.trial):
                self._do("log_artifact", run_id, str(path), folder)

    # --- writing

    def _log(
        self,
        run_id: str,
        metrics: Sequence[Any],
        params: Mapping[str, str],
        known_params: Iterable[str],
        tags: Mapping[str, str],
        known_tags: Mapping[str, str],
        about: _Child | None = None,
        number: int | None = None,
    ) -> None:
        """Write what is new, in one call where MLflow's limits allow (its client splits what is longer)."""
        from mlflow.entities import Param, RunTag

        new_params = [Param(key, value) for key, value in params.items() if key not in known_params]
        new_tags = [RunTag(key, value) for key, value in tags.items() if known_tags.get(key) != value]
        if metrics or new_params or new_tags:
            self._do("log_batch", run_id, metrics, new_params, new_tags, about=about, number=number)

    def _do(
        self, method: str, *args: Any, about: _Child | None = None, number: int | None = None, **options: Any
    ) -> Any:
        """Call a method of the client that writes.

        With ``about``, what MLflow refuses for good (its run was deleted by hand) is logged once and passed
        over: one odd trial must not hold up the others.
        """
        try:
            return getattr(self._client, method)(*args, **options)
        except Exception as error:
            if about is None or not _is_refusal(error):
                raise
            if not about.is_refused:
                log.warning("MLflow refuses trial %s: %s", number, error)
            about.is_refused = True
            return None

    @contextlib.contextmanager
    def _from_the_note_after_errors(self) -> Iterator[None]:
        """Whatever failed, nobody knows what was written: forget everything and look again next time."""
        try:
            yield
        except BaseException:
            self._reached = None
            self._children.clear()
            self._uploads.clear()
            raise


# --- what runs show


def _parent_tags(record: StudyRecord) -> dict[str, str]:
    identity = record.identity
    tags = {
        "hpo.id": _study_id(record),
        "hpo.study": identity.study,
        "hpo.entry_point": identity.entry_point,
        "hpo.fingerprint": identity.fingerprint,
        "hpo.algorithm": identity.algorithm,
        "hpo.seed": identity.seed,
        "hpo.snapshot": record.snapshot,
        "mlflow.source.name": identity.entry_point,
    }
    return _tags(tags)


def _study_id(record: StudyRecord) -> str:
    """Tells this study from another of the same name: in another store, or made after this was removed."""
    identity = record.identity
    text = f"{identity.study}\n{identity.fingerprint}\n{identity.seed}\n{record.created!r}"
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:32]


def _child_tags(trial: Trial, reached: _Reached) -> dict[str, str]:
    tags = {
        "mlflow.parentRunId": reached.location.run_id,
        "hpo.trial": trial.number,
        "hpo.state": trial.state.value,
        "hpo.attempts": trial.attempts,
        "hpo.worker": trial.worker,
        "hpo.snapshot": trial.snapshot,
        "hpo.error.kind": trial.error and trial.error.kind.value,
        "hpo.error.reason": trial.error and trial.error.reason,
    }
    return _tags(tags)


def _tags(values: Mapping[str, Any]) -> dict[str, str]:
    return {key: _text(value, TAG_LIMIT) for key, value in values.items() if value is not None}


def _params(params: Mapping[str, Any]) -> dict[str, str]:
    return {key: _text(value, PARAM_LIMIT) for key, value in _named(flat(params)).items()}


def _report_metrics(report: Report) -> list[Any]:
    values = {"loss": report.loss} | {key: report.metrics[key] for key in report.metrics if key != "loss"}
    numbers = {key: _number(value) for key, value in values.items() if _is_number(value)}
    return _metrics(numbers, report.epoch, report.time)


def _final_metrics(trial: Trial, child: _Child) -> list[Any]:
    values = {f"result/{key}": value for key, value in _numbers_of(trial.result)}
    if trial.seconds is not None:
        values["seconds"] = trial.seconds
    if trial.loss is not None and trial.loss != child.last_loss:
        values["loss"] = trial.loss
    return _metrics(values, child.last_epoch + 1, trial.ended or trial.created)


def _numbers_of(result: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The scalars of a result under dotted names; lists are data, not metrics."""
    for key, value in result.items():
        if isinstance(value, Mapping):
            yield from _numbers_of(value, f"{prefix}{key}.")
        elif _is_number(value):
            yield f"{prefix}{key}", _number(value)


def _metrics(values: Mapping[str, float], step: int, seconds: float) -> list[Any]:
    from mlflow.entities import Metric

    return [Metric(key, value, _milliseconds(seconds), step) for key, value in _named(values).items()]


def _point(metric: Any) -> tuple[str, int, int, str]:
    """A metric as something to compare: NaN equals NaN, and infinity the number MLflow's databases keep."""
    value = max(-sys.float_info.max, min(sys.float_info.max, metric.value))
    return metric.key, metric.step, metric.timestamp, repr(math.nan if math.isnan(metric.value) else value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:  # an int beyond every float
        return math.inf if value > 0 else -math.inf


def _named(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values under names MLflow takes: names that fall together are told apart by a number."""
    named: dict[str, Any] = {}
    for key, value in values.items():
        name = plain = _name(key)
        again = 2
        while name in named:
            name, again = f"{plain[: NAME_LIMIT - 8]}_{again}", again + 1
        named[name] = value
    return named


def _name(key: str) -> str:
    """The key with what MLflow refuses in names replaced: alphanumerics, ``_ - . : /`` and spaces stay."""
    clean = re.sub(r"[^\w\-. :/]", "_", key)
    # MLflow takes a name for a path, which must be its own normal form.
    parts = [part for part in clean.split("/") if part not in ("", ".", "..")]
    return "/".join(parts)[:NAME_LIMIT].rstrip("/") or "_"


def _text(value: Any, limit: int) -> str:
    # Databases refuse NUL and lone surrogates.
    text = str(value).replace("\0", "�").encode("utf-8", "replace").decode()
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000)


# --- epochs and attempts


def _count(trial: Trial, reached: _Reached) -> None:
    reached.counts[trial.state] += 1
    reached.last_ended = max(reached.last_ended or 0.0, trial.ended or trial.created)
    if trial.state is State.COMPLETED and trial.loss is not None:
        best = reached.best
        if best is None or best.loss is None or trial.loss < best.loss:
            reached.best = trial


def _slim(trial: Trial) -> Trial:
    """The trial without what takes memory."""
    return Trial(
        number=trial.number,
        state=trial.state,
        point={},
        params={},
        revision=trial.revision,
        loss=trial.loss,
        created=trial.created,
        ended=trial.ended,
    )


def _is_artifact(file: StoredFile) -> bool:
    return file.name == LOG or file.name.startswith(ARTIFACTS)


# --- MLflow itself


def _client(tracking_uri: str) -> Any:
    # Set before the import, which reads them. Workers inherit them, and that is as well.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri)


def _is_refusal(error: Exception) -> bool:
    """Whether MLflow will say the same for ever: a value it does not take, a run that was deleted."""
    refusals = ("INVALID_PARAMETER_VALUE", "INVALID_STATE", "RESOURCE_DOES_NOT_EXIST")
    return getattr(error, "error_code", "") in refusals


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """MLflow's and its libraries' log lines from this thread go nowhere: we say ourselves what matters."""
    import mlflow  # noqa: F401  its import sets up the handlers

    ours = threading.get_ident()

    def is_wanted(record: logging.LogRecord) -> bool:
        return record.thread != ours or record.name.partition(".")[0] not in NOISY

    loggers = [logging.getLogger(name) for name in (*NOISY, "urllib3.connectionpool")]
    filtered: list[logging.Filterer] = [*loggers, *(handler for lg in loggers for handler in lg.handlers)]
    for one in filtered:
        one.addFilter(is_wanted)
    try:
        yield
    finally:
        for one in filtered:
            one.removeFilter(is_wanted)


@contextlib.contextmanager
def _explained(tracking_uri: str) -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        reason = _first_line(error)
        raise TrackingUnreachable(f"MLflow at {tracking_uri} failed: {reason}", "run it again") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:500]


def _ping(tracking_uri: str) -> None:
    """Raises TrackingUnreachable unless something that is no broken gateway answers."""
    reason: object
    try:
        with urllib.request.urlopen(f"{tracking_uri.rstrip('/')}/health", timeout=PING_SECONDS):
            return
    except urllib.error.HTTPError as error:
        if error.code not in (502, 503, 504):
            return  # a server that wants a password, or has no such page, is there
        reason = f"HTTP {error.code}"
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        if "CERTIFICATE" in str(reason):
            return  # whether to trust it is MLflow's own setting
    raise TrackingUnreachable(
        f"no MLflow server answered at {tracking_uri} within {PING_SECONDS:g} s ({reason})",
        f"check that it is running, or {OFF}",
    )


def _open_database(path: Path) -> None:
    """Raises OSError or sqlite3.DatabaseError where MLflow would try for minutes to open or make it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise PermissionError("it may not be written")
    if path.exists():
        try:
            with contextlib.closing(sqlite3.connect(path, timeout=0)) as connection:
                connection.execute("PRAGMA schema_version")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:  # somebody writes: it is there
                raise


def _is_http(tracking_uri: str) -> bool:
    return tracking_uri.startswith(("http://", "https://"))


def _sqlite_path(tracking_uri: str) -> Path | None:
    path = tracking_uri.removeprefix("sqlite:///").partition("?")[0]
    return Path(path) if tracking_uri.startswith("sqlite:///") and path and path != ":memory:" else None


def _absolute(tracking_uri: str) -> str:
    """The URI with a database's path made absolute: it is kept, and read from other folders."""
    path = _sqlite_path(tracking_uri)
    if path is None:
        return tracking_uri
    _, mark, options = tracking_uri.partition("?")
    return f"sqlite:///{path.absolute()}{mark}{options}"


def _artifact_folder(tracking_uri: str) -> str | None:
    """Where artifacts go: beside the database, not in whatever folder this runs in; a server knows itself."""
    path = _sqlite_path(tracking_uri)
    return None if path is None else str(path.absolute().parent / "mlartifacts")


# --- live


class MlflowObserver:
    """Keeps MLflow up to date from a thread of its own, with a store handle of its own.

    An MLflow that fails is logged once per outage and tried again with growing pauses; what it missed is
    written when it answers. Raises TrackingUnreachable where it can't be reached at the start.
    """

    def __init__(
        self,
        url: str,
        study: str,
        tracking_uri: str,
        experiment: str | None = None,
        connect: Callable[[str], Catalog] = connect_store,
        *,
        make_client: Callable[[str], Any] | None = None,
        pause_seconds: float = 0.5,
        retry_seconds: float = 1.0,
    ) -> None:
        """``pause_seconds``: at least so long between two batches, so that quick trials share one."""
        check_reachable(tracking_uri)
        self._url, self._study = url, study
        self._tracking_uri, self._experiment = tracking_uri, experiment
        self._connect, self._make_client = connect, make_client
        self._pause_seconds, self._retry_seconds = pause_seconds, retry_seconds
        self._news = threading.Event()
        self._closing = threading.Event()
        self._abandoned = threading.Event()
        self._status = "FINISHED"
        self._is_complete = False
        self._projection: Projection | None = None
        self._location: Location | None = None
        self._thread = threading.Thread(target=self._run, name="hpo-mlflow", daemon=True)
        self._thread.start()

    @property
    def location(self) -> Location | None:
        """Where the study is in MLflow; None until its parent run exists."""
        return self._location

    def update(self, changes: Changes) -> None:
        if changes.trials or changes.reports:
            self._news.set()

    def close(self, timeout: float = 30.0, status: str = "FINISHED") -> bool:
        """Write what is left and end the parent run as ``FINISHED`` or ``KILLED``.

        Waits as long as MLflow takes what it is given, but no more than ``timeout`` seconds without. Returns
        whether MLflow has everything; if not, ``hpo mlflow sync`` brings the rest.
        """
        self._status = status
        self._closing.set()
        self._news.set()
        seen, since = (-1, 0, 0), time.monotonic()
        while self._thread.is_alive():
            self._thread.join(0.05)
            progress = self._projection.progress if self._projection is not None else seen
            now = time.monotonic()
            if progress > seen:
                seen, since = progress, now
            if now - since > timeout:
                break
        self._abandoned.set()
        return self._is_complete

    def _run(self) -> None:
        failures = 0
        try:
            with _silence(), contextlib.closing(self._connect(self._url)) as catalog:
                store = catalog.open(self._study)
                self._projection = Projection(
                    store, self._tracking_uri, self._experiment, make_client=self._make_client
                )
                while not self._abandoned.is_set() and not self._is_complete:
                    try:
                        self._follow(self._projection, was_out=failures > 0)
                        failures = 0
                    except Exception as error:
                        failures += 1
                        if failures == 1:
                            self._say_out(error)
                        self._wait(min(self._retry_seconds * 2 ** (failures - 1), 30.0))
        except Exception as error:  # the store itself can't be opened: nothing to follow
            self._say_out(error)

    def _follow(self, projection: Projection, *, was_out: bool) -> None:
        """Catch up, and return: in the end, or with news after a pause."""
        is_last = self._closing.is_set()  # looked at first: all that came before is then written
        self._news.clear()
        while not projection.catch_up():
            self._location = projection.location
        self._location = projection.location
        if was_out:
            log.warning("MLflow at %s answers again and is up to date", self._tracking_uri)
        if is_last:
            projection.end(self._status)
        while not projection.upload():
            if self._news.is_set() and not is_last:
                return
        if is_last:
            self._is_complete = True
            return
        self._closing.wait(self._pause_seconds)
        self._news.wait()

    def _wait(self, seconds: float) -> None:
        if self._closing.is_set():
            self._abandoned.wait(min(seconds, self._retry_seconds))
        else:
            self._closing.wait(seconds)

    def _say_out(self, error: Exception) -> None:
        hint = f" ({error.hint})" if isinstance(error, HpoError) and error.hint else ""
        log.warning(
            "MLflow at %s can't be written: %s%s. Trials go on; it is tried again, and "
            "`hpo mlflow sync` brings what is missing.",
            self._tracking_uri,
            _first_line(error),
            hint,
        )
        log.debug("MLflow failed", exc_info=error)
