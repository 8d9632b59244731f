"""Ctrl-C, SIGTERM, kill -9: what a study leaves behind and how it goes on."""

import contextlib
import os
import shlex
import signal

import psutil
import pytest

OPTIMIZE = ("optimize", "study.py", "--max-evals", 3, "--tracking-uri", "none")

# Trial 1 runs until a file called gate is there.
GATED = """
import os, time
from pathlib import Path

def objective(params, run):
    if run.number == 1:
        Path("started").touch()
        while not Path("gate").exists():
            time.sleep(0.01)
    return params["x"]
"""

HOLDS_THE_GIL = """
import ctypes, subprocess
from pathlib import Path

def objective(params, run):
    if run.number == 1 and run.attempt == 1:
        subprocess.Popen(["sleep", "600"])
        Path("started").touch()
        ctypes.PyDLL(None).sleep(600)  # PyDLL does not release the GIL
    return params["x"]
"""


@pytest.fixture
def at_work(project, until):
    """Start the study and wait for its trial 1 to run."""

    def start(objective=GATED, *options):
        project.write(objective)
        command = project.start(*OPTIMIZE, *options)
        until(lambda: (project.folder / "started").exists() or command.process.poll() is not None, "trial 1")
        assert command.process.poll() is None, command.said()
        return command

    return start


def open_gate(project):
    (project.folder / "gate").touch()


def states(project):
    return {number: trial["state"] for number, trial in project.trials().items()}


def command_that_continues(result):
    """The words after `hpo` on the line that says how to go on."""
    [line] = [line for line in result.stderr.splitlines() if line.startswith("continue: ")]
    program, *arguments = shlex.split(line.removeprefix("continue: "))
    assert program == "hpo"
    return arguments


def assert_goes_on_whole(project, result):
    """The command that the ended one printed finishes the study."""
    continued = project.hpo(*command_that_continues(result))

    assert continued.code == 0, str(continued)
    assert states(project) == dict.fromkeys(range(3), "completed")


# --- Ctrl-C


def test_ctrl_c_lets_the_running_trial_finish(project, at_work, until):
    command = at_work()

    command.signal(signal.SIGINT)
    until(lambda: "letting the running trials end" in command.said(), "the first Ctrl-C to be heard")
    assert states(project)[1] == "running"
    open_gate(project)

    result = command.result()
    assert result.code == 130, str(result)
    assert states(project) == {0: "completed", 1: "completed"}
    assert_goes_on_whole(project, result)


def test_ctrl_c_on_the_terminal_reaches_no_worker(project, at_work, until):
    command = at_work()

    os.killpg(command.pid, signal.SIGINT)  # what the terminal does
    until(lambda: "letting the running trials end" in command.said(), "the first Ctrl-C to be heard")
    open_gate(project)

    assert command.result().code == 130
    assert {n: (t["state"], t["attempts"]) for n, t in project.trials().items()} == {
        0: ("completed", 1),
        1: ("completed", 1),
    }


def interrupt_twice(command, until):
    command.signal(signal.SIGINT)
    until(lambda: "letting the running trials end" in command.said(), "the first Ctrl-C to be heard")
    command.signal(signal.SIGINT)
    return command.result()


def test_a_second_ctrl_c_hands_the_running_trial_back(project, at_work, until):
    command = at_work()

    result = interrupt_twice(command, until)

    assert result.code == 130, str(result)
    assert "stopping the running trials" in result.stderr
    assert states(project) == {0: "completed", 1: "waiting"}
    open_gate(project)
    assert_goes_on_whole(project, result)


def test_a_trial_handed_back_keeps_its_retries(project, at_work, until):
    dies_once_more = GATED.replace("return params", "if run.attempt == 2: os._exit(1)\n    return params")
    result = interrupt_twice(at_work(dies_once_more), until)
    open_gate(project)

    assert_goes_on_whole(project, result)

    assert project.trials()[1]["attempts"] == 3


def test_a_trial_handed_back_has_the_same_parameters_when_it_runs_again(project, at_work, until):
    result = interrupt_twice(at_work(), until)
    before = project.trials()[1]["params"]
    open_gate(project)

    assert_goes_on_whole(project, result)

    assert project.trials()[1]["params"] == before


def test_the_document_of_an_interrupted_study_counts_what_ended(at_work, until):
    result = interrupt_twice(at_work(GATED, "--json"), until)

    assert result.code == 130, str(result)
    assert result.json["trials"] == {"completed": 1, "pruned": 0, "failed": 0}
    assert result.json["best"]["trial"] == 0


def test_ctrl_c_inline_finishes_the_trial_and_a_second_one_hands_it_back(project, at_work, until):
    command = at_work(GATED, "--inline")

    result = interrupt_twice(command, until)

    assert result.code == 130, str(result)
    assert states(project) == {0: "completed", 1: "waiting"}
    open_gate(project)
    assert_goes_on_whole(project, result)


# --- SIGTERM, SIGHUP


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGHUP, 129)])
def test_a_pre_empted_study_hands_its_trials_back(project, at_work, number, code):
    command = at_work()

    command.signal(number)

    result = command.result()
    assert result.code == code, str(result)
    assert states(project) == {0: "completed", 1: "waiting"}
    open_gate(project)
    assert_goes_on_whole(project, result)


@pytest.mark.parametrize("objective", [GATED, HOLDS_THE_GIL], ids=["waiting", "holding the interpreter"])
def test_no_process_outlives_a_study_that_was_handed_back(at_work, until, is_alive, objective):
    command = at_work(objective)
    started = [process.pid for process in command.descendants()]

    command.signal(signal.SIGTERM)

    assert command.result().code == 75
    assert len(started) >= 2  # the worker and its keeper
    until(lambda: not any(map(is_alive, started)), "all processes to end")


# --- two commands on one study


def test_a_second_command_on_a_live_study_is_refused(project, hpo, at_work):
    command = at_work()

    second = hpo(*OPTIMIZE)

    assert second.code == 2, str(second)
    assert f"study 'study' is being driven by process {command.pid}" in second.stderr
    assert "--study" in second.stderr
    assert states(project) == {0: "completed", 1: "running"}
    open_gate(project)
    assert command.result().code == 0
    assert states(project) == dict.fromkeys(range(3), "completed")


def test_another_study_of_the_same_store_can_be_driven_meanwhile(project, hpo, at_work):
    command = at_work()
    project.write("def objective(params): return params['x']", name="other.py")

    other = hpo("optimize", "other.py", "--max-evals", 1, "--tracking-uri", "none")

    assert other.code == 0, str(other)
    open_gate(project)
    assert command.result().code == 0


def test_readers_do_not_disturb_a_running_study(project, hpo, at_work):
    command = at_work()

    shown = [hpo(*words) for words in (["show"], ["show", "study"], ["show", "study", 1], ["best", "study"])]

    assert [result.code for result in shown] == [0] * 4
    open_gate(project)
    assert command.result().code == 0


# --- kill -9


def test_a_command_takes_over_from_a_dead_driver_at_once(project, hpo, at_work):
    command = at_work()
    command.process.kill()
    command.process.wait()
    open_gate(project)

    result = hpo(*OPTIMIZE)

    assert result.code == 0, str(result)
    assert {n: (t["state"], t["attempts"]) for n, t in project.trials().items()} == {
        0: ("completed", 1),
        1: ("completed", 2),
        2: ("completed", 1),
    }


def test_the_death_of_the_driver_does_not_count_against_retries(project, hpo, at_work):
    command = at_work(GATED.replace("return params", "if run.attempt == 2: os._exit(1)\n    return params"))
    command.process.kill()
    command.process.wait()
    open_gate(project)

    result = hpo(*OPTIMIZE)

    assert result.code == 0, str(result)
    assert project.trials()[1]["state"] == "completed"
    assert project.trials()[1]["attempts"] == 3


def test_a_driver_that_is_a_zombie_is_dead(project, hpo, at_work):
    command = at_work()
    command.process.kill()
    os.waitid(os.P_PID, command.pid, os.WEXITED | os.WNOWAIT)  # dead, and not reaped
    open_gate(project)

    result = hpo(*OPTIMIZE)

    assert result.code == 0, str(result)


@pytest.mark.parametrize("objective", [GATED, HOLDS_THE_GIL], ids=["waiting", "holding the interpreter"])
def test_the_death_of_the_driver_takes_all_its_processes_along(at_work, until, is_alive, objective):
    command = at_work(objective, "--workers", 2)
    started = [process.pid for process in command.descendants()]

    command.process.kill()
    command.process.wait()

    assert len(started) >= 4  # two workers and their keepers
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(lambda: [psutil.Process(pid).kill() for pid in started if is_alive(pid)])
        until(lambda: not any(map(is_alive, started)), "all processes to end")


def test_a_driver_killed_before_it_has_a_worker_leaves_nothing_behind(project, hpo, until, is_alive):
    project.write(GATED)
    open_gate(project)
    command = project.start(*OPTIMIZE)
    started = until(lambda: [process.pid for process in command.descendants()], "a worker to start")

    command.process.kill()
    command.process.wait()

    until(lambda: not any(map(is_alive, started)), "all processes to end")
    assert hpo(*OPTIMIZE).code == 0
    assert states(project) == dict.fromkeys(range(3), "completed")
