"""`hpo optimize --points FILE`: the person's points first, each once, whatever is killed meanwhile."""

import json
import os
import signal

QUICK = ("--tracking-uri", "none")
GOOD = "def objective(params): return params['x']"
SPACE = """{
    'x': hp.uniform('x', 0, 1),
    'kind': hp.choice('kind', ['a', {'name': 'b', 'y': hp.uniform('y', 0, 1)}]),
}"""


def write(project, name, content):
    (project.folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return name


def points(project, study="study"):
    return [trial["params"] for _, trial in sorted(project.trials(study).items())]


def test_the_points_of_a_file_are_tried_first_and_in_their_order(project, hpo):
    project.write(GOOD, space=SPACE)
    mine = write(project, "mine.csv", "x,kind,y\n0.5,b,0.25\n0.75,a,\n")

    result = hpo("optimize", "study.py", "--max-evals", 3, "--points", mine, *QUICK)

    assert result.code == 0, str(result)
    assert "mine.csv: 2 of 2 points are tried first\n" in result.stderr
    first, second, _ = points(project)
    assert first == {"x": 0.5, "kind": {"name": "b", "y": 0.25}}
    assert second == {"x": 0.75, "kind": "a"}


def test_points_that_do_not_fit_are_listed_before_any_trial_or_study(project, hpo):
    project.write(GOOD, space=SPACE)
    mine = write(project, "mine.json", [{"x": 2}, {"x": 0.5}, {"z": 1, "kind": "c"}, {"kind": "a", "y": 0.5}])

    result = hpo("optimize", "study.py", "--max-evals", 3, "--points", mine, *QUICK)

    assert result.code == 2, str(result)
    assert result.stderr.startswith("UsageError: mine.json has points that don't fit the space:\n")
    for fault in (
        "entry 1: x can't be 2",
        "entry 3: z is no parameter",
        "entry 3: kind can't be 'c'",
        "entry 4: y",
    ):
        assert f"  {fault}" in result.stderr
    assert "entry 2" not in result.stderr
    assert project.trials() == {}


def test_a_resumed_study_tries_no_point_twice_and_takes_new_ones(project, hpo):
    project.write(GOOD, space=SPACE)
    mine = write(project, "mine.jsonl", '{"x": 0.5}\n{"x": 0.25}\n')
    common = ("optimize", "study.py", "--points", mine, *QUICK)
    hpo(*common, "--max-evals", 1)
    write(project, "mine.jsonl", '{"x": 0.5}\n{"x": 0.25}\n{"x": 0.125}\n')

    result = hpo(*common, "--max-evals", 4)

    assert result.code == 0, str(result)
    said = "mine.jsonl: 1 of 3 points are tried first; 1 still waits; the study has had 1\n"
    assert said in result.stderr
    assert [point["x"] for point in points(project)][:3] == [0.5, 0.25, 0.125]
    assert len(points(project)) == 4


def test_points_wait_for_a_larger_budget_and_need_no_file_then(project, hpo):
    project.write(GOOD, space=SPACE)
    mine = write(project, "mine.json", [{"x": 0.5}, {"x": 0.25}, {"x": 0.125}])

    short = hpo("optimize", "study.py", "--points", mine, "--max-evals", 1, *QUICK)
    waiting = [trial["state"] for trial in project.trials().values()]
    hpo("optimize", "study.py", "--max-evals", 3, *QUICK)

    assert "2 points still wait: --max-evals 3\n" in short.stderr
    assert sorted(waiting) == ["completed", "waiting", "waiting"]
    assert [point["x"] for point in points(project)] == [0.5, 0.25, 0.125]


def test_a_driver_killed_among_the_points_goes_on_with_them(project, hpo, until):
    project.write(
        """
        import os, time
        from pathlib import Path

        def objective(params, run):
            Path(f"began-{run.number}").touch()
            while run.number == 1 and not Path("gate").exists():
                time.sleep(0.01)
            return params["x"]
        """,
        space=SPACE,
    )
    mine = write(project, "mine.json", [{"x": 0.5}, {"x": 0.25}, {"x": 0.125}])
    command = ("optimize", "study.py", "--seed", 3, "--points", mine, "--max-evals", 5, *QUICK)
    driver = project.start(*command)
    until((project.folder / "began-1").exists, "the second point to run")

    os.kill(driver.pid, signal.SIGKILL)
    driver.process.wait()
    (project.folder / "gate").touch()
    result = hpo(*command)
    hpo(*command, "--study", "whole")

    assert result.code == 0, str(result)
    assert [point["x"] for point in points(project)][:3] == [0.5, 0.25, 0.125]
    assert points(project) == points(project, "whole")


def test_the_best_of_one_study_is_a_point_for_another(project, hpo):
    project.write(GOOD, space=SPACE)
    hpo("optimize", "study.py", "--max-evals", 4, *QUICK)
    best = hpo("best", "study", "--json")
    write(project, "best.json", best.stdout)

    result = hpo("optimize", "study.py", "--study", "next", "--points", "best.json", "--max-evals", 1, *QUICK)

    assert result.code == 0, str(result)
    assert points(project, "next") == [best.json["params"]]


def test_what_a_point_leaves_out_is_said(project, hpo):
    project.write(GOOD, space=SPACE)
    mine = write(project, "mine.json", [{"kind": "a"}])

    result = hpo("optimize", "study.py", "--max-evals", 1, "--points", mine, *QUICK)

    assert "mine.json, entry 1: left out, and drawn from the space: x" in result.stderr
    assert points(project)[0]["kind"] == "a"


def test_what_is_in_a_file_more_than_once_is_tried_once_and_told_once(project, hpo):
    project.write(GOOD, space=SPACE)
    mine = write(project, "mine.json", [{"x": 0.5, "kind": "a"}] * 3 + [{"x": 0.25}])
    command = ("optimize", "study.py", "--max-evals", 2, "--points", mine, *QUICK)

    first, again = hpo(*command), hpo(*command)

    assert "2 of 4 points are tried first; 2 are in the file more than once\n" in first.stderr
    assert "entry 4: left out" in first.stderr
    assert "none of its points is new; 2 are in the file more than once; the study has had 2" in again.stderr
    assert "left out" not in again.stderr


def test_an_empty_name_is_a_usage_error(project, hpo):
    project.write(GOOD)

    for option in ("--points", "--warm-start"):
        result = hpo("optimize", "study.py", "--max-evals", 1, option, "", *QUICK)

        assert result.code == 2, str(result)
        assert f"{option} is empty" in result.stderr
