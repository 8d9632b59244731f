"""spark-conf/discover-gpus: scripts answer as nvidia-smi does."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "spark-conf" / "discover-gpus"

A100 = "NVIDIA A100-SXM4-40GB (UUID: GPU-5c89852c-d268-c3f3-1b07-005d5ae1dc3f)"
TWO_WHOLE = ("0, [N/A]\n1, Disabled", f"GPU 0: {A100}\nGPU 1: {A100}")
ONE_CUT_IN_TWO = (
    "0, Enabled\n1, Disabled",
    f"GPU 0: {A100}\n"
    "  MIG 3g.20gb     Device  0: (UUID: MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f)\n"
    "  MIG 3g.20gb     Device  1: (UUID: MIG-GPU-5c89852c-d268-c3f3-1b07-005d5ae1dc3f/2/0)\n"
    f"GPU 1: {A100}",
)
CUT_IN_NONE = ("0, Enabled", f"GPU 0: {A100}")

Discover = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def discover(tmp_path: Path) -> Discover:
    """``discover(nvidia_smi, **environment)`` on a machine that has this nvidia-smi, or none."""
    for tool in ("sh", "awk", "sed", "tr", "cat", "sleep"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or tool)

    def run(nvidia_smi: str | None, **environment: str) -> subprocess.CompletedProcess[str]:
        # A time limit that a test can wait for.
        write(tmp_path / "timeout", f'shift; exec {shutil.which("timeout")} 0.2 "$@"')
        if nvidia_smi is not None:
            write(tmp_path / "nvidia-smi", nvidia_smi)
        return subprocess.run(
            [SCRIPT], env={"PATH": str(tmp_path)} | environment, capture_output=True, text=True, check=True
        )

    return run


def write(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def says(modes: str, listing: str) -> str:
    """An nvidia-smi with these GPUs."""
    return f"case $1 in -L) cat <<'END'\n{listing}\nEND\n;; *) cat <<'END'\n{modes}\nEND\n;; esac"


@pytest.mark.parametrize(
    ("gpus", "addresses"),
    [
        pytest.param(TWO_WHOLE, ["0", "1"], id="indices of whole GPUs"),
        pytest.param(
            ONE_CUT_IN_TWO,
            [
                "1",
                "MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f",
                "MIG-GPU-5c89852c-d268-c3f3-1b07-005d5ae1dc3f/2/0",
            ],
            id="UUIDs of MIG instances",
        ),
        pytest.param(CUT_IN_NONE, [], id="a GPU in MIG mode without instances is of no use"),
    ],
)
def test_gpus_are_named_as_cuda_visible_devices_takes_them(
    discover: Discover, gpus: tuple[str, str], addresses: list[str]
) -> None:
    assert json.loads(discover(says(*gpus)).stdout) == {"name": "gpu", "addresses": addresses}


def test_a_machine_without_nvidia_smi_has_none(discover: Discover) -> None:
    assert json.loads(discover(None).stdout) == {"name": "gpu", "addresses": []}


@pytest.mark.parametrize(
    "nvidia_smi",
    [
        pytest.param(
            "echo 'NVIDIA-SMI has failed because it could not talk to the driver'; exit 9", id="fails"
        ),
        pytest.param("exec sleep 60", id="hangs"),
    ],
)
def test_an_nvidia_smi_in_trouble_offers_none_and_is_told_of(discover: Discover, nvidia_smi: str) -> None:
    done = discover(nvidia_smi)

    assert json.loads(done.stdout) == {"name": "gpu", "addresses": []}
    assert "nvidia-smi failed" in done.stderr


@pytest.mark.parametrize(("given", "addresses"), [("0,1", ["0", "1"]), ("3", ["3"]), ("", [])])
def test_gpus_for_trying_out_are_taken_as_given(discover: Discover, given: str, addresses: list[str]) -> None:
    done = discover(says(*TWO_WHOLE), HPO_FAKE_GPUS=given)

    assert json.loads(done.stdout)["addresses"] == addresses
