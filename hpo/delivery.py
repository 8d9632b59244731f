"""How a trial's results wait for a store that can't be reached."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from hpo.core.errors import StoreUnreachable
from hpo.run import complain

DELIVERY_SECONDS = 600.0  # a training is worth more than the time its worker waits for a server to come back
FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS = 0.5, 10.0

T = TypeVar("T")


@dataclass
class Delivery:
    """So long one trial waits for the store, in all; any other error passes at once.

    ``what``: what waits, in the trial's log.
    """

    what: str
    seconds: float = DELIVERY_SECONDS
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _waited: float = field(default=0.0, init=False)

    def make(self, call: Callable[[], T]) -> T:
        """What the call returns as soon as the store is there. Raises StoreUnreachable when it never is."""
        delay = FIRST_DELAY_SECONDS
        while True:
            began = self.clock()
            try:
                return call()
            except StoreUnreachable as error:
                if self._waited >= self.seconds:
                    raise
                complain(f"{self.what} waits: {error}")
                self.sleep(delay)
                self._waited += self.clock() - began
                delay = min(2 * delay, LONGEST_DELAY_SECONDS)
