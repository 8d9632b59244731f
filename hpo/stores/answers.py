"""Calls that the http server was asked to do: each done once, however often it is asked."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

KEEP_SECONDS = 600.0  # longer than any client asks again
KEEP_ANSWERS = 10_000
GONE = 503  # the status of a call that was not done, and may be tried again


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP status, and one JSON document."""

    status: int
    body: bytes


@dataclass(slots=True)
class Call:
    """A call under way, and the requests that wait for its answer: several where a client asked again."""

    requests: list[Request] = field(default_factory=list)
    task: asyncio.Task[Answer] | None = None

    async def is_wanted(self) -> bool:
        """Whether somebody would still hear the answer."""
        return not all([await request.is_disconnected() for request in self.requests])


Work = Callable[[Call], Coroutine[Any, Any, Answer]]


class Answers:
    """The calls under way, and what the latest ones were answered, by their key."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._calls: dict[str, Call] = {}
        self._ended: deque[tuple[float, str]] = deque()

    async def once(self, key: str, request: Request, work: Work) -> Answer:
        """What ``work`` answers, which is started if no call of that key was."""
        call = self._calls.get(key)
        if call is None:
            call = self._calls[key] = Call()
            call.task = asyncio.create_task(work(call))
            call.task.add_done_callback(lambda task: self._end(key, task))
        assert call.task is not None
        if not call.task.done():
            call.requests.append(request)
        # A request that is cut does not cut the work: the client will ask for its answer again.
        return await asyncio.shield(call.task)

    def _end(self, key: str, task: asyncio.Task[Answer]) -> None:
        if task.cancelled() or task.exception() or task.result().status == GONE:
            del self._calls[key]
        else:
            self._calls[key].requests.clear()
            self._ended.append((self._clock(), key))
        oldest = self._clock() - KEEP_SECONDS
        while self._ended and (len(self._ended) > KEEP_ANSWERS or self._ended[0][0] < oldest):
            del self._calls[self._ended.popleft()[1]]
