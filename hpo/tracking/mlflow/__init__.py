"""The study in MLflow: the study is a parent run, each trial that was claimed a child run.

The store is authoritative; MLflow is a projection of it. `Projection.catch_up` is live tracking, ``hpo mlflow
sync`` and rebuilding at once: it reads the store's changes after the revision MLflow has reached, writes them
and only then notes the new revision. Whatever stops it in between, the next call does the same batch again,
and all it writes is idempotent:

- runs are found again by their tags (``hpo.id``; ``mlflow.parentRunId`` and ``hpo.trial``);
- metrics carry times and steps from the store, so that a point written twice is one row;
- a child run is ended last: one that has ended is whole.

What a child run shows: parameters under flat names, those drawn on a log scale also as ``NAME_log10``; per
epoch ``loss`` and the reported metrics, step = epoch; at the end ``seconds``, ``epoch_seconds`` and the
clock's other numbers (``epoch_time/NAME``), those of the result as ``result/NAME``, tags ``hpo.cause`` and
``hpo.advice``, the data set as input; and the loss the objective returned as last point of ``loss``, one
step after the last epoch, unless the last epoch reported just that. So the table's ``loss`` is always the
one the search has learned from.

What an objective logs to MLflow itself: without a server its worker keeps it apart and leaves it in the
store (`logged.py`), from where it is copied into the child run; names that the study uses are prefixed
``logged/``. On a server the child run is made before the trial (`live.py`), its id goes to the worker
through the store, and the objective logs into it live. Such a run is shared: it is never deleted while its
trial may write to it, our parameters come when the trial has ended, and an epoch that is told twice stands
there twice.

Importing mlflow takes a second: it happens inside functions, in the observer's thread.
"""

from hpo.tracking.mlflow.address import (
    Location,
    check_reachable,
    default_tracking_uri,
    is_http,
    location_of,
    ui_command,
)
from hpo.tracking.mlflow.observer import MlflowObserver
from hpo.tracking.mlflow.projection import Projection, sync

__all__ = [
    "Location",
    "MlflowObserver",
    "Projection",
    "check_reachable",
    "default_tracking_uri",
    "is_http",
    "location_of",
    "sync",
    "ui_command",
]
