"""The prepared page of a study: what MLflow's Share button would keep after somebody had arranged it.

MLflow reads such a view from a tag of the experiment (``mlflow.sharedViewState.KEY``, JSON; seen in 3.17, not
documented). Where it can't be written or read, the page shows MLflow's own arrangement.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from hpo.tracking.searched import Searched

TAG = "mlflow.sharedViewState."
TAG_LIMIT = 5000  # characters of an experiment's tag
MOST = 12  # axes of the parallel coordinates; beyond, nobody follows a line


def view_tag(parent_run_id: str, parameters: Mapping[str, Searched]) -> tuple[str, str]:
    """The key of a study's view (see `Location.page`) and its state: trials by loss, with cause, seconds an
    epoch and parameters as columns; parallel coordinates, learning curves, epoch seconds by a parameter."""
    names = list(parameters)
    for most in range(len(names), -1, -1):
        text = json.dumps(
            _state(parent_run_id, {n: parameters[n] for n in names[:most]}), separators=(",", ":")
        )
        if len(text) <= TAG_LIMIT:
            break
    return hashlib.sha256(text.encode()).hexdigest()[:16], text


def _state(parent_run_id: str, parameters: Mapping[str, Searched]) -> dict[str, Any]:
    shown = [f"{name}_log10" if one.is_log and one.is_number else name for name, one in parameters.items()]
    # A line needs a value on every axis: trials without a parameter would not be drawn at all.
    axes = [name for name, one in zip(shown, parameters.values(), strict=True) if one.is_always][:MOST]
    numbers = [
        n for n, one in zip(shown, parameters.values(), strict=True) if one.is_always and one.is_number
    ]
    charts = [
        _chart("PARALLEL", "space", selectedParams=axes, selectedMetrics=["loss"], showAllRuns=True),
        *(_chart("LINE", "epochs", metricKey=key, xAxisKey="step") for key in ("loss", "accuracy")),
    ]
    if numbers:
        against = next((name for name in numbers if "batch" in name), numbers[0])
        axis = {"key": against, "type": "PARAM"}
        seconds = {"key": "epoch_seconds", "type": "METRIC"}
        charts.append(_chart("SCATTER", "epochs", xaxis=axis, yaxis=seconds, runsCountToCompare=100))
    return {
        "searchFilter": f"tags.`mlflow.parentRunId` = '{parent_run_id}'",
        "orderByKey": "metrics.`loss`",
        "orderByAsc": True,
        "selectedColumns": [
            "metrics.`loss`",
            "metrics.`epoch_seconds`",
            "tags.`hpo.cause`",
            *(f"params.`{name}`" for name in shown),
        ],
        "runsHiddenMode": "FIRST_20_RUNS",
        "compareRunCharts": charts,
        "compareRunSections": [
            _section("space", "Parameters and loss", columns=1),
            _section("epochs", "Epochs", columns=3),
        ],
        "isAccordionReordered": True,
        "hideEmptyCharts": True,
    }


def _section(key: str, name: str, columns: int) -> dict[str, Any]:
    return {"uuid": key, "name": name, "columns": columns, "display": True, "isReordered": True}


def _chart(kind: str, section: str, **settings: Any) -> dict[str, Any]:
    key = hashlib.sha256(json.dumps([kind, settings]).encode()).hexdigest()[:8]
    card = {"type": kind, "uuid": key, "metricSectionId": section, "deleted": False, "isGenerated": False}
    return card | {"runsCountToCompare": 20} | settings
