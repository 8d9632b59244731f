"""`hpo serve` as a person meets it, and the commands that reach a store over it."""

import re
import signal
import urllib.parse

import pytest

OBJECTIVE = """
def objective(params, run):
    run.report(0, params["x"])
    return params["x"]
"""


@pytest.fixture(scope="module")
def studied(make_project):
    """A project with a study of two trials."""
    project = make_project()
    project.write(OBJECTIVE)
    done = project.hpo("optimize", "study.py", "--max-evals", 2, "--tracking-uri", "none")
    assert done.code == 0, done
    return project


def serve(project, until, *arguments: object, port: int = 0, env=None):
    """Start `hpo serve`; the command, the address and the token that it prints for copying."""
    command = project.start("serve", "--port", port, *arguments, env=env)
    found = until(
        lambda: (
            re.search(r"HPO_TOKEN=(\S+) hpo worker --store (\S+)", command.said())
            or command.process.poll() is not None
        ),
        "the address",
    )
    assert isinstance(found, re.Match), command.said()
    return command, found.group(2), found.group(1)


def test_a_study_is_shown_over_http_with_the_token_alone(studied, until) -> None:
    _, url, token = serve(studied, until)

    shown = studied.hpo("show", "study", "--json", "--store", url, env={"HPO_TOKEN": token})
    there = studied.hpo("show", "study", "--json")
    refused = studied.hpo("show", "study", "--store", url, env={"HPO_TOKEN": "guessed"})

    assert shown.code == 0, shown
    assert shown.json == there.json
    assert len(shown.json) == 2
    assert refused.code == 5
    assert "HPO_TOKEN" in refused.stderr
    assert "guessed" not in refused.stderr


def test_the_log_and_the_files_of_a_trial_come_over_http(studied, until) -> None:
    _, url, token = serve(studied, until)

    for command in (("show", "study", 0), ("files", "study", 0), ("best", "study")):
        local = studied.hpo(*command)
        remote = studied.hpo(*command, "--store", url, env={"HPO_TOKEN": token})

        assert (remote.code, remote.stdout) == (local.code, local.stdout)


def test_the_token_of_the_environment_is_the_servers(project, until) -> None:
    _, _, token = serve(project, until, env={"HPO_TOKEN": "chosen-by-me"})

    assert token == "chosen-by-me"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_ends_the_server_without_noise(number: int, code: int, project, until) -> None:
    command, _, _ = serve(project, until)

    command.signal(number)

    result = command.result()
    assert result.code == code
    assert "Traceback" not in result.stderr
    assert (project.folder / "hpo.db").exists()  # made, where there was none


def test_an_open_address_is_warned_of(project, until) -> None:
    command, url, _ = serve(project, until, "--host", "0.0.0.0")

    assert "not encrypted" in command.said()
    assert urllib.parse.urlsplit(url).hostname != "0.0.0.0"


def test_a_port_that_is_taken_is_one_sentence(project, until) -> None:
    _, url, _ = serve(project, until)

    second = project.hpo("serve", "--port", urllib.parse.urlsplit(url).port)

    assert second.code == 5
    assert re.match(r"StoreUnreachable: .* in use\nhint: ", second.stderr)


LONG = """
def objective(params, run):
    import time
    from pathlib import Path

    for epoch in range(20):
        (run.checkpoint_directory / "state").write_text(f"epoch {epoch}")
        run.report(epoch, params["x"] + 1 / (epoch + 1))
        time.sleep(0.1)
    (run.directory / "model").write_text("weights")
    return params["x"]
"""


def test_a_study_outlives_the_death_of_its_server(project, until) -> None:
    project.write(LONG)
    own = {"HPO_TOKEN": "token-of-both"}
    server, url, _ = serve(project, until, env=own)
    options = ("--max-evals", 4, "--workers", 2, "--store", url, "--tracking-uri", "none")
    study = project.start("optimize", "study.py", *options, env=own)
    until(lambda: any(t["epochs"] > 2 for t in project.trials().values()), "the first epochs")

    server.signal(signal.SIGKILL)
    server.process.wait()
    serve(project, until, port=urllib.parse.urlsplit(url).port, env=own)

    result = study.result()
    assert result.code == 0, result
    trials = project.trials()
    assert [(t["state"], t["epochs"], t["attempts"]) for t in trials.values()] == [("completed", 20, 1)] * 4
    for number in trials:
        assert "artifacts/model" in project.files("study", number)
