"""Option types and options that several commands share."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from typing import Any

import click

from hpo.core.plain import without_nonfinite

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
MASTER = re.compile(r"local|local\[(\*|[1-9]\d*)(, *\d+)?\]|local-cluster\[.+\]|yarn|(spark|k8s)://.+")
GPU = re.compile(r"\d+|(GPU|MIG)-[0-9a-fA-F/-]+")  # an index or a UUID, as nvidia-smi lists them

store_option = click.option(
    "--store",
    default="sqlite:///hpo.db",
    show_default=True,
    envvar="HPO_STORE",
    help="Where the studies are kept; also HPO_STORE.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")


class Duration(click.ParamType):
    """``90``, ``90s``, ``20m``, ``1h30m``, ``2d`` in seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        parts = re.findall(r"(\d+(?:\.\d+)?)([smhd]?)", value)
        if not parts or "".join(number + unit for number, unit in parts) != value:
            self.fail(f"{value!r} is no duration; write 90s, 20m, 2h or 1h30m", param, ctx)
        seconds = sum(float(number) * UNITS[unit or "s"] for number, unit in parts)
        if seconds <= 0:
            self.fail("a duration must be more than zero", param, ctx)
        return seconds


def worker_slots(workers: int | None, gpus: str | None) -> list[tuple[str, ...]]:
    """The devices of each worker: ``0+1,2+3`` is ``[("0", "1"), ("2", "3")]``; no GPUs are empty tuples."""
    if gpus is None:
        return [()] * (1 if workers is None else workers)
    slots = [tuple(device.strip() for device in entry.split("+")) for entry in gpus.split(",")]
    for device in (device for slot in slots for device in slot):
        if not GPU.fullmatch(device):
            raise click.UsageError(f"--gpus {gpus}: {device!r} names no GPU; write 0,1 or 0+1,2+3")
    if workers is not None and workers != len(slots):
        raise click.UsageError(
            f"--workers {workers} does not match --gpus {gpus}, which is for {len(slots)};"
            " leave --workers out, or name a GPU for each (0,0 puts two on one)"
        )
    return slots


def program() -> str:
    """How this command was called, to be called so again: ``.venv/bin/hpo`` where ``hpo`` is not on PATH."""
    called = sys.argv[0]
    is_script = os.path.basename(called) == "hpo"
    return "hpo" if not is_script or shutil.which("hpo") == os.path.abspath(called) else called


def echo_json(document: Any) -> None:
    """One document on stdout; NaN and infinity as null, which every reader of JSON accepts."""
    click.echo(json.dumps(without_nonfinite(document), indent=2, ensure_ascii=False, allow_nan=False))


def check_master(option: str, master: str) -> None:
    """Raises UsageError where Spark would not know the master."""
    if not MASTER.fullmatch(master):
        raise click.UsageError(
            f"{option} {master} is no master: write local[4], spark://HOST:7077, yarn or k8s://https://HOST:PORT"
        )
