"""Which claims have fallen silent, by one observer's own monotonic clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable


class LeaseWatch:
    """Remembers when each heartbeat counter was last seen to move.

    Machines' clocks differ, so no time is ever compared with a time from elsewhere: a claim is silent
    when its counter has stood still for the lease while *this* process watched.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[str, tuple[int, float]] = {}

    def silent(self, beats: Iterable[tuple[str, int]], lease_seconds: float) -> list[str]:
        """The tokens whose counter has not moved for the lease.

        Args: beats: ``(token, counter)`` of every claim there is.
        """
        now = self._clock()
        before, self._seen = self._seen, {}
        found = []
        for token, count in beats:
            last = before.get(token)
            moved = now if last is None or last[0] != count else last[1]
            self._seen[token] = (count, moved)
            if now - moved >= lease_seconds:
                found.append(token)
        return found
