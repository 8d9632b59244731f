"""The spark-submit command that runs a study's driver: here, or in a YARN or Kubernetes cluster."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from hpo.core.errors import ExitCode, SparkUnavailable
from hpo.executors.java import java_home
from hpo.loading import EntryPoint
from hpo.snapshot import bundle, pack, take, unpack

LAUNCHER = Path(__file__).with_name("submitted.py")
CODE = "hpo_code"  # where a driver in the cluster finds the project and hpo; `LAUNCHER` knows it
# What a driver in the cluster needs of this environment.
SECRETS = ("HPO_TOKEN", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")


@dataclass(frozen=True, slots=True)
class Submission:
    """What is asked for.

    ``options``: of `hpo optimize`, without the file; ``archive``: a packed Python environment, PATH#NAME;
    ``conf``: Spark's settings, KEY=VALUE; ``files``: for the driver's working directory; ``is_cluster``: the
    driver runs in the cluster, else here.
    """

    entry: EntryPoint
    options: tuple[str, ...]
    master: str
    is_cluster: bool = False
    properties: Path | None = None
    archive: str | None = None
    conf: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()

    @property
    def is_kubernetes(self) -> bool:
        return self.master.startswith("k8s://")

    def command(self, code: Path | None = None) -> list[str]:
        """What to run, spark-submit first. ``code``: what `pack_code` wrote, for a driver in the cluster.

        Raises SparkUnavailable.
        """
        archives = [self.archive, code and f"{code}#{CODE}"]
        options = {
            "--master": self.master,
            "--deploy-mode": "cluster" if self.is_cluster else "client",
            "--name": f"hpo {self.entry.study}",
            "--properties-file": self.properties,
            "--archives": ",".join(one for one in archives if one),
            "--files": ",".join(map(str, self.files)),
        }
        words = [str(spark_home() / "bin" / "spark-submit")]
        for name, value in options.items():
            words += [name, str(value)] if value else []
        # The last one counts: a person's own come after ours.
        for text in (*(f"{key}={value}" for key, value in self._conf().items()), *self.conf):
            words += ["--conf", text]
        return [*words, str(LAUNCHER), "optimize", self._file(), "--spark", self.master, *self.options]

    def secrets(self) -> dict[str, str]:
        """Spark's settings that hand passwords and tokens on to a driver in the cluster."""
        place = "spark.kubernetes.driverEnv" if self.is_kubernetes else "spark.yarn.appMasterEnv"
        return {f"{place}.{name}": os.environ[name] for name in SECRETS if name in os.environ}

    def _file(self) -> str:
        if self.is_cluster:
            return f"{CODE}/code/{self.entry}"
        return f"{self.entry.root / self.entry.file}:{self.entry.name}"

    def _conf(self) -> dict[str, str]:
        # Of a driver here, Spark's log is the terminal's; it would say several lines for each trial.
        conf = {} if self.is_cluster else {"spark.log.level": "WARN"}
        if self.archive is not None:
            conf["spark.pyspark.python"] = f"./{self.archive.rpartition('#')[2]}/bin/python"
        elif not self.is_cluster:
            conf["spark.pyspark.python"] = sys.executable
        if not self.is_cluster:
            conf["spark.pyspark.driver.python"] = sys.executable  # nothing is unpacked here
        return conf


def spark_home() -> Path:
    """SPARK_HOME, else the folder of the installed PySpark. Raises SparkUnavailable."""
    if home := os.environ.get("SPARK_HOME"):
        if not (Path(home) / "bin" / "spark-submit").is_file():
            raise SparkUnavailable(f"SPARK_HOME is {home}, which has no bin/spark-submit", "mend or unset it")
        return Path(home)
    found = importlib.util.find_spec("pyspark")
    if found is None or not found.submodule_search_locations:
        raise SparkUnavailable("PySpark is not installed", "pip install 'hpo[spark]'")
    return Path(found.submodule_search_locations[0])


def pack_code(entry: EntryPoint, folder: Path) -> Path:
    """Write the project's code as it is now, and hpo's own, to an archive in ``folder``."""
    with tempfile.TemporaryDirectory() as scratch:
        pack(take(entry.root, {entry.file.as_posix()}), Path(scratch) / "code.zip")
        code = Path(scratch) / "code"
        unpack(Path(scratch) / "code.zip", code)
        (code / "pyproject.toml").touch()  # git's folder stays here, which may have marked the project's root
        return bundle(code, folder)


def environment() -> dict[str, str]:
    """What spark-submit must be told by its environment. Raises SparkUnavailable."""
    return {"JAVA_HOME": str(java_home()), "SPARK_HOME": str(spark_home())}


def pasteable(submission: Submission, code: Path | None = None) -> str:
    """The command for a shell, an option a line; secrets are named, not told."""
    lines = [f"{name}={shlex.quote(value)}" for name, value in environment().items()]
    words = submission.command(code)
    lines.append(shlex.quote(words.pop(0)))
    if submission.is_cluster:
        lines += [f'--conf {key}="${key.rpartition(".")[2]}"' for key in submission.secrets()]
    while words[0].startswith("--"):
        lines.append(shlex.join(words[:2]))
        del words[:2]
    return " \\\n  ".join([*lines, shlex.join(words)])


def submit(submission: Submission, typed: Sequence[str]) -> int:
    """Run spark-submit to its end and return its exit code, which is the driver's if that runs here.

    Args: typed: the words of this command, by which a person goes on with the study. Raises SparkUnavailable.
    """
    with tempfile.TemporaryDirectory(prefix="hpo-submit-") as name:
        folder = Path(name)  # nobody else's to read
        ours = {**os.environ, **environment()}
        if submission.is_cluster:
            command = submission.command(pack_code(submission.entry, folder))
            if secrets := submission.secrets():
                command = _with_properties(command, submission.properties, secrets, folder)
            return _run(command, ours)
        document, driver = folder / "stdout", folder / "pid"
        document.touch()
        driver.touch()
        note = {"stdout": str(document), "pid": str(driver), "command": list(typed)}
        code = _run(submission.command(), ours | {"HPO_SUBMITTED": json.dumps(note)}, driver)
        sys.stdout.write(document.read_text())
        return code


def _with_properties(
    command: Sequence[str], given: Path | None, settings: Mapping[str, str], folder: Path
) -> list[str]:
    """The command with settings in a file of their own: its line is shown to everybody on this machine."""
    lines = [f"{key}={value.replace(chr(92), chr(92) * 2)}" for key, value in settings.items()]
    private = folder / "spark.properties"
    private.touch(mode=0o600)
    private.write_text("\n".join([given.read_text() if given else "", *lines, ""]))
    if given is not None:
        return [str(private) if word == str(given) else word for word in command]
    # Without a file Spark takes its own defaults, with one only if it is told to.
    return [command[0], "--properties-file", str(private), "--load-spark-defaults", *command[1:]]


def _run(command: Sequence[str], environment: Mapping[str, str], driver: Path | None = None) -> int:
    """Run it to its end; signals that ask this process to end are the driver's.

    Args: driver: the file where a driver that runs here tells its pid. As long as it has not, and if it runs
    in the cluster, spark-submit itself is ended.
    """
    # In a session of its own, so that Ctrl-C ends no Java under a driver that lets its trials end.
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=sys.stderr, start_new_session=True
    )
    ended_by = None

    def tell(number: int, frame: FrameType | None) -> None:
        nonlocal ended_by
        with contextlib.suppress(ProcessLookupError):
            if driver is not None and (pid := driver.read_text()):
                os.kill(int(pid), number)
            else:
                ended_by = number
                os.killpg(process.pid, signal.SIGTERM)  # Java and shells, some of which wait at a SIGINT

    handled = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, tell) for number in handled}
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if ended_by is not None:
        return ExitCode.PREEMPTED if ended_by == signal.SIGTERM else 128 + ended_by
    return code if code >= 0 else 128 - code
