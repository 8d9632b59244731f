"""Claims that wait at the http server: who is first, and who has gone. And each call done once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest

from hpo.core.errors import StoreFull
from hpo.core.trial import Changes, Claim
from hpo.stores.answers import Answer, Answers, Call
from hpo.stores.documents import Fields
from hpo.stores.waiting import LOOK_SECONDS, Closing, Waiting
from hpo.testing import FakeClock


@dataclass
class FakeStore:
    """Trials are offered, and taken once."""

    offered: list[int] = field(default_factory=list)
    revision: int = 0
    looks: int = 0
    error: Exception | None = None

    def offer(self, *numbers: int) -> None:
        self.offered += numbers
        self.revision += 1

    def changes(self, since: int, limit: int | None = None) -> Changes:
        self.looks += 1
        if self.error is not None:
            raise self.error
        return Changes(self.revision, (), ())

    def claim(self, worker: str, number: int | None, **_: object) -> Claim | None:
        found = [one for one in self.offered if number in (None, one)]
        if not found:
            return None
        self.offered.remove(found[0])
        self.revision += 1
        return Claim(found[0], "t", 1, worker, {})


@dataclass
class FakeRequest:
    is_gone: bool = False

    async def is_disconnected(self) -> bool:
        return self.is_gone


@dataclass
class Hall:
    """Where claims wait for the trials of one store."""

    store: FakeStore = field(default_factory=FakeStore)

    def __post_init__(self) -> None:
        async def operate(study: str, call: Callable[[Any], Any]) -> Any:
            return call(self.store)

        self.waiting = Waiting(operate)

    def enter(
        self, worker: str, number: int | None = None, seconds: float = 60, request: FakeRequest | None = None
    ) -> asyncio.Task[Any]:
        arguments = Fields({"worker": worker, "number": number, "gpus": [], "token": None}, "the arguments")
        call = Call([request or FakeRequest()])  # type: ignore[list-item]
        return asyncio.create_task(self.waiting.claim("digits", arguments, call, seconds))


def in_a_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        asyncio.run(asyncio.wait_for(test(), 60))

    run.__name__ = test.__name__
    return run


async def looked(store: FakeStore, times: int = 2) -> None:
    """The store has been looked at since."""
    enough = store.looks + times
    while store.looks < enough:
        await asyncio.sleep(0)


@in_a_loop
async def test_who_came_first_is_served_first() -> None:
    hall = Hall()
    waiting = [hall.enter(f"w{number}") for number in range(5)]
    await looked(hall.store)

    hall.store.offer(7, 8, 9)

    found = [await one for one in waiting[:3]]
    assert [(claim["number"], claim["worker"]) for claim in found] == [(7, "w0"), (8, "w1"), (9, "w2")]
    assert not any(one.done() for one in waiting[3:])


@in_a_loop
async def test_who_waits_for_one_trial_lets_others_pass() -> None:
    hall = Hall()
    patient, any_trial = hall.enter("patient", 9), hall.enter("any")
    await looked(hall.store)

    hall.store.offer(3)

    assert (await any_trial)["number"] == 3
    hall.store.offer(9)
    assert (await patient)["number"] == 9


@in_a_loop
async def test_who_has_gone_gets_nothing_and_holds_nobody_up() -> None:
    hall, gone = Hall(), FakeRequest()
    first, second = hall.enter("gone", request=gone), hall.enter("here")
    await looked(hall.store)
    gone.is_gone = True

    hall.store.offer(3)

    assert (await second)["worker"] == "here"
    assert await first is None


@in_a_loop
async def test_whose_time_is_over_gets_nothing() -> None:
    assert await Hall().enter("w", seconds=LOOK_SECONDS) is None


@in_a_loop
async def test_nobody_looks_while_nobody_waits() -> None:
    hall, tasks = Hall(), len(asyncio.all_tasks())
    hall.store.offer(3)
    await hall.enter("w")
    while len(asyncio.all_tasks()) > tasks:  # the one that watched is there for a while
        await asyncio.sleep(0)
    looks = hall.store.looks

    hall.store.offer(4)
    await asyncio.sleep(3 * LOOK_SECONDS)

    assert hall.store.looks == looks


@in_a_loop
async def test_an_error_of_the_store_reaches_all_who_wait() -> None:
    hall = Hall()
    waiting = [hall.enter("a"), hall.enter("b")]
    await looked(hall.store)

    hall.store.error = StoreFull("the disk is full")

    for one in waiting:
        with pytest.raises(StoreFull):
            await one


@in_a_loop
async def test_a_server_that_ends_lets_nobody_wait_any_more() -> None:
    hall = Hall()
    waits = hall.enter("early")
    await looked(hall.store)

    hall.waiting.close()

    for one in (waits, hall.enter("late")):
        with pytest.raises(Closing):
            await one


# --- each call once


@in_a_loop
async def test_a_call_that_is_asked_for_twice_is_done_once() -> None:
    answers, done, go_on = Answers(), [], asyncio.Event()

    async def work(call: Call) -> Answer:
        done.append(call)
        await go_on.wait()
        return Answer(200, b"first")

    asked = [asyncio.create_task(answers.once("key", FakeRequest(), work)) for _ in range(3)]  # type: ignore[arg-type]
    await asyncio.sleep(0)
    go_on.set()

    assert [await one for one in asked] == [Answer(200, b"first")] * 3
    assert await answers.once("key", FakeRequest(), work) == Answer(200, b"first")  # type: ignore[arg-type]
    assert len(done) == 1


@in_a_loop
async def test_a_call_goes_on_when_who_asked_for_it_has_gone() -> None:
    answers, go_on = Answers(), asyncio.Event()

    async def work(call: Call) -> Answer:
        await go_on.wait()
        return Answer(200, b"done")

    first = asyncio.create_task(answers.once("key", FakeRequest(), work))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    first.cancel()
    again = asyncio.create_task(answers.once("key", FakeRequest(), work))  # type: ignore[arg-type]
    go_on.set()

    assert await again == Answer(200, b"done")


@in_a_loop
async def test_what_was_not_done_may_be_asked_for_again() -> None:
    answers = Answers()
    statuses = iter([503, 200])

    async def work(call: Call) -> Answer:
        return Answer(next(statuses), b"")

    assert (await answers.once("key", FakeRequest(), work)).status == 503  # type: ignore[arg-type]
    assert (await answers.once("key", FakeRequest(), work)).status == 200  # type: ignore[arg-type]


@in_a_loop
async def test_old_answers_are_forgotten() -> None:
    clock = FakeClock()
    answers, done = Answers(clock), []

    async def work(call: Call) -> Answer:
        done.append(call)
        return Answer(200, b"")

    for key in ("old", "new"):
        await answers.once(key, FakeRequest(), work)  # type: ignore[arg-type]
        clock.advance(400)
    await answers.once("newest", FakeRequest(), work)  # type: ignore[arg-type]
    await answers.once("new", FakeRequest(), work)  # type: ignore[arg-type]

    assert len(done) == 3
    await answers.once("old", FakeRequest(), work)  # type: ignore[arg-type]
    assert len(done) == 4
