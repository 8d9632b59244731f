"""The README's commands run, in their order, as a newcomer would type them."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
FILES = re.findall(r"^```python\n# (\S+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
COMMANDS = [
    line.removeprefix("$ ")
    for block in re.findall(r"^```console\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]


def environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"}


def test_the_commands_of_the_readme_run(tmp_path: Path) -> None:
    for folder in ("spaces", "objectives", "spark-conf"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "pyproject.toml").touch()
    for name, content in FILES:
        (tmp_path / name).write_text(content)
    assert len(COMMANDS) >= 12

    with contextlib.ExitStack() as beside:
        for command in COMMANDS:
            if command.startswith("hpo ui"):
                serves_pages(command, tmp_path)
            elif command.endswith(" &"):
                beside.enter_context(running(command.removesuffix(" &"), tmp_path))
            else:
                done = subprocess.run(
                    command, shell=True, cwd=tmp_path, env=environment(), capture_output=True, text=True
                )
                assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


@contextlib.contextmanager
def running(command: str, folder: Path) -> Iterator[None]:
    """A command beside the others; told to end when they have."""
    with open(folder / "beside.log", "a") as log:
        process = subprocess.Popen(
            f"exec env {command}",
            shell=True,
            cwd=folder,
            env=environment(),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield
    finally:
        process.terminate()
        process.wait(60)


def serves_pages(command: str, folder: Path) -> None:
    server = subprocess.Popen(
        f"exec {command}",
        shell=True,
        cwd=folder,
        env=environment(),
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    page = f"http://127.0.0.1:{command.rpartition(' ')[2]}"
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(page, timeout=5) as answer:
                    assert b"MLflow" in answer.read()
                return
            except OSError:
                assert server.poll() is None, f"{command} ended"
                assert time.monotonic() < deadline, f"{command} does not answer"
                time.sleep(0.2)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def test_the_examples_of_the_help_name_commands_and_files_that_exist() -> None:
    from click.testing import CliRunner

    from hpo.cli import COMMANDS, hpo

    groups = {"mlflow": ["sync"]}
    for name in COMMANDS:
        for words in [[name, sub] for sub in groups.get(name, [])] or [[name]]:
            text = CliRunner().invoke(hpo, [*words, "--help"]).output
            examples = re.findall(rf"^\s+(hpo {words[0]}.*)$", text.partition("Example")[2], re.MULTILINE)
            assert examples, f"hpo {name} --help ends in no example"
            for file in re.findall(r"\S+\.py", " ".join(examples)):
                assert (ROOT / file).exists(), f"hpo {name} --help names {file}"
