"""Waiting for a trial where nobody tells that one is offered."""

from __future__ import annotations

import time
from collections.abc import Callable

from hpo.core.trial import Claim

POLL_SECONDS = 0.05


def claimed_within(seconds: float, attempt: Callable[[], Claim | None]) -> Claim | None:
    """The first claim that an attempt brings; None if none did within the seconds. There is always one."""
    deadline = time.monotonic() + seconds
    while (claim := attempt()) is None and (left := deadline - time.monotonic()) > 0:
        time.sleep(min(POLL_SECONDS, left))
    return claim
