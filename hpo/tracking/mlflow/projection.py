"""The projection of a store on MLflow."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from hpo.core.errors import UsageError
from hpo.core.files import ARTIFACTS, LOG, SNAPSHOT, TRACKED
from hpo.core.plain import as_float
from hpo.core.repeats import Mean, Repeats, final_loss
from hpo.core.trial import ENDED, Changes, Report, State, Trial
from hpo.stores.protocol import Store, StoredFile
from hpo.tracking.mlflow import logged
from hpo.tracking.mlflow.address import NOTE, Location, absolute, artifact_folder, check_reachable
from hpo.tracking.mlflow.client import explained, is_refusal, quiet_client, silence
from hpo.tracking.mlflow.logged import Logged
from hpo.tracking.mlflow.shown import (
    NAME_LIMIT,
    child_tags,
    cut,
    dataset_inputs,
    final_metrics,
    milliseconds,
    parent_tags,
    point_of,
    points,
    report_metrics,
    study_id,
    texts_of,
)
from hpo.tracking.mlflow.view import TAG, view_tag
from hpo.tracking.searched import Searched, searched

log = logging.getLogger("hpo.tracking")

PAGE = 1000


STATUS = {State.COMPLETED: "FINISHED", State.PRUNED: "KILLED", State.FAILED: "FAILED"}


@dataclass(slots=True)
class _Child:
    """A child run that has not ended. ``logged``: which report (attempt, revision) stands for each epoch.
    ``keys``: metrics that the trial has reported. ``is_live``: its objective may write to it, too, so it is
    never deleted, and an epoch that is told again stands there twice."""

    run_id: str
    tags: dict[str, str]
    params: set[str]
    is_live: bool = False
    keys: set[str] = field(default_factory=set)
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
    left: dict[int, list[Any]] = field(default_factory=dict)  # child runs that an earlier process left open
    counts: dict[State, int] = field(default_factory=lambda: dict.fromkeys(ENDED, 0))
    best: Mean | None = None
    points: Repeats = field(default_factory=Repeats)
    last_ended: float | None = None
    has_code: bool = False
    datasets: set[tuple[str, str]] = field(default_factory=set)  # inputs of the study's run


def sync(store: Store, tracking_uri: str, experiment: str | None = None) -> Location:
    """Bring MLflow up to date with the store and wait for it; on an empty MLflow, rebuild it.

    Only where no driver lives: there is one writer, and the parent run is ended.
    Raises TrackingUnreachable; what was written until then stays, and the next call goes on.
    """
    projection = Projection(store, tracking_uri, experiment)
    with silence(), explained(tracking_uri):
        while not projection.catch_up():
            pass
        counts = store.record().counts
        is_open = counts[State.WAITING] + counts[State.RUNNING]
        projection.end("KILLED" if is_open else "FINISHED")
        while not projection.upload():
            pass
        assert projection.location is not None
        return projection.location


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
        self._uri = absolute(tracking_uri)
        self._experiment = experiment or store.study
        self._make_client = make_client or quiet_client
        self._client: Any = None
        self._reached: _Reached | None = None
        self._parameters: Mapping[str, Searched] = {}
        self._children: dict[int, _Child] = {}
        self._uploads: deque[tuple[int, int, str | None]] = deque()  # (revision, trial, run id if known)
        self.progress = (0, 0, 0)  # revision, trials of the next batch, revision of files: grows or stalls

    @property
    def location(self) -> Location | None:
        return None if self._reached is None else self._reached.location

    def open(self) -> None:
        """Find or make the study's run: then `location` says where it is. Raises as `catch_up` does."""
        with self._from_the_note_after_errors():
            self._open()

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
            ended = milliseconds(reached.last_ended or time.time())
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
            found = self._search(experiment_id, f"tags.`hpo.id` = '{study_id(record)}'")
            parent = next(found, None)
        if parent is None:
            parent = self._do(
                "create_run",
                experiment_id,
                start_time=milliseconds(record.created),
                tags=parent_tags(record),
                run_name=cut(record.identity.study, NAME_LIMIT),
            )
            doubt = 0
        elif parent.info.status != "RUNNING":
            self._do("update_run", parent.info.run_id, status="RUNNING")
        params = texts_of(record.identity.arguments)
        self._log(parent.info.run_id, [], params, parent.data.params, parent_tags(record), parent.data.tags)
        self._parameters = searched(record.identity.space)
        location = Location(
            self._uri,
            experiment_id,
            parent.info.run_id,
            self._prepare_view(experiment_id, parent.info.run_id),
        )
        points = Repeats(record.identity.repeats)
        reached = _Reached(location, since, artifacts, doubt, points=points)
        if doubt:
            for run in self._search_children(reached, "attributes.status = 'RUNNING'"):
                reached.left.setdefault(int(run.data.tags["hpo.trial"]), []).append(run)
        self._recount(reached)
        self._note(reached)
        self._reached = reached
        return reached

    def _living(self, run_id: str) -> Any:
        """The run, or None where it was deleted or its database is another one by now."""
        try:
            run = self._client.get_run(run_id)
        except Exception as error:
            if is_refusal(error):
                return None
            raise
        return run if run.info.lifecycle_stage == "active" else None

    def _prepare_view(self, experiment_id: str, run_id: str) -> str | None:
        """The key of the page that compares the trials, a tag of the experiment; None without one."""
        key, state = view_tag(run_id, self._parameters)
        try:
            if self._client.get_experiment(experiment_id).tags.get(TAG + key) != state:
                self._do("set_experiment_tag", experiment_id, TAG + key, state)
        except Exception as error:  # nobody's study depends on how a page looks
            log.debug("MLflow takes no view: %s", error)
            return None
        return key

    def _experiment_id(self) -> str:
        experiment = self._client.get_experiment_by_name(self._experiment)
        if experiment is None:
            try:
                return str(self._do("create_experiment", self._experiment, artifact_folder(self._uri)))
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
            for one in dataset_inputs(trial):
                if (known := (one.dataset.name, one.dataset.digest)) not in reached.datasets:
                    self._do("log_inputs", reached.location.run_id, [one])
                    reached.datasets.add(known)
            step = sum(reached.counts.values())
            values = {f"trials/{trial.state.value}": float(reached.counts[trial.state])}
            if trial.state is State.COMPLETED and reached.best is not None:
                values["best_loss"] = as_float(reached.best.loss)
            metrics += points(values, step, trial.ended or trial.created)
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
        if child is None or (child.is_live and child.run_id != trial.run_id):
            child, reports = self._adopt(trial, reached)
        elif not child.is_live and not child.fits(reports):
            # A later attempt has reported epochs anew. Points can't be taken back, runs can.
            self._do("delete_run", child.run_id, about=child, number=number)
            child = self._create(trial, reached)
            reports = self._store.reports(number)
        has_ended = is_changed and trial.state.has_ended
        if child.is_live and has_ended:
            reports = self._store.reports(number)
        elif child.is_live:
            # What an earlier attempt told, the next one may tell anew: until it has ended, that waits.
            reports = [r for r in reports if trial.state is State.RUNNING and r.attempt == trial.attempts]
        reports = [r for r in reports if child.logged.get(r.epoch) != (r.attempt, r.revision)]
        metrics = [metric for report in reports for metric in report_metrics(report)]
        for report in reports:
            child.keep(report)
        child.keys |= {metric.key for metric in metrics}
        tags = child_tags(trial, reached.location.run_id) if is_changed else {}
        # An objective that logs a parameter of the same name live must not be refused for it: it goes first.
        params = texts_of(trial.params, self._parameters) if has_ended or not child.is_live else {}
        if has_ended and child.is_live:
            metrics += self._end_live(trial, child)
        elif has_ended:
            metrics += final_metrics(trial, child.last_epoch, child.last_loss)
            own = self._logged_itself(trial, {metric.key for metric in metrics} | child.keys, params)
            metrics += own.metrics
            params = {**params, **own.params}
            tags = {**own.tags, **tags}
        self._children[number] = child
        self._log(child.run_id, metrics, params, child.params, tags, child.tags, child, number)
        child.tags |= tags
        child.params |= params.keys()
        if has_ended:
            if inputs := dataset_inputs(trial):
                self._do("log_inputs", child.run_id, inputs, about=child, number=number)
            ended = milliseconds(trial.ended or trial.created)
            self._do("set_terminated", child.run_id, STATUS[trial.state], ended, about=child, number=number)
            del self._children[number]
            self._uploads.append((trial.revision, number, child.run_id))

    def _adopt(self, trial: Trial, reached: _Reached) -> tuple[_Child, Sequence[Report]]:
        """The trial's child run, made or taken over from an earlier process, and the epochs it lacks."""
        reports = self._store.reports(trial.number) if trial.epochs else []
        left = reached.left.pop(trial.number, [])
        run = None if trial.run_id is None else self._living(trial.run_id)
        if run is not None and run.data.tags.get("mlflow.parentRunId") != reached.location.run_id:
            run = None  # of another MLflow, or anybody's
        is_live = run is not None
        if run is None and left:
            run = left.pop(0)
        for stray in left:
            # A driver died after it had made this run, before it could tell the store.
            if run is None or stray.info.run_id != run.info.run_id:
                self._do("delete_run", stray.info.run_id)
        if run is None:
            return self._create(trial, reached), reports
        points = {report.epoch: set(map(point_of, report_metrics(report))) for report in reports}
        expected = set().union(*points.values())
        keys = {key for key, *_ in expected} & set(run.data.metrics)
        logged = {point_of(m) for key in keys for m in self._client.get_metric_history(run.info.run_id, key)}
        child = _Child(run.info.run_id, dict(run.data.tags), set(run.data.params), is_live)
        if (
            logged - expected and not is_live
        ):  # an earlier attempt's epochs, or an end half written: begin again
            self._do("delete_run", child.run_id, about=child, number=trial.number)
            return self._create(trial, reached), reports
        for report in reports:
            if points[report.epoch] <= logged:
                child.keep(report)
        child.keys |= {key for key, *_ in expected}
        return child, reports

    def _end_live(self, trial: Trial, child: _Child) -> list[Any]:
        """The last metrics of a trial whose objective has logged beside us. The run's loss is the trial's,
        whatever else was logged by that name, so its last point comes after all others."""
        run = self._client.get_run(child.run_id)
        child.params |= run.data.params.keys()
        last_epoch, last_loss = child.last_epoch, run.data.metrics.get("loss")
        if last_loss is not None and last_loss != trial.loss:
            history = self._client.get_metric_history(child.run_id, "loss")
            last_epoch = max([last_epoch, *(point.step for point in history)])
        return final_metrics(trial, last_epoch, last_loss)

    def _logged_itself(self, trial: Trial, taken: set[str], params: Mapping[str, str]) -> Logged:
        """What the objective logged to MLflow itself; nothing where that can't be read."""
        if all(file.name != TRACKED for file in self._store.files(trial.number)):
            return Logged()
        with tempfile.TemporaryDirectory(prefix="hpo-") as temporary:
            folder = self._unpacked(trial.number, Path(temporary))
            if folder is None:
                return Logged()
            try:
                own = logged.read(folder, taken, params)
            except logged.Unreadable as error:
                log.warning("what trial %d logged to MLflow itself can't be read: %s", trial.number, error)
                return Logged()
        if own.left_out:
            log.warning(
                "trial %d logged too much to MLflow: %d points are left out", trial.number, own.left_out
            )
        return own

    def _unpacked(self, number: int, scratch: Path) -> Path | None:
        """The folder that the trial's worker has left (`hpo.core.files.TRACKED`), None if there is none."""
        archive, folder = scratch / TRACKED, scratch / "mlflow"
        if not self._store.get_file(TRACKED, archive, number):
            return None
        try:
            logged.unpack(archive, folder)
        except logged.Unreadable as error:
            log.warning("%s of trial %d can't be read: %s", TRACKED, number, error)
            return None
        return folder

    def _create(self, trial: Trial, reached: _Reached) -> _Child:
        tags = child_tags(trial, reached.location.run_id)
        run = self._do(
            "create_run",
            reached.location.experiment_id,
            start_time=milliseconds(trial.started or trial.created),
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
        ends = {t.number: milliseconds(t.ended or t.created) for t in trials if t.state.has_ended}
        if not ends:
            return {}
        low, high = min(ends.values()), max(ends.values())
        span = f"attributes.end_time >= {low} and attributes.end_time <= {high}"
        return {
            number: run.info.run_id
            for run in self._search_children(reached, span)
            # An objective may have ended its run itself, live: then at another time, and without our tag.
            if ends.get(number := int(run.data.tags["hpo.trial"])) == run.info.end_time
            and run.data.tags.get("hpo.state") in ENDED
        }

    def _find_child(self, number: int, reached: _Reached) -> str | None:
        found = self._search_children(reached, f"tags.`hpo.trial` = '{number}'")
        return found[0].info.run_id if found else None

    def _search_children(self, reached: _Reached, condition: str) -> list[Any]:
        parent = f"tags.`mlflow.parentRunId` = '{reached.location.run_id}'"
        runs = self._search(reached.location.experiment_id, f"{parent} and {condition}")
        return [run for run in runs if run.data.tags.get("hpo.trial", "").isdecimal()]

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
                if file.name == TRACKED:
                    self._upload_logged(number, run_id)
                else:
                    self._upload_file(file, run_id, None if folder == PurePosixPath() else str(folder))
            except Exception as error:
                if not is_refusal(error):
                    raise
                log.warning("MLflow refuses the file %s of trial %d: %s", file.name, number, error)

    def _upload_logged(self, number: int, run_id: str) -> None:
        with tempfile.TemporaryDirectory(prefix="hpo-") as temporary:
            folder = self._unpacked(number, Path(temporary))
            try:
                for path, target in logged.artifacts(folder) if folder is not None else ():
                    self._do("log_artifacts", run_id, str(path), target)
            except logged.Unreadable as error:
                log.warning("artifacts that trial %d logged can't be read: %s", number, error)

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
            if about is None or not is_refusal(error):
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


def _count(trial: Trial, reached: _Reached) -> None:
    reached.counts[trial.state] += 1
    reached.last_ended = max(reached.last_ended or 0.0, trial.ended or trial.created)
    point = reached.points.add(trial.number, final_loss(trial))
    if point is not None and point.loss is not None:
        best = reached.best
        if best is None or best.loss is None or point.loss < best.loss:
            reached.best = point


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
    return file.name in (LOG, TRACKED) or file.name.startswith(ARTIFACTS)
