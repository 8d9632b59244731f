"""What a study's files are called in its store."""

from pathlib import PurePosixPath

LOG = "log.txt"  # what a trial printed
ARTIFACTS = "artifacts/"  # what it left in run.directory
TRACKED = "mlflow.zip"  # what its objective logged to MLflow itself, to be copied into the trial's run
CHECKPOINT = "checkpoint/"  # what it left in run.checkpoint_directory, while it has not ended


SNAPSHOT = "snapshot/"  # archives of the code that trials ran from
WARM_START = "warm-start.json"  # the trials that a study took from an earlier one


def snapshot_name(sha256: str) -> str:
    """The archive of the code with this hash."""
    return f"{SNAPSHOT}{sha256}.zip"


def is_below(name: str) -> bool:
    """Whether a name from a store stays in the folder it is put into."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts
