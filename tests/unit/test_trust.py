"""A worker runs code that it was told of, that somebody signed who has its key, or that it has itself."""

import hashlib
import stat
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from hpo.core.errors import UntrustedCode
from hpo.core.study import Identity
from hpo.snapshot import digest_of, pack, read, take
from hpo.testing import IDENTITY
from hpo.trust import Trust, signature

ENTRY = {"space.py"}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    (root / "objectives").mkdir(parents=True)
    (root / "pyproject.toml").write_text("")
    (root / "space.py").write_text("space = {}\n")
    (root / "objectives" / "train.py").write_text("epochs = 3\n")
    return root


@pytest.fixture
def archive(project: Path, tmp_path: Path) -> Path:
    """The code as a driver has kept it."""
    pack(take(project, ENTRY), tmp_path / "code.zip")
    return tmp_path / "code.zip"


@pytest.fixture
def sha256(project: Path) -> str:
    return take(project, ENTRY).sha256


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder without the project."""
    (tmp_path / "elsewhere").mkdir()
    return tmp_path / "elsewhere"


def test_an_archive_has_the_hash_of_the_snapshot_that_it_was_made_of(archive: Path, sha256: str) -> None:
    assert digest_of(read(archive)) == sha256


def test_code_that_nobody_knows_is_refused_with_what_to_do(
    archive: Path, sha256: str, elsewhere: Path
) -> None:
    with pytest.raises(UntrustedCode) as raised:
        Trust(None, None, elsewhere).check(IDENTITY, None, sha256, archive)

    assert sha256 in raised.value.message
    assert "has no space.py" in raised.value.message
    for mend in ("checkout", f"--snapshot {sha256}", "HPO_KEY"):
        assert mend in raised.value.hint


def test_code_whose_hash_was_given_is_run(archive: Path, sha256: str, elsewhere: Path) -> None:
    Trust(sha256, None, elsewhere).check(IDENTITY, None, sha256, archive)

    with pytest.raises(UntrustedCode):
        Trust("0" * 64, None, elsewhere).check(IDENTITY, None, sha256, archive)


def test_code_that_is_the_checkouts_own_is_run_whatever_else_lies_there(
    archive: Path, sha256: str, project: Path
) -> None:
    (project / "notes.txt").write_text("not in the archive")

    Trust(None, None, project).check(IDENTITY, None, sha256, archive)


def test_another_checkout_is_refused_with_both_hashes_and_what_differs(
    archive: Path, sha256: str, project: Path
) -> None:
    (project / "objectives" / "train.py").write_text("epochs = 4\n")

    with pytest.raises(UntrustedCode) as raised:
        Trust(None, None, project).check(IDENTITY, None, sha256, archive)

    assert sha256 in raised.value.message
    assert take(project, ENTRY).sha256 in raised.value.message
    assert "different there: objectives/train.py" in raised.value.message


def test_code_that_was_signed_with_the_same_key_is_run(archive: Path, sha256: str, elsewhere: Path) -> None:
    trust = Trust(None, "secret", elsewhere)

    trust.check(IDENTITY, signature("secret", IDENTITY, sha256), sha256, archive)


@pytest.mark.parametrize(
    "change",
    [{"study": "other"}, {"entry_point": "objectives/train.py:objective"}, {"arguments": {"epochs": 6}}],
    ids=lambda change: next(iter(change)),
)
def test_a_signature_holds_for_nothing_else(
    archive: Path, sha256: str, elsewhere: Path, change: dict[str, object]
) -> None:
    signed = signature("secret", IDENTITY, sha256)

    with pytest.raises(UntrustedCode):
        Trust(None, "secret", elsewhere).check(replace(IDENTITY, **change), signed, sha256, archive)


@pytest.mark.parametrize("signed", [None, "", "ü", 7, {}, "0" * 64])
def test_what_is_no_signature_is_none(archive: Path, sha256: str, elsewhere: Path, signed: object) -> None:
    with pytest.raises(UntrustedCode):
        Trust(None, "secret", elsewhere).check(IDENTITY, signed, sha256, archive)


def test_without_a_key_no_signature_is_believed(archive: Path, sha256: str, elsewhere: Path) -> None:
    for key in (None, ""):
        with pytest.raises(UntrustedCode):
            Trust(None, key, elsewhere).check(
                IDENTITY, signature(key or "", IDENTITY, sha256), sha256, archive
            )


def test_other_bytes_under_a_known_hash_are_refused(project: Path, sha256: str, tmp_path: Path) -> None:
    (project / "space.py").write_text("import os\n")
    pack(take(project, ENTRY), tmp_path / "other.zip")
    signed = signature("secret", IDENTITY, sha256)

    with pytest.raises(UntrustedCode, match="names the code"):
        Trust(sha256, "secret", project).check(IDENTITY, signed, sha256, tmp_path / "other.zip")


@pytest.mark.parametrize(
    "entry_point",
    ["../../x.py:objective", "/etc/x.py:objective", "space.py", "missing.py:objective", "space.py:a b", ""],
)
def test_an_entry_point_outside_of_the_code_is_refused(
    archive: Path, sha256: str, project: Path, entry_point: str
) -> None:
    with pytest.raises(UntrustedCode, match="entry point"):
        Trust(sha256, None, project).check(replace(IDENTITY, entry_point=entry_point), None, sha256, archive)


@pytest.mark.parametrize("change", [{"arguments": ["epochs"]}, {"seed": "7"}])
def test_arguments_and_seeds_of_other_types_are_refused(
    archive: Path, sha256: str, project: Path, change: dict[str, object]
) -> None:
    identity: Identity = replace(IDENTITY, **change)

    with pytest.raises(UntrustedCode):
        Trust(sha256, None, project).check(identity, None, sha256, archive)


@pytest.mark.parametrize(
    "name", ["../x.py", "/x.py", "a/../../x.py", "a\\..\\x.py", "./x.py", "a//x.py", "folder/", ".", ""]
)
def test_an_archive_with_names_outside_of_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "code.zip", "w") as packed:
        packed.writestr(zipfile.ZipInfo(name), "x")

    with pytest.raises(UntrustedCode):
        read(tmp_path / "code.zip")


def test_an_archive_with_a_link_is_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("x.py")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "code.zip", "w") as packed:
        packed.writestr(link, "/etc/passwd")

    with pytest.raises(UntrustedCode, match="plain file"):
        read(tmp_path / "code.zip")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_with_two_files_of_one_name_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "code.zip", "w") as packed:
        for text in ("a", "b"):
            packed.writestr("x.py", text)

    with pytest.raises(UntrustedCode, match="one name"):
        read(tmp_path / "code.zip")


def test_an_archive_that_would_fill_the_disk_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpo.snapshot.TOTAL_BYTES", 1 << 20)
    with zipfile.ZipFile(tmp_path / "code.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in ("x.py", "y.py"):
            packed.writestr(name, bytes(600_000))

    with pytest.raises(UntrustedCode, match="more than 1 MiB"):
        read(tmp_path / "code.zip")


@pytest.mark.parametrize("damage", ["no zip", "cut", "other bytes"])
def test_what_is_no_archive_is_refused(archive: Path, damage: str) -> None:
    content = archive.read_bytes()
    if damage == "no zip":
        archive.write_bytes(hashlib.sha256().digest())
    elif damage == "cut":
        archive.write_bytes(content[:-30])
    else:
        archive.write_bytes(content.replace(b"space.py", b"spice.py", 1))

    with pytest.raises(UntrustedCode):
        read(archive)
