"""Studies, trials and claims as JSON documents, and back: what stores write and what the http store sends.

It is Python's own JSON, in ASCII: NaN, infinity and lone surrogates come back as they were. Whatever is no
such document is a ValueError that names the field: documents come from the network and from files that
anybody may have edited.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from hpo.core.study import Driver, Identity, StudyRecord, WorkerRecord
from hpo.core.trial import (
    Changes,
    Claim,
    Completed,
    Failed,
    Kind,
    Outcome,
    Pruned,
    Report,
    State,
    Trial,
    Verdict,
)
from hpo.stores.protocol import StoredFile

WHOLE_BITS = 63  # what every store holds


def dump(value: Any) -> str:
    # In ASCII: a lone surrogate (part of a file name in an error, say) is no UTF-8.
    return json.dumps(value, separators=(",", ":"))


def load(text: str | bytes) -> Any:
    """Raises ValueError for what is no JSON, however deeply it is nested."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


class Fields:
    """A JSON object whose fields are read by what they must be; raises ValueError, naming the field.

    Args: what: the object's name in errors.
    """

    def __init__(self, document: Any, what: str) -> None:
        if not isinstance(document, dict):
            raise ValueError(f"{what} is a {type(document).__name__}, no object")
        self._document = document
        self._what = what

    def value(self, name: str) -> Any:
        if name not in self._document:
            raise ValueError(f"{self._what} lacks {name!r}")
        return self._document[name]

    def text(self, name: str) -> str:
        return self._checked(name, str, "text")

    def text_or_none(self, name: str) -> str | None:
        return None if self.value(name) is None else self.text(name)

    def texts(self, name: str) -> tuple[str, ...]:
        values = self.items(name)
        if not all(isinstance(value, str) for value in values):
            raise ValueError(f"{self._what}: {name} holds more than texts")
        return tuple(values)

    def whole(self, name: str) -> int:
        value = self.value(name)
        if not isinstance(value, int) or isinstance(value, bool) or value.bit_length() > WHOLE_BITS:
            raise ValueError(f"{self._what}: {name} is no whole number of {WHOLE_BITS} bits")
        return value

    def whole_or_none(self, name: str) -> int | None:
        return None if self.value(name) is None else self.whole(name)

    def number(self, name: str) -> float:
        value = self.value(name)
        if isinstance(value, float):
            return value
        return float(self.whole(name))

    def number_or_none(self, name: str) -> float | None:
        return None if self.value(name) is None else self.number(name)

    def flag(self, name: str) -> bool:
        return self._checked(name, bool, "true or false")

    def object(self, name: str) -> dict[str, Any]:
        return self._checked(name, dict, "object")

    def numbers(self, name: str) -> dict[str, Any]:
        """An object of numbers, whole ones and floats as they are."""
        values: dict[str, Any] = self.object(name)
        if odd := [key for key, value in values.items() if type(value) not in (int, float)]:
            raise ValueError(f"{self._what}: {name}[{odd[0]!r}] is no number")
        return values

    def items(self, name: str) -> list[Any]:
        return self._checked(name, list, "list")

    def _checked(self, name: str, kind: type, wanted: str) -> Any:
        value = self.value(name)
        if not isinstance(value, kind):
            raise ValueError(f"{self._what}: {name} is a {type(value).__name__}, no {wanted}")
        return value


# --- the study


def identity_document(identity: Identity) -> dict[str, Any]:
    """All but the study's name, under which it is kept."""
    return {
        "entry_point": identity.entry_point,
        "fingerprint": identity.fingerprint,
        "space": identity.space,
        "arguments": dict(identity.arguments),
        "seed": identity.seed,
        "algorithm": identity.algorithm,
        "repeats": identity.repeats,
        "is_noisy": identity.is_noisy,
        "warm_start": identity.warm_start,
    }


def read_identity(study: str, document: Any) -> Identity:
    since_then = {"repeats": 1, "is_noisy": False, "warm_start": None}  # what earlier versions did not write
    fields = Fields(since_then | document if isinstance(document, dict) else document, "the identity")
    return Identity(
        study=study,
        entry_point=fields.text("entry_point"),
        fingerprint=fields.text("fingerprint"),
        space=fields.value("space"),
        arguments=fields.object("arguments"),
        seed=fields.whole("seed"),
        algorithm=fields.text("algorithm"),
        repeats=fields.whole("repeats"),
        is_noisy=fields.flag("is_noisy"),
        warm_start=fields.text_or_none("warm_start"),
    )


def driver_document(driver: Driver) -> dict[str, Any]:
    return asdict(driver)


def read_driver(document: Any) -> Driver:
    fields = Fields(document, "the driver")
    return Driver(
        host=fields.text("host"),
        pid=fields.whole("pid"),
        started=fields.number("started"),
        token=fields.text("token"),
    )


def record_document(record: StudyRecord) -> dict[str, Any]:
    return {
        "study": record.identity.study,
        "identity": identity_document(record.identity),
        "snapshot": record.snapshot,
        "created": record.created,
        "revision": record.revision,
        "counts": dict(record.counts),
        "driver": None if record.driver is None else driver_document(record.driver),
        "notes": dict(record.notes),
    }


def read_record(document: Any) -> StudyRecord:
    fields = Fields(document, "the study")
    driver = fields.value("driver")
    return StudyRecord(
        identity=read_identity(fields.text("study"), fields.value("identity")),
        snapshot=fields.text_or_none("snapshot"),
        created=fields.number("created"),
        revision=fields.whole("revision"),
        counts=fields.numbers("counts"),
        driver=None if driver is None else read_driver(driver),
        notes=fields.object("notes"),
    )


def worker_document(worker: WorkerRecord) -> dict[str, Any]:
    return {
        "name": worker.name,
        "offers": dict(worker.offers),
        "beats": worker.beats,
        "trial": worker.trial,
    }


def read_worker(document: Any) -> WorkerRecord:
    fields = Fields(document, "the worker")
    return WorkerRecord(
        name=fields.text("name"),
        offers=fields.object("offers"),
        beats=fields.whole("beats"),
        trial=fields.whole_or_none("trial"),
    )


# --- trials


def verdict_document(verdict: Verdict) -> dict[str, Any]:
    return asdict(verdict)


def read_verdict(document: Any) -> Verdict:
    fields = Fields(document, "the verdict")
    return Verdict(
        epoch=fields.whole("epoch"),
        chance=fields.number("chance"),
        best=fields.number_or_none("best"),
        is_spared=fields.flag("is_spared"),
    )


def outcome_document(outcome: Outcome) -> dict[str, Any]:
    if isinstance(outcome, Failed):
        return {
            "state": State.FAILED.value,
            "loss": None,
            "result": {},
            "kind": outcome.kind.value,
            "reason": outcome.reason.encode(errors="backslashreplace").decode(),
        }
    state = State.COMPLETED if isinstance(outcome, Completed) else State.PRUNED
    return {
        "state": state.value,
        "loss": outcome.loss,
        "result": dict(outcome.result),
        "kind": None,
        "reason": None,
    }


def read_outcome(document: Any) -> Outcome:
    fields = Fields(document, "the outcome")
    match fields.value("state"):
        case State.COMPLETED:
            return Completed(fields.number("loss"), fields.object("result"))
        case State.PRUNED:
            return Pruned(fields.number_or_none("loss"), fields.object("result"))
        case State.FAILED:
            return read_failure(document)
        case other:
            raise ValueError(f"no trial ends as {other!r}")


def read_failure(document: Any) -> Failed:
    fields = Fields(document, "the failure")
    return Failed(Kind(fields.text("kind")), fields.text("reason"))


def claim_document(claim: Claim) -> dict[str, Any]:
    return {
        "number": claim.number,
        "token": claim.token,
        "attempt": claim.attempt,
        "worker": claim.worker,
        "point": dict(claim.point),
        "run_id": claim.run_id,
    }


def read_claim(document: Any) -> Claim:
    fields = Fields(document, "the claim")
    return Claim(
        number=fields.whole("number"),
        token=fields.text("token"),
        attempt=fields.whole("attempt"),
        worker=fields.text("worker"),
        point=fields.numbers("point"),
        run_id=fields.text_or_none("run_id"),
    )


def trial_document(trial: Trial) -> dict[str, Any]:
    return {
        "number": trial.number,
        "state": trial.state.value,
        "point": dict(trial.point),
        "params": trial.params,
        "revision": trial.revision,
        "loss": trial.loss,
        "result": trial.result,
        "error": None if trial.error is None else outcome_document(trial.error),
        "worker": trial.worker,
        "attempts": trial.attempts,
        "epochs": trial.epochs,
        "created": trial.created,
        "started": trial.started,
        "ended": trial.ended,
        "snapshot": trial.snapshot,
        "run_id": trial.run_id,
        "verdict": None if trial.verdict is None else verdict_document(trial.verdict),
        "gpus": list(trial.gpus),
    }


def read_trial(document: Any) -> Trial:
    fields = Fields(document, "the trial")
    error, verdict = fields.value("error"), fields.value("verdict")
    return Trial(
        number=fields.whole("number"),
        state=State(fields.text("state")),
        point=fields.numbers("point"),
        params=fields.value("params"),
        revision=fields.whole("revision"),
        loss=fields.number_or_none("loss"),
        result=fields.value("result"),
        error=None if error is None else read_failure(error),
        worker=fields.text_or_none("worker"),
        attempts=fields.whole("attempts"),
        epochs=fields.whole("epochs"),
        created=fields.number("created"),
        started=fields.number_or_none("started"),
        ended=fields.number_or_none("ended"),
        snapshot=fields.text_or_none("snapshot"),
        run_id=fields.text_or_none("run_id"),
        verdict=None if verdict is None else read_verdict(verdict),
        gpus=fields.texts("gpus"),
    )


def report_document(report: Report) -> dict[str, Any]:
    return {
        "number": report.number,
        "epoch": report.epoch,
        "loss": report.loss,
        "metrics": dict(report.metrics),
        "time": report.time,
        "attempt": report.attempt,
        "revision": report.revision,
    }


def read_report(document: Any) -> Report:
    fields = Fields(document, "the report")
    return Report(
        number=fields.whole("number"),
        epoch=fields.whole("epoch"),
        loss=fields.number_or_none("loss"),
        metrics=fields.numbers("metrics"),
        time=fields.number("time"),
        attempt=fields.whole("attempt"),
        revision=fields.whole("revision"),
    )


def changes_document(changes: Changes) -> dict[str, Any]:
    return {
        "revision": changes.revision,
        "trials": [trial_document(trial) for trial in changes.trials],
        "reports": [report_document(report) for report in changes.reports],
    }


def read_changes(document: Any) -> Changes:
    fields = Fields(document, "the changes")
    return Changes(
        fields.whole("revision"),
        tuple(map(read_trial, fields.items("trials"))),
        tuple(map(read_report, fields.items("reports"))),
    )


def read_loss(document: Any) -> tuple[int, int, float | None]:
    """One of `Store.losses`: a list of number, epoch and loss."""
    if not isinstance(document, list) or len(document) != 3:
        raise ValueError("a loss is no list of number, epoch and loss")
    fields = Fields(dict(zip(("number", "epoch", "loss"), document, strict=True)), "the loss")
    return fields.whole("number"), fields.whole("epoch"), fields.number_or_none("loss")


# --- files


def file_document(file: StoredFile) -> dict[str, Any]:
    return asdict(file)


def read_file(document: Any) -> StoredFile:
    fields = Fields(document, "the file")
    return StoredFile(
        name=fields.text("name"),
        trial=fields.whole_or_none("trial"),
        sha256=fields.text("sha256"),
        size=fields.whole("size"),
    )


def headed(values: Mapping[str, Any]) -> bytes:
    """A document on a line of its own: what is after it is no part of it."""
    return dump(dict(values)).encode() + b"\n"
