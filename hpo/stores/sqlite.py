"""Studies in one SQLite file, and their files in a folder beside it.

``hpo.db`` holds studies, trials and epochs; ``hpo.db.files/`` holds what `put_files` keeps, each blob under
its SHA-256. Several processes on one machine use it at once: write-ahead log, short ``BEGIN IMMEDIATE``
transactions, ``synchronous=FULL`` (what was acknowledged survives a power cut).
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import os
import re
import secrets
import shutil
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hpo.core.errors import (
    ClaimLost,
    NoSuchStudy,
    NoSuchTrial,
    StoreDamaged,
    StoreUnreachable,
)
from hpo.core.files import CHECKPOINT
from hpo.core.study import Driver, Identity, StudyRecord, WorkerRecord
from hpo.core.trial import (
    ENDED,
    Answer,
    Changes,
    Claim,
    Failed,
    Kind,
    Outcome,
    Point,
    Report,
    State,
    Trial,
    Verdict,
)
from hpo.stores.documents import (
    driver_document,
    dump,
    identity_document,
    load,
    outcome_document,
    read_driver,
    read_identity,
    read_verdict,
    verdict_document,
)
from hpo.stores.lease import LeaseWatch
from hpo.stores.polling import claimed_within
from hpo.stores.protocol import StoredFile
from hpo.stores.sqlite_file import (
    MIGRATIONS,
    create_file,
    explained,
    files_folder,
    open_file,
    refuse_network,
    writing,
)

SHA256 = re.compile(r"[0-9a-f]{64}")
CLOSE_MILLISECONDS = 100
STUDY_FILES = -1  # files.trial of a file that belongs to the study itself: NULL can't be in a primary key


class SqliteCatalog:
    """The studies of one SQLite file. See `hpo.stores.protocol.Catalog`."""

    def __init__(
        self,
        url: str,
        *,
        create: bool = False,
        check: bool = False,
        clock: Callable[[], float] = time.monotonic,
        migrations: Sequence[str] = MIGRATIONS,
    ) -> None:
        path = Path(url.removeprefix("sqlite:///"))
        if not path.name:
            raise StoreUnreachable(f"{url} names no file", "write --store sqlite:///hpo.db")
        # An objective may change the working directory under this; and files lie beside the file itself.
        self.path = path.resolve()
        self.url = f"sqlite:///{self.path}"
        self._clock = clock
        refuse_network(self.path)
        if create and not self.path.exists():
            create_file(self.path, schema_version=1 + len(migrations), migrations=migrations)
        self._connection = open_file(self.path, check=check, migrations=migrations)
        self._inode = self.path.stat().st_ino

    def names(self) -> list[str]:
        with explained(self.path):
            return [row["name"] for row in self._connection.execute("SELECT name FROM studies ORDER BY id")]

    def create(self, identity: Identity) -> SqliteStore:
        row = (identity.study, dump(identity_document(identity)), time.time())
        with writing(self._connection, self.path):
            self._connection.execute(
                "INSERT INTO studies (name, identity, created) VALUES (?, ?, ?) ON CONFLICT DO NOTHING", row
            )
        return self.open(identity.study)

    def open(self, study: str) -> SqliteStore:
        with explained(self.path):
            row = self._connection.execute("SELECT id FROM studies WHERE name = ?", (study,)).fetchone()
        if row is None:
            names = self.names()
            near = difflib.get_close_matches(study, names, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise NoSuchStudy(
                f"no study {study!r} in {self.url}", f"{hint}its studies: {', '.join(names) or 'none yet'}"
            )
        return SqliteStore(self.url, self.path, self._inode, study, row["id"], self._connection, self._clock)

    def close(self) -> None:
        # SQLite does this when the last connection closes; a worker that is still on its way out may hold
        # one, and the file alone would not have everything.
        if self._connection.total_changes:
            with contextlib.suppress(sqlite3.Error):
                # It keeps writers out while it waits for those who read: who reads long is not waited for.
                self._connection.execute(f"PRAGMA busy_timeout = {CLOSE_MILLISECONDS}")
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._connection.close()


class SqliteStore:
    """One study in a SQLite file. See `hpo.stores.protocol.Store`."""

    def __init__(
        self,
        url: str,
        path: Path,
        inode: int,
        study: str,
        study_id: int,
        connection: sqlite3.Connection,
        clock: Callable[[], float],
    ) -> None:
        self.url = url
        self.study = study
        self._path = path
        self._inode = inode
        self._id = study_id
        self._connection = connection
        self._leases = LeaseWatch(clock)
        self._blobs = files_folder(path) / "blobs"

    # --- the study

    def record(self) -> StudyRecord:
        with self._reading():
            row = self._one("SELECT * FROM studies WHERE id = :study")
            counts = self._all("SELECT state, count(*) AS n FROM trials WHERE study = :study GROUP BY state")
            notes = self._all("SELECT name, value FROM notes WHERE study = :study")
        with _readable(f"study {self.study!r}"):
            return StudyRecord(
                identity=read_identity(self.study, load(row["identity"])),
                snapshot=row["snapshot"],
                created=row["created"],
                revision=row["revision"],
                counts={state.value: 0 for state in State} | {r["state"]: r["n"] for r in counts},
                driver=_driver(row["driver"]),
                notes={r["name"]: load(r["value"]) for r in notes},
            )

    def lead(self, driver: Driver, instead_of: Driver | None = None) -> Driver:
        with self._writing():
            held = _driver(self._one("SELECT driver FROM studies WHERE id = :study")["driver"])
            if held is not None and held != instead_of:
                return held
            self._do(
                "UPDATE studies SET driver = :driver WHERE id = :study", driver=dump(driver_document(driver))
            )
            return driver

    def resign(self, driver: Driver) -> None:
        with self._writing():
            self._do(
                "UPDATE studies SET driver = NULL WHERE id = :study AND driver = :driver",
                driver=dump(driver_document(driver)),
            )

    def use_snapshot(self, sha256: str) -> None:
        with self._writing():
            self._do("UPDATE studies SET snapshot = :sha256 WHERE id = :study", sha256=sha256)

    def note(self, name: str, value: Any) -> None:
        with self._writing():
            self._do(
                "INSERT OR REPLACE INTO notes VALUES (:study, :name, :value)",
                name=name,
                value=dump(value),
            )

    # --- the driver's side of trials

    def add(self, number: int, point: Point, params: Mapping[str, Any], run_id: str | None = None) -> None:
        with self._writing():
            self._add(number, point, params, run_id)

    def add_all(self, trials: Iterable[tuple[int, Point, Mapping[str, Any]]]) -> None:
        with self._writing():
            for number, point, params in trials:
                self._add(number, point, params)

    def track(self, number: int, run_id: str | None) -> None:
        with self._writing():
            self._do(
                "UPDATE trials SET run_id = :run_id WHERE study = :study AND number = :number",
                run_id=run_id,
                number=number,
            )

    def lose(self, worker: str, failure: Failed, retries: int) -> list[int]:
        return self._lose("worker = :key", worker, failure, retries)

    def expire(self, lease_seconds: float, retries: int) -> list[int]:
        with self._reading():
            rows = self._all("SELECT token, beats FROM trials WHERE study = :study AND state = 'running'")
        failure = Failed(Kind.LOST, f"the worker gave no sign of life for {lease_seconds:g} s")
        lost = []
        for token in self._leases.silent([(row["token"], row["beats"]) for row in rows], lease_seconds):
            lost += self._lose("token = :key", token, failure, retries)
        return sorted(lost)

    def recall(self, numbers: Sequence[int] | None = None) -> list[int]:
        with self._writing():
            rows = self._all("SELECT number FROM trials WHERE study = :study AND state = 'running'")
            taken = [row["number"] for row in rows if numbers is None or row["number"] in numbers]
            for number in taken:
                self._offer_again(number)
        return taken

    def stop(self, number: int, verdict: Verdict | None = None) -> None:
        with self._writing():
            self._do(
                "UPDATE trials SET stop = :stop, verdict = :verdict"
                " WHERE study = :study AND number = :number AND state = 'running'",
                stop=int(verdict is None or not verdict.is_spared),
                verdict=None if verdict is None else dump(verdict_document(verdict)),
                number=number,
            )

    # --- the worker's side

    def announce(self, worker: str, offers: Mapping[str, Any]) -> None:
        with self._writing():
            self._do(
                "INSERT INTO workers (study, name, offers, announced, beats)"
                " VALUES (:study, :worker, :offers, :now, 1)"
                " ON CONFLICT DO UPDATE SET offers = excluded.offers, announced = excluded.announced,"
                " beats = beats + 1",
                worker=worker,
                offers=dump(dict(offers)),
                now=time.time(),
            )

    def retire(self, worker: str) -> None:
        with self._writing():
            self._do("DELETE FROM workers WHERE study = :study AND name = :worker", worker=worker)

    def workers(self) -> list[WorkerRecord]:
        with self._reading():
            rows = self._all(
                "SELECT name, offers, beats, (SELECT min(number) FROM trials"
                " WHERE study = :study AND state = 'running' AND worker = name) AS trial"
                " FROM workers WHERE study = :study ORDER BY name"
            )
        with _readable("the list of workers"):
            return [
                WorkerRecord(row["name"], load(row["offers"]), row["beats"], row["trial"]) for row in rows
            ]

    def claim(
        self,
        worker: str,
        number: int | None = None,
        *,
        gpus: tuple[str, ...] = (),
        wait_seconds: float = 0.0,
        token: str | None = None,
    ) -> Claim | None:
        chosen = token or secrets.token_hex(8)
        return claimed_within(wait_seconds, lambda: self._claim(worker, number, gpus, chosen))

    def _claim(self, worker: str, number: int | None, gpus: tuple[str, ...], token: str) -> Claim | None:
        wanted = "" if number is None else "AND number = :number"
        with self._writing():
            row = self._one(
                "SELECT number, token, point, attempts, worker, run_id FROM trials"
                " WHERE study = :study AND state = 'running' AND token = :token",
                token=token,
            )
            if row is not None:
                return _read_claim(row)
            row = self._one(
                "SELECT number FROM trials"
                f" WHERE study = :study AND state = 'waiting' {wanted} ORDER BY number LIMIT 1",
                number=number,
            )
            if row is None:
                return None
            self._do(
                "UPDATE trials SET state = 'running', worker = :worker, token = :token, beats = 0, stop = 0,"
                " verdict = NULL, attempts = attempts + 1, started = :now, ended = NULL, gpus = :gpus,"
                " revision = :revision, snapshot = (SELECT snapshot FROM studies WHERE id = :study)"
                " WHERE study = :study AND number = :number",
                worker=worker,
                token=token,
                now=time.time(),
                revision=self._next_revision(),
                gpus=dump(list(gpus)),
                number=row["number"],
            )
            return _read_claim(self._trial_row(row["number"]))

    def renew(self, claim: Claim) -> Answer:
        with self._writing():
            row = self._claimed(claim)
            self._do(
                "UPDATE trials SET beats = beats + 1 WHERE study = :study AND number = :number",
                number=claim.number,
            )
        return Answer.STOP if row["stop"] else Answer.CONTINUE

    def report(
        self, claim: Claim, epoch: int, loss: float | None, metrics: Mapping[str, float], *, time: float
    ) -> Answer:
        with self._writing():
            row = self._claimed(claim)
            # An epoch that is told again as it was stays as it is: nobody has to write it anew.
            self._do(
                "INSERT INTO reports VALUES"
                " (:study, :number, :epoch, :loss, :metrics, :time, :attempt, :revision)"
                " ON CONFLICT DO UPDATE SET loss = excluded.loss, metrics = excluded.metrics,"
                " time = excluded.time, attempt = excluded.attempt, revision = excluded.revision"
                " WHERE loss IS NOT excluded.loss OR metrics IS NOT excluded.metrics",
                number=claim.number,
                epoch=epoch,
                loss=loss,
                metrics=dump(dict(metrics)),
                time=time,
                attempt=claim.attempt,
                revision=self._next_revision(),
            )
            self._do(
                "DELETE FROM reports"
                " WHERE study = :study AND number = :number AND epoch > :epoch AND attempt < :attempt",
                number=claim.number,
                epoch=epoch,
                attempt=claim.attempt,
            )
            # A report is a sign of life, too.
            self._do(
                "UPDATE trials SET beats = beats + 1, epochs = 1 +"
                " (SELECT max(epoch) FROM reports WHERE study = :study AND number = :number)"
                " WHERE study = :study AND number = :number",
                number=claim.number,
            )
        return Answer.STOP if row["stop"] else Answer.CONTINUE

    def finish(self, claim: Claim, outcome: Outcome) -> None:
        with self._writing():
            row = self._trial_row(claim.number)
            if row["token"] == claim.token and row["state"] in ENDED:
                return
            self._claimed(claim)
            checkpoints = self._end(claim.number, outcome)
        self._clear(checkpoints)

    def release(self, claim: Claim) -> None:
        with self._writing():
            self._claimed(claim)
            self._offer_again(claim.number)

    # --- reading

    def changes(self, since: int, limit: int | None = None) -> Changes:
        with self._reading():
            upto = self._one("SELECT revision FROM studies WHERE id = :study")["revision"]
            if limit is not None:
                last = self._one(
                    "SELECT revision FROM ("
                    " SELECT revision FROM trials WHERE study = :study AND revision > :since"
                    " UNION ALL SELECT revision FROM reports WHERE study = :study AND revision > :since"
                    ") ORDER BY revision LIMIT 1 OFFSET :offset",
                    since=since,
                    offset=limit - 1,
                )
                upto = upto if last is None else last["revision"]
            between = "WHERE study = :study AND revision > :since AND revision <= :upto ORDER BY revision"
            trials = self._all(f"SELECT * FROM trials {between}", since=since, upto=upto)
            reports = self._all(f"SELECT * FROM reports {between}", since=since, upto=upto)
        return Changes(upto, tuple(map(_trial, trials)), tuple(map(_report, reports)))

    def trial(self, number: int) -> Trial:
        with self._reading():
            return _trial(self._trial_row(number))

    def trials(self, *states: State) -> Iterator[Trial]:
        wanted = ", ".join(f"'{state.value}'" for state in states or tuple(State))
        last = -1
        while True:
            # In pages: neither all the rows in memory, nor a transaction as long as the caller's loop.
            with self._reading():
                rows = self._all(
                    f"SELECT * FROM trials WHERE study = :study AND state IN ({wanted}) AND number > :last"
                    " ORDER BY number LIMIT 1000",
                    last=last,
                )
            if not rows:
                return
            yield from map(_trial, rows)
            last = rows[-1]["number"]

    def reports(self, number: int) -> list[Report]:
        with self._reading():
            rows = self._all(
                "SELECT * FROM reports WHERE study = :study AND number = :number ORDER BY epoch",
                number=number,
            )
        return list(map(_report, rows))

    def losses(self) -> Iterator[tuple[int, int, float | None]]:
        number, epoch = -1, -1
        while True:
            with self._reading():  # in pages, as `trials`
                rows = self._all(
                    "SELECT number, epoch, loss FROM reports"
                    " WHERE study = :study AND (number, epoch) > (:number, :epoch)"
                    " ORDER BY number, epoch LIMIT 10000",
                    number=number,
                    epoch=epoch,
                )
            if not rows:
                return
            yield from map(tuple, rows)
            number, epoch = rows[-1]["number"], rows[-1]["epoch"]

    def best(self) -> Trial | None:
        with self._reading():
            row = self._one(
                "SELECT * FROM trials WHERE study = :study AND state = 'completed' AND loss IS NOT NULL"
                " ORDER BY loss, number LIMIT 1"
            )
        return None if row is None else _trial(row)

    # --- files

    def put_files(
        self,
        files: Mapping[str, Path],
        trial: int | None = None,
        *,
        drop: Collection[str] = (),
        claim: Claim | None = None,
    ) -> list[StoredFile]:
        key = STUDY_FILES if trial is None else trial
        copies: list[tuple[Path, StoredFile]] = []
        with explained(self._path):
            self._blobs.mkdir(parents=True, exist_ok=True)
            try:
                for name, path in files.items():
                    copy = self._blobs / f".{os.getpid()}-{secrets.token_hex(4)}"
                    copies.append((copy, StoredFile(name, trial, "", 0)))  # so that it goes, whatever happens
                    copies[-1] = (copy, StoredFile(name, trial, *_copy_hashed(path, copy)))
                # Blobs are put in their places inside the transaction: whoever clears unneeded ones away does
                # so inside one, too.
                with self._writing():
                    if claim is not None:
                        self._claimed(claim)
                    replaced = [self._forget(name, key) for name in (*files, *drop)]
                    for copy, file in copies:
                        self._put_blob(copy, file.sha256)
                        self._do(
                            "INSERT INTO files VALUES (:study, :trial, :name, :sha256, :size)",
                            trial=key,
                            name=file.name,
                            sha256=file.sha256,
                            size=file.size,
                        )
            finally:
                for copy, _ in copies:
                    copy.unlink(missing_ok=True)
            self._clear(sha256 for sha256 in replaced if sha256 is not None)
        return [file for _, file in copies]

    def get_file(self, name: str, path: Path, trial: int | None = None) -> bool:
        with self._reading():
            row = self._one(
                "SELECT sha256 FROM files WHERE study = :study AND trial = :trial AND name = :name",
                trial=STUDY_FILES if trial is None else trial,
                name=name,
            )
        if row is None:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        copy = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            sha256, _ = _copy_hashed(self._blob(row["sha256"]), copy)
            if sha256 != row["sha256"]:
                return False
            os.replace(copy, path)
        except FileNotFoundError:
            return False
        finally:
            copy.unlink(missing_ok=True)
        return True

    def files(self, trial: int | None = None) -> list[StoredFile]:
        with self._reading():
            rows = self._all(
                "SELECT name, sha256, size FROM files WHERE study = :study AND trial = :trial ORDER BY name",
                trial=STUDY_FILES if trial is None else trial,
            )
        return [StoredFile(row["name"], trial, row["sha256"], row["size"]) for row in rows]

    def close(self) -> None:
        self._connection.close()

    # --- inside a transaction

    def _claimed(self, claim: Claim) -> sqlite3.Row:
        row = self._trial_row(claim.number)
        if row["state"] != State.RUNNING or row["token"] != claim.token:
            raise ClaimLost(f"worker {claim.worker} holds trial {claim.number} no more: it is {row['state']}")
        return row

    def _lose(self, condition: str, key: str, failure: Failed, retries: int) -> list[int]:
        checkpoints: list[str] = []
        with self._writing():
            rows = self._all(
                f"SELECT number, lost FROM trials WHERE study = :study AND state = 'running' AND {condition}",
                key=key,
            )
            for row in rows:
                if row["lost"] >= retries:
                    checkpoints += self._end(row["number"], failure)
                else:
                    self._offer_again(row["number"])
                self._do(
                    "UPDATE trials SET lost = lost + 1 WHERE study = :study AND number = :number",
                    number=row["number"],
                )
        self._clear(checkpoints)
        return [row["number"] for row in rows]

    def _end(self, number: int, outcome: Outcome) -> list[str]:
        """The trial has ended; returns the hashes of its checkpoints, which are forgotten, for `_clear`."""
        document = outcome_document(outcome)
        self._do(
            "UPDATE trials SET state = :state, loss = :loss, result = :result, error_kind = :kind,"
            " error_reason = :reason, ended = :now, revision = :revision"
            " WHERE study = :study AND number = :number",
            **document | {"result": dump(document["result"])},
            now=time.time(),
            revision=self._next_revision(),
            number=number,
        )
        rows = self._all("SELECT name FROM files WHERE study = :study AND trial = :trial", trial=number)
        names = [row["name"] for row in rows if row["name"].startswith(CHECKPOINT)]
        return [sha256 for name in names if (sha256 := self._forget(name, number)) is not None]

    def _add(self, number: int, point: Point, params: Mapping[str, Any], run_id: str | None = None) -> None:
        self._do(
            "INSERT INTO trials (study, number, state, point, params, created, revision, run_id)"
            " VALUES (:study, :number, 'waiting', :point, :params, :now, :revision, :run_id)",
            number=number,
            point=dump(dict(point)),
            params=dump(params),
            now=time.time(),
            revision=self._next_revision(),
            run_id=run_id,
        )

    def _offer_again(self, number: int) -> None:
        self._do(
            "UPDATE trials SET state = 'waiting', token = NULL, worker = NULL, stop = 0, revision = :revision"
            " WHERE study = :study AND number = :number",
            revision=self._next_revision(),
            number=number,
        )

    def _next_revision(self) -> int:
        self._do("UPDATE studies SET revision = revision + 1 WHERE id = :study")
        return self._one("SELECT revision FROM studies WHERE id = :study")["revision"]

    def _trial_row(self, number: int) -> sqlite3.Row:
        row = self._one("SELECT * FROM trials WHERE study = :study AND number = :number", number=number)
        if row is None:
            raise NoSuchTrial(
                f"study {self.study!r} has no trial {number}", f"list them: hpo show {self.study}"
            )
        return row

    def _forget(self, name: str, trial: int) -> str | None:
        """Drop the file's row; returns the hash of its bytes, for `_clear`, None if there was none."""
        where = "WHERE study = :study AND trial = :trial AND name = :name"
        row = self._one(f"SELECT sha256 FROM files {where}", trial=trial, name=name)
        self._do(f"DELETE FROM files {where}", trial=trial, name=name)
        return None if row is None else str(row["sha256"])

    def _put_blob(self, copy: Path, sha256: str) -> None:
        blob = self._blob(sha256)
        blob.parent.mkdir(exist_ok=True)
        os.replace(copy, blob)
        folder = os.open(blob.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the name must be as durable as the row that will point to it
        finally:
            os.close(folder)

    def _clear(self, hashes: Iterable[str]) -> None:
        """Remove bytes that no row needs. Only after the rows are gone for good: a crash before leaves an
        orphan, a crash after an early removal would leave a row without its bytes."""
        hashes = list(hashes)
        if hashes:
            with self._writing():
                for sha256 in hashes:
                    if self._one("SELECT 1 FROM files WHERE sha256 = :sha256 LIMIT 1", sha256=sha256) is None:
                        self._blob(sha256).unlink(missing_ok=True)

    def _blob(self, sha256: str) -> Path:
        if not SHA256.fullmatch(sha256):  # a path, perhaps, that somebody wrote into the store
            raise StoreDamaged(f"{sha256!r} in the store's files is no SHA-256", "was it edited by hand?")
        return self._blobs / sha256[:2] / sha256

    def _do(self, sql: str, **values: Any) -> None:
        self._connection.execute(sql, {"study": self._id, **values})

    def _one(self, sql: str, **values: Any) -> Any:
        return self._connection.execute(sql, {"study": self._id, **values}).fetchone()

    def _all(self, sql: str, **values: Any) -> list[sqlite3.Row]:
        return self._connection.execute(sql, {"study": self._id, **values}).fetchall()

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """One snapshot for all the SELECTs inside."""
        with explained(self._path):
            self._connection.execute("BEGIN")
            try:
                yield
            finally:
                self._connection.execute("COMMIT")

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        # What is written into a file without a name is lost with this process.
        try:
            is_there = self._path.stat().st_ino == self._inode
        except OSError:
            is_there = False
        if not is_there:
            raise StoreDamaged(
                f"{self._path} was removed or replaced while it was in use",
                "put it back; what was written since is lost",
            )
        return writing(self._connection, self._path)


# --- files and documents


def _copy_hashed(source: Path, target: Path) -> tuple[str, int]:
    """Copy to a new file, durably; returns the SHA-256 of its bytes and their count."""
    digest = hashlib.sha256()
    with open(source, "rb") as reader, open(target, "xb") as writer:
        while chunk := reader.read(1 << 20):
            digest.update(chunk)
            writer.write(chunk)
        writer.flush()
        os.fsync(writer.fileno())
        size = writer.tell()
    shutil.copymode(source, target)
    return digest.hexdigest(), size


def _driver(text: str | None) -> Driver | None:
    return None if text is None else read_driver(load(text))


@contextlib.contextmanager
def _readable(what: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, KeyError) as error:
        raise StoreDamaged(f"{what} can't be read: {error}", "was the store edited by hand?") from error


def _trial(row: sqlite3.Row) -> Trial:
    with _readable(f"trial {row['number']!r}"):
        return _read_trial(row)


def _read_trial(row: sqlite3.Row) -> Trial:
    kind = row["error_kind"]
    for column in ("loss", "started", "ended"):
        if not isinstance(row[column], float | None):
            raise ValueError(f"its {column} is {row[column]!r}")
    return Trial(
        number=row["number"],
        state=State(row["state"]),
        point=load(row["point"]),
        params=load(row["params"]),
        revision=row["revision"],
        loss=row["loss"],
        result=load(row["result"]),
        error=None if kind is None else Failed(Kind(kind), row["error_reason"]),
        worker=row["worker"],
        attempts=row["attempts"],
        epochs=row["epochs"],
        created=row["created"],
        started=row["started"],
        ended=row["ended"],
        snapshot=row["snapshot"],
        run_id=row["run_id"],
        verdict=None if row["verdict"] is None else read_verdict(load(row["verdict"])),
        gpus=() if row["gpus"] is None else tuple(load(row["gpus"])),
    )


def _read_claim(row: sqlite3.Row) -> Claim:
    return Claim(
        number=row["number"],
        token=row["token"],
        attempt=row["attempts"],
        worker=row["worker"],
        point=load(row["point"]),
        run_id=row["run_id"],
    )


def _report(row: sqlite3.Row) -> Report:
    return Report(
        number=row["number"],
        epoch=row["epoch"],
        loss=row["loss"],
        metrics=load(row["metrics"]),
        time=row["time"],
        attempt=row["attempt"],
        revision=row["revision"],
    )
