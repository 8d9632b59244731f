"""Whatever an objective does, its trial ends, says why, and the study goes on."""

import json
import os
import re
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Behaviour:
    """The body of an objective, and how its trial must end."""

    body: str
    kind: str | None
    reason: str = ""


BEHAVIOURS = {
    "returns a float": Behaviour("return 0.5", None),
    "returns a dict": Behaviour("return {'loss': 0.25, 'status': 'ok', 'accuracy': 0.75}", None),
    "returns a NumPy scalar": Behaviour("return numpy.float32(1.5)", None),
    "raises": Behaviour(
        "raise ValueError('no layers')", "exception", r"^ValueError: no layers \(study.py:\d"
    ),
    "raises what can't be printed": Behaviour("raise Unprintable", "exception", r"Unprintable"),
    "raises with bytes of a file name": Behaviour(
        r"raise OSError('caf\udce9.csv')", "exception", r"^OSError: caf.*\.csv \(study.py:\d"
    ),
    "raises MemoryError": Behaviour(
        "raise MemoryError('no room')", "out_of_memory", r"^MemoryError: no room"
    ),
    "returns NaN": Behaviour("return float('nan')", "nan", r"^the loss is nan$"),
    "returns infinity": Behaviour("return {'loss': float('-inf')}", "nan", r"^the loss is -inf$"),
    "returns None": Behaviour("return None", "no_loss", r"returned None"),
    "returns a dict without a loss": Behaviour("return {'acc': 1}", "no_loss", r"a dict without a loss"),
    "returns text": Behaviour("return '0.5'", "wrong_type", r"^the loss is '0.5', a str"),
    "returns an array": Behaviour("return numpy.zeros(3)", "wrong_type", r"a ndarray, no number$"),
    "returns a function": Behaviour(
        "return {'loss': 1.0, 'net': {'f': lambda x: x}}",
        "not_json",
        r"^result\['net'\]\['f'\] is a function, which JSON can't hold",
    ),
    "returns bytes of a file name": Behaviour(r"return {'loss': 1.0, 'file': 'caf\udce9'}", None),
    "reports a failure": Behaviour(
        "return {'status': 'fail', 'loss': -9, 'reason': 'diverged'}", "reported", r"reported: diverged$"
    ),
    "calls sys.exit": Behaviour("sys.exit(3)", "exit", r"sys\.exit\(3\)$"),
    "calls sys.exit as if all were well": Behaviour("sys.exit()", "exit", r"sys\.exit\(None\)$"),
    "calls os._exit": Behaviour("os._exit(7)", "exit_code", r"exit code 7$"),
    "calls os._exit as if all were well": Behaviour("os._exit(0)", "exit_code", r"exit code 0$"),
    "segfaults": Behaviour("faulthandler._sigsegv()", "signal", r"SIGSEGV \(signal 11\)$"),
    "kills itself": Behaviour("os.kill(os.getpid(), signal.SIGKILL)", "signal", r"SIGKILL \(signal 9\)$"),
    "is killed for want of memory": Behaviour("fill_a_small_group()", "out_of_memory", r"^the kernel killed"),
    "hangs": Behaviour("time.sleep(600)", "timeout", r"within 2 s \(--trial-timeout\)$"),
    "hangs in C": Behaviour("ctypes.PyDLL(None).sleep(600)", "timeout", r"within 2 s \(--trial-timeout\)$"),
    "works after all that": Behaviour("return 0.75", None),
}
NUMBER = {name: number for number, name in enumerate(BEHAVIOURS)}
FAILING = {name: behaviour for name, behaviour in BEHAVIOURS.items() if behaviour.kind is not None}


def memory_groups() -> tuple[Path, str] | None:
    """Where a control group for memory can be made, and the name of its limit; None if nowhere."""
    first, second = CGROUPS / "memory", CGROUPS / "cgroup.subtree_control"
    if (first / "memory.limit_in_bytes").exists() and os.access(first, os.W_OK):
        return first, "memory.limit_in_bytes"
    if second.exists() and "memory" in second.read_text().split() and os.access(CGROUPS, os.W_OK):
        return CGROUPS, "memory.max"
    return None


OBJECTIVE = """
import ctypes, faulthandler, os, signal, sys, time
from pathlib import Path

import numpy


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError("no words")


def fill_a_small_group():
    group, limit = Path(GROUP), LIMIT
    group.mkdir()
    (group / limit).write_text(str(150 << 20))
    (group / "cgroup.procs").write_text(str(os.getpid()))
    time.sleep(0.8)  # the driver looks now and then where its workers are
    return len(b"x" * (400 << 20))


def objective(params, run):
    return BEHAVIOURS[run.number]()
"""


def source(group: Path | None, limit: str) -> str:
    functions = [f"def behaviour_{n}():\n    {b.body}" for n, b in enumerate(BEHAVIOURS.values())]
    names = ", ".join(f"behaviour_{n}" for n in range(len(BEHAVIOURS)))
    return "\n\n\n".join(
        [f"GROUP, LIMIT = {str(group)!r}, {limit!r}", OBJECTIVE, *functions, f"BEHAVIOURS = [{names}]"]
    )


@pytest.fixture(scope="module")
def study(make_project, until):
    """One study with a trial for every behaviour: the project, how it ended, its trials."""
    project = make_project()
    groups = memory_groups()
    group = groups and groups[0] / f"hpo-test-{os.getpid()}"
    project.write(source(group, groups[1] if groups else ""))
    result = project.hpo(
        *("optimize", "study.py", "--max-evals", len(BEHAVIOURS), "--workers", 2, "--retries", 0),
        *("--trial-timeout", "2s", "--timeout", "60s", "--max-failures", 1),
        *("--tracking-uri", "none", "--json"),
    )
    if group and group.exists():
        until(lambda: not (group / "cgroup.procs").read_text(), "the killed worker to leave its group")
        group.rmdir()
    return project, result, project.trials()


def test_the_study_goes_on_and_ends_whole(study):
    _, result, trials = study

    assert result.code == 0, str(result)
    assert result.json["trials"] == {
        "completed": len(BEHAVIOURS) - len(FAILING),
        "pruned": 0,
        "failed": len(FAILING),
    }
    assert sorted(trials) == list(range(len(BEHAVIOURS)))


@pytest.mark.parametrize("name", FAILING)
def test_a_failed_trial_tells_its_kind_and_reason(study, name):
    if name == "is killed for want of memory" and memory_groups() is None:
        pytest.skip(f"no control group can be made below {CGROUPS}")
    _, _, trials = study
    expected = FAILING[name]

    trial = trials[NUMBER[name]]

    assert trial["state"] == "failed"
    assert trial["error"]["kind"] == expected.kind
    assert re.search(expected.reason, trial["error"]["reason"])


@pytest.mark.parametrize("name", FAILING)
def test_a_failed_trial_carries_no_loss(study, name):
    _, _, trials = study

    assert trials[NUMBER[name]]["loss"] is None


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("returns a float", 0.5),
        ("returns a dict", 0.25),
        ("returns a NumPy scalar", 1.5),
        ("returns bytes of a file name", 1.0),
        ("works after all that", 0.75),
    ],
)
def test_a_loss_is_kept_exactly(study, name, loss):
    _, _, trials = study

    trial = trials[NUMBER[name]]

    assert (trial["state"], trial["loss"], trial["error"]) == ("completed", loss, None)


def test_no_failure_takes_more_than_its_own_trial(study):
    _, _, trials = study

    assert {name: trials[NUMBER[name]]["attempts"] for name in BEHAVIOURS} == dict.fromkeys(BEHAVIOURS, 1)


def test_a_segmentation_fault_leaves_its_stack_in_the_log(study):
    project, _, _ = study

    shown = project.hpo("show", "study", NUMBER["segfaults"])

    assert "log.txt" in shown.stdout, shown


def test_an_exception_of_the_objective_is_one_line_on_the_drivers_screen(study):
    _, result, _ = study

    assert "trial 3 failed (exception): ValueError: no layers (study.py:" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_study_without_a_success_ends_with_exit_code_3(project, hpo):
    project.write("def objective(params): raise ValueError('never')")

    result = hpo("optimize", "study.py", "--max-evals", 2, "--tracking-uri", "none", "--json")

    assert result.code == 3, str(result)
    assert result.json["best"] is None
    assert result.json["trials"] == {"completed": 0, "pruned": 0, "failed": 2}
    assert "hpo show study" in result.stderr


def test_a_study_that_keeps_failing_stops_with_exit_code_4(project, hpo):
    project.write("def objective(params): raise ValueError('never')")

    result = hpo("optimize", "study.py", "--max-evals", 50, "--max-failures", 0.5, "--tracking-uri", "none")

    assert result.code == 4, str(result)
    assert len(project.trials()) == 10
    assert "continue: hpo optimize study.py" in result.stderr


def test_failures_from_before_count_towards_max_evals(project, hpo):
    project.write("def objective(params): raise ValueError('never')")
    hpo("optimize", "study.py", "--max-evals", 2, "--tracking-uri", "none")
    project.write("def objective(params): return params['x']")

    result = hpo("optimize", "study.py", "--max-evals", 3, "--tracking-uri", "none", "--json")

    assert result.code == 0, str(result)
    assert result.json["trials"] == {"completed": 1, "pruned": 0, "failed": 2}


def test_an_objective_that_raises_keyboard_interrupt_has_failed(project, hpo):
    project.write("def objective(params): raise KeyboardInterrupt")

    result = hpo("optimize", "study.py", "--max-evals", 1, "--timeout", "15s", "--tracking-uri", "none")

    assert result.code == 3, str(result)
    [trial] = project.trials().values()
    assert trial["state"] == "failed"


# --- a silent objective


def test_a_trial_that_holds_the_interpreter_beyond_the_lease_keeps_its_claim(project, hpo):
    project.write(
        """
        import ctypes

        def objective(params):
            ctypes.PyDLL(None).sleep(7)  # PyDLL does not release the GIL
            return 1.0
        """
    )

    result = hpo("optimize", "study.py", "--max-evals", 1, "--lease", "2s", "--tracking-uri", "none")

    assert result.code == 0, str(result)
    [trial] = project.trials().values()
    assert (trial["state"], trial["attempts"]) == ("completed", 1)


# --- deaths of workers


def test_a_trial_whose_worker_dies_runs_again_once(project, hpo):
    project.write(
        """
        import os

        def objective(params, run):
            if run.number == 0 or run.attempt == 1:
                os._exit(7)
            return 1.0
        """
    )

    result = hpo("optimize", "study.py", "--max-evals", 2, "--tracking-uri", "none")

    assert result.code == 0, str(result)
    trials = project.trials()
    assert (trials[0]["state"], trials[0]["attempts"]) == ("failed", 2)
    assert trials[0]["error"]["kind"] == "exit_code"
    assert (trials[1]["state"], trials[1]["attempts"]) == ("completed", 2)


def test_a_worker_killed_from_outside_costs_no_trial(project, until):
    project.write(
        """
        import time

        def objective(params, run):
            while run.number == 1 and run.attempt == 1:
                time.sleep(0.01)
            return params["x"]
        """
    )
    command = project.start("optimize", "study.py", "--max-evals", 3, "--tracking-uri", "none", "--json")
    running = until(
        lambda: next((t for t in project.trials().values() if t["state"] == "running" and t["number"]), None),
        "trial 1 to run",
    )

    os.kill(int(running["worker"].rpartition(":")[2]), signal.SIGKILL)

    result = command.result()
    assert result.code == 0, str(result)
    trials = project.trials()
    assert [trials[n]["attempts"] for n in range(3)] == [1, 2, 1]
    assert {trial["state"] for trial in trials.values()} == {"completed"}
    assert trials[1]["params"] == running["params"]
    assert trials[1]["worker"] != running["worker"]


def test_what_a_killed_worker_has_started_dies_with_it(project, until, is_alive):
    project.write(
        """
        import subprocess
        from pathlib import Path

        def objective(params, run):
            if run.attempt == 2:
                return 1.0
            child = subprocess.Popen(["sleep", "600"])
            Path("child").write_text(str(child.pid))
            child.wait()
        """
    )
    command = project.start("optimize", "study.py", "--max-evals", 1, "--tracking-uri", "none")
    child = project.folder / "child"
    until(lambda: child.exists() and child.read_text(), "the objective to start its child")
    [running] = project.trials().values()

    os.kill(int(running["worker"].rpartition(":")[2]), signal.SIGKILL)

    assert command.result().code == 0
    until(lambda: not is_alive(int(child.read_text())), "the child to die")


def test_the_death_of_a_keeper_costs_no_trial(project, until):
    project.write(
        """
        import time
        from pathlib import Path

        def objective(params, run):
            Path("started").touch()
            while not Path("gate").exists():
                time.sleep(0.01)
            return params["x"]
        """
    )
    command = project.start("optimize", "study.py", "--max-evals", 3, "--tracking-uri", "none")
    until((project.folder / "started").exists, "a trial to run")
    [keeper] = [process for process in command.descendants() if "hpo.keeper" in process.cmdline()]

    keeper.kill()
    (project.folder / "gate").touch()

    result = command.result()
    assert result.code == 0, str(result)
    assert {(t["state"], t["attempts"]) for t in project.trials().values()} == {("completed", 1)}


@pytest.mark.parametrize("place", ["run.directory", "'.'"])
def test_checkpoints_survive_the_death_of_the_worker_wherever_the_objective_goes(project, hpo, place):
    project.write(
        f"""
        import os

        def objective(params, run):
            checkpoint = run.checkpoint_directory / "epoch.txt"
            start = int(checkpoint.read_text()) + 1 if checkpoint.exists() else 0
            os.chdir({place})
            for epoch in range(start, 4):
                checkpoint.write_text(str(epoch))
                run.report(epoch, 1.0 / (epoch + 1))
                if epoch == 1:
                    os._exit(1)
            return float(start)
        """
    )

    result = hpo("optimize", "study.py", "--max-evals", 1, "--tracking-uri", "none")

    assert result.code == 0, str(result)
    [trial] = project.trials().values()
    assert (trial["loss"], trial["attempts"], trial["epochs"]) == (2.0, 2, 4)


def test_checkpoints_are_gone_when_the_trial_has_ended(project, hpo):
    project.write(
        """
        def objective(params, run):
            (run.checkpoint_directory / "weights.bin").write_bytes(bytes(1000))
            run.report(0, 1.0)
            return 1.0
        """
    )

    hpo("optimize", "study.py", "--max-evals", 1, "--tracking-uri", "none")

    assert "weights.bin" not in hpo("show", "study", 0).stdout


# --- files and prints


NOISE = """
import os, subprocess, sys

def objective(params, run):
    (run.directory / "plots").mkdir()
    (run.directory / "plots" / "roc.svg").write_text("<svg/>")
    print("noise of print")
    print("noise of stderr", file=sys.stderr)
    os.write(1, b"noise of C\\n")
    subprocess.run(["echo", "noise of a child"])
    return 1.0
"""


def test_artifacts_and_the_log_are_kept(project, hpo):
    project.write(NOISE)

    hpo("optimize", "study.py", "--max-evals", 1, "--tracking-uri", "none")

    files = project.files("study", 0)
    assert "artifacts/plots/roc.svg (6 bytes)" in files
    assert "log.txt (" in files


def test_prints_go_to_the_log_and_not_to_the_drivers_screen(project, hpo):
    project.write(NOISE)

    result = hpo("optimize", "study.py", "--max-evals", 1, "--tracking-uri", "none", "--json")

    assert result.json["trials"]["completed"] == 1
    assert "noise" not in result.stdout + result.stderr
    kept = [path.read_bytes() for path in (project.folder / "hpo.db.files" / "blobs").glob("??/*")]
    [log] = [content for content in kept if b"noise of print" in content]
    lines = sorted(log.decode().splitlines())
    assert lines == ["noise of C", "noise of a child", "noise of print", "noise of stderr"]


def test_the_log_of_a_dead_worker_is_kept(project, hpo):
    project.write(
        """
        import os

        def objective(params):
            print("last words", flush=True)
            os._exit(1)
        """
    )

    hpo("optimize", "study.py", "--max-evals", 1, "--retries", 0, "--tracking-uri", "none")

    assert project.files("study", 0) == "files: log.txt (11 bytes)"


def test_the_log_of_a_trial_that_timed_out_is_kept(project, hpo):
    project.write(
        """
        import time

        def objective(params):
            print("last words", flush=True)
            time.sleep(600)
        """
    )

    hpo("optimize", "study.py", "--max-evals", 1, "--trial-timeout", "1s", "--tracking-uri", "none")

    assert project.files("study", 0) == "files: log.txt (11 bytes)"


def test_a_trial_leaves_the_process_to_the_next_one_as_it_was(project, hpo):
    project.write(
        """
        import json, os, sys

        def objective(params, run):
            seen = [os.getpid(), os.getcwd(), os.environ.get("LEFTOVER"), sys.stdout.closed]
            print(json.dumps(seen))
            os.chdir(run.directory)
            os.environ["LEFTOVER"] = "1"
            return {"loss": 1.0, "seen": json.dumps(seen)}
        """
    )

    hpo("optimize", "study.py", "--max-evals", 2, "--tracking-uri", "none")

    first, second = (
        json.loads(line.split(maxsplit=1)[1])
        for number in (0, 1)
        for line in hpo("show", "study", number).stdout.splitlines()
        if line.startswith("result.seen")
    )
    assert first == second
    assert first[1:] == [str(project.folder), None, False]
