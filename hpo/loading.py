"""``file.py:name`` to the space and the objective in it."""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import inspect
import json
import math
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from hpo.core.errors import HpoError, LoadError, UsageError

if TYPE_CHECKING:
    from hpo.run import Run
    from hpo.space import Space

PYTHON_WORDS = {"True": True, "False": False, "None": None}
ROOT_MARKERS = ("pyproject.toml", ".git")
EXTRAS = {"mlflow": "ui"} | {n: n for n in ("torch", "keras", "tensorflow", "tensorboard", "sklearn")}


@dataclass(frozen=True, slots=True)
class EntryPoint:
    """Where an objective is: ``file`` below the project's ``root``, ``name`` in it."""

    root: Path
    file: Path
    name: str

    def __str__(self) -> str:
        return f"{self.file.as_posix()}:{self.name}"

    @property
    def study(self) -> str:
        """The default name of a study: the file's; ``space.py`` says nothing, so it takes its folder's."""
        path = self.root / self.file
        return path.parent.name if path.stem == "space" else path.stem


@dataclass(frozen=True, slots=True)
class Task:
    """What a trial runs: the compiled space and the objective with its arguments."""

    space: Space
    objective: Callable[..., Any]
    arguments: Mapping[str, Any]
    wants_run: bool

    def __call__(self, params: Any, run: Run) -> Any:
        if self.wants_run:
            return self.objective(params, run, **self.arguments)
        return self.objective(params, **self.arguments)


def locate(text: str) -> EntryPoint:
    """``FILE.py`` or ``FILE.py:NAME`` as a person types it; the name defaults to ``objective``.

    The root is the nearest folder above with a pyproject.toml or .git, else the file's own.
    Raises LoadError.
    """
    name = "objective"
    if ":" in text and not Path(text).exists():
        text, _, name = text.rpartition(":")
    path = Path(text)
    if path.is_dir():
        raise LoadError(f"{text} is a folder", f"name a file in it: {_python_files(path) or 'it has no .py'}")
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in _siblings(path)], n=1)
        hint = (
            f"did you mean {path.with_name(near[0])}?" if near else f"there is: {_python_files(path.parent)}"
        )
        raise LoadError(f"there is no file {text}", hint if _python_files(path.parent) else "")
    if path.suffix != ".py":
        raise LoadError(
            f"{text} is no Python file", "a space file is Python: it has a `space` and an `objective`"
        )
    path = path.resolve()
    root = project_root(path.parent)
    return EntryPoint(root, path.relative_to(root), name)


def project_root(folder: Path) -> Path:
    """The nearest folder, from this one upwards, with a pyproject.toml or .git; without any, this one."""
    above = (folder, *folder.parents)
    return next((one for one in above if any((one / mark).exists() for mark in ROOT_MARKERS)), folder)


def load(entry: EntryPoint, settings: Mapping[str, Any]) -> Task:
    """Run the file and take its ``space`` and the objective.

    Args: settings: what ``--set`` says: labels of the space to fix and arguments of the objective. The
    root and the file's folder go on sys.path; the working directory stays, whatever the file does.
    Raises LoadError, SpaceError, UsageError (a setting that is neither label nor argument).
    """
    from hpo.space import compile_space

    folder = os.getcwd()
    try:
        module = _run_file(entry.root, entry.file)
    finally:
        os.chdir(folder)
    objective = _member(module, entry.name, entry, "the training function: def objective(params, run): …")
    if not callable(objective):
        raise LoadError(f"{entry} is a {type(objective).__name__}, no function", "define it with def")
    expression = _member(module, "space", entry, "a hyperopt expression: space = {'lr': hp.loguniform(…)}")
    space = compile_space(expression)
    fixed, arguments, wants_run = _share_out(settings, space.labels, objective, entry)
    if fixed:
        space = compile_space(expression, fixed)
    return Task(space, objective, arguments, wants_run)


def parse_settings(texts: tuple[str, ...]) -> dict[str, Any]:
    """``("epochs=5", "data=/x")`` to ``{"epochs": 5, "data": "/x"}``: JSON where it is JSON, else text."""
    settings: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f"--set {text}: no KEY=VALUE", "for example --set epochs=5")
        if key in settings:
            raise UsageError(f"--set names {key} twice", "keep one of them")
        settings[key] = parse_value(value)
    return settings


def parse_value(text: str) -> Any:
    """JSON where the text is JSON or Python's True, False, None; else the text itself."""
    if text in PYTHON_WORDS:
        return PYTHON_WORDS[text]
    try:
        value = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return text
    if isinstance(value, float) and not math.isfinite(value):
        return text
    return value


def _no_number(name: str) -> float:
    raise ValueError(
        f"{name} is no JSON"
    )  # NaN equals nothing, itself included: a study could not be resumed


def _run_file(root: Path, file: Path) -> ModuleType:
    for folder in (str((root / file).parent), str(root)):  # the root comes first, as in `python -m`
        if folder in sys.path:
            sys.path.remove(folder)
        sys.path.insert(0, folder)
    name = ".".join(file.with_suffix("").parts)
    spec = importlib.util.spec_from_file_location(name, root / file)
    assert spec is not None  # it is a .py file
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with contextlib.redirect_stdout(sys.stderr):  # standard output is for the command's own document
            spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except ModuleNotFoundError as error:
        if error.name is None:
            raise LoadError(
                f"{file} failed: {describe_exception(error, root)}", "run it with --debug"
            ) from error
        raise LoadError(
            f"{file} needs a module that is not installed: {error.name}", _how_to_install(error.name)
        ) from error
    except SyntaxError as error:
        where = Path(error.filename or file).name
        raise LoadError(f"{where}, line {error.lineno}: {error.msg}", (error.text or "").strip()) from error
    except BaseException as error:
        raise LoadError(f"{file} failed: {describe_exception(error, root)}", "run it with --debug") from error
    return module


def _how_to_install(module: str) -> str:
    extra = EXTRAS.get(module.partition(".")[0])
    return f"pip install 'hpo[{extra}]'" if extra else f"pip install {module}, or check its name"


def _member(module: ModuleType, name: str, entry: EntryPoint, what: str) -> Any:
    try:
        return getattr(module, name)
    except AttributeError:
        names = [
            n for n, value in vars(module).items() if not n.startswith("_") and not inspect.ismodule(value)
        ]
        has = f"it has {', '.join(names[:12])}" if names else "it is empty"
        other = f"; or name another: {entry.file}:NAME" if name != "space" else ""
        raise LoadError(f"{entry.file} has no `{name}`: {has}", f"add {what}{other}") from None


def _share_out(
    settings: Mapping[str, Any], labels: tuple[str, ...], objective: Callable[..., Any], entry: EntryPoint
) -> tuple[dict[str, Any], dict[str, Any], bool]:
    """The settings as fixed labels and arguments; and whether the objective takes ``run``."""
    try:
        parameters = inspect.signature(objective).parameters.values()
    except ValueError:  # a function in C that does not tell
        parameters = ()  # type: ignore[assignment]
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    wants_run = len(positional) > 1 or any(p.kind is p.VAR_POSITIONAL for p in parameters)
    needed = [p.name for p in positional[2:] if p.default is p.empty]
    if needed:
        raise LoadError(
            f"{entry} takes {', '.join(needed)} beside params and run",
            f"make arguments keyword-only: def {entry.name}(params, run, *, {needed[0]}=…)",
        )
    if any(p.name == "run" for p in parameters if p.kind is p.KEYWORD_ONLY):
        raise LoadError(f"{entry} takes run by its name only", f"write def {entry.name}(params, run, *, …)")
    named = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY} | {p.name: p for p in positional[2:]}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    fixed: dict[str, Any] = {}
    arguments: dict[str, Any] = {}
    unknown = []
    for key, value in settings.items():
        if key in labels and key in named:
            raise UsageError(
                f"--set {key}: both a label of the space and an argument of {entry.name}",
                "rename one of them",
            )
        if key in labels:
            fixed[key] = value
        elif key in named or takes_any:
            is_text = key in named and named[key].annotation in (str, "str")
            arguments[key] = str(value) if is_text else value
        else:
            unknown.append(key)
    if unknown:
        near = [m for key in unknown for m in difflib.get_close_matches(key, [*labels, *named], n=1)]
        raise UsageError(
            f"--set {unknown[0]}: neither a label of the space nor an argument of {entry.name}",
            (f"did you mean {near[0]}? " if near else "")
            + f"labels: {', '.join(labels) or 'none'}; arguments: {', '.join(named) or 'none'}",
        )
    missing = [n for n, p in named.items() if p.default is p.empty and n not in arguments]
    if missing:
        raise UsageError(
            f"{entry} needs {' and '.join(missing)}", " ".join(f"--set {name}=…" for name in missing)
        )
    return fixed, arguments, wants_run


def describe_exception(error: BaseException, root: Path) -> str:
    """``ValueError: what it says (objectives/train.py:17)``, the place being the last one below ``root``.
    Of our own errors the hint, too: it says what to do."""
    text = traceback.format_exception_only(type(error), error)[-1]
    line = " ".join(text.split())
    if isinstance(error, HpoError):
        line = f"{type(error).__name__}: {error.message}" + (f" - {error.hint}" if error.hint else "")
    if isinstance(error, ModuleNotFoundError) and error.name:
        line += f" - {_how_to_install(error.name)}"
    inside = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if os.path.realpath(frame.filename).startswith(str(root.resolve()) + os.sep)
    ]
    if not inside:
        return line
    place = Path(os.path.realpath(inside[-1].filename)).relative_to(root.resolve())
    return f"{line} ({place.as_posix()}:{inside[-1].lineno})"


def loaded_below(root: Path) -> set[str]:
    """The source files of modules that are loaded from below the root, environments aside: whatever git says
    of them, the objective needs them."""
    found = set()
    for module in list(sys.modules.values()):
        source = getattr(module, "__file__", None)
        if isinstance(source, str) and source.endswith(".py") and Path(source).is_relative_to(root):
            path = Path(source).relative_to(root)
            if not {"site-packages", "dist-packages"} & set(path.parts):
                found.add(path.as_posix())
    return found


def _siblings(path: Path) -> list[Path]:
    return sorted(path.parent.glob("*.py")) if path.parent.is_dir() else []


def _python_files(folder: Path) -> str:
    return ", ".join(path.name for path in _siblings(folder / "x")[:8])
