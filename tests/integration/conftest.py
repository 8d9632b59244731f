"""The command line as a user meets it: real processes in a folder of their own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

SECONDS = 60.0  # a machine may be busy; no test waits so long unless something is wrong

Environment = Mapping[str, str | None]


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)

    def __str__(self) -> str:
        return f"exit code {self.code}\n--- stdout\n{self.stdout}\n--- stderr\n{self.stderr}"


@dataclass
class Command:
    """A command that runs beside the test. Its output goes to files, so that it is never held up."""

    process: subprocess.Popen[bytes]
    stdout: Path
    stderr: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def said(self) -> str:
        return self.stderr.read_text()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def result(self) -> Result:
        code = self.process.wait(SECONDS)
        return Result(code, self.stdout.read_text(), self.stderr.read_text())

    def descendants(self) -> list[psutil.Process]:
        """The workers, their keepers and whatever the objective has started."""
        return psutil.Process(self.pid).children(recursive=True)


@dataclass
class Project:
    """A folder with space files, in which commands run."""

    folder: Path
    _running: list[Command] = field(default_factory=list)

    def write(
        self,
        objective: str,
        *,
        name: str = "study.py",
        space: str = "{'x': hp.uniform('x', 0, 1)}",
    ) -> Path:
        """Write a space file: an expression, and the source of the objective (and of what it needs)."""
        path = self.folder / name
        source = textwrap.dedent(objective).strip()
        path.write_text(f"from hyperopt import hp\n\nspace = {space}\n\n\n{source}\n")
        return path

    def hpo(self, *arguments: object, env: Environment | None = None) -> Result:
        """Run `hpo ARGUMENTS` to its end. ``env``: more variables; None takes one away."""
        done = subprocess.run(
            _command(arguments),
            cwd=self.folder,
            env=_environment(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=2 * SECONDS,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def start(self, *arguments: object, env: Environment | None = None) -> Command:
        """Start `hpo ARGUMENTS`, the leader of a process group as under a shell; ended with the test."""
        number = len(self._running)
        stdout, stderr = (self.folder / f".{number}.{stream}" for stream in ("stdout", "stderr"))
        with open(stdout, "wb") as out, open(stderr, "wb") as err:
            process = subprocess.Popen(
                _command(arguments),
                cwd=self.folder,
                env=_environment(env),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        command = Command(process, stdout, stderr)
        self._running.append(command)
        return command

    def trials(self, study: str = "study", *more: object) -> dict[int, dict[str, Any]]:
        """The trials of `hpo show STUDY --json` by number; empty while there is no study."""
        shown = self.hpo("show", study, "--json", *more)
        return {trial["number"]: trial for trial in shown.json} if shown.code == 0 else {}

    def files(self, study: str, trial: int) -> str:
        """The line of `hpo show STUDY TRIAL` that names the kept files."""
        lines = self.hpo("show", study, trial).stdout.splitlines()
        return next((line for line in lines if line.startswith("files: ")), "")

    def close(self) -> None:
        for command in self._running:
            if command.process.poll() is None:
                command.process.kill()
            command.process.wait()


def _command(arguments: tuple[object, ...]) -> list[str]:
    return [sys.executable, "-m", "hpo", *map(str, arguments)]


def _environment(env: Environment | None) -> dict[str, str]:
    # What the person who runs the tests has set is not what the tests are about.
    own = {name: value for name, value in os.environ.items() if not name.startswith(("HPO_", "MLFLOW_"))}
    asked = own | {"OMP_NUM_THREADS": "1"} | dict(env or {})
    return {name: value for name, value in asked.items() if value is not None}


@pytest.fixture(scope="session")
def make_project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Project]]:
    """A factory of projects, for what is prepared once for a whole module."""
    with contextlib.ExitStack() as cleanup:

        def make() -> Project:
            folder = tmp_path_factory.mktemp("project")
            (folder / "pyproject.toml").write_text("")  # the project's root is here, not further up
            made = Project(folder)
            cleanup.callback(made.close)
            return made

        yield make


@pytest.fixture
def project(make_project: Callable[[], Project]) -> Iterator[Project]:
    made = make_project()
    yield made
    made.close()


@pytest.fixture
def hpo(project: Project) -> Callable[..., Result]:
    return project.hpo


@pytest.fixture(scope="session")
def until() -> Callable[..., Any]:
    """``until(condition, what)`` waits for the condition to hold and returns its value."""

    def wait(condition: Callable[[], Any], what: str) -> Any:
        deadline = time.monotonic() + SECONDS
        while not (value := condition()):
            assert time.monotonic() < deadline, f"waited {SECONDS:g} s for {what}"
            time.sleep(0.02)
        return value

    return wait


@pytest.fixture(scope="session")
def is_alive() -> Callable[[int], bool]:
    """``is_alive(pid)``; a zombie, which only waits for its parent to look, is not."""

    def look(pid: int) -> bool:
        try:
            return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    return look


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB of its own, where it can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)
