"""What an objective logged to MLflow itself, from the archive its worker left (`hpo.core.files.TRACKED`).

The archive is a folder of MLflow's file store. It comes out of a store that others may write to: it is read
through MLflow's client, which parses text alone; its paths are checked; nothing in it is unpickled, and no
address in it is followed.
"""

from __future__ import annotations

import zipfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from hpo.core.files import is_below
from hpo.tracking.mlflow.client import quiet_client

MAX_FILES = 100_000
MAX_POINTS = 100_000  # of all metrics together: a hundred calls, a few seconds
PAGE = 1000
OWN = ("mlflow.", "hpo.")  # tags that say what MLflow and this program know of a run


class Unreadable(Exception):
    """The archive is not what a worker leaves."""


@dataclass(frozen=True, slots=True)
class Logged:
    """``metrics``: MLflow's, with their own steps and times. ``left_out``: points beyond MAX_POINTS."""

    params: Mapping[str, str] = field(default_factory=dict)
    metrics: tuple[Any, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    left_out: int = 0


def unpack(archive: Path, folder: Path) -> None:
    """Raises Unreadable where it is no such archive, or would grow, or leave the folder."""
    try:
        with zipfile.ZipFile(archive) as packed:
            entries = packed.infolist()
            if len(entries) > MAX_FILES:
                raise Unreadable(f"it has {len(entries)} files, more than {MAX_FILES}")
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise Unreadable("it is compressed, which workers' are not")
            if sum(entry.file_size for entry in entries) > archive.stat().st_size:
                raise Unreadable("it would be larger unpacked")
            if odd := next((entry.filename for entry in entries if not is_below(entry.filename)), None):
                raise Unreadable(f"it names a file {odd!r}")
            packed.extractall(folder)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise Unreadable(str(error)) from error


def read(folder: Path, taken: Collection[str], params: Mapping[str, str]) -> Logged:
    """The runs of an unpacked archive as one, oldest first.

    Args: taken: metrics that the trial's run has from the study; params: its parameters. What the objective
    called the same is named ``logged/NAME``; what two runs of its own called the same, ``NAME_2``.
    Raises Unreadable.
    """
    client = quiet_client(str(folder))
    left = MAX_POINTS
    all_params: dict[str, str] = {}
    metrics: list[Any] = []
    tags: dict[str, str] = {}
    left_out = 0
    try:
        used = set(taken)
        for run in _runs(client):
            for key, value in run.data.params.items():
                if params.get(key) != value and all_params.get(key) != value:
                    all_params[_free(key, params, all_params)] = value
            mine: set[str] = set()
            for key in run.data.metrics:
                name = _free(key, taken, used)
                mine.add(name)
                points = client.get_metric_history(run.info.run_id, key)
                left_out += max(0, len(points) - left)
                metrics += [_renamed(point, name) for point in points[:left]]
                left -= min(left, len(points))
            used |= mine
            for key, value in run.data.tags.items():
                if not key.startswith(OWN):
                    tags.setdefault(key, value)
    except Exception as error:  # text that anybody may have written
        raise Unreadable(str(error)) from error
    return Logged(all_params, tuple(metrics), tags, left_out)


def artifacts(folder: Path) -> Iterator[tuple[Path, str | None]]:
    """Folders of files of an unpacked archive, and where they belong among the run's artifacts: what was
    logged under its own path, a model under its name, so that ``runs:/RUN/NAME`` loads it."""
    client = quiet_client(str(folder))
    try:
        runs = list(_runs(client))
        for run in runs:
            yield from _inside(folder, None, run.info.experiment_id, run.info.run_id, "artifacts")
        for experiment in _experiments(client):
            for model in client.search_logged_models([experiment], max_results=100):
                if is_below(model.name):
                    yield from _inside(folder, model.name, experiment, "models", model.model_id, "artifacts")
    except Exception as error:
        raise Unreadable(str(error)) from error


def _inside(folder: Path, target: str | None, *parts: str) -> Iterator[tuple[Path, str | None]]:
    # Not the address that the run names: it is the worker's, or anybody's.
    if all(part not in ("", ".", "..") and PurePosixPath(part).name == part for part in parts):
        path = folder.joinpath(*parts)
        if path.is_dir() and any(path.iterdir()):
            yield path, target


def _runs(client: Any) -> list[Any]:
    experiments = _experiments(client)
    found = client.search_runs(experiments, max_results=PAGE) if experiments else []
    return sorted(found, key=lambda run: (run.info.start_time or 0, run.info.run_id))


def _experiments(client: Any) -> list[str]:
    return [experiment.experiment_id for experiment in client.search_experiments(max_results=PAGE)]


def _free(key: str, ours: Collection[str], used: Collection[str]) -> str:
    name = plain = f"logged/{key}" if key in ours else key
    again = 2
    while name in used:
        name, again = f"{plain}_{again}", again + 1
    return name


def _renamed(point: Any, name: str) -> Any:
    from mlflow.entities import Metric

    return Metric(name, point.value, point.timestamp, point.step)
