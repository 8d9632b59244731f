"""The `hpo` command. Each command is imported when it is called: ``hpo --help`` loads click alone."""

from __future__ import annotations

import difflib
import importlib
import io
import os
import signal
import sys
import traceback
from typing import Any

import click

from hpo.core.errors import ExitCode, HpoError
from hpo.version import __version__

COMMANDS = {
    "optimize": ("hpo.cli.optimize", "Search for the best parameters of a training function."),
    "submit": ("hpo.cli.submit", "Run a study's driver by spark-submit."),
    "worker": ("hpo.cli.worker", "Run trials of a study that another process drives."),
    "show": ("hpo.cli.show", "List studies, a study's trials, or one trial."),
    "best": ("hpo.cli.best", "Print the best trial of a study."),
    "log": ("hpo.cli.files", "Print what a trial printed, its traceback too."),
    "files": ("hpo.cli.files", "List a trial's files, or copy them to a folder."),
    "space": ("hpo.cli.space", "Check and draw a search space."),
    "serve": ("hpo.cli.serve", "Let workers on other machines reach a store."),
    "ui": ("hpo.cli.mlflow", "Open MLflow's pages on the studies."),
    "mlflow": ("hpo.cli.mlflow", "Bring MLflow up to date with the store."),
}

EXIT_CODES = """\b
Exit codes:
  0 done · 1 internal error · 2 usage or search space
  3 no trial succeeded · 4 too many trials failed
  5 store, MLflow or Spark unreachable
  75 stopped by SIGTERM: run again · 124 --timeout reached · 130 Ctrl-C

--debug, anywhere on the line, shows the traceback of an error."""


class _Commands(click.Group):
    """A group whose commands' modules are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _ = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(module), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            if not near:
                raise
            raise click.UsageError(f"{error.message} Did you mean {near[0]}?", ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


@click.command(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=EXIT_CODES + "\n\n\b\nExample:\n  hpo optimize spaces/digits_mlp.py --max-evals 20",
)
@click.version_option(__version__, prog_name="hpo")
def hpo() -> None:
    """Bayesian hyperparameter optimization for people who train neural networks.

    Declare a search space as a hyperopt expression and a training function, in one file; hpo searches it,
    runs every trial in a process of its own, survives being killed, and shows the trials in MLflow.
    """


def main(arguments: list[str] | None = None) -> None:
    """Run one command; every error is a sentence and a hint, and ends with its exit code.

    A traceback is shown with --debug, anywhere on the line, or HPO_DEBUG=1.
    """
    given = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without Unicode shows what it can
    # If whoever started this ignores the deaths of children, none could be waited for.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    is_debug = "--debug" in given or bool(os.environ.get("HPO_DEBUG"))
    try:
        code: Any = hpo.main(
            [word for word in given if word != "--debug"], prog_name="hpo", standalone_mode=False
        )
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except HpoError as error:
        if is_debug:
            traceback.print_exc()
        click.echo(f"{type(error).__name__}: {error.message}", err=True)
        if error.hint:
            click.echo(f"hint: {error.hint}", err=True)
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = 128 + signal.SIGINT
    except OSError as error:  # a full pipe, a name that is too long: the system's own words are the clearest
        click.echo(f"{type(error).__name__}: {error}", err=True)
        code = ExitCode.INTERNAL
    except Exception as error:
        if is_debug:
            traceback.print_exc()
        click.echo(f"internal error: {type(error).__name__}: {error}", err=True)
        click.echo("hint: repeat the command with --debug and report what it prints", err=True)
        code = ExitCode.INTERNAL
    sys.exit(code if isinstance(code, int) else 0)
