"""The code as it was: what belongs to it, and that equal code is equal."""

import subprocess
from pathlib import Path

import pytest

from hpo.core.errors import UsageError
from hpo.snapshot import pack, take, unpack

ENTRY = ["space.py"]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    project = tmp_path / "project"
    for name, text in {
        "pyproject.toml": "",
        "space.py": "space = 1\n",
        "objectives/train.py": "epochs = 3\n",
        "conf/base.yaml": "lr: 1\n",
        "data/images.npz": "x" * 100,
        "data/big.json": "1" * ((1 << 20) + 1),
        "hpo.db": "a store",
        ".venv/pyvenv.cfg": "",
        ".venv/lib/package.py": "",
        "env/pyvenv.cfg": "",
        "env/lib/package.py": "",
        "run.log": "a log",
    }.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text)
    return project


def git(project: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", str(project), *arguments], check=True, capture_output=True)


def test_code_and_configuration_belong_to_it_data_and_environments_do_not(project: Path) -> None:
    assert take(project, ENTRY).paths == (
        "conf/base.yaml",
        "objectives/train.py",
        "pyproject.toml",
        "space.py",
    )


def test_with_git_what_it_ignores_stays_out_and_new_files_count(project: Path) -> None:
    (project / ".gitignore").write_text("env/\n.venv/\nconf/\n")
    git(project, "init", "-q")
    git(project, "add", "space.py")

    assert take(project, ENTRY).paths == ("objectives/train.py", "pyproject.toml", "space.py")


def test_the_entry_itself_counts_even_if_git_ignores_it(project: Path, tmp_path: Path) -> None:
    (project / ".gitignore").write_text("*\n")
    git(project, "init", "-q")

    snapshot = take(project, ENTRY)

    assert snapshot.paths == ("space.py",)
    pack(snapshot, tmp_path / "code.zip")
    unpack(tmp_path / "code.zip", tmp_path / "code")
    assert (tmp_path / "code" / "space.py").exists()


def test_a_tracked_file_that_was_deleted_is_no_part(project: Path) -> None:
    git(project, "init", "-q")
    git(project, "add", "space.py", "conf")
    (project / "conf" / "base.yaml").unlink()

    assert "conf/base.yaml" not in take(project, ENTRY).paths


def test_without_a_marker_only_the_files_beside_and_packages_count(project: Path) -> None:
    (project / "pyproject.toml").unlink()
    (project / "package").mkdir()
    (project / "package" / "__init__.py").touch()

    assert take(project, ENTRY).paths == ("package/__init__.py", "space.py")


def test_the_hash_follows_paths_and_bytes(project: Path) -> None:
    before = take(project, ENTRY).sha256
    assert take(project, ENTRY).sha256 == before

    (project / "space.py").write_text("space = 2\n")
    edited = take(project, ENTRY).sha256
    (project / "space.py").rename(project / "spaces.py")
    renamed = take(project, ENTRY).sha256

    assert len({before, edited, renamed}) == 3


def test_what_was_packed_is_unpacked_and_equal_snapshots_are_equal_bytes(
    project: Path, tmp_path: Path
) -> None:
    snapshot = take(project, ENTRY)
    for name in ("one.zip", "two.zip"):
        pack(snapshot, tmp_path / name)

    unpack(tmp_path / "one.zip", tmp_path / "code")

    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    assert take(tmp_path / "code", ENTRY).sha256 == snapshot.sha256
    assert (tmp_path / "code" / "objectives" / "train.py").read_text() == "epochs = 3\n"


def test_a_folder_that_is_no_project_is_refused(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpo.snapshot.TOTAL_BYTES", 10)

    with pytest.raises(UsageError, match="more than") as raised:
        take(project, ENTRY)

    assert ".gitignore" in raised.value.hint
