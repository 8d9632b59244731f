"""The error tree: every error a user can meet says the fact, the value, and the next step.

`HpoError.exit_code` is what the command line ends with.
"""

from enum import IntEnum


class ExitCode(IntEnum):
    """What a command ends with; 128 + n for a signal, as shells do."""

    DONE = 0
    INTERNAL = 1
    USAGE = 2
    NO_SUCCESS = 3
    FAILURES = 4
    UNREACHABLE = 5
    PREEMPTED = 75
    TIMEOUT = 124


class HpoError(Exception):
    """Something `hpo` can explain.

    Args: message: the fact with its value; hint: the next step, or empty.
    """

    exit_code = ExitCode.INTERNAL

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(HpoError):
    """An option, a file or a value the user can mend."""

    exit_code = ExitCode.USAGE


class LoadError(UsageError):
    """The space file can't be loaded, or lacks its space or objective."""


class SpaceError(UsageError):
    """The search space is not one that can be searched."""


class OutsideSpace(SpaceError):
    """A point has a value its space does not admit."""


class SearchExhausted(UsageError):
    """The algorithm has nothing left to propose: the study is done."""


class UntrustedCode(UsageError):
    """The study's code is none that this worker may run."""


class StudyChanged(UsageError):
    """The study exists with another identity; the message lists the differences."""


class StudyBusy(UsageError):
    """Another live driver runs this study."""


class NoSuchStudy(UsageError):
    """No study of that name in this store."""


class NoSuchTrial(UsageError):
    """No trial of that number in this study."""


class NoTrialSucceeded(HpoError):
    """Every trial of the study failed."""

    exit_code = ExitCode.NO_SUCCESS


class TrainingFailed(HpoError):
    """The training of a winner ended without a loss."""

    exit_code = ExitCode.NO_SUCCESS


class StoreError(HpoError):
    """The store can't be used."""

    exit_code = ExitCode.UNREACHABLE


class StoreUnreachable(StoreError):
    """Nothing can be opened or created at that address."""


class StoreRefused(StoreError):
    """The store is there, but not for this client: it lacks the token, or is of another version."""


class NotAStore(StoreError):
    """The file is something else."""


class StoreNewer(StoreError):
    """A later version of hpo wrote this store."""


class StoreReadOnly(StoreError):
    """The store can be read but not written."""


class StoreFull(StoreError):
    """The disk under the store is full."""


class StoreDamaged(StoreError):
    """The store is torn, truncated or corrupt; it was left as it is."""


class TrackingUnreachable(HpoError):
    """The tracking server did not answer."""

    exit_code = ExitCode.UNREACHABLE


class SparkUnavailable(HpoError):
    """Spark can't be used: no Java, no PySpark, no master, no executor, or one that can't run trials."""

    exit_code = ExitCode.UNREACHABLE


class WorkerBroken(HpoError):
    """Workers die before they can claim a trial."""


class ClaimLost(HpoError):
    """The trial is no longer this worker's: its lease ran out, or the study took it back."""


class TrialPruned(Exception):
    """Raised by ``run.report`` when the study wants this trial to end now. Let it pass.

    Not an `HpoError`: nothing went wrong.
    """
