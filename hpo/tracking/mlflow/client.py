"""MLflow's client: made quiet, its errors explained."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from typing import Any

from hpo.core.errors import TrackingUnreachable
from hpo.stores.filesystems import network_filesystem, put_in_place
from hpo.tracking.mlflow.address import sqlite_path

NOISY = ("mlflow", "alembic", "urllib3")  # loggers


def quiet_client(tracking_uri: str) -> Any:
    """An ``MlflowClient``; a database that is not there yet is made first, whole or not at all."""
    # Set before the import, which reads them. Workers inherit them, and that is as well.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # what workers leave (logged.py) is one
    from mlflow.tracking import MlflowClient

    path = sqlite_path(tracking_uri)
    if path is not None and not path.exists():
        # MLflow makes its tables one by one: killed meanwhile, it could never again open what it left.
        new = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
        made = new.with_name(f"{new.name}-made")
        try:
            MlflowClient(f"sqlite:///{made}").search_experiments(max_results=1)
            shutil.copyfile(made, new)  # MLflow keeps the file it has made open
            if not network_filesystem(path.absolute()):
                # The file remembers it: MLflow commits ten times a trial, and each costs one sync, not three.
                with contextlib.closing(sqlite3.connect(new)) as connection:
                    connection.execute("PRAGMA journal_mode = WAL")
            put_in_place(new, path)
        finally:
            for leftover in (made, new):
                leftover.unlink(missing_ok=True)
    return MlflowClient(tracking_uri)


def is_refusal(error: Exception) -> bool:
    """Whether MLflow will say the same for ever: a value it does not take, a run that was deleted."""
    refusals = ("INVALID_PARAMETER_VALUE", "INVALID_STATE", "RESOURCE_DOES_NOT_EXIST")
    return getattr(error, "error_code", "") in refusals


@contextlib.contextmanager
def silence() -> Iterator[None]:
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
def explained(tracking_uri: str) -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        reason = first_line(error)
        raise TrackingUnreachable(f"MLflow at {tracking_uri} failed: {reason}", "run it again") from error


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:500]
