"""`hpo optimize --workers 0` suggests, `hpo worker` in other shells trains: real processes on one store."""

import json
import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from hpo.stores import connect

QUICK = """
import time

def objective(params, run):
    time.sleep(0.1)
    run.report(0, params["x"])
    return params["x"]
"""
UNTIL_TOLD = """
import os, time

def objective(params, run):
    with open(f"began.{run.number}.{run.attempt}", "w") as file:
        file.write(str(os.getpid()))
    while not os.path.exists("go"):
        time.sleep(0.02)
        run.report(0, params["x"])
    return params["x"]
"""
DRIVE = ("--workers", 0, "--tracking-uri", "none", "--seed", 7)


@pytest.fixture
def drive(project) -> Callable[..., object]:
    """``drive(max_evals)`` starts the study's driver."""

    def start(max_evals: int, *more: object, env=None):
        return project.start("optimize", "study.py", "--max-evals", max_evals, *DRIVE, *more, env=env)

    return start


@pytest.fixture
def began(project, until) -> Callable[[int], Path]:
    """``began(number, attempt)`` waits for a trial of `UNTIL_TOLD` to run."""

    def wait(number: int, attempt: int = 1) -> Path:
        file = project.folder / f"began.{number}.{attempt}"
        until(file.exists, f"attempt {attempt} of trial {number}")
        return file

    return wait


def test_workers_in_other_shells_run_all_trials_of_a_study(project, drive) -> None:
    project.write(
        """
        import os, time

        def objective(params, run):
            open(f"began.{run.number}", "w").close()
            while not os.path.exists("began.1"):  # so the first trial needs a second worker
                time.sleep(0.02)
            run.report(0, params["x"])
            return params["x"]
        """
    )
    driver = drive(12, "--json")
    workers = [project.start("worker"), project.start("worker", "--gpus", "0+1")]

    result = driver.result()

    assert result.code == 0, result
    assert result.json["trials"] == {"completed": 12, "pruned": 0, "failed": 0}
    assert "hpo worker --store sqlite:///hpo.db --study study" in result.stderr
    trials = project.trials()
    assert sorted(trials) == list(range(12))
    assert len({trial["worker"] for trial in trials.values()}) == 2
    assert {tuple(trial.get("gpus", ())) for trial in trials.values()} == {(), ("0", "1")}
    assert all(trial["attempts"] == 1 and trial["epochs"] == 1 for trial in trials.values())
    on_gpus = next(number for number, trial in trials.items() if "gpus" in trial)
    assert "0, 1" in project.hpo("show", "study", on_gpus).stdout
    for worker, number in zip(workers, (signal.SIGINT, signal.SIGTERM), strict=True):
        worker.signal(number)
    ended = [worker.result() for worker in workers]
    assert [result.code for result in ended] == [130, 75]
    assert sum(result.stderr.count("completed: loss") for result in ended) == 12
    with closing(connect(f"sqlite:///{project.folder}/hpo.db")) as catalog:
        assert catalog.open("study").workers() == []


def test_several_trials_at_a_time_and_no_more_than_were_asked_for(project, drive) -> None:
    project.write(QUICK)
    driver = drive(5)

    first = project.hpo("worker", "--workers", 2, "--max-trials", 3)
    counts = [trial["state"] for trial in project.trials().values()].count("completed")
    second = project.hpo("worker", "--max-trials", 2)

    assert (first.code, counts, second.code) == (0, 3, 0), (first, second)
    assert driver.result().code == 0
    assert len({trial["worker"] for trial in project.trials().values()}) == 3


def test_the_driver_suggests_no_more_than_idle_workers_can_begin(project, drive, began, until) -> None:
    project.write(UNTIL_TOLD)
    drive(9)
    project.start("worker", "--workers", 2)

    for number in (0, 1):
        began(number)

    assert sorted(project.trials()) == [0, 1]


def test_a_killed_workers_trial_runs_again_elsewhere(project, drive, began, until, is_alive) -> None:
    project.write(UNTIL_TOLD)
    driver = drive(2, "--lease", "2s", "--retries", 3)
    doomed = project.start("worker")
    slot = int(began(0).read_text())

    doomed.signal(signal.SIGKILL)
    project.start("worker", "--workers", 2)
    began(0, 2)
    (project.folder / "go").touch()

    assert driver.result().code == 0
    assert not is_alive(slot)  # it went with the worker that had started it
    trials = project.trials()
    assert {number: trial["state"] for number, trial in trials.items()} == {0: "completed", 1: "completed"}
    assert (trials[0]["attempts"], trials[1]["attempts"]) == (2, 1)


def test_a_trial_that_kills_its_process_fails_at_once_with_its_reason(project, drive) -> None:
    project.write(
        """
        import os, signal

        def objective(params, run):
            print("about to die", flush=True)
            if run.number == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return params["x"]
        """
    )
    driver = drive(2, "--retries", 1)
    worker = project.start("worker")

    assert driver.result().code == 0

    trials = project.trials()
    assert (trials[0]["state"], trials[0]["attempts"], trials[0]["error"]["kind"]) == ("failed", 2, "signal")
    assert trials[1]["state"] == "completed"
    assert "about to die" in project.hpo("log", "study", 0).stdout
    assert "the worker of trial 0 is dead" in worker.said()


@pytest.mark.parametrize(("signals", "code"), [([signal.SIGTERM], 75), ([signal.SIGINT, signal.SIGINT], 130)])
def test_a_worker_that_must_go_hands_its_trial_back(
    project, drive, began, until, signals: list[signal.Signals], code: int
) -> None:
    project.write(UNTIL_TOLD)
    driver = drive(1, "--retries", 0)
    leaving = project.start("worker")
    began(0)

    for number in signals:
        before = leaving.said().count("trials")
        leaving.signal(number)
        until(lambda before=before: leaving.said().count("trials") > before, "an answer to the signal")
    assert leaving.result().code == code
    project.start("worker")
    began(0, 2)
    (project.folder / "go").touch()

    assert driver.result().code == 0
    assert [(t["state"], t["attempts"]) for t in project.trials().values()] == [("completed", 2)]


def test_ctrl_c_lets_a_workers_trial_end(project, drive, began, until) -> None:
    project.write(UNTIL_TOLD)
    driver = drive(1)
    worker = project.start("worker")
    began(0)

    worker.signal(signal.SIGINT)
    until(lambda: "Ctrl-C again" in worker.said(), "its answer")
    (project.folder / "go").touch()

    assert worker.result().code == 130
    assert driver.result().code == 0
    assert [trial["attempts"] for trial in project.trials().values()] == [1]


def test_ctrl_c_on_the_driver_lets_running_trials_end_and_starts_none(project, drive, began, until) -> None:
    project.write(UNTIL_TOLD)
    driver = drive(9)
    worker = project.start("worker")
    began(0)

    driver.signal(signal.SIGINT)
    until(lambda: "Ctrl-C again" in driver.said(), "its answer")
    (project.folder / "go").touch()

    assert driver.result().code == 130
    assert {n: trial["state"] for n, trial in project.trials().items() if trial["state"] != "waiting"} == {
        0: "completed"
    }
    assert worker.process.poll() is None  # it waits for the study to go on


def test_a_worker_stops_a_trial_that_its_driver_has_taken_back(
    project, drive, began, until, is_alive
) -> None:
    project.write(
        """
        import os, time

        def objective(params, run):
            with open(f"began.{run.number}.{run.attempt}", "w") as file:
                file.write(str(os.getpid()))
            time.sleep(600)
        """
    )
    driver = drive(1, "--lease", "1s")
    worker = project.start("worker")
    slot = int(began(0).read_text())

    driver.signal(signal.SIGTERM)

    assert driver.result().code == 75
    until(lambda: "trial 0 was taken back" in worker.said(), "the worker to notice")
    assert not is_alive(slot)
    assert project.trials()[0]["state"] == "waiting"


def test_what_a_worker_runs_goes_on_while_the_driver_is_killed_and_started_again(
    project, drive, began
) -> None:
    project.write(UNTIL_TOLD)
    first = drive(2)
    project.start("worker")
    began(0)

    first.signal(signal.SIGKILL)
    first.process.wait()
    second = drive(2)
    (project.folder / "go").touch()

    assert second.result().code == 0
    assert [trial["attempts"] for trial in project.trials().values()] == [1, 1]


def test_workers_by_hand_take_up_at_once_what_a_killed_driver_had_begun(project, drive, began) -> None:
    project.write(UNTIL_TOLD)
    first = project.start("optimize", "study.py", "--max-evals", 1, "--tracking-uri", "none", "--seed", 7)
    began(0)
    first.signal(signal.SIGKILL)
    first.process.wait()

    second = drive(1, "--lease", "10m", "--retries", 0)
    project.start("worker")
    began(0, 2)
    (project.folder / "go").touch()

    assert second.result().code == 0


def test_a_worker_that_has_nothing_to_do_goes_after_its_idle_timeout(project) -> None:
    before = time.monotonic()

    result = project.hpo("worker", "--idle-timeout", "1s")

    assert result.code == 0, result
    assert time.monotonic() - before >= 1
    assert "no trial for 1 s" in result.stderr
    assert not (project.folder / "hpo.db").exists()


def test_a_study_whose_driver_starts_its_own_workers_gives_others_no_trial(project, began, until) -> None:
    project.write(UNTIL_TOLD)
    driver = project.start("optimize", "study.py", "--max-evals", 2, "--tracking-uri", "none")
    began(0)

    result = project.hpo("worker", "--study", "study", "--idle-timeout", "2s")

    assert result.code == 0
    assert "nobody drives study study with --workers 0" in result.stderr
    (project.folder / "go").touch()
    assert driver.result().code == 0
    assert len({trial["worker"] for trial in project.trials().values()}) == 1


def test_of_several_studies_that_want_workers_one_must_be_named(project, drive, until) -> None:
    project.write(QUICK)
    for study in ("left", "right"):
        driver = drive(3, "--study", study)
        until(lambda driver=driver: "hpo worker" in driver.said(), "the study to want workers")

    result = project.hpo("worker", "--idle-timeout", "1s")

    assert result.code == 2
    assert "left, right" in result.stderr


@pytest.mark.parametrize("other", ["--gpus=0", "--inline", "--isolate"])
def test_what_says_how_to_start_workers_excludes_workers_by_hand(project, other: str) -> None:
    project.write(QUICK)

    result = project.hpo("optimize", "study.py", "--max-evals", 2, "--workers", 0, other)

    assert result.code == 2
    assert "--workers 0" in result.stderr
    assert not (project.folder / "hpo.db").exists()


# --- code


@pytest.fixture
def elsewhere(project, tmp_path) -> Path:
    """Another checkout of the same project."""
    project.write(QUICK)
    for name in ("pyproject.toml", "study.py"):
        shutil.copy(project.folder / name, tmp_path)
    return tmp_path


def worker_in(project, folder: Path, *arguments: object, env=None):
    """Run `hpo worker` in this folder, on the project's store."""
    url = f"sqlite:///{project.folder}/hpo.db"
    return type(project)(folder).hpo("worker", "--store", url, "--max-trials", 1, *arguments, env=env)


def test_a_worker_in_another_checkout_with_the_same_code_runs_it(project, elsewhere, drive) -> None:
    driver = drive(1)

    result = worker_in(project, elsewhere)

    assert (result.code, driver.result().code) == (0, 0), result


def test_a_worker_refuses_code_that_it_does_not_know_and_runs_it_when_told(project, elsewhere, drive) -> None:
    (elsewhere / "study.py").write_text("# older\n")
    driver = drive(1)

    refused = worker_in(project, elsewhere)

    assert refused.code == 2
    assert "different there: study.py" in refused.stderr
    sha256 = refused.stderr.partition("--snapshot ")[2][:64]
    told = worker_in(project, elsewhere, "--snapshot", sha256)
    assert told.code == 0, told
    assert driver.result().code == 0


def test_a_shortened_hash_is_refused_before_the_store_is_asked(project) -> None:
    refused = project.hpo("worker", "--snapshot", "9a390c779d89")

    assert refused.code == 2
    assert "give all its 64 digits" in " ".join(refused.stderr.split())


def test_a_worker_that_shares_the_drivers_key_runs_what_it_signed(project, tmp_path, drive) -> None:
    project.write(QUICK)
    driver = drive(1, env={"HPO_KEY": "one"})
    refused = worker_in(project, tmp_path, env={"HPO_KEY": "another"})

    result = worker_in(project, tmp_path, env={"HPO_KEY": "one"})

    assert (refused.code, result.code) == (2, 0), (refused, result)
    assert driver.result().code == 0


def test_a_worker_looks_again_when_the_driver_comes_back_with_other_code(project, drive, until) -> None:
    project.write(QUICK)
    first = drive(1)
    worker = project.start("worker")
    assert first.result().code == 0
    project.write(QUICK.replace('return params["x"]', 'return params["x"] + 5'))

    second = drive(2)

    assert second.result().code == 0
    trials = project.trials()
    assert trials[0]["loss"] < 1
    assert trials[1]["loss"] > 5
    assert worker.said().count("code ") == 2


# --- a store that somebody else has written into


@pytest.fixture
def tamper(project) -> Callable[..., None]:
    def execute(sql: str, *values: object) -> None:
        with closing(sqlite3.connect(project.folder / "hpo.db", timeout=30)) as store:
            assert store.execute(sql, values).rowcount > 0
            store.commit()

    return execute


@pytest.fixture
def driver(project, drive, until):
    project.write(QUICK)
    started = drive(1, "--lease", "2s")
    until(lambda: "hpo worker" in started.said(), "the driver")
    return started


def changed_identity(project, **change: object) -> str:
    with closing(sqlite3.connect(project.folder / "hpo.db")) as store:
        [[identity]] = store.execute("SELECT identity FROM studies").fetchall()
    return json.dumps(json.loads(identity) | change)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"entry_point": "../../x.py:objective"}, 2),
        ({"arguments": ["a"]}, 5),
        ({"arguments": {"evil": 1}}, 2),
    ],
)
def test_a_study_with_another_entry_point_or_arguments_is_refused(
    project, driver, tamper, change, code
) -> None:
    tamper("UPDATE studies SET identity = ?", changed_identity(project, **change))

    result = project.hpo("worker", "--max-trials", 1, "--idle-timeout", "20s")

    assert result.code == code, result
    assert "internal error" not in result.stderr


def test_code_with_other_bytes_than_its_hash_is_refused(project, driver, tamper, tmp_path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "other.zip", "w") as packed:
        packed.writestr("study.py", "open('/tmp/evil', 'w')")
    with closing(connect(f"sqlite:///{project.folder}/hpo.db")) as catalog:
        store = catalog.open("study")
        store.put_files({f"snapshot/{store.record().snapshot}.zip": tmp_path / "other.zip"})

    result = project.hpo("worker", "--max-trials", 1, "--idle-timeout", "20s")

    assert result.code == 2
    assert "names the code" in result.stderr


def test_terms_that_no_driver_wrote_give_no_trial(project, driver, tamper) -> None:
    tamper("UPDATE notes SET value = ? WHERE name = 'terms'", '{"lease_seconds": "x", "retries": []}')

    result = project.hpo("worker", "--study", "study", "--idle-timeout", "2s")

    assert result.code == 0
    assert "nothing to do yet" in result.stderr


def test_a_point_outside_of_the_space_fails_its_trial_alone(project, drive, until, tamper) -> None:
    project.write(UNTIL_TOLD)
    driver = drive(3)
    worker = project.start("worker")
    until(lambda: (project.folder / "began.0.1").exists(), "trial 0")
    with closing(connect(f"sqlite:///{project.folder}/hpo.db")) as catalog:
        catalog.open("study").add(1, {"x": 7.0, "__class__": 1}, {})

    (project.folder / "go").touch()

    assert driver.result().code == 0
    trials = project.trials()
    assert trials[1]["error"]["kind"] == "exception"
    assert "OutsideSpace" in trials[1]["error"]["reason"]
    assert [trials[number]["state"] for number in (0, 2)] == ["completed", "completed"]
    assert worker.process.poll() is None


def test_no_process_outlives_a_worker(project, drive, began, until, is_alive) -> None:
    project.write(UNTIL_TOLD)
    drive(9)
    worker = project.start("worker", "--workers", 2)
    for number in (0, 1):
        began(number)
    family = [process.pid for process in worker.descendants()]
    assert len(family) == 4

    os.kill(worker.pid, signal.SIGKILL)

    until(lambda: not any(is_alive(pid) for pid in family), "its processes to end")
