"""TensorBoard's event files: a folder for each trial with its scalars by epoch and its parameters (HPARAMS).

A projection of the store, as MLflow is: what is removed from the folder is written again. A trial whose file
is whole has a note beside it that names the store's revision; every other one's is begun anew by the next
process. A retried trial's curve begins anew, too. Written with the `tensorboard` package alone, without
TensorFlow or PyTorch.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpo.core.errors import UsageError
from hpo.core.plain import as_float, flat
from hpo.core.trial import Changes, Report, State, Trial
from hpo.stores import Store
from hpo.tracking.searched import searched

log = logging.getLogger("hpo.tracking")

NOTE = "revision.txt"  # TensorBoard reads only files with `tfevents` in their names


class TensorBoardObserver:
    """Keeps event files in ``folder`` up to date; an `hpo.tracking.Observer`.

    What ended before is written at the start, where it is not there yet. Raises UsageError where the package
    is not installed or the folder can't be made. A disk that fails is logged once: nothing more is written.
    """

    def __init__(self, store: Store, folder: Path) -> None:
        try:
            import tensorboard  # noqa: F401
        except ImportError:
            raise UsageError("TensorBoard is not installed", "pip install 'hpo[tensorboard]'") from None
        self.folder = folder
        self._store = store
        self._files: dict[int, _TrialFile] = {}
        self._is_broken = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._write_columns()
            for trial in store.trials():
                self._take(trial)
        except OSError as error:
            raise UsageError(
                f"TensorBoard's files can't be written to {folder}: {error.strerror}",
                "name another folder with --tensorboard-dir",
            ) from error

    def update(self, changes: Changes) -> None:
        if self._is_broken:
            return
        try:
            for report in changes.reports:
                file = self._files.get(report.number)
                if file is not None and not file.add(report):
                    self._begin(file.trial)
            for trial in changes.trials:
                self._take(trial)
        except OSError as error:
            self._is_broken = True
            log.warning("TensorBoard's files in %s are not written any more: %s", self.folder, error)

    def close(self) -> bool:
        for file in self._files.values():
            with contextlib.suppress(OSError):
                file.close()
        self._files.clear()
        return not self._is_broken

    def _take(self, trial: Trial) -> None:
        """Bring the trial's file to where the trial stands."""
        if trial.state is State.WAITING and trial.attempts == 0:
            return
        folder = self._folder(trial.number)
        if trial.state.has_ended and _noted(folder) == trial.revision:
            return
        file = self._files.get(trial.number)
        if file is None or (file.trial.attempts != trial.attempts and file.epochs):
            file = self._begin(trial)
        file.trial = trial
        if trial.state.has_ended:
            self._files.pop(trial.number)
            for report in self._store.reports(trial.number):
                if not file.add(report):
                    file = self._begin(trial)  # the store's curve is another one: it was begun anew
                    self._files.pop(trial.number)
                    break
            file.end(trial)
            file.close()
            (folder / NOTE).write_text(str(trial.revision))

    def _begin(self, trial: Trial) -> _TrialFile:
        """The trial's file anew, with what the store has of it."""
        if old := self._files.pop(trial.number, None):
            old.close()
        folder = self._folder(trial.number)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        file = _TrialFile(folder, trial)
        for report in self._store.reports(trial.number):
            file.add(report)
        self._files[trial.number] = file
        return file

    def _folder(self, number: int) -> Path:
        return self.folder / f"trial-{number:05d}"

    def _write_columns(self) -> None:
        """Say what the HPARAMS tab shows: the searched parameters and the trial's last numbers."""
        from tensorboard.plugins.hparams.summary_v2 import HParam, Metric, hparams_config_pb

        names = searched(self._store.record().identity.space)
        if not names:
            return  # TensorBoard finds them itself
        metrics = [Metric(name) for name in ("loss", "accuracy", "epoch_seconds", "seconds")]
        summary = hparams_config_pb([HParam(name) for name in names], metrics, time_created_secs=0.0)
        for old in self.folder.glob("*tfevents*"):
            old.unlink()
        file = _EventFile(self.folder / "events.out.tfevents.0.space")
        file.write(summary, 0, 0.0)
        file.close()


@dataclass
class _TrialFile:
    """The event file of one trial. ``epochs``: the reports written, by epoch: (attempt, revision)."""

    folder: Path
    trial: Trial
    epochs: dict[int, tuple[int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb

        trial = self.trial
        started = trial.started or trial.created
        # TensorBoard remembers files by name: another attempt's is another file.
        name = f"events.out.tfevents.{int(started)}.{trial.attempts}.{trial.revision}"
        self._file = _EventFile(self.folder / name, started)
        parameters = {name: _hparam(value) for name, value in flat(trial.params).items()}
        self._file.write(hparams_pb(parameters, str(trial.number), started), 0, started)

    def add(self, report: Report) -> bool:
        """Append the epoch, if it is not there; False where it can't follow what is."""
        stamp = (report.attempt, report.revision)
        if self.epochs.get(report.epoch) == stamp:
            return True
        if self.epochs and report.epoch <= max(self.epochs):
            return False
        values = {"loss": report.loss} | {k: v for k, v in report.metrics.items() if k != "loss"}
        self._file.write(_scalars(values), report.epoch, report.time)
        self.epochs[report.epoch] = stamp
        return True

    def end(self, trial: Trial) -> None:
        """The trial's own loss and costs, one step behind its last epoch, and how it ended."""
        from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

        ended = trial.ended or trial.created
        epoch_time = trial.result.get("epoch_time")
        seconds = epoch_time.get("median_epoch") if isinstance(epoch_time, Mapping) else None
        accuracy = trial.result.get("accuracy")
        values = {
            "loss": trial.loss,
            "accuracy": accuracy,
            "epoch_seconds": seconds,
            "seconds": trial.seconds,
        }
        self._file.write(_scalars(values), max(self.epochs, default=-1) + 1, ended)
        is_failed = trial.state is State.FAILED
        status = api_pb2.STATUS_FAILURE if is_failed else api_pb2.STATUS_SUCCESS
        info = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=ended)
        data = plugin_data_pb2.HParamsPluginData(session_end_info=info)
        summary = _summary()
        summary.value.add(
            tag=metadata.SESSION_END_INFO_TAG,
            metadata=metadata.create_summary_metadata(data),
            tensor=metadata.NULL_TENSOR,
        )
        self._file.write(summary, 0, ended)

    def close(self) -> None:
        self._file.close()


class _EventFile:
    """A new file of TensorBoard's records."""

    def __init__(self, path: Path, when: float = 0.0) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event = Event
        self._records = RecordWriter(path.open("wb"))
        self._put(Event(wall_time=when, file_version="brain.Event:2"))

    def write(self, summary: Any, step: int, when: float) -> None:
        self._put(self._event(wall_time=when, step=step, summary=summary))

    def close(self) -> None:
        self._records.close()

    def _put(self, event: Any) -> None:
        self._records.write(event.SerializeToString())
        self._records.flush()  # who watches sees it at once


def _summary() -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary

    return Summary()


def _scalars(values: Mapping[str, Any]) -> Any:
    summary = _summary()
    for name, value in _numbers(values.items()):
        summary.value.add(tag=name, simple_value=value)
    return summary


def _numbers(items: Iterable[tuple[str, Any]]) -> list[tuple[str, float]]:
    return [
        (name, as_float(value))
        for name, value in items
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]


def _hparam(value: Any) -> bool | float | str:
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return as_float(value)
    return str(value)


def _noted(folder: Path) -> int | None:
    try:
        return int((folder / NOTE).read_text())
    except (OSError, ValueError):
        return None
