"""Where MLflow is: addresses, whether they answer, the page and the server that show a study."""

from __future__ import annotations

import contextlib
import http.client
import importlib.metadata
import os
import sqlite3
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from hpo.core.errors import TrackingUnreachable, UsageError
from hpo.core.study import StudyRecord

PING_SECONDS = 5.0


OFF = "leave MLflow out with --tracking-uri none"


NOTE = "mlflow"  # the store's note that says where the study is in MLflow and how far


@dataclass(frozen=True, slots=True)
class Location:
    """Where a study is in MLflow: ``run_id`` is its parent run, ``view`` the key of its prepared page."""

    tracking_uri: str
    experiment_id: str
    run_id: str
    view: str | None = None

    def document(self) -> dict[str, str]:
        """What ``--json`` prints of it."""
        return {
            "tracking_uri": self.tracking_uri,
            "experiment_id": self.experiment_id,
            "run_id": self.run_id,
        }

    @property
    def url(self) -> str | None:
        """The page that compares the trials; None where no server runs (see `ui_command`)."""
        return self.page(self.tracking_uri) if is_http(self.tracking_uri) else None

    def page(self, server: str) -> str:
        """The same on an MLflow server at this address: trials by loss. Sorting by a metric lists child runs
        one by one, which else hide under their parent; without the workflow MLflow 3 shows traces."""
        view = "orderByKey=metrics.%60loss%60&orderByAsc=true"
        if self.view is not None:  # beside an order of its own, MLflow does not look at the view
            view = f"viewStateShareKey={self.view}&compareRunsMode=CHART"
        page = f"{server.rstrip('/')}/#/experiments/{self.experiment_id}/runs"
        return f"{page}?workflowType=machine_learning&{view}"


def location_of(record: StudyRecord) -> Location | None:
    """Where MLflow has this study, as the store remembers it."""
    note = record.notes.get(NOTE)
    if note is None:
        return None
    try:
        return Location(note["tracking_uri"], note["experiment_id"], note["run_id"], note.get("view"))
    except (KeyError, TypeError):  # edited by hand: it is written anew
        return None


def default_tracking_uri(store_url: str) -> str:
    """``mlflow.db`` beside the store's file; in the working directory where the store is no file."""
    file = store_url.removeprefix("sqlite:///") if store_url.startswith("sqlite:///") else "hpo.db"
    path = Path(file).absolute().parent / "mlflow.db"
    if "?" in str(path):  # MLflow's addresses have no way to write it
        raise UsageError(f"MLflow can't keep a database at {path}, for the '?'", "name one: --tracking-uri …")
    return f"sqlite:///{path}"


def check_reachable(tracking_uri: str) -> None:
    """Raises TrackingUnreachable, within seconds, where no server answers or no database can be.

    MLflow's own client would try for minutes. Does not import mlflow.
    """
    if tracking_uri.rstrip("/") in ("sqlite:", "sqlite:///:memory:"):
        raise TrackingUnreachable(f"{tracking_uri} is a database in memory: nothing would be kept", OFF)
    if is_http(tracking_uri):
        _ping(tracking_uri)
    elif (path := sqlite_path(tracking_uri)) is not None:
        try:
            _open_database(path)
        except (OSError, sqlite3.DatabaseError) as error:
            raise TrackingUnreachable(f"{path} can't be MLflow's database: {error}", OFF) from error


def ui_command(
    tracking_uri: str, host: str = "127.0.0.1", port: int = 5000
) -> tuple[list[str], dict[str, str]]:
    """The command, and what to add to its environment, that serves MLflow's pages from a database."""
    try:
        importlib.metadata.version("mlflow")  # mlflow-skinny has neither the server nor the pages
    except importlib.metadata.PackageNotFoundError:
        raise UsageError("MLflow's user interface is not installed", "pip install 'hpo[ui]'") from None
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", absolute(tracking_uri)]
    command += ["--host", host, "--port", str(port), "--workers", "1"]
    # Without its job queue the server takes 2 processes and 0.5 GB, not 10 and 2.5.
    command += ["--uvicorn-opts", "--log-level warning"]
    return command, {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PYTHONWARNINGS": "ignore",
    }


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
    except (OSError, ValueError, http.client.HTTPException) as error:
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


def is_http(tracking_uri: str) -> bool:
    return tracking_uri.lower().startswith(("http://", "https://"))


def sqlite_path(tracking_uri: str) -> Path | None:
    path = tracking_uri.removeprefix("sqlite:///").partition("?")[0]
    return Path(path) if tracking_uri.startswith("sqlite:///") and path and path != ":memory:" else None


def absolute(tracking_uri: str) -> str:
    """The URI with a database's path made absolute: it is kept, and read from other folders."""
    path = sqlite_path(tracking_uri)
    if path is None:
        return tracking_uri
    _, mark, options = tracking_uri.partition("?")
    return f"sqlite:///{path.absolute()}{mark}{options}"


def artifact_folder(tracking_uri: str) -> str | None:
    """Where artifacts go: beside the database, not in whatever folder this runs in; a server knows itself."""
    path = sqlite_path(tracking_uri)
    return None if path is None else str(path.absolute().parent / "mlartifacts")
