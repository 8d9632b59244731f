"""`file.py:name` becomes a space and an objective, and every fault a sentence."""

from pathlib import Path

import pytest

from hpo.core.errors import LoadError, UsageError
from hpo.loading import Task, load, locate, parse_settings

HEAD = """from hyperopt import hp
space = {"x": hp.uniform("x", 0, 1), "act": hp.choice("act", ["relu", "tanh"])}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "spaces").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # and sys.path is put back afterwards
    return tmp_path


def task_of(project: Path, body: str, settings: dict[str, object] | None = None) -> Task:
    (project / "spaces" / "mine.py").write_text(HEAD + body)
    return load(locate("spaces/mine.py"), settings or {})


def test_the_root_is_the_nearest_project_above(project: Path) -> None:
    (project / "spaces" / "mine.py").touch()

    entry = locate("spaces/mine.py")

    assert entry.root == project
    assert str(entry) == "spaces/mine.py:objective"
    assert entry.study == "mine"


def test_a_file_called_space_takes_its_folders_name(project: Path) -> None:
    (project / "spaces" / "space.py").touch()

    assert locate("spaces/space.py:train").study == "spaces"
    assert locate("spaces/space.py:train").name == "train"


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("spaces/mine.pi", "no file", "mine.py"),
        ("spaces", "is a folder", "mine.py"),
        ("nowhere/mine.py", "no file", ""),
        ("pyproject.toml", "no Python file", "space file is Python"),
    ],
)
def test_a_wrong_path_names_what_is_there(project: Path, text: str, message: str, hint: str) -> None:
    (project / "spaces" / "mine.py").touch()

    with pytest.raises(LoadError, match=message) as raised:
        locate(text)

    assert hint in raised.value.hint


def test_an_objective_is_called_with_what_it_takes(project: Path) -> None:
    alone = task_of(project, "def objective(params): return params\n")
    with_run = task_of(project, "def objective(params, run, *, epochs=3): return params, run, epochs\n")

    assert alone({"x": 1}, run="the run") == {"x": 1}
    assert with_run({"x": 1}, run="the run") == ({"x": 1}, "the run", 3)


def test_settings_fix_labels_and_give_arguments(project: Path) -> None:
    body = "def objective(params, run, *, epochs=3, data: str = ''): return epochs, data\n"

    task = task_of(project, body, {"epochs": 9, "data": 7, "act": "tanh"})

    assert task.space.labels == ("x",)
    assert task.space.params({"x": 0.5}) == {"x": 0.5, "act": "tanh"}
    assert task({}, None) == (9, "7")  # type: ignore[arg-type]


def test_an_unknown_setting_names_the_near_one(project: Path) -> None:
    with pytest.raises(UsageError, match="--set epoch") as raised:
        task_of(project, "def objective(params, run, *, epochs=3): return 0\n", {"epoch": 9})

    assert "did you mean epochs?" in raised.value.hint


def test_an_argument_without_a_default_must_be_set(project: Path) -> None:
    with pytest.raises(UsageError, match="needs data") as raised:
        task_of(project, "def objective(params, *, data): return 0\n")

    assert raised.value.hint == "--set data=…"


def test_a_name_that_is_label_and_argument_is_refused(project: Path) -> None:
    with pytest.raises(UsageError, match="both a label"):
        task_of(project, "def objective(params, *, x=1): return 0\n", {"x": 0.5})


@pytest.mark.parametrize(
    ("body", "message", "hint"),
    [
        ("objective = (", "line 3", ""),
        ("import torhc\ndef objective(p): return 0", "not installed: torhc", "pip install torhc"),
        ("1 / 0", "ZeroDivisionError: division by zero (spaces/mine.py:3)", "--debug"),
        ("raise SystemExit(3)", "SystemExit: 3", ""),
        ("train = 1", "has no `objective`: it has", "def objective"),
        ("objective = 3", "is a int, no function", ""),
        ("def objective(params, run, epochs): return 0", "takes epochs", "keyword-only"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(project: Path, body: str, message: str, hint: str) -> None:
    with pytest.raises(LoadError) as raised:
        task_of(project, body)

    assert message in raised.value.message
    assert hint in raised.value.hint


def test_siblings_and_the_projects_packages_can_be_imported(project: Path) -> None:
    (project / "spaces" / "sibling_of_mine.py").write_text("ONE = 1\n")
    (project / "package_of_mine").mkdir()
    (project / "package_of_mine" / "two.py").write_text("TWO = 2\n")
    body = (
        "from sibling_of_mine import ONE\nfrom package_of_mine.two import TWO\n"
        "def objective(params): return ONE + TWO\n"
    )

    assert task_of(project, body)({}, None) == 3  # type: ignore[arg-type]


def test_settings_are_json_where_they_are_json() -> None:
    parsed = parse_settings(("a=1", "b=1e-3", "c=true", "d=/tmp/x=y", "e=[1, 2]", "f=", 'g="1"', "h=none"))

    assert parsed == {
        "a": 1, "b": 1e-3, "c": True, "d": "/tmp/x=y", "e": [1, 2], "f": "", "g": "1", "h": "none",
    }  # fmt: skip


@pytest.mark.parametrize("texts", [("epochs",), ("=3",), ("a=1", "a=2")])
def test_a_setting_that_is_none_is_refused(texts: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="--set"):
        parse_settings(texts)
