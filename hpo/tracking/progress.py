"""What a person sees while a study runs: a live table on a terminal, one line per event elsewhere."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hpo.core.plain import flat, printable
from hpo.core.repeats import Repeats, final_loss
from hpo.core.trial import ENDED, Changes, State, Trial

BAR_CELLS = 10
LINE_CELLS = 500  # a line of a log: long enough to read, short enough to scroll past
PARAMS_SHOWN = 30
MEMORY = 200  # finished trials that the time left is judged by: a search drifts to costlier or cheaper ones


@dataclass(slots=True)
class _Running:
    trial: Trial
    since: float
    epoch: int | None = None
    loss: float | None = None


class Progress:
    """Shows a study's progress on ``console``; an `hpo.tracking.Observer`.

    Args: max_evals: how many trials are to end, None if unknown; counts: trials that had ended before, by
    state; best: the lowest loss before; seconds: what earlier trials took, for the time left; parallelism:
    trials that run at once; points: those that some trials have ended of; clock: seconds that never go back.
    """

    def __init__(
        self,
        console: Console,
        study: str,
        max_evals: int | None,
        *,
        counts: Mapping[str, int] | None = None,
        best: float | None = None,
        seconds: Iterable[float] = (),
        parallelism: int = 1,
        points: Repeats | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console
        self._study = study
        self._max_evals = max_evals
        self._counts = {state: (counts or {}).get(state.value, 0) for state in ENDED}
        self._best = best
        self._seconds = deque(seconds, maxlen=MEMORY)
        self._parallelism = max(1, parallelism)
        self._points = points or Repeats()
        self._clock = clock
        self._began = clock()
        self._running: dict[int, _Running] = {}
        self._live: Live | None = None
        self._is_closed = False
        self.count_workers: Callable[[], int] | None = None
        """How many workers are there now, where they come and go as they like."""

    def update(self, changes: Changes) -> None:
        if self._is_closed:
            return
        for trial in changes.trials:
            self._take(trial)
        for report in changes.reports:
            if running := self._running.get(report.number):
                running.epoch, running.loss = report.epoch, report.loss
        if self._console.is_terminal:
            self._draw()

    def say(self, text: str) -> None:
        """Print a message, on a terminal above the table. Where nobody can read it any more (the terminal was
        closed), it is lost: the study goes on."""
        with contextlib.suppress(OSError):
            self._console.print(self._text(text, LINE_CELLS), soft_wrap=True)

    def close(self) -> bool:
        """Take the table away and leave the last line standing."""
        if not self._is_closed:
            self._is_closed = True
            if self._live is not None:
                self._live.stop()
            if self._console.is_terminal:
                self.say(self.line())
        return True

    def line(self) -> str:
        """Hyperopt's line: share, ended/total, elapsed<left, best loss."""
        ended, total = sum(self._counts.values()), self._max_evals
        share = min(1.0, ended / total) if total else 0.0
        bar = "#" * int(share * BAR_CELLS)
        begin = f"{share:4.0%}|{bar:<{BAR_CELLS}}| {ended}/{total if total is not None else '?'}"
        left = self._seconds_left()
        times = f"{_clock_time(self._clock() - self._began)}<{'?' if left is None else _clock_time(left)}"
        others = (State.PRUNED, State.FAILED)
        more = "".join(f", {self._counts[state]} {state}" for state in others if self._counts[state])
        if self.count_workers is not None:
            workers = self.count_workers()
            more += f", {workers} worker{'' if workers == 1 else 's'}"
        return f"{begin} [{times}, best loss: {_number(self._best)}{more}]"

    # --- events

    def _take(self, trial: Trial) -> None:
        number, known = trial.number, self._running.get(trial.number)
        if trial.state is State.RUNNING:
            if known is None or known.trial.attempts != trial.attempts:
                self._running[number] = _Running(trial, self._clock())
                again = f" again (attempt {trial.attempts})" if trial.attempts > 1 else ""
                params = f": {text}" if (text := _params(trial)) else ""
                self._log(f"trial {number} started{again} on {trial.worker}{params}")
            return
        self._running.pop(number, None)
        if trial.state is State.WAITING:
            if known is not None:
                self._log(f"trial {number} is offered again")
            return
        self._counts[trial.state] += 1
        if trial.seconds is not None:
            self._seconds.append(max(0.0, trial.seconds))
        point = self._points.add(number, final_loss(trial))
        if point is not None and point.loss is not None and math.isfinite(point.loss):
            self._best = point.loss if self._best is None else min(self._best, point.loss)
        self._log(self._ending(trial), is_bad=trial.state is State.FAILED)

    def _ending(self, trial: Trial) -> str:
        if trial.state is State.FAILED:
            kind, reason = (trial.error.kind, trial.error.reason) if trial.error else ("unknown", "")
            return f"trial {trial.number} failed ({kind}): {reason}"
        took = "" if trial.seconds is None else f" in {_duration(trial.seconds)}"
        after = f" after {trial.epochs} epochs" if trial.state is State.PRUNED and trial.epochs else ""
        total = "?" if self._max_evals is None else self._max_evals
        so_far = f"{sum(self._counts.values())}/{total}, best {_number(self._best)}"
        return f"trial {trial.number} {trial.state}: loss {_number(trial.loss)}{after}{took} ({so_far})"

    def _log(self, text: str, *, is_bad: bool = False) -> None:
        # A terminal has the table: only what went wrong is worth a line that stays.
        if is_bad or not self._console.is_terminal:
            self.say(text)

    # --- the table

    def _draw(self) -> None:
        if self._live is None:
            # Drawn by `update` alone: no thread of its own, so nothing to flicker between two of them.
            # Standard output is left alone: it is for the result.
            self._live = Live(
                console=self._console, auto_refresh=False, transient=True, redirect_stdout=False
            )
            self._live.start()
        self._live.update(self._picture(), refresh=True)

    def _picture(self) -> RenderableType:
        line = self._text(self.line(), self._console.width - 1)
        if not self._running:
            return line
        widths = {"trial": 6, "worker": 12, "epoch": 5, "loss": 10, "elapsed": 8}
        gaps = 2 * len(widths)
        room = max(8, self._console.width - sum(widths.values()) - gaps - 1)
        table = Table.grid(padding=(0, 2, 0, 0))
        columns = ["trial", "worker", "epoch", "loss", "elapsed", "parameters"]
        for name in columns:
            left = name in ("worker", "parameters")
            table.add_column(no_wrap=True, overflow="crop", justify="left" if left else "right")
        table.add_row(*(Text(name, style="dim") for name in columns))
        rows = max(1, self._console.height - 5)
        now = self._clock()
        for running in list(self._running.values())[:rows]:
            trial = running.trial
            cells = {
                "trial": str(trial.number),
                "worker": str(trial.worker or ""),
                "epoch": "" if running.epoch is None else str(running.epoch),
                "loss": "" if running.loss is None else _number(running.loss),
                "elapsed": _clock_time(now - running.since),
            }
            texts = [self._text(text, widths[name]) for name, text in cells.items()]
            table.add_row(*texts, self._text(_params(trial), room))
        more = len(self._running) - rows
        parts = [table, Text(f"and {more} more", style="dim")] if more > 0 else [table]
        return Group(*parts, line)

    def _text(self, text: str, cells: int) -> Text:
        """One line of at most so many cells, of what this console can show: no control codes, no markup."""
        text = printable(text)
        text = text.encode(self._console.encoding, "replace").decode(self._console.encoding)
        if cell_len(text) > cells:
            while text and cell_len(text) > cells - 3:
                text = text[: min(len(text) - 1, cells)]
            text += "..."
        return Text(text.rstrip())

    def _seconds_left(self) -> float | None:
        """From the median of the latest trials; None until there is one, or where the end is unknown."""
        if self._max_evals is None or not self._seconds:
            return None
        remaining = self._max_evals - sum(self._counts.values())
        if remaining <= 0:
            return 0.0
        typical = statistics.median(self._seconds)
        now = self._clock()
        running = [max(0.0, typical - (now - r.since)) for r in self._running.values()][:remaining]
        work = sum(running) + typical * (remaining - len(running))
        parallelism = self._parallelism if self.count_workers is None else max(1, self.count_workers())
        return work / min(parallelism, remaining)


def _params(trial: Trial) -> str:
    """The first parameters on one line, each under the end of its name where no other ends so."""
    params = dict(islice(flat(trial.params).items(), PARAMS_SHOWN))
    ends = Counter(key.rpartition(".")[2] for key in params)
    names = (end if ends[end := key.rpartition(".")[2]] == 1 else key for key in params)
    return " ".join(f"{name}={_value(value)}" for name, value in zip(names, params.values(), strict=True))


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)[:100]


def _number(loss: Any) -> str:
    return f"{loss:.5g}" if isinstance(loss, int | float) else "?"


def _duration(seconds: float) -> str:
    return f"{max(0.0, seconds):.1f} s" if seconds < 100 else _clock_time(seconds)


def _clock_time(seconds: float) -> str:
    """``mm:ss``, or ``h:mm:ss`` from an hour on."""
    minutes, second = divmod(int(max(0.0, seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute:02}:{second:02}"
