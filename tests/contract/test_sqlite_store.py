"""The sqlite store keeps the contract, and what only a file can suffer."""

import multiprocessing
import os
import shutil
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from hpo.core.errors import (
    NotAStore,
    StoreDamaged,
    StoreFull,
    StoreNewer,
    StoreReadOnly,
    StoreUnreachable,
)
from hpo.core.trial import Completed
from hpo.stores import connect
from hpo.stores.sqlite import SqliteCatalog, SqliteStore
from hpo.stores.sqlite_file import BUSY_SECONDS, MIGRATIONS, files_folder
from hpo.testing import IDENTITY, FakeClock, StoreContract


class TestSqliteStore(StoreContract):
    @pytest.fixture
    def catalog(self, tmp_path: Path, clock: FakeClock):
        with closing(SqliteCatalog(url(tmp_path / "hpo.db"), create=True, clock=clock)) as catalog:
            yield catalog


def url(path: Path) -> str:
    return f"sqlite:///{path}"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "hpo.db"


def with_trials(path: Path, trials: int) -> None:
    with closing(connect(url(path), create=True)) as catalog:
        store = catalog.create(IDENTITY)
        for number in range(trials):
            store.add(number, {"x": number}, {"x": "y" * 200})


# --- opening


def test_reading_does_not_make_a_store(path: Path) -> None:
    with pytest.raises(StoreUnreachable, match=r"no store at .*hpo\.db"):
        connect(url(path))

    assert not path.exists()


def test_a_store_appears_whole_or_not_at_all(path: Path) -> None:
    connect(url(path), create=True).close()

    assert sorted(p.name for p in path.parent.iterdir()) == ["hpo.db"]
    assert connect(url(path)).names() == []


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreUnreachable, match="folder") as raised:
        connect(url(tmp_path / "runs" / "hpo.db"), create=True)

    assert raised.value.hint.startswith("mkdir -p")


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", StoreDamaged),
        (b"just some notes of mine\n", NotAStore),
        (b"SQLite format 3\0" + b"\xff" * 500, StoreDamaged),
        (b"SQLite form", NotAStore),
    ],
    ids=["empty", "text", "torn header", "cut header"],
)
def test_what_is_no_store_is_reported_and_left_as_it_is(path: Path, content: bytes, error: type) -> None:
    path.write_bytes(content)

    with pytest.raises(error, match=r"hpo\.db"):
        connect(url(path), create=True, check=True)

    assert path.read_bytes() == content


def test_another_programs_database_is_left_alone(path: Path) -> None:
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE runs (id TEXT)")
        other.commit()
    before = path.read_bytes()

    with pytest.raises(NotAStore, match="another program"):
        connect(url(path), create=True)

    assert path.read_bytes() == before


@pytest.mark.parametrize("kept", [0.5, 0.9, 0.25])
def test_a_truncated_store_is_reported_and_never_written(path: Path, kept: float) -> None:
    with_trials(path, 400)
    size = int(path.stat().st_size * kept) // 4096 * 4096
    os.truncate(path, size)
    before = path.read_bytes()

    with pytest.raises(StoreDamaged, match="damaged") as raised:
        connect(url(path), create=True, check=True)

    assert path.read_bytes() == before
    assert ".recover" in raised.value.hint


def test_a_page_of_rubbish_inside_is_found(path: Path) -> None:
    with_trials(path, 400)
    with open(path, "r+b") as file:
        file.seek(4096 * 5)
        file.write(os.urandom(4096))
    before = path.read_bytes()

    with pytest.raises(StoreDamaged):
        connect(url(path), create=True, check=True)

    assert path.read_bytes() == before


def test_a_lost_store_is_not_made_anew_over_its_log(path: Path) -> None:
    with closing(connect(url(path), create=True)) as catalog:
        catalog.create(IDENTITY)
        shutil.copy(f"{path}-wal", f"{path}-kept")
    path.unlink()
    os.rename(f"{path}-kept", f"{path}-wal")

    with pytest.raises(StoreDamaged, match="log"):
        connect(url(path), create=True)

    assert not path.exists()


def test_a_newer_store_is_refused_unchanged(path: Path) -> None:
    with_trials(path, 1)
    with closing(sqlite3.connect(path)) as later:
        later.execute("PRAGMA user_version = 99")
    before = path.read_bytes()

    with pytest.raises(StoreNewer, match="99"):
        connect(url(path), create=True)

    assert path.read_bytes() == before


def test_an_older_store_is_migrated_with_what_it_holds(path: Path) -> None:
    with_trials(path, 3)
    migrations = (
        *MIGRATIONS,
        "ALTER TABLE studies ADD COLUMN owner TEXT; UPDATE studies SET owner = 'me'",
        "ALTER TABLE trials ADD COLUMN cost REAL",
    )

    with closing(SqliteCatalog(url(path), migrations=migrations)) as catalog:
        assert len(list(catalog.open("digits").trials())) == 3

    with closing(sqlite3.connect(path)) as after:
        assert after.execute("PRAGMA user_version").fetchone() == (1 + len(migrations),)
        assert after.execute("SELECT owner FROM studies").fetchone() == ("me",)
    with pytest.raises(StoreNewer):
        connect(url(path))


def test_a_store_of_the_first_schema_is_opened(path: Path) -> None:
    with closing(SqliteCatalog(url(path), create=True, migrations=())) as catalog:
        catalog._connection.execute(
            "INSERT INTO studies (name, identity, created) VALUES ('digits', '{}', 0.0)"
        )
        catalog._connection.execute(
            "INSERT INTO trials (study, number, state, point, params, created, revision)"
            " VALUES (1, 0, 'waiting', '{}', '{}', 0.0, 1)"
        )

    with closing(connect(url(path))) as catalog:
        store = catalog.open("digits")
        store.track(0, "abc")
        store.announce("w", {})

        assert store.claim("w", 0, gpus=("1",)).run_id == "abc"
        assert store.trial(0).gpus == ("1",)
        assert [worker.trial for worker in store.workers()] == [0]


def test_a_migration_that_fails_leaves_the_store_as_it_was(path: Path) -> None:
    with_trials(path, 3)

    with pytest.raises(Exception, match="no such table"):
        SqliteCatalog(
            url(path), migrations=(*MIGRATIONS, "ALTER TABLE studies ADD COLUMN a TEXT; DROP TABLE nowhere")
        )

    with closing(connect(url(path))) as catalog:
        assert len(list(catalog.open("digits").trials())) == 3


def test_a_store_that_cannot_be_written_can_be_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_trials(path, 2)
    with closing(connect(url(path))) as catalog:
        store = catalog.open("digits")
        catalog._connection.execute("PRAGMA query_only = ON")

        with pytest.raises(StoreReadOnly, match=r"hpo\.db"):
            store.add(2, {}, {})

        assert len(list(store.trials())) == 2


def test_a_full_disk_is_told_and_loses_nothing(path: Path) -> None:
    with_trials(path, 2)
    with closing(connect(url(path))) as catalog:
        store = catalog.open("digits")
        pages = catalog._connection.execute("PRAGMA page_count").fetchone()[0]
        catalog._connection.execute(f"PRAGMA max_page_count = {pages}")

        with pytest.raises(StoreFull, match="full"):
            store.add(2, {"x": 1}, {"x": "y" * 100_000})

        kept = [trial.number for trial in store.trials()]
        catalog._connection.execute("PRAGMA max_page_count = 100000")
        store.add(kept[-1] + 1, {}, {})
    assert kept[:2] == [0, 1]


# --- files


def test_bytes_that_changed_on_the_disk_are_not_handed_out(path: Path, tmp_path: Path) -> None:
    payload = tmp_path / "payload"
    payload.write_bytes(b"weights")
    with closing(connect(url(path), create=True)) as catalog:
        store = catalog.create(IDENTITY)
        [kept] = store.put_files({"model": payload})
        [blob] = files_folder(path).rglob(kept.sha256)
        blob.write_bytes(b"weightz")

        assert not store.get_file("model", tmp_path / "back")
        assert not (tmp_path / "back").exists()


def test_replaced_and_dropped_files_leave_no_bytes_behind(path: Path, tmp_path: Path) -> None:
    payload = tmp_path / "payload"
    with closing(connect(url(path), create=True)) as catalog:
        store = catalog.create(IDENTITY)
        for epoch in range(3):
            payload.write_bytes(f"epoch {epoch}".encode())
            store.put_files({"checkpoint/state": payload}, trial=0)
        blobs = [p for p in files_folder(path).rglob("*") if p.is_file()]
        store.put_files({}, trial=0, drop=["checkpoint/state"])

        assert len(blobs) == 1
        assert not [p for p in files_folder(path).rglob("*") if p.is_file()]


def test_a_crash_while_a_file_is_replaced_leaves_the_old_or_the_new(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    payload = tmp_path / "payload"
    payload.write_bytes(b"epoch 6")
    with closing(connect(url(path), create=True)) as catalog:
        store = catalog.create(IDENTITY)
        store.put_files({"checkpoint/state": payload}, trial=0)
        payload.write_bytes(b"epoch 7")
        monkeypatch.setattr(SqliteStore, "_forget", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))

        with pytest.raises(KeyboardInterrupt):
            store.put_files({"checkpoint/state": payload}, trial=0)

        assert store.get_file("checkpoint/state", tmp_path / "back", trial=0)
        assert (tmp_path / "back").read_bytes() == b"epoch 6"


def test_another_process_that_looks_leaves_the_log_of_a_live_one(path: Path) -> None:
    with closing(connect(url(path), create=True)) as catalog:
        store = catalog.create(IDENTITY)
        connect(url(path)).close()  # a second handle in this process must not drop the first one's locks
        store.add(0, {"x": 1}, {})
        look = f"from hpo.stores import connect; connect({url(path)!r}).close()"

        subprocess.run([sys.executable, "-c", look], check=True)

        store.add(1, {"x": 1}, {})
        with closing(connect(url(path))) as other:
            assert [trial.number for trial in other.open("digits").trials()] == [0, 1]
        assert Path(f"{path}-wal").exists()


# --- several processes


def claim_all(path: Path, name: str, queue) -> None:  # type: ignore[no-untyped-def]
    mine = []
    with closing(connect(url(path))) as catalog:
        store = catalog.open("digits")
        while (claim := store.claim(name)) is not None:
            store.report(claim, 0, 0.5, {}, time=1.0)
            store.finish(claim, Completed(claim.number / 1000))
            mine.append(claim.number)
    queue.put(mine)


def test_who_reads_for_long_holds_up_neither_who_closes_nor_who_writes(path: Path) -> None:
    with_trials(path, 3)
    with closing(connect(url(path))) as writer, closing(sqlite3.connect(path)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM trials").fetchall()
        leaving = connect(url(path))
        leaving.open("digits").add(3, {"x": 3}, {})

        with ThreadPoolExecutor(1) as pool:
            pool.submit(leaving.close).result(timeout=BUSY_SECONDS / 2)
            pool.submit(writer.open("digits").add, 4, {"x": 4}, {}).result(timeout=BUSY_SECONDS / 2)

        assert len(list(writer.open("digits").trials())) == 5


def test_eight_processes_claim_each_trial_once_and_lose_none(path: Path) -> None:
    with_trials(path, 400)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=claim_all, args=(path, f"w{i}", queue)) for i in range(8)]
    for worker in workers:
        worker.start()

    claimed = [queue.get(timeout=120) for _ in workers]

    for worker in workers:
        worker.join()
    assert sorted(number for mine in claimed for number in mine) == list(range(400))
    with closing(connect(url(path))) as catalog:
        store = catalog.open("digits")
        assert store.record().counts["completed"] == 400
        assert len({trial.revision for trial in store.trials()}) == 400


def create(path: Path, queue) -> None:  # type: ignore[no-untyped-def]
    try:
        with closing(connect(url(path), create=True, check=True)) as catalog:
            catalog.create(IDENTITY)
            queue.put("")
    except Exception as error:
        queue.put(repr(error))


def test_processes_that_create_the_same_store_at_once_agree(path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    makers = [context.Process(target=create, args=(path, queue)) for _ in range(6)]
    for maker in makers:
        maker.start()

    errors = [queue.get(timeout=60) for _ in makers]

    for maker in makers:
        maker.join()
    assert errors == [""] * 6
    assert connect(url(path)).names() == ["digits"]
