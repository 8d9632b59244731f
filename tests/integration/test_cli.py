"""The command line: what it accepts, prints, refuses, and the codes it ends with."""

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

QUICK = ("--tracking-uri", "none")
GOOD = "def objective(params): return params['x']"

# Writes what a trial sees of its process to seen-NUMBER.json in the user's folder.
SEES = """
    import json, os
    from pathlib import Path

    def see(run):
        names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
        seen = {"pid": os.getpid(), "gpus": run.gpus, **{name: os.environ.get(name) for name in names}}
        Path(f"seen-{run.number}.json").write_text(json.dumps(seen))
"""


def sees(more: str) -> str:
    return f"{SEES}\n{more}"


def seen(project, number):
    return json.loads((project.folder / f"seen-{number}.json").read_text())


def lines_of(result, start):
    return [line for line in result.stderr.splitlines() if line.startswith(start)]


# --- the document of --json


def test_the_document_names_study_store_counts_best_and_mlflow(project, hpo):
    project.write(GOOD)

    result = hpo("optimize", "study.py", "--max-evals", 2, "--json")

    assert result.code == 0, str(result)
    document = result.json
    assert list(document) == ["study", "store", "trials", "best", "mlflow"]
    assert document["study"] == "study"
    assert document["store"] == "sqlite:///hpo.db"
    assert document["trials"] == {"completed": 2, "pruned": 0, "failed": 0}
    assert list(document["best"]) == ["trial", "loss", "params"]
    assert document["best"]["params"] == {"x": document["best"]["loss"]}
    assert list(document["mlflow"]) == ["tracking_uri", "experiment_id", "run_id"]
    assert "mlflow.db" in document["mlflow"]["tracking_uri"]
    assert (project.folder / "mlflow.db").exists()
    assert "MLflow:   hpo ui" in result.stderr


def test_without_mlflow_the_document_says_null(project, hpo):
    project.write(GOOD)

    result = hpo("optimize", "study.py", "--max-evals", 1, *QUICK, "--json")

    assert result.json["mlflow"] is None
    assert not (project.folder / "mlflow.db").exists()


def test_a_tracking_server_that_does_not_answer_at_the_start_is_an_error(project, hpo):
    project.write(GOOD)

    result = hpo("optimize", "study.py", "--max-evals", 1, "--tracking-uri", "http://127.0.0.1:9")

    assert result.code == 5, str(result)
    assert "http://127.0.0.1:9" in result.stderr
    assert "hint: " in result.stderr


def test_without_json_all_is_on_standard_error(project, hpo):
    project.write(GOOD)

    result = hpo("optimize", "study.py", "--max-evals", 1, *QUICK)

    assert result.stdout == ""
    assert "best: trial 0, loss " in result.stderr
    assert "trials:   hpo show study" in result.stderr
    assert "continue:" not in result.stderr  # it is done


def test_the_study_timeout_hands_trials_back_and_ends_with_exit_code_124(project, hpo):
    project.write(
        """
        import time

        def objective(params, run):
            while run.number:
                time.sleep(0.01)
            return params["x"]
        """
    )

    # Long enough for a worker to start and run the first trial, also where much else runs.
    result = hpo("optimize", "study.py", "--timeout", "10s", *QUICK, "--json")

    assert result.code == 124, str(result)
    assert result.json["trials"] == {"completed": 1, "pruned": 0, "failed": 0}
    assert "continue: hpo optimize study.py --timeout 10s" in result.stderr
    assert {number: trial["state"] for number, trial in project.trials().items()} == {
        0: "completed",
        1: "waiting",
    }


# --- continuing


def test_a_study_that_is_done_stays_as_it_is_until_max_evals_grows(project, hpo):
    project.write(GOOD)
    hpo("optimize", "study.py", "--max-evals", 2, *QUICK)
    done = project.trials()

    again = hpo("optimize", "study.py", "--max-evals", 2, *QUICK, "--json")
    still = project.trials()
    more = hpo("optimize", "study.py", "--max-evals", 4, *QUICK)
    grown = project.trials()

    assert again.code == 0, str(again)
    assert again.json["best"]["loss"] == min(trial["loss"] for trial in done.values())
    assert still == done
    assert more.code == 0, str(more)
    assert "continuing study study" in more.stderr
    assert sorted(grown) == [0, 1, 2, 3]
    assert {number: grown[number] for number in done} == done


def test_a_study_continued_has_the_points_of_one_that_ran_through(project, hpo):
    project.write(GOOD)
    common = ("optimize", "study.py", "--seed", 7, *QUICK)
    hpo(*common, "--study", "whole", "--max-evals", 14)

    hpo(*common, "--study", "parts", "--max-evals", 12)
    hpo(*common, "--study", "parts", "--max-evals", 14)

    whole, parts = project.trials("whole"), project.trials("parts")
    assert [whole[n]["params"] for n in range(14)] == [parts[n]["params"] for n in range(14)]


def test_a_seed_that_was_not_asked_for_is_kept_with_the_study(project, hpo):
    project.write(GOOD)
    first = hpo("optimize", "study.py", "--max-evals", 1, *QUICK)

    second = hpo("optimize", "study.py", "--max-evals", 2, *QUICK)

    [new], [continued] = lines_of(first, "new study"), lines_of(second, "continuing study")
    assert "seed " in new
    assert new.partition("seed ")[2] == continued.partition("seed ")[2]


def test_changed_code_is_warned_of_and_run(project, hpo):
    project.write(GOOD)
    hpo("optimize", "study.py", "--max-evals", 1, *QUICK)
    project.write("def objective(params): return -1.0")

    result = hpo("optimize", "study.py", "--max-evals", 2, *QUICK)

    assert result.code == 0, str(result)
    assert lines_of(result, "warning: ") == [
        "warning: the code has changed since this study last ran: study.py"
    ]
    assert project.trials()[1]["loss"] == -1.0


def test_a_running_study_does_not_see_changes_of_the_code(project, until):
    project.write(
        """
        import os, time
        from pathlib import Path

        def objective(params, run):
            if run.number == 0:
                Path("started").touch()
                while not Path("gate").exists():
                    time.sleep(0.01)
                os._exit(1)  # a new worker loads the code again
            return 1.0
        """
    )
    command = project.start("optimize", "study.py", "--max-evals", 2, "--retries", 0, *QUICK)
    until((project.folder / "started").exists, "a trial to run")

    project.write("def objective(params): return 2.0")
    (project.folder / "gate").touch()

    assert command.result().code == 0
    assert project.trials()[1]["loss"] == 1.0


# --- identity


IDENTITY = """
def objective(params, *, epochs=3, data='/d'):
    return params['x'] * epochs

def other(params, *, epochs=3):
    return params['x']
"""


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        (("study.py", "--seed", 2), "seed: 1 -> 2"),
        (("study.py", "--algo", "random"), "algorithm: auto -> random"),
        (("study.py", "--set", "epochs=6"), "--set epochs: 5 -> 6"),
        (("study.py",), "--set epochs: 5 -> its default"),
        (("study.py", "--set", "epochs=5", "--set", "data=/e"), "--set data: its default -> /e"),
        (("study.py", "--set", "epochs=5", "--set", "x=0.5"), "x: searched -> fixed at 0.5"),
        (("study.py:other", "--set", "epochs=5"), "entry point: study.py:objective -> study.py:other"),
    ],
)
def test_a_study_of_another_identity_is_refused_with_the_difference(kept_study, options, difference):
    project, before = kept_study

    result = project.hpo("optimize", *options, "--study", "study", "--max-evals", 2, *QUICK)

    assert result.code == 2, str(result)
    assert result.stderr.startswith("StudyChanged: study 'study' exists with another identity:\n")
    assert f"  {difference}\n" in result.stderr
    assert "--study" in result.stderr
    assert project.trials() == before


@pytest.fixture(scope="module")
def kept_study(make_project):
    project = make_project()
    project.write(IDENTITY)
    done = project.hpo("optimize", "study.py", "--seed", 1, "--set", "epochs=5", "--max-evals", 1, *QUICK)
    assert done.code == 0, str(done)
    return project, project.trials()


def test_all_differences_are_one_report(kept_study):
    project, _ = kept_study

    result = project.hpo("optimize", "study.py", "--seed", 2, "--algo", "random", "--max-evals", 2, *QUICK)

    assert {line.strip() for line in result.stderr.splitlines()} >= {
        "seed: 1 -> 2",
        "algorithm: auto -> random",
        "--set epochs: 5 -> its default",
    }


@pytest.mark.parametrize(
    ("space", "difference"),
    [
        ("{'x': hp.uniform('x', 0, 2)}", "x: uniform(0, 1) -> uniform(0, 2)"),
        ("{'x': hp.uniform('x', 0, 1), 'y': hp.normal('y', 0, 1)}", "added: y normal(0, 1)"),
        ("{'x': hp.uniform('z', 0, 1)}", "removed: x uniform(0, 1)"),
    ],
)
def test_a_changed_space_is_refused_with_the_difference(project, hpo, space, difference):
    project.write(GOOD)
    hpo("optimize", "study.py", "--max-evals", 1, *QUICK)
    project.write(GOOD, space=space)

    result = hpo("optimize", "study.py", "--max-evals", 2, *QUICK)

    assert result.code == 2, str(result)
    assert f"  {difference}\n" in result.stderr


def test_another_study_has_its_own_identity(project, hpo):
    project.write(GOOD)
    hpo("optimize", "study.py", "--seed", 1, "--max-evals", 1, *QUICK)

    result = hpo("optimize", "study.py", "--seed", 2, "--study", "again", "--max-evals", 1, *QUICK)

    assert result.code == 0, str(result)
    assert {study["study"] for study in hpo("show", "--json").json} == {"study", "again"}


def test_a_file_called_space_gives_the_study_its_folders_name(project, hpo):
    (project.folder / "mnist").mkdir()
    project.write(GOOD, name="mnist/space.py")

    result = hpo("optimize", "mnist/space.py", "--max-evals", 1, *QUICK, "--json")

    assert result.json["study"] == "mnist"


# --- --set


def test_set_fixes_parameters_by_their_values_and_arguments(project, hpo):
    project.write(
        """
        def objective(params, *, epochs, data: str):
            assert (epochs, data) == (3, "17"), (epochs, data)
            return params["x"]
        """,
        space="{'x': hp.uniform('x', 0, 1), 'net': hp.choice('net', ['small', {'layers': 3}]), "
        "'lr': hp.loguniform('lr', -5, 0)}",
    )
    settings = ("--set", "epochs=3", "--set", "data=17", "--set", "net=small", "--set", "lr=0.1")

    result = hpo("optimize", "study.py", "--max-evals", 2, *settings, *QUICK, "--json")

    assert result.code == 0, str(result)
    assert result.json["trials"]["completed"] == 2, str(hpo("show", "study"))
    params = [trial["params"] for trial in project.trials().values()]
    assert [(p["net"], p["lr"]) for p in params] == [("small", 0.1)] * 2
    assert params[0]["x"] != params[1]["x"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("epoch=3",), ["--set epoch: neither a label", "did you mean epochs?", "labels: x"]),
        (("epochs",), ["--set epochs: no KEY=VALUE"]),
        (("epochs=1", "x=7"), ["x", "7"]),
        (("epochs=1", "epochs=2"), ["--set names epochs twice"]),
        ((), ["study.py:objective needs epochs", "--set epochs="]),
    ],
)
def test_a_setting_that_can_not_be_is_a_usage_error(project, hpo, settings, words):
    project.write("def objective(params, *, epochs): return params['x']")
    options = [word for setting in settings for word in ("--set", setting)]

    result = hpo("optimize", "study.py", "--max-evals", 1, *options, *QUICK)

    assert_refused(project, result, words)


def assert_refused(project, result, words, code=2):
    """A fact, mostly a hint, no traceback, and nothing made."""
    assert result.code == code, str(result)
    assert [word for word in words if word not in result.stderr] == [], str(result)
    assert "Traceback" not in result.stderr
    assert "internal error" not in result.stderr
    assert result.stdout == ""
    assert not (project.folder / "hpo.db").exists()


# --- the file


@pytest.mark.parametrize(
    ("name", "source", "words"),
    [
        ("studi.py", None, ["there is no file studi.py", "did you mean study.py?"]),
        (".", None, [". is a folder", "study.py"]),
        ("notes.txt", "hello", ["notes.txt is no Python file"]),
        ("torn.py", "def objective(params:\n", ["torn.py, line 1", "def objective(params:"]),
        ("needs.py", "import no_such_module", ["not installed: no_such_module", "pip install"]),
        ("fails.py", "1 / 0", ["fails.py failed: ZeroDivisionError", "(fails.py:1)"]),
        ("quits.py", "raise SystemExit(0)", ["quits.py failed: SystemExit"]),
        ("spaceless.py", "def objective(params): pass", ["has no `space`", "it has objective", "hp."]),
        ("aimless.py", "from hyperopt import hp\nspace = hp.uniform('x', 0, 1)", ["has no `objective`"]),
        ("numeric.py", "space = 1\nobjective = 3", ["numeric.py:objective is a int, no function"]),
        ("study.py:missing", None, ["has no `missing`", "objective"]),
    ],
)
def test_a_file_that_can_not_be_used_is_a_usage_error(project, hpo, name, source, words):
    project.write(GOOD)
    if source is not None:
        (project.folder / name).write_text(source)

    result = hpo("optimize", name, "--max-evals", 1, *QUICK)

    assert_refused(project, result, words)
    assert "hint: " in result.stderr


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ("{'x': hp.uniform('x', 2, 1)}", ["2 is not smaller than 1", "(study.py:3)"]),
        ("{'x': hp.uniform('x', 0, 1), 'y': hp.normal('x', 0, 1)}", ["SpaceError", "x"]),
        ("{'x': hp.quniform('x', 0, 1, 0)}", ["SpaceError", "x"]),
        ("{'x': 3}", ["SpaceError"]),
    ],
)
def test_a_space_that_can_not_be_searched_is_a_usage_error(project, hpo, space, words):
    project.write(GOOD, space=space)

    result = hpo("optimize", "study.py", "--max-evals", 1, *QUICK)

    assert_refused(project, result, words)


def test_a_traceback_is_shown_when_asked_for(project, hpo):
    project.write("1 / 0")

    result = hpo("optimize", "study.py", "--max-evals", 1, "--debug", *QUICK)

    assert result.code == 2, str(result)
    assert "Traceback" in result.stderr
    assert "LoadError: study.py failed: ZeroDivisionError" in result.stderr


# --- options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), ["--max-evals 100", "--timeout 2h"]),
        (("--max-evals", 0), ["--max-evals"]),
        (("--timeout", "soon"), ["'soon' is no duration"]),
        (("--timeout", "0s"), ["more than zero"]),
        (("--max-evals", 1, "--workers", 3, "--gpus", "0,1"), ["--workers 3 does not match --gpus 0,1"]),
        (("--max-evals", 1, "--gpus", "0,,1"), ["--gpus 0,,1: '' names no GPU"]),
        (("--max-evals", 1, "--inline", "--workers", 2), ["--inline"]),
        (("--max-evals", 1, "--algo", "simplex"), ["simplex", "tpe"]),
        (("--max-evals", 1, "--study", "a/b"), ["'a/b' can't name a study"]),
        (("--max-evals", 1, "--max-failures", 2), ["--max-failures"]),
        (("--max-evals", 1, "--bogus"), ["--bogus"]),
    ],
)
def test_options_that_can_not_be_are_usage_errors(project, hpo, options, words):
    project.write(GOOD)

    result = hpo("optimize", "study.py", *options, *QUICK)

    assert_refused(project, result, words)


@pytest.mark.parametrize("store", ["postgres://lab/hpo", "hpo.db"])
def test_a_store_address_that_nobody_serves_is_a_usage_error(project, hpo, store):
    project.write(GOOD)

    result = hpo("optimize", "study.py", "--max-evals", 1, "--store", store, *QUICK)

    assert_refused(project, result, [store, "sqlite:///"])


# --- what trials see


BARRIER = sees(
    """
    import time

    def objective(params, run):
        see(run)
        while len(list(Path(".").glob("seen-*.json"))) < 2:  # until the other worker has one, too
            time.sleep(0.01)
        return params["x"]
    """
)


def test_each_worker_has_its_own_gpus(project, hpo):
    project.write(BARRIER)

    result = hpo("optimize", "study.py", "--max-evals", 2, "--gpus", "0+1,2+3", *QUICK)

    assert result.code == 0, str(result)
    assert "2 workers" in result.stderr
    both = [seen(project, number) for number in (0, 1)]
    assert sorted(s["CUDA_VISIBLE_DEVICES"] for s in both) == ["0,1", "2,3"]
    assert all(",".join(s["gpus"]) == s["CUDA_VISIBLE_DEVICES"] for s in both)


def test_two_workers_can_share_a_gpu(project, hpo):
    project.write(BARRIER)

    result = hpo("optimize", "study.py", "--max-evals", 2, "--gpus", "0,0", *QUICK)

    assert result.code == 0, str(result)
    both = [seen(project, number) for number in (0, 1)]
    assert [s["CUDA_VISIBLE_DEVICES"] for s in both] == ["0", "0"]
    assert both[0]["pid"] != both[1]["pid"]


@pytest.mark.parametrize("workers", [1, 2])
def test_each_worker_has_its_share_of_the_cores(project, hpo, workers):
    project.write(sees("\n    def objective(params, run): see(run); return params['x']"))
    share = str(max(1, len(os.sched_getaffinity(0)) // workers))

    result = hpo(
        *("optimize", "study.py", "--max-evals", 1, "--workers", workers, *QUICK),
        env={"OMP_NUM_THREADS": None, "MKL_NUM_THREADS": None},
    )

    assert result.code == 0, str(result)
    assert seen(project, 0)["OMP_NUM_THREADS"] == share
    assert seen(project, 0)["MKL_NUM_THREADS"] == share


def test_threads_and_devices_that_the_user_has_set_stay(project, hpo):
    project.write(sees("\n    def objective(params, run): see(run); return params['x']"))

    hpo(
        *("optimize", "study.py", "--max-evals", 1, *QUICK),
        env={"OMP_NUM_THREADS": "17", "CUDA_VISIBLE_DEVICES": "5"},
    )

    assert seen(project, 0)["OMP_NUM_THREADS"] == "17"
    assert seen(project, 0)["CUDA_VISIBLE_DEVICES"] == "5"
    assert seen(project, 0)["gpus"] == []


def test_a_worker_is_kept_between_trials_unless_isolated(project, hpo):
    project.write(sees("\n    def objective(params, run): see(run); return params['x']"))
    common = ("optimize", "study.py", "--max-evals", 2, *QUICK)

    hpo(*common, "--study", "kept")
    kept = [seen(project, number)["pid"] for number in (0, 1)]
    hpo(*common, "--study", "isolated", "--isolate")
    isolated = [seen(project, number)["pid"] for number in (0, 1)]

    assert len(set(kept)) == 1
    assert len(set(isolated)) == 2


def test_inline_runs_trials_in_the_process_of_the_command(project):
    project.write(sees("\n    def objective(params, run): see(run); return params['x']"))

    command = project.start("optimize", "study.py", "--max-evals", 2, "--inline", *QUICK)

    assert command.result().code == 0
    assert [seen(project, number)["pid"] for number in (0, 1)] == [command.pid] * 2


def test_inline_leaves_standard_output_to_the_document(project, hpo):
    project.write("def objective(params): print('epoch 1'); return params['x']")

    result = hpo("optimize", "study.py", "--max-evals", 1, "--inline", *QUICK, "--json")

    assert result.code == 0, str(result)
    assert result.json["trials"]["completed"] == 1


def test_code_beside_the_file_and_at_the_root_can_be_imported(project, hpo):
    (project.folder / "spaces").mkdir()
    (project.folder / "spaces" / "beside.py").write_text("TWO = 2")
    (project.folder / "lib").mkdir()
    (project.folder / "lib" / "__init__.py").write_text("")
    (project.folder / "lib" / "train.py").write_text("THREE = 3")
    (project.folder / "data.csv").write_text("5")
    project.write(
        """
        from pathlib import Path
        from beside import TWO
        from lib.train import THREE

        def objective(params): return TWO * THREE * float(Path("data.csv").read_text())
        """,
        name="spaces/study.py",
    )

    result = hpo("optimize", "spaces/study.py", "--max-evals", 1, *QUICK, "--json")

    assert result.code == 0, str(result)
    assert result.json["best"]["loss"] == 30.0


# --- show, best, space


@pytest.fixture(scope="module")
def shown(make_project):
    """A project with a study of five trials: losses 4, 3, 2, 1 and a failure; and a study without trials."""
    project = make_project()
    project.write(
        """
        def objective(params, run):
            run.report(0, 10.0, accuracy=0.5)
            run.report(1, 9.0, accuracy=0.625)
            if run.number == 4:
                raise ValueError("[bold]no[/bold]")
            (run.directory / "notes.txt").write_text("hello")
            return {"loss": 4.0 - run.number, "epoch_time": {"epochs": 2}, "note": "[red]é[/red]"}
        """,
        space="{'x': hp.uniform('x', 0, 1), 'net': {'layers': hp.randint('layers', 1, 9)}, "
        "'tag': hp.choice('tag', ['é', '中'])}",
    )
    done = project.hpo("optimize", "study.py", "--max-evals", 5, "--seed", 1, *QUICK)
    assert done.code == 0, str(done)
    return project


def numbers(result):
    """The first column of the table of trials."""
    rows = [line.split() for line in result.stdout.splitlines()]
    return [int(row[0]) for row in rows if row[1:2] in (["completed"], ["failed"])]


def test_show_lists_the_studies(shown):
    table, document = shown.hpo("show"), shown.hpo("show", "--json")

    assert table.stdout.split()[:2] == ["study", "completed"]
    assert [(s["study"], s["completed"], s["failed"], s["best"]) for s in document.json] == [
        ("study", 4, 1, 1.0)
    ]


def test_show_study_is_a_list_of_trials_with_exactly_these_fields(shown):
    trials = shown.hpo("show", "study", "--json").json

    fields = "number state loss params epochs started seconds worker attempts epoch_time error"
    assert [list(trial) for trial in trials] == [fields.split()] * 5
    best = trials[0]
    assert (best["number"], best["state"], best["loss"], best["epochs"]) == (3, "completed", 1.0, 2)
    assert set(best["params"]) == {"x", "net", "tag"}
    assert best["started"].endswith("+00:00")
    assert 0 <= best["seconds"] < 60
    assert best["epoch_time"] == {"epochs": 2}
    assert best["error"] is None
    failed = trials[-1]
    assert (failed["number"], failed["state"], failed["loss"]) == (4, "failed", None)
    assert failed["error"] == {
        "kind": "exception",
        "reason": "ValueError: [bold]no[/bold] (study.py:10)",
    }


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        ("loss", [3, 2, 1, 0, 4]),
        ("-loss", [0, 1, 2, 3, 4]),
        ("number", [0, 1, 2, 3, 4]),
        ("-number", [4, 3, 2, 1, 0]),
        ("started", [0, 1, 2, 3, 4]),
        ("state", [0, 1, 2, 3, 4]),
    ],
)
def test_show_sorts_by_a_column(shown, sort, order):
    table, document = (shown.hpo("show", "study", "--sort", sort, *more) for more in ((), ("--json",)))

    assert numbers(table) == order
    assert [trial["number"] for trial in document.json] == order


@pytest.mark.parametrize("sort", ["x", "net.layers", "seconds"])
def test_show_sorts_by_parameters_and_durations_both_ways(shown, sort):
    def key(trial):
        return {**trial, **trial["params"], "net.layers": trial["params"]["net"]["layers"]}[sort]

    up = [key(trial) for trial in shown.hpo("show", "study", "--sort", sort, "--json").json]
    down = [key(trial) for trial in shown.hpo("show", "study", "--sort", f"-{sort}", "--json").json]

    assert len(set(up)) > 1
    assert up == sorted(up)
    assert down == sorted(up, reverse=True)


def test_show_refuses_an_unknown_column_and_names_the_known(shown):
    result = shown.hpo("show", "study", "--sort", "speed")

    assert result.code == 2, str(result)
    assert "--sort speed" in result.stderr
    assert "net.layers" in result.stderr


def test_show_limits_the_table_and_says_what_it_left_out(shown):
    result = shown.hpo("show", "study", "--limit", 2)

    assert numbers(result) == [3, 2]
    assert "\n3 more: --all, or --limit N\n" in result.stdout
    assert numbers(shown.hpo("show", "study", "--all")) == [3, 2, 1, 0, 4]


def test_show_trial_tells_all_about_it(shown):
    result = shown.hpo("show", "study", 3)

    assert result.code == 0, str(result)
    rows = [line.split(maxsplit=1) for line in result.stdout.splitlines()]
    lines = {row[0]: row[1] for row in rows if len(row) == 2}
    assert lines["trial"] == "3 of study"
    assert lines["state"] == "completed"
    assert lines["loss"] == "1"
    assert lines["attempts"] == "1"
    assert lines["net.layers"].isdigit()
    assert lines["result.note"] == "[red]é[/red]"
    assert lines["epoch"].split() == ["loss", "accuracy", "time/epoch_seconds"]
    assert lines["1"].split()[:2] == ["9", "0.625"]
    assert "artifacts/notes.txt (5 bytes)" in lines["files:"]


def test_show_trial_tells_why_it_failed(shown):
    result = shown.hpo("show", "study", 4)

    assert "ValueError: [bold]no[/bold] (study.py:10)" in result.stdout


def test_best_prints_the_best_trial(shown):
    text, document = shown.hpo("best", "study"), shown.hpo("best", "study", "--json").json

    assert list(document) == ["trial", "loss", "params"]
    assert (document["trial"], document["loss"]) == (3, 1.0)
    assert text.stdout.splitlines()[0] == "trial 3, loss 1"
    assert f"net.layers = {document['params']['net']['layers']}" in text.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("show", "studi"), ["no study 'studi'", "its studies: study"]),
        (("best", "studi"), ["no study 'studi'"]),
        (("show", "study", 99), ["no trial 99"]),
        (("show", "study", "best"), ["best"]),
        (("mlflow", "sync", "studi"), ["no study 'studi'"]),
    ],
)
def test_an_unknown_study_or_trial_is_a_usage_error(shown, arguments, words):
    result = shown.hpo(*arguments)

    assert result.code == 2, str(result)
    assert all(word in result.stderr for word in words), str(result)


@pytest.mark.parametrize("command", ["show", "best", "ui"])
def test_reading_makes_no_store(project, hpo, command):
    result = hpo(command, *(["study"] if command == "best" else []))

    assert_refused(project, result, ["there is no store at", "/hpo.db", "hpo optimize"], code=5)


def test_best_of_a_study_without_a_success_ends_with_exit_code_3(project, hpo):
    project.write("def objective(params): return None")
    hpo("optimize", "study.py", "--max-evals", 1, *QUICK)

    result = hpo("best", "study")

    assert result.code == 3, str(result)
    assert "hpo show study" in result.stderr


ODD = ["[red]alarm[/red]", "[/]", ":smile:", "naïve 中文 🙂", "a\\[b]", "http://a/b?c=d#e", "x" * 10_000]


@pytest.fixture(scope="module")
def odd(make_project):
    """A study with one trial, whose parameters are texts that a table might take for something else."""
    project = make_project()
    project.write(
        "def objective(params): return 0.0",
        space="{"
        + "".join(f"'p{n}': {text!r}, " for n, text in enumerate(ODD))
        + "'c': hp.choice('c', [1, 2])}",
    )
    done = project.hpo("optimize", "study.py", "--max-evals", 1, *QUICK, "--json")
    assert done.code == 0, str(done)
    assert [done.json["best"]["params"][f"p{n}"] for n in range(len(ODD))] == ODD
    return project


@pytest.mark.parametrize("command", [("show", "study"), ("show", "study", 0), ("best", "study")])
@pytest.mark.parametrize("text", ODD, ids=lambda text: text[:20].encode("ascii", "replace").decode())
def test_texts_are_printed_as_they_are(odd, command, text):
    assert text in odd.hpo(*command).stdout


def test_texts_are_in_the_document_as_they_are(odd):
    [trial] = odd.hpo("show", "study", "--json").json

    assert [trial["params"][f"p{n}"] for n in range(len(ODD))] == ODD


@pytest.mark.parametrize("command", [("show", "study", 3), ("show", "study"), ("space", "study.py")])
def test_a_terminal_without_unicode_shows_what_it_can(shown, command):
    result = shown.hpo(*command, env={"PYTHONIOENCODING": "ascii"})

    assert result.code == 0, str(result)


def test_a_table_can_be_cut_short_by_its_reader(shown):
    reader = subprocess.run(
        f"{sys.executable} -m hpo show study --json | head -c 1",
        shell=True, executable="/bin/bash", cwd=shown.folder, capture_output=True, text=True,
    )  # fmt: skip

    assert reader.stdout == "["
    assert reader.stderr == ""


TREE = """{
    'lr': hp.loguniform('lr', 1e-4, 1),
    'net': hp.choice('net', [{'kind': 'mlp'}, {'kind': 'cnn', 'blocks': hp.randint('blocks', 2, 4)}]),
}"""


def test_space_draws_each_parameter_below_the_option_that_has_it(project, hpo):
    project.write(GOOD, space=TREE)

    result = hpo("space", "study.py")

    assert result.code == 0, str(result)
    lines = [line for line in result.stdout.splitlines() if not line.startswith("warning")]
    depth = {word: line.index(word) for word in ("lr:", "net:", "blocks:") for line in lines if word in line}
    assert depth["lr:"] == depth["net:"] < depth["blocks:"]
    assert "3 parameters, infinitely many points" in result.stdout


def test_space_warns_with_the_mend(project, hpo):
    project.write(GOOD, space=TREE)

    text, document = hpo("space", "study.py"), hpo("space", "study.py", "--json").json

    assert "warning: " in text.stdout
    [warning] = [w for w in document["warnings"] if w["label"] == "lr"]
    assert "np.log(" in warning["mend"].replace("math.log", "np.log")
    assert list(warning) == ["label", "message", "mend"]


def test_optimize_warns_of_the_space_before_the_first_trial(project, hpo):
    project.write("def objective(params): return params['lr']", space=TREE)

    result = hpo("optimize", "study.py", "--max-evals", 1, *QUICK)

    assert result.code == 0, str(result)
    warning, trial = result.stderr.index("warning: lr"), result.stderr.index("trial 0")
    assert warning < trial


def test_space_samples_what_the_objective_gets(project, hpo):
    project.write(GOOD, space=TREE)

    first = hpo("space", "study.py", "--sample", 20, "--json").json
    second = hpo("space", "study.py", "--sample", 20, "--json").json

    assert len(first["samples"]) == 20
    assert first == second
    assert {sample["net"]["kind"] for sample in first["samples"]} == {"mlp", "cnn"}
    assert all(("blocks" in s["net"]) == (s["net"]["kind"] == "cnn") for s in first["samples"])


# --- weight


HEAVY = {"numpy", "hyperopt", "mlflow", "scipy", "torch", "sqlalchemy", "keras"}


@pytest.mark.parametrize(
    "what",
    [
        "import hpo",
        "from hpo.cli import main; main(['--help'])",
        "from hpo.cli import main; main(['optimize', '--help'])",
        "from hpo.cli import main; main(['--version'])",
    ],
)
def test_help_and_import_load_nothing_heavy(tmp_path, what):
    script = f"""
import contextlib, sys
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(sys.stderr):
    {what}
print(*{{name.partition('.')[0] for name in sys.modules}})
"""

    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )

    loaded = set(done.stdout.split())
    assert "hpo" in loaded
    assert loaded & HEAVY == set()


@pytest.mark.parametrize(
    "command", [(), ("optimize",), ("show",), ("best",), ("space",), ("ui",), ("mlflow", "sync")]
)
def test_every_help_ends_in_an_example(project, hpo, command):
    result = hpo(*command, "--help")

    assert result.code == 0, str(result)
    assert "Example" in result.stdout
    assert result.stdout.splitlines()[-1].strip().startswith("hpo ")


# --- stores that can't be used


@pytest.fixture(scope="module")
def whole_store(make_project):
    """The bytes of a store with some trials, and the text of its space file."""
    project = make_project()
    project.write("def objective(params, run):\n    [run.report(e, 1.0) for e in range(20)]\n    return 1.0")
    done = project.hpo("optimize", "study.py", "--max-evals", 30, *QUICK)
    assert done.code == 0, str(done)
    assert not (project.folder / "hpo.db-wal").exists()
    return (project.folder / "hpo.db").read_bytes(), (project.folder / "study.py").read_text()


def _mlflow_like(path):
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript("CREATE TABLE alembic_version (v TEXT); CREATE TABLE runs (uuid TEXT);")


def _newer(path):
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")


def _cut(share):
    def cut(path):
        content = path.read_bytes()
        path.write_bytes(content[: share(len(content))])

    return cut


SPOILT = {
    "a text file": (lambda path: path.write_text("alpha\nbeta\n" * 50), "NotAStore", "not an SQLite file"),
    "a database of MLflow": (_mlflow_like, "NotAStore", "another program"),
    "an empty file": (lambda path: path.write_bytes(b""), "StoreDamaged", "empty"),
    "half of a store": (_cut(lambda size: size // 2 - 77), "StoreDamaged", "damaged"),
    "whole pages of a store": (_cut(lambda size: size // 8192 * 4096), "StoreDamaged", "damaged"),
    "the head of a store": (_cut(lambda size: 50), "StoreDamaged", "damaged"),
    "a store of a newer version": (_newer, "StoreNewer", "newer"),
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_file_that_is_no_sound_store_is_reported_and_left_alone(project, hpo, whole_store, what):
    content, source = whole_store
    spoil, name, word = SPOILT[what]
    (project.folder / "study.py").write_text(source)
    path = project.folder / "hpo.db"
    if what not in ("a database of MLflow",):
        path.write_bytes(content)
    spoil(path)
    before = path.read_bytes()

    result = hpo("optimize", "study.py", "--max-evals", 40, *QUICK)

    assert result.code == 5, str(result)
    assert result.stderr.startswith(f"{name}: ")
    assert "hpo.db" in result.stderr
    assert word in result.stderr
    assert "\nhint: " in result.stderr
    assert path.read_bytes() == before


@pytest.mark.parametrize("what", SPOILT)
def test_show_reports_a_file_that_is_no_sound_store_and_leaves_it_alone(project, hpo, whole_store, what):
    content, _ = whole_store
    spoil, name, _ = SPOILT[what]
    path = project.folder / "hpo.db"
    if what not in ("a database of MLflow",):
        path.write_bytes(content)
    spoil(path)
    before = path.read_bytes()

    result = hpo("show", "study")

    assert result.code == 5, str(result)
    assert result.stderr.startswith(f"{name}: ")
    assert path.read_bytes() == before


def test_a_folder_is_no_store(project, hpo):
    project.write(GOOD)
    (project.folder / "stores").mkdir()

    result = hpo("optimize", "study.py", "--max-evals", 1, "--store", "sqlite:///stores", *QUICK)

    assert_refused(project, result, ["stores is a folder", "/stores/hpo.db"], code=5)


def test_the_folder_of_a_store_must_exist(project, hpo):
    project.write(GOOD)

    result = hpo("optimize", "study.py", "--max-evals", 1, "--store", "sqlite:///no/hpo.db", *QUICK)

    assert_refused(project, result, ["the folder", "mkdir -p"], code=5)
    assert not (project.folder / "no").exists()


# --- full and read-only disks


def fill(folder: Path) -> Path:
    """Take all the space of a disk; removing the file that is returned frees it."""
    filler = folder / "filler"
    with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
    return filler


def on(disk: Path) -> tuple[str, str]:
    return "--store", f"sqlite:///{disk}/hpo.db"


def test_a_new_study_on_a_full_disk_is_an_error(project, hpo, small_disk):
    project.write(GOOD)
    fill(small_disk)

    result = hpo("optimize", "study.py", "--max-evals", 1, *on(small_disk), *QUICK)

    assert result.code == 5, str(result)
    assert result.stderr.startswith("StoreFull: the disk under ")
    assert [path.name for path in small_disk.iterdir()] == ["filler"]


@pytest.mark.parametrize("is_changed", [False, True], ids=["same code", "changed code"])
def test_a_study_goes_on_when_a_full_disk_has_space_again(project, hpo, small_disk, is_changed):
    project.write(GOOD)
    command = ("optimize", "study.py", "--max-evals", 4, *on(small_disk), *QUICK)
    hpo("optimize", "study.py", "--max-evals", 2, *on(small_disk), *QUICK)
    before = project.trials("study", *on(small_disk))
    if is_changed:
        project.write(GOOD + "  # changed")

    filler = fill(small_disk)
    full = hpo(*command)
    while_full = hpo("show", "study", *on(small_disk))
    filler.unlink()
    freed = hpo(*command, "--json")

    assert full.code == 5, str(full)
    assert "StoreFull: the disk under " in full.stderr
    assert "Traceback" not in full.stderr
    assert while_full.code == 0, str(while_full)
    assert freed.code == 0, str(freed)
    after = project.trials("study", *on(small_disk))
    assert sorted(after) == [0, 1, 2, 3]
    assert {number: after[number] for number in before} == before
    assert {trial["state"] for trial in after.values()} == {"completed"}


def test_a_disk_that_is_full_for_a_moment_costs_no_training(project, hpo, small_disk):
    project.write(
        f"""
        import subprocess
        from pathlib import Path

        def objective(params, run):
            if run.number == 1 and run.attempt == 1:
                filler = Path({str(small_disk / "filler")!r})
                subprocess.Popen(["sh", "-c", f"sleep 1; rm {{filler}}"])
                with open(filler, "wb", buffering=0) as file:
                    try:
                        while True:
                            file.write(bytes(4096))
                    except OSError:
                        pass
            return params["x"]
        """
    )

    result = hpo("optimize", "study.py", "--max-evals", 3, *on(small_disk), *QUICK)

    assert result.code == 0, str(result)
    trials = project.trials("study", *on(small_disk))
    assert {n: (t["state"], t["attempts"]) for n, t in trials.items()} == dict.fromkeys(
        range(3), ("completed", 1)
    )


def test_a_disk_that_fills_up_under_a_study_ends_it_and_loses_nothing(project, hpo, small_disk):
    filler = small_disk / "filler"
    project.write(
        f"""
        def objective(params, run):
            if run.number == 2:
                with open({str(filler)!r}, "wb", buffering=0) as file:
                    try:
                        while True:
                            file.write(bytes(4096))
                    except OSError:
                        pass
            return params["x"]
        """
    )
    command = ("optimize", "study.py", "--max-evals", 4, "--seed", 1, *on(small_disk), *QUICK)

    full = hpo(*command)
    shown = project.trials("study", *on(small_disk))
    filler.unlink()
    project.write(GOOD)
    freed = hpo(*command)

    assert full.code == 5, str(full)
    assert "StoreFull: the disk under " in full.stderr
    assert "continue: hpo optimize study.py" in full.stderr
    assert {n: shown[n]["state"] for n in (0, 1)} == {0: "completed", 1: "completed"}
    assert freed.code == 0, str(freed)
    after = project.trials("study", *on(small_disk))
    assert sorted(after) == [0, 1, 2, 3]
    assert {trial["state"] for trial in after.values()} == {"completed"}
    assert [after[n] for n in (0, 1)] == [shown[n] for n in (0, 1)]


@pytest.fixture
def read_only_study(project, hpo, small_disk):
    project.write(GOOD)
    done = hpo("optimize", "study.py", "--max-evals", 1, *on(small_disk), *QUICK)
    assert done.code == 0, str(done)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    return small_disk


def test_a_store_that_can_not_be_written_is_an_error(hpo, read_only_study):
    result = hpo("optimize", "study.py", "--max-evals", 2, *on(read_only_study), *QUICK)

    assert result.code == 5, str(result)
    assert result.stderr.startswith("StoreReadOnly: ")
    assert "can't be written" in result.stderr


def test_a_store_that_can_not_be_written_can_be_read(hpo, read_only_study):
    result = hpo("show", "study", "--json", *on(read_only_study))

    assert result.code == 0, str(result)
    assert len(result.json) == 1


def test_a_new_store_on_a_disk_that_can_not_be_written_is_an_error(project, hpo, small_disk):
    project.write(GOOD)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)

    result = hpo("optimize", "study.py", "--max-evals", 1, *on(small_disk), *QUICK)

    assert result.code == 5, str(result)
    assert result.stderr.startswith("StoreReadOnly: ")
