"""Trials' runs on a server, made before the trials start, so that objectives log into them live."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from hpo.tracking.mlflow.address import Location
from hpo.tracking.mlflow.client import is_refusal, silence

PATIENCE_SECONDS = 2.0  # how long a trial waits for its run


class RunMaker:
    """Makes runs for trials that are to start, and waits no longer than ``patience_seconds`` for each.

    A trial that gets none goes without: the projection makes it a run later, as where no server is.
    """

    def __init__(self, make_client: Callable[[str], Any], patience_seconds: float = PATIENCE_SECONDS) -> None:
        self._make_client = make_client
        self._patience_seconds = patience_seconds
        self._making: _Making | None = None

    def make(self, location: Location, number: int, instead_of: str | None = None) -> str | None:
        """The id of a new run for this trial, in place of an older one; None if the server was too slow."""
        if self._making is not None and self._making.is_alive():
            return None  # an earlier one still waits for the server
        self._making = _Making(self._make_client, location, number, instead_of)
        self._making.start()
        return self._making.wait(self._patience_seconds)


class _Making(threading.Thread):
    """One run. Whoever waited for it in vain gets none: what is made too late is deleted again."""

    def __init__(
        self, make_client: Callable[[str], Any], location: Location, number: int, instead_of: str | None
    ) -> None:
        super().__init__(name="hpo-mlflow-run", daemon=True)
        self._make_client, self._location = make_client, location
        self._number, self._instead_of = number, instead_of
        self._lock = threading.Lock()
        self._run_id: str | None = None
        self._is_abandoned = False

    def wait(self, seconds: float) -> str | None:
        self.join(seconds)
        with self._lock:
            self._is_abandoned = self._run_id is None
            return self._run_id

    def run(self) -> None:
        try:
            with silence():
                self._make()
        except Exception:  # the projection, which writes to the same server, tells of it
            return

    def _make(self) -> None:
        client = self._make_client(self._location.tracking_uri)
        if self._instead_of is not None:
            try:
                client.delete_run(self._instead_of)
            except Exception as error:
                if not is_refusal(error):  # deleted by hand
                    raise
        tags = {"mlflow.parentRunId": self._location.run_id, "hpo.trial": str(self._number)}
        made = client.create_run(
            self._location.experiment_id,
            start_time=int(time.time() * 1000),
            tags=tags,
            run_name=f"trial {self._number}",
        )
        with self._lock:
            if not self._is_abandoned:
                self._run_id = made.info.run_id
                return
        client.delete_run(made.info.run_id)
