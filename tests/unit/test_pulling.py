"""A worker that waits: for a store, for a study, for trials."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import pytest

from hpo.core.errors import StoreError, StoreUnreachable, UntrustedCode, UsageError
from hpo.core.study import TERMS_NOTE, Driver, StudyRecord, Terms
from hpo.executors import WorkerSettings
from hpo.executors.local_worker import found
from hpo.pulling import Asked, End, Puller
from hpo.stores import Catalog, connect
from hpo.testing import IDENTITY, FakeClock
from hpo.trust import Trust
from hpo.worker import Workplace


class Wish:
    def is_drain(self) -> bool:
        return False

    def is_cancel(self) -> bool:
        return False


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    clock = FakeClock()
    monkeypatch.setattr("hpo.pulling.time.sleep", clock.advance)
    return clock


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with closing(connect(f"sqlite:///{tmp_path}/hpo.db", create=True)) as catalog:
        yield catalog


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def puller(tmp_path: Path, clock: FakeClock, said: list[str]) -> Puller:
    """A worker that waits for a minute."""
    trust = Trust(None, None, tmp_path)
    asked = Asked(f"sqlite:///{tmp_path}/hpo.db", None, [()], trust, idle_timeout_seconds=60)
    return Puller(asked, Wish(), said.append, clock)


def wants_workers(catalog: Catalog, name: str, snapshot: str = "a" * 64) -> None:
    store = catalog.create(replace(IDENTITY, study=name))
    store.use_snapshot(snapshot)
    store.lead(Driver("here", 1, 0.0, "token"))
    store.note(TERMS_NOTE, asdict(Terms()))


def test_a_store_that_does_not_answer_is_waited_for_and_told_of_once(
    puller: Puller, clock: FakeClock, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_at = []

    def nobody(url: str) -> Catalog:
        asked_at.append(clock.now)
        raise StoreUnreachable("nobody answers there")

    monkeypatch.setattr("hpo.pulling.connect", nobody)

    assert puller.run() is End.DONE

    assert said[:-1] == ["nobody answers there; waiting for it"]
    waits = [later - earlier for earlier, later in pairwise(asked_at)]
    assert waits == sorted(waits)  # less and less often
    assert 1 < len(asked_at) < 15


def test_a_store_that_answers_and_cannot_be_used_ends_the_worker(
    puller: Puller, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(url: str) -> Catalog:
        raise StoreError("the token is another")

    monkeypatch.setattr("hpo.pulling.connect", refuse)

    with pytest.raises(StoreError, match="token"):
        puller.run()


@pytest.mark.usefixtures("catalog")
def test_a_study_that_wants_workers_is_waited_for_as_long_as_was_said(
    puller: Puller, clock: FakeClock, said: list[str]
) -> None:
    assert puller.run() is End.DONE

    assert clock.now == pytest.approx(60, abs=1)
    assert len(said) == 2
    assert "--workers 0" in said[0]
    assert "no trial for 60 s" in said[1]


def test_one_of_several_studies_must_be_named(puller: Puller, catalog: Catalog) -> None:
    for name in ("left", "right"):
        wants_workers(catalog, name)

    with pytest.raises(UsageError, match="left, right"):
        puller.run()


def test_a_study_that_wants_no_workers_is_none_of_them(puller: Puller, catalog: Catalog) -> None:
    catalog.create(replace(IDENTITY, study="left"))
    wants_workers(catalog, "right")

    with pytest.raises(UntrustedCode, match="'right' does not keep the code"):
        puller.run()


@pytest.mark.parametrize("snapshot", ["../../etc", "A" * 64, ""])
def test_what_is_no_hash_names_no_code(puller: Puller, catalog: Catalog, snapshot: str) -> None:
    wants_workers(catalog, "study", snapshot)

    with pytest.raises(UntrustedCode):
        puller.run()


def test_a_claim_whose_store_goes_away_is_not_dropped(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wants_workers(catalog, "study")
    store = catalog.open("study")
    store.add(0, {"x": 0.5}, {})
    settings = WorkerSettings(store.url, "study", 0, "", "", "", "", str(tmp_path), snapshot="a" * 64)
    place = Workplace("w", tmp_path, tmp_path, 0)
    record, failures = store.record, [StoreUnreachable("it is away")]

    def record_later() -> StudyRecord:
        if failures:
            raise failures.pop()
        return record()

    monkeypatch.setattr(store, "record", record_later)

    claim = found(store, settings, place)

    assert claim is not None
    assert not failures
