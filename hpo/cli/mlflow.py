"""`hpo ui` and `hpo mlflow`: MLflow's pages, and bringing them up to date."""

from __future__ import annotations

import contextlib
import os
import socket

import click

from hpo.cli.options import store_option
from hpo.core.errors import NoSuchStudy, StudyBusy, UsageError
from hpo.stores import Catalog, connect


@click.command(epilog="\b\nExample:\n  hpo ui --port 5001")
@store_option
@click.option("--tracking-uri", help="MLflow's database or server.  [default: the newest study's]")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=int, default=5000, show_default=True, help="Port to listen on.")
def ui(store: str, tracking_uri: str | None, host: str, port: int) -> None:
    """Serve MLflow's pages on the studies of the store; Ctrl-C ends it.

    Where the studies are on an MLflow server already, its address is printed.
    """
    from hpo.tracking.mlflow import default_tracking_uri, location_of, ui_command

    page = f"http://{host}:{port}"
    if tracking_uri is None:
        with contextlib.closing(connect(store)) as catalog:
            locations = [location_of(catalog.open(name).record()) for name in catalog.names()]
        found = [location for location in locations if location is not None]
        if found and found[-1].url:
            click.echo(found[-1].url)
            return
        tracking_uri = found[-1].tracking_uri if found else default_tracking_uri(store)
        if found:
            page = found[-1].page(page)
    command, environment = ui_command(tracking_uri, host, port)
    with socket.socket() as probe:
        try:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
        except OSError as error:
            raise UsageError(
                f"{host}:{port} can't be had: {error.strerror}", f"try --port {port + 1}"
            ) from error
    click.echo(f"MLflow: {page}", err=True)
    # The server takes this process's place: its signals and exit code are the server's own.
    os.execvpe(command[0], command, os.environ | environment)


@click.group(epilog="\b\nExample:\n  hpo mlflow sync digits_mlp")
def mlflow() -> None:
    """MLflow shows what the store knows; the store is what counts."""


@mlflow.command(epilog="\b\nExample:\n  hpo mlflow sync digits_mlp")
@click.argument("study", required=False)
@store_option
@click.option(
    "--tracking-uri",
    envvar="MLFLOW_TRACKING_URI",
    help="MLflow's database or server.  [default: where the study is, else mlflow.db beside the store]",
)
@click.option(
    "--experiment", envvar="MLFLOW_EXPERIMENT_NAME", help="MLflow's experiment.  [default: the study]"
)
def sync(study: str | None, store: str, tracking_uri: str | None, experiment: str | None) -> None:
    """Write what MLflow lacks of STUDY (of every study, if none is named).

    On an empty MLflow everything is written again. It may be called at any time, any number of times.
    """
    from hpo.launch import live_driver
    from hpo.tracking.mlflow import default_tracking_uri, location_of
    from hpo.tracking.mlflow import sync as synchronize

    if (tracking_uri or "").strip().lower() == "none":
        raise click.UsageError("--tracking-uri none leaves nothing to bring up to date")
    with contextlib.closing(connect(store)) as catalog:
        for name in [study] if study else _names(catalog):
            opened = catalog.open(name)
            if driver := live_driver(opened):
                raise StudyBusy(
                    f"process {driver.pid} drives study {name!r} and keeps MLflow up to date itself",
                    "call this when it has ended",
                )
            known = location_of(opened.record())
            uri = tracking_uri or (known.tracking_uri if known else default_tracking_uri(store))
            location = synchronize(opened, uri, experiment)
            click.echo(f"{name}: {location.url or location.tracking_uri} is up to date")


def _names(catalog: Catalog) -> list[str]:
    names = catalog.names()
    if not names:
        raise NoSuchStudy(f"there are no studies in {catalog.url}", "start one: hpo optimize FILE.py")
    return names
