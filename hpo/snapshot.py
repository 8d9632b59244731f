"""The code as it was: the project's code and configuration in one archive, named by its content."""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
import subprocess
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path, PurePosixPath

from hpo.core.errors import UntrustedCode, UsageError
from hpo.core.files import is_below

SUFFIXES = frozenset(
    """
    .py .pyi .pyx .c .cc .cpp .cu .cuh .h .hpp .toml .yaml .yml .json .jsonnet .libsonnet .cfg .ini .conf
    .properties .txt .sh .j2
    """.split()  # noqa: SIM905
)
FILE_BYTES = 1 << 20  # what is larger is data
TOTAL_BYTES = 64 << 20
IGNORED = ".gitignore"  # a folder that has one of a single * is nobody's code
SKIPPED_FOLDERS = frozenset({"__pycache__", "node_modules", "mlruns", "mlartifacts", "build", "dist"})


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The files of a project that matter: sorted ``paths`` below ``root``; ``sha256`` is over both."""

    root: Path
    paths: tuple[str, ...]
    sha256: str


def take(root: Path, needed: Collection[str]) -> Snapshot:
    """Read the project's code: what git tracks, and untracked files that it does not ignore; and the files
    ``needed``, named below the root, whatever git says of them.

    Without git: the folder's own files and its packages. Data, stores, logs and hpo itself stay out:
    only code and configuration by suffix, up to 1 MiB a file. Raises UsageError above 64 MiB in all.
    """
    package = Path(__file__).resolve().parent
    paths = sorted(
        path
        for path in {*needed, *_listed(root)}
        if _is_text(path)
        and Path(path).suffix in SUFFIXES
        and is_small_file(root / path)
        and not _is_inside(root / path, package)
    )
    contents = {}
    total = 0
    for path in paths:
        contents[path] = (root / path).read_bytes()
        total += len(contents[path])
        if total > TOTAL_BYTES:
            raise UsageError(
                f"the code below {root} is more than {TOTAL_BYTES >> 20} MiB",
                "put a .git or pyproject.toml at the project's own root, and data files into .gitignore",
            )
    return Snapshot(root, tuple(paths), digest_of(contents))


def digest_of(contents: Mapping[str, bytes]) -> str:
    """The hash of a snapshot with these files: over sorted paths and bytes."""
    digest = hashlib.sha256()
    for path in sorted(contents):
        digest.update(f"{path}\0{len(contents[path])}\0".encode())
        digest.update(contents[path])
    return digest.hexdigest()


def read(archive: Path) -> dict[str, bytes]:
    """The files of an archive that anybody may have made.

    Raises UntrustedCode for one that `pack` does not make: names outside of its folder, links, absurd sizes.
    """
    try:
        with zipfile.ZipFile(archive) as packed:
            entries = packed.infolist()
            for entry in entries:
                _check_entry(entry)
            if len({entry.filename for entry in entries}) < len(entries):
                raise UntrustedCode("an archive of code has two files of one name", _NOT_OURS)
            if sum(entry.file_size for entry in entries) > TOTAL_BYTES:
                raise UntrustedCode(f"an archive of code holds more than {TOTAL_BYTES >> 20} MiB", _NOT_OURS)
            return {entry.filename: packed.read(entry) for entry in entries}  # no more than was declared
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError) as error:
        raise UntrustedCode(f"an archive of code can't be read: {error}", _NOT_OURS) from error


_NOT_OURS = "hpo makes no such archives: somebody else has written into the store"


def _check_entry(entry: zipfile.ZipInfo) -> None:
    name = entry.filename
    if not is_below(name) or PurePosixPath(name).as_posix() != name or "\\" in name or name == ".":
        raise UntrustedCode(f"an archive of code names {name!r}, which is no file in its folder", _NOT_OURS)
    if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG):  # 0: the name says it
        raise UntrustedCode(f"an archive of code has {name!r}, which is no plain file", _NOT_OURS)


def pack(snapshot: Snapshot, archive: Path) -> None:
    """Write the files as a zip: equal snapshots give equal bytes."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for path in snapshot.paths:
            entry = zipfile.ZipInfo(path)  # its time is fixed
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            packed.writestr(entry, (snapshot.root / path).read_bytes())


def unpack(archive: Path, folder: Path) -> None:
    """Make the new ``folder`` hold the archive's files, whole or not at all."""
    fresh = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    fresh.mkdir(parents=True)
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(fresh)
    os.rename(fresh, folder)


def bundle(code: Path, folder: Path) -> Path:
    """Put code and hpo itself into one archive in ``folder``, named by the SHA-256 of what it holds.

    For machines that have neither: the code is below ``code/``, and hpo is imported from the archive's root.
    """
    entries: dict[str, Traversable] = {
        f"code/{path.relative_to(code).as_posix()}": path for path in code.rglob("*") if path.is_file()
    }
    entries |= {f"hpo/{name}": path for name, path in _modules(files("hpo"))}
    contents = {name: entries[name].read_bytes() for name in sorted(entries)}
    digest = hashlib.sha256()
    for name, content in contents.items():
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / f"{digest.hexdigest()}.zip"
    fresh = archive.with_name(f".{archive.name}.{secrets.token_hex(4)}")
    with zipfile.ZipFile(fresh, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in contents.items():
            packed.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    os.replace(fresh, archive)
    return archive


def _modules(package: Traversable, below: str = "") -> Iterator[tuple[str, Traversable]]:
    """A package's Python files, also of one that was imported from an archive."""
    for entry in package.iterdir():
        if entry.is_dir():
            yield from _modules(entry, f"{below}{entry.name}/")
        elif entry.name.endswith(".py"):
            yield below + entry.name, entry


def _listed(root: Path) -> list[str]:
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listing = subprocess.run(command, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return list(_walk(root, root, whole=(root / "pyproject.toml").exists()))
    return [os.fsdecode(name) for name in listing.split(b"\0") if name]


def _walk(root: Path, folder: Path, *, whole: bool) -> Iterator[str]:
    """Files below a folder without git. Not ``whole``: nothing says that the folder is one project, so
    of its subfolders only packages count."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except PermissionError:
        return
    for entry in entries:
        if entry.is_dir():
            path = Path(entry.path)
            skipped = entry.name.startswith(".") or entry.name in SKIPPED_FOLDERS or path.suffix == ".files"
            is_made = (path / "pyvenv.cfg").exists() or _is_ignored(path)
            if not skipped and not is_made and (whole or (path / "__init__.py").exists()):
                yield from _walk(root, path, whole=whole)
        else:
            yield Path(entry.path).relative_to(root).as_posix()


def _is_ignored(folder: Path) -> bool:
    """Whether git would take nothing in this folder, as caches and outputs say of themselves."""
    try:
        return (folder / IGNORED).read_text().strip() == "*"
    except (OSError, UnicodeDecodeError):
        return False


def _is_text(path: str) -> bool:
    """Whether the name is UTF-8: archives hold no other, and Python imports none."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_small_file(path: Path) -> bool:
    """Whether it may be code by its size."""
    return path.is_file() and path.stat().st_size <= FILE_BYTES


def _is_inside(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder)
