"""`hpo optimize --tensorboard` beside MLflow."""

import pytest

pytest.importorskip("tensorboard")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def test_event_files_are_written_beside_the_store_and_go_on_with_the_study(project, hpo):
    project.write(
        """
        def objective(params, run):
            for epoch in range(3):
                run.report(epoch, 1.0 / (epoch + 1))
            return 0.25
        """
    )
    command = ("optimize", "study.py", "--tensorboard", "--tracking-uri", "none")
    hpo(*command, "--max-evals", 1)

    result = hpo(*command, "--max-evals", 2)

    assert result.code == 0, str(result)
    folder = project.folder / "tensorboard" / "study"
    assert f"tensorboard --logdir {folder}" in result.stderr
    for number in (0, 1):
        events = EventAccumulator(str(folder / f"trial-{number:05d}"))
        events.Reload()
        assert [event.step for event in events.Scalars("loss")] == [0, 1, 2, 3]


def test_another_folder_can_be_named(project, hpo):
    project.write("def objective(params): return 0.5")

    result = hpo(
        "optimize", "study.py", "--max-evals", 1, "--tensorboard-dir", "events", "--tracking-uri", "none"
    )

    assert result.code == 0, str(result)
    assert (project.folder / "events" / "trial-00000").is_dir()
