"""`hpo optimize`: drive a study."""

from __future__ import annotations

import contextlib
import math
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hpo.cli.drive import How, drive
from hpo.cli.interrupts import Interrupts
from hpo.cli.options import (
    Duration,
    check_master,
    echo_json,
    json_option,
    program,
    store_option,
    worker_slots,
)
from hpo.core.errors import SparkUnavailable

if TYPE_CHECKING:
    from hpo.executors.spark import Cluster
    from hpo.launch import Request


@click.command(
    epilog="\b\nExamples:\n  hpo optimize spaces/digits_mlp.py --max-evals 20\n"
    "  hpo optimize spaces/digits_mlp.py --max-evals 100 --gpus 0,1 --set epochs=30\n"
    "  hpo optimize spaces/digits_mlp.py --study longer --max-evals 50 --warm-start digits_mlp\n"
    "  hpo optimize spaces/digits_mlp.py --study on-spark --max-evals 20 --spark 'local[2]'\n"
    "  hpo optimize spaces/classifiers.py --study repeated --max-evals 60 --points known.csv --repeats 3"
)
@click.argument("file", metavar="FILE.py[:OBJECTIVE]")
@click.option("--max-evals", type=click.IntRange(min=1), help="Stop after so many ended trials in all.")
@click.option(
    "--timeout",
    type=Duration(),
    help="Stop after this time (2h, 30m); running trials run again when you continue.",
)
@click.option("--study", help="The study's name.  [default: the file's name]")
@store_option
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    help="Trials at a time; 0 leaves them to `hpo worker`.  [default: one for each entry of --gpus, else 1]",
)
@click.option("--gpus", help="A worker for each entry: 0,1 is two workers; 0+1,2+3 two workers of two GPUs.")
@click.option(
    "--algo",
    "algorithm",
    help="auto (gp up to 300 trials, tpe from there), gp, tpe, random, quasirandom, grid (grid:7 for 7 levels"
    " of continuous parameters), or a hyperopt algorithm as module:function.  [default: auto]",
)
@click.option(
    "--pruner",
    help="Stops hopeless trials early by the losses they report: auto, median, asha, hyperband, none."
    "  [default: the study's, else none]",
)
@click.option(
    "--seed", type=click.IntRange(min=0), help="Seed of the search.  [default: random, kept in the study]"
)
@click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="KEY=VALUE",
    help="Fix a parameter, or an argument of the objective.",
)
@click.option(
    "--repeats",
    type=click.IntRange(min=1, max=1000),
    help="Evaluate each point in so many trials, each with its own seed; search on their mean.  [default: 1]",
)
@click.option(
    "--noisy",
    "is_noisy",
    is_flag=True,
    help="The objective is noisy: a point that was tried may be tried again.",
)
@click.option(
    "--points",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Try the points of this file first: JSON, JSON lines or CSV.",
)
@click.option(
    "--warm-start",
    metavar="STUDY",
    help="Begin at an earlier study's best points; STORE_URL#STUDY names one in another store.",
)
@click.option(
    "--spark",
    metavar="MASTER",
    help="Run trials as Spark tasks: local[4], spark://HOST:7077, yarn, k8s://…",
)
@click.option(
    "--parallelism",
    type=click.IntRange(min=1),
    help="With --spark: trials at a time.  [default: as many as the cluster has room for]",
)
@click.option(
    "--driver-host",
    metavar="HOST",
    help="With --spark: this machine's name or address, as executors reach it.  [default: Spark's own guess]",
)
@click.option(
    "--properties-file",
    type=click.Path(dir_okay=False, exists=True, path_type=Path),
    help="With --spark: a file of Spark properties, as spark-conf/spark-defaults.conf.",
)
@click.option(
    "--spark-conf",
    multiple=True,
    metavar="KEY=VALUE",
    help="With --spark: a Spark property; goes before the file's.",
)
@click.option(
    "--executor-timeout",
    type=Duration(),
    help="With --spark: how long to wait for a first executor.  [default: 1m]",
)
@click.option("--trial-timeout", type=Duration(), help="Kill a trial that takes longer.")
@click.option(
    "--retries",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    help="How often a trial runs again when its worker dies.",
)
@click.option(
    "--max-failures",
    type=click.FloatRange(0, 1),
    default=0.9,
    show_default=True,
    help="Stop when more than this share of this run's trials has failed, from the tenth on.",
)
@click.option("--isolate", is_flag=True, help="A fresh process for every trial.")
@click.option("--inline", is_flag=True, help="Run trials in this process, to debug them.")
@click.option(
    "--lease",
    type=Duration(),
    default="30s",
    show_default=True,
    help="How long a worker may be silent before its trial is given to another.",
)
@click.option(
    "--tracking-uri",
    envvar="MLFLOW_TRACKING_URI",
    help="MLflow's database or server, or none.  [default: mlflow.db beside the store]",
)
@click.option(
    "--experiment", envvar="MLFLOW_EXPERIMENT_NAME", help="MLflow's experiment.  [default: the study's name]"
)
@click.option(
    "--tensorboard",
    is_flag=True,
    help="Write TensorBoard's event files, to tensorboard/STUDY beside the store.",
)
@click.option(
    "--tensorboard-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="The same, to this folder.",
)
@click.option(
    "--take-over",
    is_flag=True,
    help="Drive the study although another host's hpo seems to: only if that one is dead.",
)
@json_option
def optimize(as_json: bool, **asked: Any) -> int:
    """Search for the best parameters of a training function.

    FILE.py has a `space` (a hyperopt expression) and an `objective(params, run)` that returns a loss.
    The same command again continues the study: --max-evals counts all its ended trials.
    Ctrl-C finishes the running trials, a second one hands them back, a third leaves at once.
    """
    request, how = understood(**asked)
    with Interrupts() as interrupts:
        try:
            # Standard output is the document's alone: an objective that runs --inline prints elsewhere.
            with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
                code, document = drive(request, how, interrupts, shlex.join([program(), *sys.argv[1:]]))
        except KeyboardInterrupt:
            return interrupts.exit_code
        except SparkUnavailable:
            if not interrupts.is_cancel():
                raise
            return interrupts.exit_code  # what has ended this process has ended Spark's Java, too
    if as_json:
        echo_json(document)
    return code


def understood(
    file: str,
    store: str,
    sets: tuple[str, ...],
    workers: int | None,
    gpus: str | None,
    max_evals: int | None,
    timeout: float | None,
    max_failures: float,
    retries: int,
    lease: float,
    isolate: bool,
    inline: bool,
    tracking_uri: str | None,
    experiment: str | None,
    tensorboard: bool,
    tensorboard_dir: Path | None,
    trial_timeout: float | None,
    spark: str | None,
    parallelism: int | None,
    driver_host: str | None,
    properties_file: Path | None,
    spark_conf: tuple[str, ...],
    executor_timeout: float | None,
    **asked: Any,
) -> tuple[Request, How]:
    """What is asked for, and how it is to run; raises UsageError for options that exclude each other."""
    if not 1 <= lease <= 86400:
        raise click.UsageError("--lease is from 1s to 1d")
    if math.isnan(max_failures):
        raise click.UsageError("--max-failures is a share from 0 to 1")
    if asked["warm_start"] == "":
        raise click.UsageError("--warm-start is empty: name a study, as `hpo show` lists them")
    if asked["points"] == Path():
        raise click.UsageError("--points is empty: name a JSON, JSON lines or CSV file")
    cluster = spark_cluster(
        spark,
        parallelism=parallelism,
        driver_host=driver_host,
        properties_file=properties_file,
        conf=spark_conf,
        patience_seconds=executor_timeout,
    )
    if cluster and (workers is not None or gpus or inline):
        raise click.UsageError(
            "--spark runs trials on its executors: no --inline; for --workers say --parallelism; GPUs are"
            " those of Spark's tasks: --spark-conf spark.task.resource.gpu.amount=1"
        )
    if workers == 0 and (gpus or isolate or inline):
        raise click.UsageError("--workers 0 starts no worker here: no --gpus, --isolate, --inline")
    how = How(
        worker_slots(workers, gpus),
        isolate,
        inline,
        tracking_uri,
        experiment,
        tensorboard or tensorboard_dir is not None,
        tensorboard_dir,
        cluster,
    )
    if inline and (len(how.slots) > 1 or gpus or isolate or trial_timeout):
        raise click.UsageError(
            "--inline runs one trial at a time here: no --workers, --gpus, --isolate, --trial-timeout"
        )

    from hpo.launch import Request
    from hpo.loading import parse_settings
    from hpo.study import Limits

    request = Request(
        file=file,
        store=store,
        settings=parse_settings(sets),
        limits=Limits(max_evals, timeout, max_failures, retries, lease),
        trial_timeout_seconds=trial_timeout,
        is_by_hand=workers == 0,
        **asked,
    )
    return request, how


def spark_cluster(master: str | None, *, conf: tuple[str, ...], **asked: Any) -> Cluster | None:
    """What the options say of Spark; None without --spark, which the others need."""
    said = {name: value for name, value in {"conf": conf, **asked}.items() if value}
    if master is None:
        if said:
            names = {"conf": "spark-conf", "patience_seconds": "executor-timeout"}
            option = names.get(next(iter(said)), next(iter(said)).replace("_", "-"))
            raise click.UsageError(f"--{option} is about Spark: name a master, --spark local[2]")
        return None
    from hpo.executors.spark import Cluster

    check_master("--spark", master)
    if asked["driver_host"] == "":
        raise click.UsageError("--driver-host is empty: name this machine as executors reach it")
    for text in conf:
        if not re.fullmatch(r"spark\.[^=\s]+=.+", text, re.DOTALL):
            raise click.UsageError(f"--spark-conf {text}: write spark.executor.memory=4g")
    pairs = dict(text.partition("=")[::2] for text in conf)
    return Cluster(master, **said | ({"conf": pairs} if pairs else {}))
