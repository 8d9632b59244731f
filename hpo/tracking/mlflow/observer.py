"""Live tracking: the projection in a thread of the driver."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from hpo.core.errors import HpoError
from hpo.core.trial import Changes
from hpo.stores import connect as connect_store
from hpo.stores.protocol import Catalog
from hpo.tracking.mlflow.address import Location, check_reachable, is_http
from hpo.tracking.mlflow.client import first_line, quiet_client, silence
from hpo.tracking.mlflow.live import RunMaker
from hpo.tracking.mlflow.projection import Projection

log = logging.getLogger("hpo.tracking")

START_SECONDS = 15.0  # how long the first trial waits for the study's run: mlflow's import and a few calls


class MlflowObserver:
    """Keeps MLflow up to date from a thread of its own, with a store handle of its own.

    An MLflow that fails is logged once per outage and tried again with growing pauses; what it missed is
    written when it answers. Raises TrackingUnreachable where it can't be reached at the start.
    """

    def __init__(
        self,
        url: str,
        study: str,
        tracking_uri: str,
        experiment: str | None = None,
        connect: Callable[[str], Catalog] = connect_store,
        *,
        make_client: Callable[[str], Any] | None = None,
        pause_seconds: float = 0.5,
        retry_seconds: float = 1.0,
    ) -> None:
        """``pause_seconds``: at least so long between two batches, so that quick trials share one."""
        check_reachable(tracking_uri)
        self._url, self._study = url, study
        self._tracking_uri, self._experiment = tracking_uri, experiment
        self._connect, self._make_client = connect, make_client
        self._pause_seconds, self._retry_seconds = pause_seconds, retry_seconds
        self._news = threading.Event()
        self._closing = threading.Event()
        self._abandoned = threading.Event()
        self._status = "FINISHED"
        self._is_complete = False
        self._projection: Projection | None = None
        self._location: Location | None = None
        self._is_located = threading.Event()
        self._is_out = False
        self._runs = RunMaker(make_client or quiet_client) if is_http(tracking_uri) else None
        self._thread = threading.Thread(target=self._run, name="hpo-mlflow", daemon=True)
        self._thread.start()

    @property
    def location(self) -> Location | None:
        """Where the study is in MLflow; None until its parent run exists."""
        return self._location

    def begin(self, number: int, instead_of: str | None = None) -> str | None:
        """A run for a trial that is to start, on a server; None where there is none, or it does not answer.

        ``instead_of``: the run of an earlier attempt, which is deleted.
        """
        if self._runs is None or self._is_out or not self._is_located.wait(START_SECONDS):
            return None
        assert self._location is not None
        return self._runs.make(self._location, number, instead_of)

    def update(self, changes: Changes) -> None:
        if changes.trials or changes.reports:
            self._news.set()

    def close(self, timeout: float = 30.0, status: str = "FINISHED") -> bool:
        """Write what is left and end the parent run as ``FINISHED`` or ``KILLED``.

        Waits as long as MLflow takes what it is given, but no more than ``timeout`` seconds without. Returns
        whether MLflow has everything; if not, ``hpo mlflow sync`` brings the rest.
        """
        self._status = status
        self._closing.set()
        self._news.set()
        seen, since = (-1, 0, 0), time.monotonic()
        while self._thread.is_alive():
            self._thread.join(0.05)
            progress = self._projection.progress if self._projection is not None else seen
            now = time.monotonic()
            if progress > seen:
                seen, since = progress, now
            if now - since > timeout:
                break
        self._abandoned.set()
        return self._is_complete

    def _run(self) -> None:
        failures = 0
        try:
            with silence(), contextlib.closing(self._connect(self._url)) as catalog:
                store = catalog.open(self._study)
                self._projection = Projection(
                    store, self._tracking_uri, self._experiment, make_client=self._make_client
                )
                while not self._abandoned.is_set() and not self._is_complete:
                    try:
                        self._follow(self._projection, was_out=failures > 0)
                        failures = 0
                    except Exception as error:
                        failures += 1
                        self._is_out = True
                        if failures == 1:
                            self._say_out(error)
                        self._wait(min(self._retry_seconds * 2 ** (failures - 1), 30.0))
        except Exception as error:  # the store itself can't be opened: nothing to follow
            self._say_out(error)

    def _follow(self, projection: Projection, *, was_out: bool) -> None:
        """Catch up, and return: in the end, or with news after a pause."""
        is_last = self._closing.is_set()  # looked at first: all that came before is then written
        self._news.clear()
        projection.open()
        self._location = projection.location
        self._is_located.set()
        while not projection.catch_up():
            pass
        self._is_out = False
        if was_out:
            log.warning("MLflow at %s answers again and is up to date", self._tracking_uri)
        if is_last:
            projection.end(self._status)
        while not projection.upload():
            if self._news.is_set() and not is_last:
                return
        if is_last:
            self._is_complete = True
            return
        self._closing.wait(self._pause_seconds)
        self._news.wait()

    def _wait(self, seconds: float) -> None:
        if self._closing.is_set():
            self._abandoned.wait(min(seconds, self._retry_seconds))
        else:
            self._closing.wait(seconds)

    def _say_out(self, error: Exception) -> None:
        hint = f" ({error.hint})" if isinstance(error, HpoError) and error.hint else ""
        log.warning(
            "MLflow at %s can't be written: %s%s. Trials go on; it is tried again, and "
            "`hpo mlflow sync` brings what is missing.",
            self._tracking_uri,
            first_line(error),
            hint,
        )
        log.debug("MLflow failed", exc_info=error)
