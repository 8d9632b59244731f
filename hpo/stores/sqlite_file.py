"""The SQLite file under a store: made whole, looked at before it is written, its errors explained."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

from hpo.core.errors import (
    NotAStore,
    StoreDamaged,
    StoreError,
    StoreFull,
    StoreNewer,
    StoreReadOnly,
    StoreUnreachable,
)
from hpo.stores.filesystems import network_filesystem, put_in_place

APPLICATION_ID = 0x68706F53  # "hpoS": tells a store from every other SQLite file
BUSY_SECONDS = 60.0
SQLITE_MAGIC = b"SQLite format 3\0"
SQLITE_HEADER_BYTES = 100
FULL_BYTES = 1 << 16  # SQLite's shared memory alone takes half of it

SCHEMA = """
CREATE TABLE studies (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    identity TEXT NOT NULL,
    snapshot TEXT,
    driver TEXT,
    created REAL NOT NULL,
    revision INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE notes (
    study INTEGER NOT NULL REFERENCES studies,
    name TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (study, name)
) WITHOUT ROWID;
CREATE TABLE trials (
    study INTEGER NOT NULL REFERENCES studies,
    number INTEGER NOT NULL,
    state TEXT NOT NULL,
    point TEXT NOT NULL,
    params TEXT NOT NULL,
    loss REAL,
    result TEXT NOT NULL DEFAULT '{}',
    error_kind TEXT,
    error_reason TEXT,
    worker TEXT,
    token TEXT,
    beats INTEGER NOT NULL DEFAULT 0,
    stop INTEGER NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0,
    lost INTEGER NOT NULL DEFAULT 0,
    epochs INTEGER NOT NULL DEFAULT 0,
    created REAL NOT NULL,
    started REAL,
    ended REAL,
    snapshot TEXT,
    revision INTEGER NOT NULL,
    PRIMARY KEY (study, number)
);
CREATE INDEX trials_by_revision ON trials (study, revision);
CREATE INDEX trials_by_state ON trials (study, state, loss, number);
CREATE TABLE reports (
    study INTEGER NOT NULL,
    number INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    loss REAL,
    metrics TEXT NOT NULL,
    time REAL NOT NULL,
    attempt INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    PRIMARY KEY (study, number, epoch)
) WITHOUT ROWID;
CREATE INDEX reports_by_revision ON reports (study, revision);
CREATE TABLE files (
    study INTEGER NOT NULL,
    trial INTEGER NOT NULL,
    name TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    size INTEGER NOT NULL,
    PRIMARY KEY (study, trial, name)
) WITHOUT ROWID;
CREATE INDEX files_by_content ON files (sha256);
CREATE TABLE workers (
    study INTEGER NOT NULL,
    name TEXT NOT NULL,
    offers TEXT NOT NULL,
    announced REAL NOT NULL,
    PRIMARY KEY (study, name)
) WITHOUT ROWID;
"""

MIGRATIONS: tuple[str, ...] = (
    "ALTER TABLE trials ADD COLUMN run_id TEXT",  # 2: the trial's MLflow run
    "ALTER TABLE trials ADD COLUMN verdict TEXT",  # 3: the pruner's verdict
    # 4: the devices that a trial's last attempt had, and how often a worker has announced itself
    "ALTER TABLE trials ADD COLUMN gpus TEXT;"
    " ALTER TABLE workers ADD COLUMN beats INTEGER NOT NULL DEFAULT 0",
)
"""MIGRATIONS[v - 1] turns a store of schema v into v + 1; each runs in the same transaction as the rest."""


def files_folder(path: Path) -> Path:
    """Where the files of the studies in ``hpo.db`` are: ``hpo.db.files``."""
    return path.with_name(path.name + ".files")


def refuse_network(path: Path) -> None:
    if kind := network_filesystem(path):
        raise StoreUnreachable(
            f"{path} is on a network file system ({kind}), where SQLite's locks can't be trusted",
            "keep the store on a local disk, for example --store sqlite:////tmp/hpo.db",
        )


def create_file(path: Path, *, schema_version: int, migrations: Sequence[str]) -> None:
    """Make a new store, whole or not at all: it is built beside and linked into place."""
    if not path.parent.is_dir():
        raise StoreUnreachable(
            f"the folder {path.parent} for the store {path.name} does not exist", f"mkdir -p {path.parent}"
        )
    for leftover in (path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")):
        if leftover.exists():
            # SQLite would replay a log that belongs to another file into the new one.
            raise StoreDamaged(
                f"{path} is missing but its log {leftover.name} is there",
                f"put {path.name} back, or remove {leftover.name} to start anew",
            )
    new = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    with explained(path):
        try:
            connection = sqlite3.connect(new, isolation_level=None)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.executescript("BEGIN;" + SCHEMA + "".join(f"{m};" for m in migrations) + "COMMIT;")
            connection.execute(f"PRAGMA user_version = {schema_version}")
            connection.close()
            put_in_place(new, path)
        finally:
            for leftover in path.parent.glob(new.name + "*"):
                leftover.unlink(missing_ok=True)


def open_file(path: Path, *, check: bool, migrations: Sequence[str]) -> sqlite3.Connection:
    if path.is_dir():
        raise NotAStore(f"{path} is a folder", f"name a file in it: --store sqlite:///{path}/hpo.db")
    # The file is opened by SQLite alone: closing any other descriptor of it would drop the locks that this
    # process holds through an earlier connection (sqlite.org/howtocorrupt.html, section 2.2).
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise StoreUnreachable(
            f"there is no store at {path}", "`hpo optimize` makes it; or name it with --store sqlite:///PATH"
        ) from None
    if not path.is_file():
        raise NotAStore(f"{path} is no regular file", "name another file with --store")
    if size == 0:
        raise StoreDamaged(
            f"{path} is empty, which a store never is",
            "restore it, or remove it to start anew: nothing was written",
        )
    with explained(path):
        # Look first through a connection that can't write: a damaged file must stay as it is.
        reading, writable = _modes(path)
        with contextlib.closing(_connect(path, reading)) as connection:
            try:
                found = _pragma(connection, "user_version")
            except sqlite3.DatabaseError as error:
                if error.sqlite_errorcode == sqlite3.SQLITE_NOTADB:
                    _refuse_other_file(path)
                raise
            if size < SQLITE_HEADER_BYTES:
                raise StoreDamaged(
                    f"{path} is damaged: its header is cut off", "restore it: nothing was written"
                )
            if _pragma(connection, "application_id") != APPLICATION_ID:
                raise NotAStore(
                    f"{path} is an SQLite file of another program", "name another file with --store"
                )
            if found > 1 + len(migrations):
                raise StoreNewer(
                    f"{path} was written by a newer hpo (its schema is {found}, this one knows up to"
                    f" {1 + len(migrations)})",
                    "upgrade hpo; nothing was written",
                )
            if check and (faults := connection.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
                raise StoreDamaged(f"{path} is damaged: {faults}", _RESCUE.format(path=path))
        connection = _connect(path, writable)
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA journal_size_limit = 16777216")
        if found < 1 + len(migrations):
            _migrate(connection, path, migrations)
        return connection


def _refuse_other_file(path: Path) -> None:
    # SQLite has refused it, so no connection of this process has locks on it.
    with open(path, "rb") as file:
        if file.read(len(SQLITE_MAGIC)) != SQLITE_MAGIC:
            raise NotAStore(
                f"{path} is no store of hpo: it is not an SQLite file", "name another file with --store"
            )


def _modes(path: Path) -> tuple[str, str]:
    """How to open the file for a look, and how for good: what can't be written can still be read."""
    log = path.with_name(path.name + "-wal")
    has_log = log.exists() and log.stat().st_size > 0
    if _is_read_only(path) and has_log:
        raise StoreReadOnly(
            f"{path} can't be written, and what was written last is still in its log",
            f"copy {path.name} and {log.name} to a place that can be written",
        )
    if _is_read_only(path) or (_is_full(path) and not has_log):
        # SQLite could not make the log it needs even for reading, and must be told that nobody writes.
        return "ro&immutable=1", "ro&immutable=1"
    return "ro", "rw"


_RESCUE = 'nothing was written; copy what is left with: sqlite3 {path} ".recover" | sqlite3 rescued.db'


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    quoted = str(path.absolute()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    connection = sqlite3.connect(
        f"file:{quoted}?mode={mode}",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )
    connection.row_factory = sqlite3.Row
    return connection


def _migrate(connection: sqlite3.Connection, path: Path, migrations: Sequence[str]) -> None:
    with writing(connection, path):
        # Another process may have done it while this one waited for the lock.
        version = _pragma(connection, "user_version")
        for migration in migrations[version - 1 :]:
            for statement in filter(str.strip, migration.split(";")):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {1 + len(migrations)}")


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


@contextlib.contextmanager
def writing(connection: sqlite3.Connection, path: Path) -> Iterator[None]:
    with explained(path):
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:  # a full disk has rolled it back already
                connection.execute("ROLLBACK")
            raise


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """SQLite's and the system's errors as ours, by error code, never by message."""
    try:
        yield
    except sqlite3.Error as error:
        raise _explain(error, path) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _full(path) from error
        if error.errno == errno.EROFS:
            raise _read_only(path) from error
        raise


def _explain(error: sqlite3.Error, path: Path) -> StoreError:
    match getattr(error, "sqlite_errorcode", 0) & 0xFF:  # the primary code; the rest are details
        case sqlite3.SQLITE_FULL:
            return _full(path)
        case sqlite3.SQLITE_READONLY:
            return _full(path) if _is_full(path) else _read_only(path)
        case sqlite3.SQLITE_CORRUPT:
            return StoreDamaged(f"{path} is damaged: {error}", _RESCUE.format(path=path))
        case sqlite3.SQLITE_NOTADB:
            return StoreDamaged(f"{path} is damaged: its header is torn", _RESCUE.format(path=path))
        case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_IOERR if _is_full(path):
            return _full(path)
        case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_IOERR if _is_read_only(path):
            return _read_only(path)
        case sqlite3.SQLITE_CANTOPEN:
            return StoreUnreachable(f"{path} can't be opened: {error}", "check its folder and permissions")
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return StoreError(
                f"{path} was locked by another process for {BUSY_SECONDS:g} s",
                "look for a process that holds it open: fuser " + str(path),
            )
        case sqlite3.SQLITE_IOERR:
            return StoreError(f"reading or writing {path} failed: {error}", "check the disk it is on")
    return StoreError(f"the store {path} failed: {error}")


def _is_read_only(path: Path) -> bool:
    return bool(os.statvfs(path.parent).f_flag & os.ST_RDONLY)


def _is_full(path: Path) -> bool:
    space = os.statvfs(path.parent)
    return space.f_bavail * space.f_frsize < FULL_BYTES


def _full(path: Path) -> StoreFull:
    return StoreFull(
        f"the disk under {path} is full", "free some space and repeat the command: nothing is lost"
    )


def _read_only(path: Path) -> StoreReadOnly:
    return StoreReadOnly(f"{path} can't be written", "make the file and its folder writable, or copy them")
