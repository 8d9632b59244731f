"""`hpo submit`: a study's driver by spark-submit."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
from click.core import ParameterSource

from hpo.cli.options import check_master

UPLOAD = "spark.kubernetes.file.upload.path"
# What `hpo optimize` takes, but not here; and what to say in its place.
ELSEWHERE = {
    "spark": "--spark is what --master says",
    "workers": "--workers are of one machine; say --parallelism",
    "gpus": "--gpus are of one machine; say --conf spark.task.resource.gpu.amount=1 before the --",
    "inline": "--inline runs trials in this process; say hpo optimize --inline",
    "properties_file": "--properties-file goes before the --",
    "spark_conf": "--spark-conf goes before the --, as --conf",
}


class _Submit(click.Command):
    """Tells where the options of `hpo optimize` go."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            raise click.UsageError(
                f"{error.format_message()} Options of hpo optimize come after two dashes:"
                f" hpo submit FILE.py --master MASTER -- {error.option_name} …",
                ctx,
            ) from None


@click.command(
    cls=_Submit,
    epilog="\b\nExamples:\n"
    "  hpo submit spaces/digits_mlp.py --master 'local[2]' --dry-run -- --max-evals 20\n"
    "  hpo submit spaces/digits_mlp.py --master spark://HOST:7077 \\\n"
    "      --properties-file spark-conf/spark-defaults.conf -- --max-evals 100 --parallelism 8\n"
    "  hpo submit spaces/digits_mlp.py --master yarn --deploy-mode cluster --archives env.tar.gz \\\n"
    "      -- --max-evals 100 --store http://HOST:8765 --tracking-uri http://HOST:5000",
)
@click.argument("file", metavar="FILE.py[:OBJECTIVE]")
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="-- [OPTIONS OF hpo optimize]...")
@click.option("--master", required=True, help="local[4], spark://HOST:7077, yarn or k8s://https://HOST:PORT.")
@click.option(
    "--deploy-mode",
    type=click.Choice(["client", "cluster"]),
    default="client",
    show_default=True,
    help="Where the driver runs: here, or in the cluster (YARN and Kubernetes).",
)
@click.option(
    "--properties-file",
    type=click.Path(dir_okay=False, exists=True, path_type=Path),
    help="Spark's settings, as spark-conf/spark-defaults.conf.",
)
@click.option(
    "--archives",
    "archive",
    metavar="ENV.tar.gz[#NAME]",
    help="A packed Python environment (venv-pack, conda-pack) that the executors run in.",
)
@click.option(
    "--conf", multiple=True, metavar="KEY=VALUE", help="A setting of Spark's; goes before the file's."
)
@click.option("--dry-run", is_flag=True, help="Print the command and run nothing.")
def submit(
    file: str,
    options: tuple[str, ...],
    master: str,
    deploy_mode: str,
    properties_file: Path | None,
    archive: str | None,
    conf: tuple[str, ...],
    dry_run: bool,
) -> int:
    """Run a study's driver by spark-submit.

    Spark's options come first, those of `hpo optimize` after the two dashes. With --deploy-mode client the
    driver runs here: signals are passed on to it, and its exit code is this command's. With cluster it runs
    on a machine of the cluster, from a copy of the project's code; the exit code says only whether Spark was
    content.
    """
    from hpo.cli.optimize import optimize
    from hpo.loading import locate
    from hpo.submission import Submission, pack_code, pasteable
    from hpo.submission import submit as run

    check_master("--master", master)
    entry, is_cluster = locate(file), deploy_mode == "cluster"
    context = optimize.make_context("hpo optimize", [file, *options])  # its own errors
    given = _given(context, ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)
    faults = [sentence for name, sentence in ELSEWHERE.items() if name in given]
    faults += [f"--conf {text}: write spark.executor.memory=4g" for text in conf if not _is_setting(text)]
    files: tuple[Path, ...] = ()
    if archive is not None:
        faults += _faults_of_archive(archive, master)
        archive = archive if "#" in archive else f"{archive}#environment"
    if is_cluster:
        texts = (*conf, properties_file.read_text() if properties_file else "")
        faults += [*_faults_of_cluster(master, texts), *_faults_of_remote_driver(given)]
        options = (*options, *_said_here(context))
        if "points" in given:  # the last one counts: there, it is in the working directory
            options, files = (*options, "--points", given["points"].name), (given["points"],)
    if faults:
        raise click.UsageError("\n".join(faults))
    submission = Submission(entry, options, master, is_cluster, properties_file, archive, conf, files)
    if not dry_run:
        return run(submission, sys.argv[1:])
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hpo"
    click.echo(pasteable(submission, pack_code(entry, cache) if is_cluster else None))
    return 0


def _given(context: click.Context, *sources: ParameterSource) -> dict[str, Any]:
    """What options say that come from there, by name."""
    return {
        name: value for name, value in context.params.items() if context.get_parameter_source(name) in sources
    }


def _said_here(context: click.Context) -> Iterator[str]:
    """The options that this environment has set; another machine's has not."""
    for name, value in _given(context, ParameterSource.ENVIRONMENT).items():
        yield f"--{name.replace('_', '-')}"
        yield str(value)


def _is_setting(text: str) -> bool:
    key, equals, _ = text.partition("=")
    return key.startswith("spark.") and bool(equals)


def _faults_of_archive(archive: str, master: str) -> Iterator[str]:
    path = archive.partition("#")[0]
    if "://" not in path and not Path(path).is_file():
        yield f"--archives {archive}: there is no file {path}; make one with venv-pack -o {path}"
    if master.startswith("local"):
        yield f"--archives: with --master {master} trials run in this machine's Python, {sys.executable}"


def _faults_of_cluster(master: str, texts: tuple[str, ...]) -> Iterator[str]:
    """What hinders Spark itself from running a driver in its cluster."""
    if master.startswith("k8s://"):
        if not any(UPLOAD in text for text in texts):
            yield f"Kubernetes needs a place for the code that its pods can read: --conf {UPLOAD}=s3a://…"
    elif master != "yarn":
        yield (
            f"Spark can't run a Python driver in the cluster of {master}, only on YARN and Kubernetes;"
            " with --deploy-mode client it runs here"
        )


def _faults_of_remote_driver(given: Mapping[str, Any]) -> Iterator[str]:
    """What a driver would lose, or not find, on a machine that nobody knows."""
    store, tracking = given.get("store", "sqlite:///hpo.db"), given.get("tracking_uri") or "mlflow.db"
    if not _is_reached(store):
        yield (
            f"the study would be lost: a driver in the cluster can't keep it in {store}; keep the driver"
            " here, --deploy-mode client, or name a store that every machine reaches, --store http://HOST:PORT"
            " (`hpo serve`)"
        )
    if tracking != "none" and not _is_reached(tracking):
        yield (
            f"MLflow's runs would be lost: a driver in the cluster can't keep them in {tracking};"
            " say --tracking-uri http://HOST:PORT, or none"
        )
    if "@" in tracking:
        yield (
            "--tracking-uri has a user name or password in it, which everybody on this machine could read;"
            " put them into MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, which are handed on"
        )
    if "tensorboard" in given or "tensorboard_dir" in given:
        yield "TensorBoard's files would be lost with the driver's machine; leave --tensorboard out"
    if "as_json" in given:
        yield "--json would print where nobody reads it; ask the store: hpo best STUDY --json --store URL"
    if "://" in (earlier := given.get("warm_start", "")) and not _is_reached(earlier):
        yield f"--warm-start {earlier}: a driver in the cluster can't read it"


def _is_reached(url: str) -> bool:
    """Whether the address may mean the same on every machine."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return "sqlite" not in parts.scheme and parts.hostname not in (None, "localhost", "127.0.0.1", "::1")
