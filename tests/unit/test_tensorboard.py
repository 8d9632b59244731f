"""TensorBoard's event files, read back with TensorBoard's own reader."""

import builtins
import subprocess
import sys

import pytest

pytest.importorskip("tensorboard")

from dataclasses import replace

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata, plugin_data_pb2

from hpo.core.errors import UsageError
from hpo.core.trial import Completed, Failed, Kind
from hpo.stores import connect
from hpo.testing import IDENTITY
from hpo.tracking.tensorboard import TensorBoardObserver

SPACE = {
    "expression": {"dict": {"lr": {"parameter": "lr"}}},
    "parameters": {"lr": {"kind": "loguniform", "low": -5.0, "high": 0.0}},
}


@pytest.fixture
def store(tmp_path):
    return connect(f"sqlite:///{tmp_path}/hpo.db", create=True).create(replace(IDENTITY, space=SPACE))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "tensorboard"


class Driver:
    """Shows an observer what has changed, as the loop does."""

    def __init__(self, store, folder):
        self.store, self.observer, self.seen = (
            store,
            TensorBoardObserver(store, folder),
            store.record().revision,
        )

    def look(self):
        changes = self.store.changes(self.seen)
        self.seen = changes.revision
        self.observer.update(changes)


def begin(store, number=0, **params):
    store.add(number, {}, params or {"lr": 0.1})
    return store.claim("w", number)


def read(folder, number=0):
    events = EventAccumulator(str(folder / f"trial-{number:05d}"))
    events.Reload()
    return events


def curve(folder, tag, number=0):
    return [(event.step, round(event.value, 4)) for event in read(folder, number).Scalars(tag)]


def hparams(folder, tag, number=0):
    content = read(folder, number).SummaryMetadata(tag).plugin_data.content
    return plugin_data_pb2.HParamsPluginData.FromString(content)


def test_epochs_are_scalars_and_the_last_loss_is_the_trials_own(store, folder):
    driver = Driver(store, folder)
    claim = begin(store)
    for epoch, loss in enumerate([0.9, 0.5]):
        store.report(claim, epoch, loss, {"accuracy": 1 - loss}, time=100.0 + epoch)
        driver.look()
    store.finish(claim, Completed(0.25, {"epoch_time": {"median_epoch": 2.0}}))

    driver.look()

    assert curve(folder, "loss") == [(0, 0.9), (1, 0.5), (2, 0.25)]
    assert curve(folder, "accuracy") == [(0, 0.1), (1, 0.5)]
    assert curve(folder, "epoch_seconds") == [(2, 2.0)]
    assert [event.wall_time for event in read(folder).Scalars("accuracy")] == [100.0, 101.0]


def test_parameters_and_endings_are_hparams(store, folder):
    driver = Driver(store, folder)
    store.finish(begin(store, 0, lr=0.1, model={"name": "mlp", "bias": True}), Completed(0.5))
    store.finish(begin(store, 1, lr=10**400), Failed(Kind.NAN, "nan"))
    driver.look()

    started = hparams(folder, metadata.SESSION_START_INFO_TAG).session_start_info
    ended = [hparams(folder, metadata.SESSION_END_INFO_TAG, n).session_end_info.status for n in (0, 1)]

    assert started.hparams["lr"].number_value == 0.1
    assert started.hparams["model.name"].string_value == "mlp"
    assert started.hparams["model.bias"].bool_value is True
    assert ended == [1, 2]  # success, failure


def test_an_epoch_can_be_seen_while_the_trial_runs(store, folder):
    driver = Driver(store, folder)
    store.report(begin(store), 0, 0.9, {}, time=1.0)

    driver.look()

    assert curve(folder, "loss") == [(0, 0.9)]


def test_a_retry_that_begins_anew_has_a_new_curve(store, folder):
    driver = Driver(store, folder)
    first = begin(store)
    for epoch in range(3):
        store.report(first, epoch, 9.0, {}, time=1.0)
    driver.look()
    store.recall()
    driver.look()
    second = store.claim("w", 0)
    driver.look()
    store.report(second, 0, 0.5, {}, time=2.0)
    driver.look()
    store.finish(second, Completed(0.5))
    driver.look()

    assert curve(folder, "loss") == [(0, 0.5), (1, 0.5)]


def test_a_retry_that_goes_on_keeps_its_epochs(store, folder):
    driver = Driver(store, folder)
    store.report(begin(store), 0, 0.9, {}, time=1.0)
    driver.look()
    store.recall()
    second = store.claim("w", 0)
    driver.look()
    store.report(second, 1, 0.5, {}, time=2.0)
    store.finish(second, Completed(0.4))
    driver.look()

    assert curve(folder, "loss") == [(0, 0.9), (1, 0.5), (2, 0.4)]


@pytest.mark.parametrize("look_first", [True, False])
def test_the_next_process_writes_what_is_missing_and_nothing_twice(store, folder, look_first):
    killed = Driver(store, folder)
    claim = begin(store)
    store.report(claim, 0, 0.9, {}, time=1.0)
    if look_first:
        killed.look()
    store.report(claim, 1, 0.5, {}, time=2.0)
    store.finish(claim, Completed(0.4))

    for _ in range(2):
        TensorBoardObserver(store, folder).close()

    assert curve(folder, "loss") == [(0, 0.9), (1, 0.5), (2, 0.4)]


def test_a_trial_that_is_whole_is_left_as_it_is(store, folder):
    store.finish(begin(store), Completed(0.4))
    TensorBoardObserver(store, folder).close()
    [file] = (folder / "trial-00000").glob("*tfevents*")
    before = file.stat().st_mtime_ns

    TensorBoardObserver(store, folder).close()

    assert file.stat().st_mtime_ns == before


def test_waiting_trials_have_no_files(store, folder):
    store.add(0, {}, {"lr": 0.1})

    TensorBoardObserver(store, folder).close()

    assert not list(folder.glob("trial-*"))


def test_a_missing_package_is_named_with_what_installs_it(store, folder, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **options):
        if name.partition(".")[0] == "tensorboard":
            raise ModuleNotFoundError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)

    with pytest.raises(UsageError) as caught:
        TensorBoardObserver(store, folder)

    assert "hpo[tensorboard]" in caught.value.hint


def test_a_folder_that_cannot_be_made_is_an_error_at_the_start(store, tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(UsageError, match="can't be written"):
        TensorBoardObserver(store, tmp_path / "file" / "tensorboard")


def test_neither_tensorflow_nor_torch_is_loaded(store, folder):
    store.finish(begin(store), Completed(0.4))
    script = f"""if True:
        import sys
        from pathlib import Path
        from hpo.stores import connect
        from hpo.tracking.tensorboard import TensorBoardObserver
        TensorBoardObserver(connect({store.url!r}).open({store.study!r}), Path({str(folder)!r})).close()
        print([name for name in ("tensorflow", "torch") if name in sys.modules])
    """

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)

    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr
