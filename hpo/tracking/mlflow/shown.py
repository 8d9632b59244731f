"""What a run shows: names, tags, parameters and metrics within what MLflow takes."""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from hpo.core.plain import as_float, flat
from hpo.core.study import StudyRecord
from hpo.core.trial import Report, Trial
from hpo.tracking.searched import Searched

NAME_LIMIT, PARAM_LIMIT, TAG_LIMIT = 250, 6000, 8000  # characters; MLflow refuses more
DIGEST_LIMIT = 36


def parent_tags(record: StudyRecord) -> dict[str, str]:
    identity = record.identity
    tags = {
        "hpo.id": study_id(record),
        "hpo.study": identity.study,
        "hpo.entry_point": identity.entry_point,
        "hpo.fingerprint": identity.fingerprint,
        "hpo.algorithm": identity.algorithm,
        "hpo.seed": identity.seed,
        "hpo.snapshot": record.snapshot,
        "mlflow.source.name": identity.entry_point,
    }
    return _tags(tags)


def study_id(record: StudyRecord) -> str:
    """Tells this study from another of the same name: in another store, or made after this was removed."""
    identity = record.identity
    text = f"{identity.study}\n{identity.fingerprint}\n{identity.seed}\n{record.created!r}"
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:32]


def child_tags(trial: Trial, parent_run_id: str) -> dict[str, str]:
    tags = {
        "mlflow.parentRunId": parent_run_id,
        "hpo.trial": trial.number,
        "hpo.state": trial.state.value,
        "hpo.attempts": trial.attempts,
        "hpo.worker": trial.worker,
        "hpo.gpus": ",".join(trial.gpus) or None,
        "hpo.snapshot": trial.snapshot,
        "hpo.error.kind": trial.error and trial.error.kind.value,
        "hpo.error.reason": trial.error and trial.error.reason,
        "hpo.cause": epoch_time_of(trial).get("cause"),
        "hpo.advice": epoch_time_of(trial).get("advice"),
        "hpo.verdict.epoch": trial.verdict and trial.verdict.epoch,
        "hpo.verdict.chance": trial.verdict and round(trial.verdict.chance, 4),
    }
    return _tags(tags)


def _tags(values: Mapping[str, Any]) -> dict[str, str]:
    return {key: cut(value, TAG_LIMIT) for key, value in values.items() if value is not None}


def texts_of(params: Mapping[str, Any], parameters: Mapping[str, Searched] | None = None) -> dict[str, str]:
    """Parameters as MLflow keeps them; those drawn on a log scale also as ``NAME_log10``, as its charts' axes
    are linear."""
    values = flat(params)
    for name, parameter in (parameters or {}).items():
        value: Any = values.get(name)
        if parameter.is_log and _is_number(value) and value > 0:
            values.setdefault(f"{name}_log10", round(math.log10(value), 6))
    return {key: cut(value, PARAM_LIMIT) for key, value in _named(values).items()}


def epoch_time_of(trial: Trial) -> Mapping[str, Any]:
    """What the clock says of the trial's epochs; empty where it says nothing."""
    epoch_time = trial.result.get("epoch_time")
    return epoch_time if isinstance(epoch_time, Mapping) else {}


def dataset_inputs(trial: Trial) -> list[Any]:
    """The data set that the result names, as MLflow's input of a run; a list of none or one."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    found = trial.result.get("dataset")
    if not isinstance(found, Mapping) or not isinstance(found.get("name"), str):
        return []
    text = json.dumps(found, sort_keys=True)
    profile = {key: found[key] for key in ("examples", "shape", "dtype", "class_names") if key in found}
    dataset = Dataset(
        name=cut(found["name"], NAME_LIMIT),
        digest=cut(found.get("digest") or hashlib.sha256(text.encode()).hexdigest()[:16], DIGEST_LIMIT),
        source_type="local",
        source=cut(json.dumps({"uri": str(found.get("source") or "")}), TAG_LIMIT),
        profile=cut(json.dumps(profile), TAG_LIMIT),
    )
    return [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])]


def report_metrics(report: Report) -> list[Any]:
    values = {"loss": report.loss} | {key: report.metrics[key] for key in report.metrics if key != "loss"}
    numbers = {key: as_float(value) for key, value in values.items() if _is_number(value)}
    return points(numbers, report.epoch, report.time)


def final_metrics(trial: Trial, last_epoch: int, last_loss: float | None) -> list[Any]:
    """What an ended trial adds to its epochs; ``last_epoch`` is -1, if it reported none."""
    epoch_time = epoch_time_of(trial)
    apart = {"dataset"} | ({"epoch_time"} if epoch_time else set())
    others = {key: value for key, value in trial.result.items() if key not in apart}
    values = {f"result/{key}": value for key, value in _numbers_of(others)}
    values |= {f"epoch_time/{key}": value for key, value in _numbers_of(epoch_time) if key != "median_epoch"}
    if _is_number(epoch_time.get("median_epoch")):
        values["epoch_seconds"] = as_float(epoch_time["median_epoch"])
    if trial.seconds is not None:
        values["seconds"] = trial.seconds
    if trial.loss is not None and trial.loss != last_loss:
        values["loss"] = trial.loss
    return points(values, last_epoch + 1, trial.ended or trial.created)


def _numbers_of(result: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The scalars of a result under dotted names; lists are data, not metrics."""
    for key, value in result.items():
        if isinstance(value, Mapping):
            yield from _numbers_of(value, f"{prefix}{key}.")
        elif _is_number(value):
            yield f"{prefix}{key}", as_float(value)


def points(values: Mapping[str, float], step: int, seconds: float) -> list[Any]:
    from mlflow.entities import Metric

    return [Metric(key, value, milliseconds(seconds), step) for key, value in _named(values).items()]


def point_of(metric: Any) -> tuple[str, int, int, str]:
    """A metric as something to compare: NaN equals NaN, and infinity the number MLflow's databases keep."""
    value = max(-sys.float_info.max, min(sys.float_info.max, metric.value))
    return metric.key, metric.step, metric.timestamp, repr(math.nan if math.isnan(metric.value) else value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


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


def cut(value: Any, limit: int) -> str:
    # Databases refuse NUL and lone surrogates.
    text = str(value).replace("\0", "�").encode("utf-8", "replace").decode()
    return text if len(text) <= limit else text[: limit - 1] + "…"


def milliseconds(seconds: float) -> int:
    return int(seconds * 1000)
