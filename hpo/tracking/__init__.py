"""Who watches a study: MLflow (`mlflow/`) and the person at the terminal (`progress.py`).

Observers are told what the store says and change nothing in it but their own note. A failing observer is
logged, never the study's end.
"""

from __future__ import annotations

from typing import Protocol

from hpo.core.trial import Changes

__all__ = ["Observer"]


class Observer(Protocol):
    """Somebody who is told what happened. Both methods are called from one thread, the driver's."""

    def update(self, changes: Changes) -> None:
        """Something happened, or some tenths of a second passed (then ``changes`` is empty). Be quick."""

    def close(self) -> bool | None:
        """The study is over. False where something is left undone."""
