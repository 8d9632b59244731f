"""From what a person asked for to a study that may be driven: everything before the loop.

Load the file, compare the study's identity, become its driver, keep the code as it is now.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import socket
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from hpo import snapshot as snapshots
from hpo import warm
from hpo.core.errors import NoSuchStudy, StoreError, StudyBusy, StudyChanged, UsageError
from hpo.core.files import snapshot_name
from hpo.core.history import History
from hpo.core.study import AUTO_NOTE, PRUNER_NOTE, SIGNATURE_NOTE, TERMS_NOTE, Driver, Identity
from hpo.core.trial import State
from hpo.executors import WorkerSettings
from hpo.loading import EntryPoint, Task, load, loaded_below, locate
from hpo.points import Points, read_points
from hpo.search import UNTAUGHT, Algorithm, Auto, Grid, algorithm
from hpo.search.hyperopt import HyperoptAlgorithm
from hpo.search.pruning import pruner
from hpo.space import difference, lint
from hpo.stores import Catalog, Store, connect, file_of
from hpo.stores.sqlite_file import files_folder
from hpo.study import Limits
from hpo.trust import KEY_VARIABLE, signature
from hpo.warm import Taken

STUDY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class Request:
    """What `hpo optimize` was asked for.

    ``study``, ``seed``, ``algorithm``, ``pruner``, ``repeats``, ``warm_start``: None takes the study's own;
    ``is_noisy``: so does False. ``is_by_hand``: trials run in workers that people start.
    """

    file: str
    store: str
    study: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    algorithm: str | None = None
    pruner: str | None = None
    repeats: int | None = None
    is_noisy: bool = False
    warm_start: str | None = None
    points: Path | None = None
    limits: Limits = field(default_factory=Limits)
    trial_timeout_seconds: float | None = None
    take_over: bool = False
    is_by_hand: bool = False


@dataclass(frozen=True, slots=True)
class Driven:
    """A study that this process drives.

    ``url``: the store's address as the person wrote it. ``warnings``: what they should know before the
    first trial. ``points``: what is to be tried before the search proposes any. ``taken``: an
    earlier study's trials, from which the algorithm learns.
    """

    store: Store
    url: str
    task: Task
    algorithm: Algorithm
    pruner: str
    identity: Identity
    settings: WorkerSettings
    is_new: bool
    warnings: tuple[str, ...]
    points: Points | None = None
    taken: Taken | None = None


@contextlib.contextmanager
def driving(request: Request) -> Iterator[Driven]:
    """Open or create the study and be its driver meanwhile.

    Raises LoadError and SpaceError for the file, UsageError for the points, StudyChanged with the
    differences, StudyBusy when a live driver has it, StoreError for the store.
    """
    entry = locate(request.file)
    name = request.study or entry.study
    if not STUDY_NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} can't name a study", "use letters, digits, '.', '_' and '-': --study my-study"
        )
    task = load(entry, request.settings)
    if request.pruner is not None:
        pruner(request.pruner)
    if request.algorithm is not None:
        # What can't propose must not become part of a study: ask it once.
        nothing = History(len(task.space.columns))
        rng = np.random.default_rng(0)
        algorithm(request.algorithm).propose(task.space, nothing, nothing.rows, rng, 1)
    points = None if request.points is None else read_points(request.points, task.space)
    file = file_of(request.store)
    if file is not None and not file.exists():  # and what is refused makes none
        _check(_asked(request, entry, task, name, None), request, None, is_new=True)
    with contextlib.closing(connect(request.store, create=True, check=True)) as catalog:
        store, identity, is_new = _open_study(catalog, request, entry, task, name)
        driver = take_lead(store, take_over=request.take_over)
        try:
            work_folder = work_folder_of(store.url, name)
            shutil.rmtree(
                work_folder / "trials", ignore_errors=True
            )  # of workers that died with their driver
            _take_back(store, is_by_hand=request.is_by_hand)
            search = algorithm(identity.algorithm, identity.seed, is_noisy=identity.is_noisy)
            if isinstance(search, Auto):
                store.note(AUTO_NOTE, search.explain(task.space))
            taken = _taken(store, identity, task, catalog.url)
            rule, rule_warnings = _keep_pruner(store, request.pruner)
            code, code_warnings = _keep_code(store, entry, work_folder)
            if key := os.environ.get(KEY_VARIABLE):
                store.note(SIGNATURE_NOTE, signature(key, identity, code.name))
            yield Driven(
                store=store,
                url=request.store,
                task=task,
                algorithm=search if taken is None else taken.warmed(search, task.space),
                pruner=rule,
                identity=identity,
                settings=WorkerSettings(
                    store=store.url,
                    study=name,
                    study_seed=identity.seed,
                    code=str(code),
                    file=entry.file.as_posix(),
                    name=entry.name,
                    fingerprint=task.space.fingerprint,
                    folder=str(work_folder),
                    arguments=request.settings,
                    lease_seconds=request.limits.lease_seconds,
                    timeout_seconds=request.trial_timeout_seconds,
                ),
                is_new=is_new,
                warnings=(*(str(warning) for warning in lint(task.space)), *rule_warnings, *code_warnings),
                points=points,
                taken=taken,
            )
        finally:
            with contextlib.suppress(StoreError):  # a driver that is gone is noticed anyway
                store.resign(driver)


def _take_back(store: Store, *, is_by_hand: bool) -> None:
    """Offer again what a dead driver's workers had. Those that people started have outlived it: what they run
    goes on, where they are wanted."""
    if not is_by_hand:
        store.recall()
        if store.record().notes.get(TERMS_NOTE) is not None:
            store.note(TERMS_NOTE, None)
        return
    going_on = {worker.trial for worker in store.workers()}
    store.recall([t.number for t in store.trials(State.RUNNING) if t.number not in going_on])


def work_folder_of(store_url: str, study: str) -> Path:
    """Where this machine's workers of a study keep their files: beside the store's own, and as if it were
    here where it is elsewhere."""
    return files_folder(file_of(store_url) or Path("hpo.db").absolute()) / "work" / study


def _open_study(
    catalog: Catalog, request: Request, entry: EntryPoint, task: Task, name: str
) -> tuple[Store, Identity, bool]:
    try:
        store = catalog.open(name)
        record = store.record()
        kept, rule = record.identity, record.notes.get(PRUNER_NOTE)
    except NoSuchStudy:
        kept, rule = None, None
    is_new = kept is None
    asked = _asked(request, entry, task, name, kept)
    if kept is not None:
        _check_same(kept, asked)
    _check(asked, request, rule, is_new=is_new)
    if kept is None:
        if asked.warm_start is not None:  # what can't be taken must not become part of a study
            _check_warm_start(asked, catalog.url)
            warm.take(asked.warm_start, catalog.url, task.space, asked.seed)
        store = catalog.create(asked)
        kept = store.record().identity
        _check_same(kept, asked)  # another process may have been quicker
    return store, kept, is_new


def _asked(request: Request, entry: EntryPoint, task: Task, name: str, kept: Identity | None) -> Identity:
    """The identity of the study that is asked for: what is not said is the kept one's, else the default."""
    asked = Identity(
        study=name,
        entry_point=str(entry),
        fingerprint=task.space.fingerprint,
        space=task.space.describe(),
        arguments=dict(request.settings),
        seed=secrets.randbelow(2**31) if kept is None else kept.seed,
        algorithm="auto" if kept is None else kept.algorithm,
        repeats=1 if kept is None else kept.repeats,
        is_noisy=request.is_noisy or (kept is not None and kept.is_noisy),
        warm_start=request.warm_start or (None if kept is None else kept.warm_start),
    )
    said: dict[str, Any] = {"seed": request.seed, "algorithm": request.algorithm, "repeats": request.repeats}
    return replace(asked, **{key: value for key, value in said.items() if value is not None})


def _check(asked: Identity, request: Request, rule: str | None, *, is_new: bool) -> None:
    """Raises UsageError for what excludes each other. ``rule``: the study's own pruner."""
    _check_limits(asked, request.limits)
    _check_repeats(asked, request.pruner or rule or "none")
    if is_new:
        _check_noise(asked)


def _check_same(kept: Identity, asked: Identity) -> None:
    """Raises StudyChanged with the differences."""
    if lines := differences(kept, asked):
        raise StudyChanged(
            f"study {kept.study!r} exists with another identity:\n"
            + "\n".join(f"  {line}" for line in lines),
            "name another study with --study, or put it back as it was",
        )


def _check_limits(asked: Identity, limits: Limits) -> None:
    """Raises UsageError where the study would have no end, or end before its first point."""
    is_finite = isinstance(algorithm(asked.algorithm), Grid)  # it ends by itself
    if limits.max_evals is None and limits.timeout_seconds is None and not is_finite:
        raise UsageError("nothing says when to stop", "say when to stop: --max-evals 100, or --timeout 2h")
    if limits.max_evals is not None and limits.max_evals < asked.repeats:
        raise UsageError(
            f"--max-evals {limits.max_evals} is less than --repeats {asked.repeats}:"
            " no point would be complete",
            f"--max-evals counts trials: {asked.repeats} of them are one point",
        )


def _check_repeats(asked: Identity, rule: str) -> None:
    """Raises UsageError for repeats that a pruner would break off."""
    if asked.repeats > 1 and rule != "none":
        raise UsageError(
            f"--repeats {asked.repeats} and --pruner {rule} exclude each other:"
            " a point's mean needs all its trials",
            "leave one out; --pruner none ends the pruning of a study",
        )


def _check_noise(asked: Identity) -> None:
    """Raises UsageError where ``--noisy`` would change nothing."""
    if asked.is_noisy and isinstance(algorithm(asked.algorithm), Grid | HyperoptAlgorithm):
        raise UsageError(
            f"--noisy: the algorithm {asked.algorithm} decides itself whether to try a point again",
            "leave --noisy out, or search with --algo auto",
        )


def _check_warm_start(asked: Identity, url: str) -> None:
    """Raises UsageError where a warm start makes no sense."""
    if asked.warm_start in (asked.study, f"{url}#{asked.study}"):
        raise UsageError(
            f"study {asked.study!r} can't start from itself", "the same command again continues a study"
        )
    if isinstance(algorithm(asked.algorithm), UNTAUGHT):
        raise UsageError(
            f"--warm-start: the algorithm {asked.algorithm} learns from no trial",
            "leave --warm-start out, or search with --algo auto",
        )


def _taken(store: Store, identity: Identity, task: Task, url: str) -> Taken | None:
    """The trials of an earlier study, taken before the first one of this study, and kept."""
    if identity.warm_start is None:
        return None
    taken = warm.kept(store)
    if taken is None:
        taken = warm.take(identity.warm_start, url, task.space, identity.seed)
        warm.keep(store, taken)
    return taken


def differences(kept: Identity, asked: Identity) -> list[str]:
    """What differs between a study and a command that would continue it, a line each."""
    lines = [
        f"{what}: {old} -> {new}"
        for what, old, new in (
            ("entry point", kept.entry_point, asked.entry_point),
            ("seed", kept.seed, asked.seed),
            ("algorithm", kept.algorithm, asked.algorithm),
            ("repeats", kept.repeats, asked.repeats),
            ("noisy", kept.is_noisy, asked.is_noisy),
            ("warm start", kept.warm_start, asked.warm_start),
        )
        if old != new
    ]
    keys = sorted(kept.arguments.keys() | asked.arguments.keys())
    for key in keys:
        old, new = (side.arguments.get(key, "its default") for side in (kept, asked))
        if old != new:
            lines.append(f"--set {key}: {old} -> {new}")
    if kept.fingerprint != asked.fingerprint:
        lines += difference(kept.space, asked.space)
    return lines


def take_lead(store: Store, *, take_over: bool = False) -> Driver:
    """Become the study's driver, in place of one that is dead.

    Whether a driver on this host lives, its pid and start time tell at once; of one on another host
    nobody can tell here, so ``take_over`` must say that it is dead. Raises StudyBusy.
    """
    me = psutil.Process()
    driver = Driver(socket.gethostname(), me.pid, me.create_time(), secrets.token_hex(8))
    holder = store.lead(driver)
    while holder != driver:
        if holder.host != driver.host and not take_over:
            raise StudyBusy(
                f"study {store.study!r} is driven from host {holder.host} (pid {holder.pid})",
                "stop it there; if it is dead for certain, repeat the command with --take-over",
            )
        if holder.host == driver.host and _is_alive(holder):
            raise StudyBusy(
                f"study {store.study!r} is being driven by process {holder.pid}",
                f"wait for it, stop it (kill {holder.pid}), or name another study with --study",
            )
        holder = store.lead(driver, instead_of=holder)
    return driver


def live_driver(store: Store) -> Driver | None:
    """The process on this host that drives the study now, if there is one."""
    driver = store.record().driver
    is_here = driver is not None and driver.host == socket.gethostname()
    return driver if driver is not None and is_here and _is_alive(driver) else None


def _is_alive(driver: Driver) -> bool:
    try:
        process = psutil.Process(driver.pid)
        # Start times are read from the kernel with a hundredth's grain.
        is_same = abs(process.create_time() - driver.started) < 0.5
        return is_same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _keep_pruner(store: Store, asked: str | None) -> tuple[str, list[str]]:
    """The pruner's name: what is asked for, else the study's own; and what to say of it. It is no part of the
    identity: what has ended stays true under another rule."""
    kept = store.record().notes.get(PRUNER_NOTE)
    name = asked or kept or "none"
    pruner(name)
    if name == kept:
        return name, []
    store.note(PRUNER_NOTE, name)
    return name, [] if kept is None else [f"the pruner is {name} from now on; it was {kept}"]


def _keep_code(store: Store, entry: EntryPoint, work_folder: Path) -> tuple[Path, list[str]]:
    """Put the code as it is now into the study; returns the folder it runs from, and what has changed."""
    now = snapshots.take(entry.root, {entry.file.as_posix(), *loaded_below(entry.root)})
    before = store.record().snapshot
    code = work_folder / "code" / now.sha256
    warnings = []
    with tempfile.TemporaryDirectory() as scratch:
        old, new = Path(scratch) / "old.zip", Path(scratch) / "new.zip"
        if before != now.sha256:
            if before is not None:
                is_kept = store.get_file(snapshot_name(before), old)
                changed = ", ".join(_changed_files(old, now)) if is_kept else "which files is no longer known"
                warnings.append(f"the code has changed since this study last ran: {changed}")
            snapshots.pack(now, new)
            store.put_files({snapshot_name(now.sha256): new})
            store.use_snapshot(now.sha256)
        if not new.exists():
            snapshots.pack(now, new)
        # Unpacked anew by every driver: who could write there meanwhile must not choose what runs.
        shutil.rmtree(code.parent, ignore_errors=True)
        snapshots.unpack(new, code)
    return code, warnings


def _changed_files(archive: Path, now: snapshots.Snapshot, most: int = 5) -> list[str]:
    with zipfile.ZipFile(archive) as packed:
        before = {name: packed.read(name) for name in packed.namelist()}
    after = {path: (now.root / path).read_bytes() for path in now.paths}
    names = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return names[:most] + ([f"{len(names) - most} more"] if len(names) > most else [])
