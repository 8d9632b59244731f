"""`hpo serve`: a store for workers that are elsewhere."""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import socket

import click

from hpo.cli.interrupts import Interrupts
from hpo.cli.options import program, store_option
from hpo.core.errors import HpoError, UsageError
from hpo.stores import connect, file_of
from hpo.stores.rpc import TOKEN_VARIABLE, is_loopback


@click.command(epilog="\b\nExample:\n  hpo serve --host 0.0.0.0 --port 8765")
@store_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8765,
    show_default=True,
    help="Port to listen on; 0 for any.",
)
def serve(store: str, host: str, port: int) -> int:
    """Serve all studies of the store over HTTP, for workers on other machines; Ctrl-C ends it.

    They bring the token in HPO_TOKEN; without one in this environment, it is made up.
    """
    from hpo.stores.server import serving

    if file_of(store) is None:
        raise UsageError(
            f"{store} can be reached from elsewhere by itself",
            "name it to the workers, or serve a file: --store sqlite:///hpo.db",
        )
    connect(store, create=True, check=True).close()
    token = os.environ.get(TOKEN_VARIABLE, "").strip() or secrets.token_urlsafe(24)
    with Interrupts() as interrupts, contextlib.ExitStack() as closing:
        try:
            server = closing.enter_context(serving(store, host=host, port=port, token=token))
            address = _reachable(server.url, host)
            click.echo(f"serving {store}; on a machine that has the code:", err=True)
            click.echo(
                f"  {TOKEN_VARIABLE}={shlex.quote(token)} {program()} worker --store {address}", err=True
            )
            if not is_loopback(host):
                click.echo("the traffic is not encrypted: whoever can listen to it sees the token", err=True)
            server.wait()
        except KeyboardInterrupt:
            return interrupts.exit_code
    raise HpoError("the server ended by itself", "repeat the command with --debug and report what it prints")


def _reachable(url: str, host: str) -> str:
    """The address as another machine may know it: a server on all of its addresses has a name."""
    if host in ("0.0.0.0", "::"):
        return f"http://{socket.gethostname()}:{url.rpartition(':')[2]}"
    return url
