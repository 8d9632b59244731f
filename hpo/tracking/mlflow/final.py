"""The final training of a study's winner as a run of its own in the study's experiment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpo.core.trial import Report
from hpo.stores.protocol import Store
from hpo.tracking.mlflow.address import Location, location_of
from hpo.tracking.mlflow.client import explained, quiet_client, silence
from hpo.tracking.mlflow.logged import Logged, artifacts, read
from hpo.tracking.mlflow.shown import milliseconds, points, report_metrics, texts_of


def log_final(
    store: Store,
    *,
    name: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    figures: Mapping[str, float],
    epochs: tuple[Report, ...],
    folder: Path,
    logged: Path,
    started: float,
    ended: float,
) -> Location | None:
    """Write it where the study is in MLflow; None where the study is in none.

    ``figures``: last values, by name. ``folder``: its files become the run's artifacts. ``logged``: what the
    objective logged itself, if it is there. The run has no parent. Raises TrackingUnreachable.
    """
    location = location_of(store.record())
    if location is None:
        return None
    with silence(), explained(location.tracking_uri):
        from mlflow.entities import Param, RunTag

        client = quiet_client(location.tracking_uri)
        run_id = client.create_run(
            location.experiment_id,
            start_time=milliseconds(started),
            tags={"hpo.final": store.study, **tags},
            run_name=name,
        ).info.run_id
        metrics = [metric for report in epochs for metric in report_metrics(report)]
        metrics += points(figures, epochs[-1].epoch + 1 if epochs else 0, ended)
        texts = texts_of(params)
        own = read(logged, {metric.key for metric in metrics}, texts) if logged.is_dir() else Logged()
        client.log_batch(
            run_id,
            [*metrics, *own.metrics],
            [Param(key, value) for key, value in {**texts, **own.params}.items()],
            [RunTag(key, value) for key, value in {**own.tags, "hpo.study": store.study}.items()],
        )
        for path in sorted(folder.iterdir()):
            if path != logged.parent and not path.name.startswith("."):
                upload = client.log_artifact if path.is_file() else client.log_artifacts
                upload(run_id, str(path), *([] if path.is_file() else [path.name]))
        if logged.is_dir():
            for path, target in artifacts(logged):
                client.log_artifacts(run_id, str(path), target)
        client.set_terminated(run_id, "FINISHED", milliseconds(ended))
    return Location(location.tracking_uri, location.experiment_id, run_id)
