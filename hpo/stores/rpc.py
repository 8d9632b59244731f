"""What the http store's client and server agree on: paths, headers, limits, and an operation's arguments.

An operation is one document, ``{"study": …, "call": "claim", "with": {…}}``, and so is its answer:
``{"result": …}`` or ``{"error": {"class": …, "message": …, "hint": …}}``.
"""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hpo.core import errors
from hpo.core.errors import HpoError, StoreError
from hpo.core.trial import State
from hpo.stores.documents import (
    Fields,
    changes_document,
    claim_document,
    driver_document,
    file_document,
    read_claim,
    read_driver,
    read_failure,
    read_outcome,
    read_verdict,
    record_document,
    report_document,
    trial_document,
    worker_document,
)
from hpo.stores.protocol import Store

TOKEN_VARIABLE = "HPO_TOKEN"
PROTOCOL = "1"
PROTOCOL_HEADER = "Hpo-Protocol"
KEY_HEADER = "Idempotency-Key"  # one for each call of a store's method, the same for all its attempts
SHA256_HEADER = "Hpo-Sha256"

CALL, STREAM, PUT_FILES, GET_FILE = "/call", "/stream", "/files", "/file"

LONGEST_POLL_SECONDS = 20.0  # proxies cut what is silent for longer
MOST_BODY_BYTES = 64 << 20  # of a document; a result may have megabytes
MOST_HEADER_BYTES = 16 << 20  # the names of an upload's files
MOST_CHANGES = 1000  # rows of one answer


@dataclass(frozen=True, slots=True)
class Operation:
    """A method of a store: from a document's arguments to the answer's document.

    ``is_write``: whether applying it twice would be wrong.
    """

    run: Callable[[Store, Fields], Any]
    is_write: bool = True


def _add(store: Store, a: Fields) -> None:
    store.add(a.whole("number"), a.numbers("point"), a.value("params"), a.text_or_none("run_id"))


def _add_all(store: Store, a: Fields) -> None:
    trials = [Fields(trial, "a trial") for trial in a.items("trials")]
    store.add_all([(one.whole("number"), one.numbers("point"), one.value("params")) for one in trials])


def _lead(store: Store, a: Fields) -> Any:
    before = a.value("instead_of")
    return driver_document(
        store.lead(read_driver(a.value("driver")), None if before is None else read_driver(before))
    )


def _recall(store: Store, a: Fields) -> list[int]:
    if a.value("numbers") is None:
        return store.recall()
    return store.recall([Fields({"number": one}, "a trial").whole("number") for one in a.items("numbers")])


def _stop(store: Store, a: Fields) -> None:
    verdict = a.value("verdict")
    store.stop(a.whole("number"), None if verdict is None else read_verdict(verdict))


def claim(store: Store, a: Fields) -> Any:
    """Without waiting: the server wakes those who wait."""
    found = store.claim(
        a.text("worker"), a.whole_or_none("number"), gpus=a.texts("gpus"), token=a.text_or_none("token")
    )
    return None if found is None else claim_document(found)


def _report(store: Store, a: Fields) -> str:
    return store.report(
        read_claim(a.value("claim")),
        a.whole("epoch"),
        a.number_or_none("loss"),
        a.numbers("metrics"),
        time=a.number("time"),
    )


def _changes(store: Store, a: Fields) -> Any:
    return changes_document(store.changes(a.whole("since"), min(max(a.whole("limit"), 1), MOST_CHANGES)))


def _best(store: Store, a: Fields) -> Any:
    best = store.best()
    return None if best is None else trial_document(best)


OPERATIONS = {
    "open": Operation(lambda store, a: None, is_write=False),
    "record": Operation(lambda store, a: record_document(store.record()), is_write=False),
    "lead": Operation(_lead),
    "resign": Operation(lambda store, a: store.resign(read_driver(a.value("driver")))),
    "use_snapshot": Operation(lambda store, a: store.use_snapshot(a.text("sha256"))),
    "note": Operation(lambda store, a: store.note(a.text("name"), a.value("value"))),
    "add": Operation(_add),
    "add_all": Operation(_add_all),
    "track": Operation(lambda store, a: store.track(a.whole("number"), a.text_or_none("run_id"))),
    "lose": Operation(
        lambda store, a: store.lose(a.text("worker"), read_failure(a.value("failure")), a.whole("retries"))
    ),
    "expire": Operation(lambda store, a: store.expire(a.number("lease_seconds"), a.whole("retries"))),
    "recall": Operation(_recall),
    "stop": Operation(_stop),
    "announce": Operation(lambda store, a: store.announce(a.text("worker"), a.object("offers"))),
    "retire": Operation(lambda store, a: store.retire(a.text("worker"))),
    "workers": Operation(lambda store, a: list(map(worker_document, store.workers())), is_write=False),
    "claim": Operation(claim),
    "renew": Operation(lambda store, a: store.renew(read_claim(a.value("claim")))),
    "report": Operation(_report),
    "finish": Operation(
        lambda store, a: store.finish(read_claim(a.value("claim")), read_outcome(a.value("outcome")))
    ),
    "release": Operation(lambda store, a: store.release(read_claim(a.value("claim")))),
    "changes": Operation(_changes, is_write=False),
    "trial": Operation(lambda store, a: trial_document(store.trial(a.whole("number"))), is_write=False),
    "reports": Operation(
        lambda store, a: list(map(report_document, store.reports(a.whole("number")))), is_write=False
    ),
    "best": Operation(_best, is_write=False),
    "files": Operation(
        lambda store, a: list(map(file_document, store.files(a.whole_or_none("trial")))), is_write=False
    ),
}

STREAMS: dict[str, Callable[[Store, Fields], Any]] = {
    "trials": lambda store, a: map(trial_document, store.trials(*map(State, a.texts("states")))),
    "losses": lambda store, a: map(list, store.losses()),
}


def error_document(error: HpoError) -> dict[str, Any]:
    return {"class": type(error).__name__, "message": error.message, "hint": error.hint}


def read_error(document: Any) -> HpoError:
    """The error as the class it was; one that this version does not know is a StoreError."""
    fields = Fields(document, "the error")
    kind = vars(errors).get(fields.text("class"))
    if not (isinstance(kind, type) and issubclass(kind, HpoError)):
        kind = StoreError
    return kind(fields.text("message"), fields.text("hint"))


def is_loopback(host: str) -> bool:
    """Whether what is sent there stays on this machine."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"
