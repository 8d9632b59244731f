"""Who starts workers and says which died. One small protocol (`protocol.py`), a file per kind."""

from hpo.executors.protocol import Died, Event, Executor, Finished, WorkerSettings

__all__ = ["Died", "Event", "Executor", "Finished", "WorkerSettings"]
