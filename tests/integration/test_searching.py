"""Ways to search, as a user asks for them: grids and sequences."""

import os
import signal

QUICK = ("--tracking-uri", "none")
GOOD = "def objective(params): return params['x']"
TREE = """{
    'x': hp.uniform('x', 0, 1),
    'kind': hp.choice('kind', ['a', {'name': 'b', 'n': hp.uniformint('n', 1, 2)}]),
}"""


def params(project, study="study"):
    return [trial["params"] for _, trial in sorted(project.trials(study).items())]


# --- grids and sequences


def test_a_grid_is_tried_whole_and_then_the_study_is_done(project, hpo):
    project.write(GOOD, space=TREE)

    result = hpo("optimize", "study.py", "--algo", "grid:3", *QUICK)
    again = hpo("optimize", "study.py", "--algo", "grid:3", *QUICK)

    assert result.code == 0, str(result)
    assert "the grid has 9 points\n" in result.stderr
    assert "done: the grid has 9 points, all of which are tried" in result.stderr
    assert again.code == 0, str(again)
    points = params(project)
    assert len({str(point) for point in points}) == len(points) == 9


def test_a_grid_that_was_interrupted_goes_on_with_what_is_left(project, hpo, until):
    project.write(
        """
        import time
        from pathlib import Path

        def objective(params, run):
            Path(f"began-{run.number}").touch()
            while run.number == 3 and not Path("gate").exists():
                time.sleep(0.01)
            return params["x"]
        """,
        space=TREE,
    )
    command = ("optimize", "study.py", "--seed", 1, "--algo", "grid:3", *QUICK)
    driver = project.start(*command)
    until((project.folder / "began-3").exists, "the fourth trial to run")

    os.kill(driver.pid, signal.SIGKILL)
    driver.process.wait()
    (project.folder / "gate").touch()
    hpo(*command)
    hpo(*command, "--study", "whole")

    assert len(params(project)) == 9
    assert params(project) == params(project, "whole")


def test_a_quasirandom_study_that_is_continued_goes_on_with_its_sequence(project, hpo):
    project.write(GOOD, space=TREE)
    common = ("optimize", "study.py", "--algo", "quasirandom", "--seed", 4, *QUICK)

    for total in (3, 8):
        hpo(*common, "--max-evals", total)
    hpo(*common, "--study", "whole", "--max-evals", 8)

    assert params(project) == params(project, "whole")
    assert len({int(point["x"] * 8) for point in params(project)}) == 8  # one in each eighth


def test_a_grid_of_no_levels_is_refused(project, hpo):
    project.write(GOOD)

    result = hpo("optimize", "study.py", "--algo", "grid:0", "--max-evals", 3, *QUICK)

    assert result.code == 2
    assert "'grid:0'" in result.stderr
