"""Claims that wait at the http server for a trial to be offered."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from hpo.core.errors import StoreUnreachable
from hpo.stores.answers import Call
from hpo.stores.documents import Fields
from hpo.stores.protocol import Store
from hpo.stores.rpc import claim

LOOK_SECONDS = 0.03  # between looks at a study that somebody waits for
LATEST = 2**62  # beyond every revision: `changes` since then tells the newest one, and no rows

Operate = Callable[[str, Callable[[Store], Any]], Awaitable[Any]]
"""``operate(study, call)`` calls it with the study's store, on the one thread that may."""


@dataclass(frozen=True, slots=True, eq=False)
class _Waiter:
    arguments: Fields
    call: Call
    deadline: float
    found: asyncio.Future[Any]

    @property
    def is_particular(self) -> bool:
        return self.arguments.whole_or_none("number") is not None


class Closing(StoreUnreachable):
    """The server ends."""


class Waiting:
    """Who waits, by study, in the order of arrival. No thread waits with them.

    A study is looked at, its revision alone, only while somebody waits for it; when it has moved, those who
    wait try, the first one first.
    """

    def __init__(self, operate: Operate) -> None:
        self._operate = operate
        self._queues: dict[str, list[_Waiter]] = {}
        self._arrivals: dict[str, asyncio.Event] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False

    async def claim(self, study: str, arguments: Fields, call: Call, seconds: float) -> Any:
        """The claim's document; None if the seconds are over, or nobody wants it any more."""
        if self._is_closed:
            raise Closing("the server ends")
        loop = asyncio.get_running_loop()
        waiter = _Waiter(arguments, call, loop.time() + seconds, loop.create_future())
        if study not in self._queues:
            self._queues[study], self._arrivals[study] = [], asyncio.Event()
            task = asyncio.create_task(self._watch(study))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._queues[study].append(waiter)
        self._arrivals[study].set()
        return await waiter.found

    def close(self) -> None:
        """Whoever waits, and whoever comes, is told that the server ends."""
        self._is_closed = True
        for queue in self._queues.values():
            for waiter in queue:
                if not waiter.found.done():
                    waiter.found.set_exception(Closing("the server ends"))

    async def _watch(self, study: str) -> None:
        queue, arrival = self._queues[study], self._arrivals[study]
        seen = None
        while queue:
            try:
                revision = await self._operate(study, lambda store: store.changes(LATEST).revision)
                if revision != seen or arrival.is_set():
                    arrival.clear()
                    await self._try(study, list(queue))
                seen = revision
            except Exception as error:
                for waiter in queue:
                    if not waiter.found.done():
                        waiter.found.set_exception(error)
            now = asyncio.get_running_loop().time()
            for waiter in queue:
                if waiter.deadline <= now and not waiter.found.done():
                    waiter.found.set_result(None)
            queue[:] = [waiter for waiter in queue if not waiter.found.done()]
            try:
                await asyncio.wait_for(arrival.wait(), LOOK_SECONDS)
            except TimeoutError:
                pass
        del self._queues[study], self._arrivals[study]

    async def _try(self, study: str, queue: list[_Waiter]) -> None:
        is_empty = False  # whether nothing is left for those who take any trial
        for waiter in queue:
            if waiter.found.done() or (is_empty and not waiter.is_particular):
                continue
            if not await waiter.call.is_wanted():
                # A trial that is claimed for nobody would be idle until its lease is over.
                waiter.found.set_result(None)
                continue
            found = await self._operate(study, functools.partial(claim, a=waiter.arguments))
            if found is None:
                is_empty = is_empty or not waiter.is_particular
            elif not waiter.found.done():
                waiter.found.set_result(found)
