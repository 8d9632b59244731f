"""History, JSON values and flat names, leases, file systems, the causes of death."""

import math
import signal
from pathlib import Path

import numpy as np
import pytest

from hpo.core.history import History
from hpo.core.plain import flat, plain, readable, without_nonfinite
from hpo.core.trial import Kind
from hpo.executors.deaths import OomCounter, explain
from hpo.stores.filesystems import network_filesystem
from hpo.stores.lease import LeaseWatch
from hpo.testing import FakeClock


def test_a_history_grows_and_keeps_its_rows() -> None:
    history = History(columns=2)
    rows = np.random.default_rng(0).random((100, 2))

    for number, row in enumerate(rows):
        history.append(number, row, number / 10)

    assert len(history) == 100
    np.testing.assert_array_equal(history.rows, rows)
    np.testing.assert_array_equal(history.numbers, np.arange(100))
    np.testing.assert_allclose(history.losses, np.arange(100) / 10)


def test_what_is_derived_from_a_history_is_calculated_once_a_row() -> None:
    history = History(columns=2)
    calls = []

    def double(rows: np.ndarray) -> np.ndarray:
        calls.append(len(rows))
        return 2 * rows[:, 0]

    for number in range(40):
        history.append(number, np.array([number, 0.0]), 0.0)
        if number % 10 == 9:
            np.testing.assert_array_equal(history.derived(double), 2.0 * np.arange(number + 1))
            history.derived(double)

    assert [n for n in calls if n] == [10, 10, 10, 10]


@pytest.mark.parametrize("loss", [None, math.nan, math.inf, -math.inf])
def test_a_loss_that_is_none_counts_as_the_worst(loss: float | None) -> None:
    history = History(columns=1)

    history.append(0, np.array([0.5]), loss)

    assert history.losses[0] == math.inf


def test_plain_makes_json_of_arrays_and_tuples_and_refuses_the_rest() -> None:
    value = {"a": (np.int64(1), np.float32(0.5)), "b": np.arange(3), "c": [None, True, "x", np.bool_(False)]}

    assert plain(value) == {"a": [1, 0.5], "b": [0, 1, 2], "c": [None, True, "x", False]}
    with pytest.raises(TypeError, match=r"result\['m'\]\[1\] is a set"):
        plain({"m": [1, {2}]})


def test_readable_names_what_json_cannot_hold() -> None:
    assert readable({"act": math.tanh, "cls": dict, "n": None, "s": {3}}) == {
        "act": "tanh",
        "cls": "dict",
        "n": None,
        "s": "{3}",
    }


def test_flat_names_are_dotted() -> None:
    params = {"lr": 0.1, "conv": {"blocks": [{"size": 3}, {"size": 5}], "num": 2}, "none": {}}

    assert flat(params) == {"lr": 0.1, "conv.blocks.0.size": 3, "conv.blocks.1.size": 5, "conv.num": 2}
    assert flat(0.5) == {"value": 0.5}


def test_what_is_not_finite_becomes_null() -> None:
    assert without_nonfinite({"a": [math.nan, 1.0], "b": math.inf}) == {"a": [None, 1.0], "b": None}


def test_a_claim_is_silent_when_its_counter_stood_still_while_watched() -> None:
    clock = FakeClock()
    watch = LeaseWatch(clock)
    watch.silent([("a", 0), ("b", 0)], lease_seconds=30)
    clock.advance(20)
    watch.silent([("a", 1), ("b", 0)], lease_seconds=30)
    clock.advance(15)

    assert watch.silent([("a", 1), ("b", 0), ("new", 0)], lease_seconds=30) == ["b"]


def test_a_watch_that_begins_late_gives_the_whole_lease() -> None:
    clock = FakeClock(now=1e6)

    assert LeaseWatch(clock).silent([("a", 0)], lease_seconds=30) == []


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/me/hpo.db", "nfs4"),
        ("/home/local/hpo.db", None),
        ("/homework/hpo.db", None),
        ("/my data/x", "cifs"),
    ],
)
def test_network_file_systems_are_told_by_the_longest_mount(
    tmp_path: Path, path: str, kind: str | None
) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "/dev/vda / ext4 rw 0 0\n"
        "server:/home /home nfs4 rw 0 0\n"
        "/dev/vdb /home/local xfs rw 0 0\n"
        "//nas/data /my\\040data cifs rw 0 0\n"
    )

    assert network_filesystem(Path(path), mounts) == kind


def test_without_a_table_of_mounts_nobody_can_tell(tmp_path: Path) -> None:
    assert network_filesystem(Path("/home/x"), tmp_path / "none") is None


@pytest.mark.parametrize(
    ("code", "was_oom", "kind", "reason"),
    [
        (7, False, Kind.EXIT_CODE, "exit code 7"),
        (0, False, Kind.EXIT_CODE, "exit code 0"),
        (-signal.SIGSEGV, False, Kind.SIGNAL, "SIGSEGV"),
        (-signal.SIGKILL, False, Kind.SIGNAL, "SIGKILL"),
        (-signal.SIGKILL, True, Kind.OUT_OF_MEMORY, "out of memory"),
        (-signal.SIGSEGV, True, Kind.SIGNAL, "SIGSEGV"),
        (-99, False, Kind.SIGNAL, "signal 99"),
    ],
)
def test_a_death_is_explained(code: int, was_oom: bool, kind: Kind, reason: str) -> None:
    failure = explain(code, was_oom)

    assert failure.kind is kind
    assert reason in failure.reason


@pytest.mark.parametrize(
    ("line", "counter", "text"),
    [
        ("0::/job", "job/memory.events", "low 0\noom 9\noom_kill {}\n"),
        (
            "7:cpu,memory:/job",
            "memory/job/memory.oom_control",
            "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n",
        ),
    ],
    ids=["version 2", "version 1"],
)
def test_a_kill_for_memory_moves_the_groups_counter(
    tmp_path: Path, line: str, counter: str, text: str
) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "42").mkdir(parents=True)
    (proc / "42" / "cgroup").write_text(f"1:name=systemd:/\n{line}\n")
    (groups / counter).parent.mkdir(parents=True)
    (groups / counter).write_text(text.format(3))
    watched = OomCounter(42, proc, groups)
    assert not watched.has_killed()

    (groups / counter).write_text(text.format(4))

    assert watched.has_killed()


def test_without_cgroups_no_death_is_for_memory(tmp_path: Path) -> None:
    assert not OomCounter(42, tmp_path, tmp_path).has_killed()
