"""The PyTorch loop and the digits: what a trial may rely on, above all after its worker's death."""

import copy
import json
import pickle
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from hpo.core.errors import TrialPruned, UsageError
from hpo.training.data import digits
from hpo.training.torch import Fit, device_for, evaluate, fit, seed_everything


@dataclass
class FakeRun:
    """A run that writes down what is reported, and dies or is pruned at one epoch."""

    directory: Path
    checkpoint_directory: Path
    number: int = 0
    attempt: int = 1
    seed: int = 7
    gpus: Sequence[str] = ()
    dies_at: int | None = None
    pruned_at: int | None = None
    reports: dict = field(default_factory=dict)

    def report(self, epoch, loss=None, **metrics):
        if epoch == self.dies_at:
            raise Killed
        self.reports[epoch] = {"loss": loss, **metrics}
        if epoch == self.pruned_at:
            raise TrialPruned

    def retried(self):
        """The next attempt: the artifacts are gone, the checkpoints and the reported epochs are not."""
        directory = self.directory / "retry"
        directory.mkdir()
        return replace(self, directory=directory, attempt=self.attempt + 1, dies_at=None)


class Killed(BaseException):
    pass


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run(tmp_path):
    return new_run(tmp_path / "trial")


def new_run(root, **kwargs):
    (root / "artifacts").mkdir(parents=True)
    (root / "checkpoints").mkdir()
    return FakeRun(root / "artifacts", root / "checkpoints", **kwargs)


def blobs(examples=90, seed=0):
    """Three overlapping clouds in five dimensions: learnable, but not at once."""
    rng = np.random.default_rng(seed)
    targets = np.arange(examples) % 3
    return (rng.normal(size=(examples, 5)) + targets[:, None] * 0.8).astype(np.float32), targets


def network(seed=0):
    """With dropout and batch normalization: both would give a resumed training away."""
    seed_everything(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=0.02), None


def train(run, model, build=adam, **kwargs):
    optimizer, scheduler = build(model)
    settings = {"epochs": 6, "batch_size": 16} | kwargs
    return fit(run, model, blobs(), blobs(seed=1), optimizer=optimizer, scheduler=scheduler, **settings)


def curve(run):
    """What was reported but for the clock."""
    return {
        epoch: {name: value for name, value in metrics.items() if not name.startswith("time/")}
        for epoch, metrics in run.reports.items()
    }


def same_weights(left, right):
    a, b = left.state_dict(), right.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- what is reported and returned


def test_every_epoch_is_reported_with_its_metrics(run):
    train(run, network(), epochs=3)

    assert list(run.reports) == [0, 1, 2]
    for metrics in run.reports.values():
        assert set(metrics) == {
            "loss",
            "accuracy",
            "validation_loss",
            "train_loss",
            "learning_rate",
            "time/epoch_seconds",
        }
        assert all(type(value) is float for value in metrics.values())
        assert metrics["loss"] == metrics["validation_loss"]
        assert metrics["learning_rate"] == 0.02
        assert metrics["time/epoch_seconds"] > 0


def test_the_result_is_the_best_epoch_as_it_was_reported(run):
    result = train(run, network(), epochs=8)

    losses = [metrics["loss"] for metrics in run.reports.values()]
    best = int(np.argmin(losses))
    assert losses[best] < 0.8 * losses[0]
    assert result == Fit(
        loss=losses[best],
        accuracy=run.reports[best]["accuracy"],
        validation_loss=run.reports[best]["validation_loss"],
        train_loss=run.reports[best]["train_loss"],
        best_epoch=best,
        epochs=8,
    )
    assert json.loads(json.dumps(result.as_result()))["loss"] == losses[best]


def test_the_error_can_be_minimized_instead_of_the_loss(run):
    result = train(run, network(), minimize="error", epochs=8)

    errors = [metrics["loss"] for metrics in run.reports.values()]
    assert errors == [1 - metrics["accuracy"] for metrics in run.reports.values()]
    assert result.loss == min(errors)
    assert result.best_epoch == errors.index(min(errors))


def test_the_model_is_left_and_kept_with_the_weights_of_the_best_epoch(run):
    # A learning rate that grows a thousandfold makes the last epochs the worst.
    def worsening(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda epoch: 10.0 ** max(0, epoch - 2)
        )

    model = network()

    result = train(run, model, worsening)

    assert result.best_epoch < 5
    assert evaluate(model, blobs(seed=1)) == (result.validation_loss, result.accuracy)
    kept = network(seed=99)
    kept.load_state_dict(torch.load(run.directory / "model.pt", weights_only=True))
    assert same_weights(kept, model)


def test_no_model_is_kept_unless_it_is_wanted(run):
    train(run, network(), keep_model=False, epochs=1)

    assert list(run.directory.iterdir()) == []


def test_evaluation_agrees_with_one_pass_over_all_examples_whatever_the_batch_size():
    model = network()
    inputs, targets = (torch.tensor(part) for part in blobs(100))
    model.eval()
    logits = model(inputs)
    expected = (cross_entropy(logits, targets).item(), (logits.argmax(1) == targets).double().mean().item())
    model.train()

    for batch_size in (7, 100, 4096):
        assert evaluate(model, (inputs, targets), batch_size=batch_size) == pytest.approx(expected, rel=1e-5)


def test_an_epoch_visits_every_example_once_in_batches_of_nearly_equal_size(run):
    class Spy(nn.Linear):
        def forward(self, inputs):
            if self.training:
                seen.append(inputs[:, 0].detach().tolist())
            return super().forward(inputs)

    seen = []
    model = Spy(1, 2)
    numbers = (np.arange(65, dtype=np.float32)[:, None] / 65, np.arange(65) % 2)

    fit(run, model, numbers, numbers, epochs=2, batch_size=32, optimizer=adam(model)[0])

    assert [len(batch) for batch in seen] == [22, 22, 21] * 2
    first, second = np.concatenate(seen[:3]), np.concatenate(seen[3:])
    assert np.array_equal(np.sort(first), numbers[0][:, 0].astype(float))
    assert np.array_equal(np.sort(second), np.sort(first))
    assert not np.array_equal(first, second)


def test_the_training_loss_is_the_mean_over_examples(run):
    # At a learning rate of zero the weights stand still, and one pass over the data is the oracle.
    model = nn.Linear(5, 3)
    expected = evaluate(model, blobs())[0]

    train(
        run, model, lambda model: (torch.optim.SGD(model.parameters(), lr=0.0), None), epochs=1, batch_size=7
    )

    assert run.reports[0]["train_loss"] == pytest.approx(expected, rel=1e-5)


def test_a_plateau_is_one_of_the_minimized_quantity(run):
    def worse_with_every_epoch(logits, targets):
        if not model.training:
            validations.append(1)
        return cross_entropy(logits, targets) * (1 if model.training else 10 ** len(validations))

    def halving(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return optimizer, torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)

    model, validations = nn.Linear(5, 3), []

    train(run, model, halving, loss=worse_with_every_epoch, epochs=4)

    reports = run.reports.values()
    assert [metrics["learning_rate"] for metrics in reports] == [0.1, 0.1, 0.05, 0.025]
    assert run.reports[3]["train_loss"] < run.reports[0]["train_loss"]


# --- randomness


def test_the_runs_seed_decides_the_training(tmp_path):
    first, again, other = (
        new_run(tmp_path / name, seed=seed) for name, seed in {"a": 1, "b": 1, "c": 2}.items()
    )

    for run in (first, again, other):
        train(run, network(seed=0), epochs=2)

    assert curve(first) == curve(again)
    assert curve(first) != curve(other)


# --- the worker's death


def plateau(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    return optimizer, torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)


def milestones(model):
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.1)
    return optimizer, torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4])


def cosine_with_numpy_numbers(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=np.float64(0.02))
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, np.int64(6))


@pytest.mark.parametrize("build", [adam, plateau, milestones, cosine_with_numpy_numbers])
@pytest.mark.parametrize("dies_at", [0, 2, 5])
def test_a_retry_gives_the_numbers_of_an_unbroken_training(tmp_path, build, dies_at):
    unbroken = new_run(tmp_path / "unbroken")
    model = network()
    expected = train(unbroken, model, build)
    broken = new_run(tmp_path / "broken", dies_at=dies_at)
    with pytest.raises(Killed):
        train(broken, network(), build)

    retry = broken.retried()
    resumed = network(seed=99)  # other first weights: only the checkpoint can give the right ones
    result = train(retry, resumed, build)

    assert result == expected
    assert curve(retry) == curve(unbroken)
    assert same_weights(resumed, model)
    assert len(list(retry.checkpoint_directory.iterdir())) == 1


def test_a_retry_repeats_an_epoch_that_was_not_finished_and_no_other(tmp_path):
    unbroken = new_run(tmp_path / "unbroken")
    train(unbroken, network())
    calls = {"broken": 0, "retry": 0}

    def counting(attempt, fatal=None):
        def loss(logits, targets):
            calls[attempt] += 1
            if calls[attempt] == fatal:
                raise Killed
            return cross_entropy(logits, targets)

        return loss

    # An epoch is six batches and one validation: the 24th call is in the middle of epoch 3.
    broken = new_run(tmp_path / "broken")
    with pytest.raises(Killed):
        train(broken, network(), loss=counting("broken", fatal=24))
    retry = broken.retried()
    train(retry, network(seed=99), loss=counting("retry"))

    assert calls["retry"] == 3 * 7
    assert curve(retry) == curve(unbroken)


def test_a_death_while_the_checkpoint_is_written_leaves_the_one_before(tmp_path, run, monkeypatch):
    unbroken = new_run(tmp_path / "unbroken")
    expected = train(unbroken, network())
    written, save = [], torch.save

    def torn(document, path):
        written.append(path)
        save(document, path)
        if len(written) == 3:
            Path(path).write_bytes(Path(path).read_bytes()[:1000])
            raise Killed

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(Killed):
        train(run, network())
    monkeypatch.undo()
    assert list(run.reports) == [0, 1]

    retry = run.retried()

    assert train(retry, network(seed=99)) == expected
    assert curve(retry) == curve(unbroken)


def test_a_retry_after_the_last_epoch_trains_no_more(run):
    expected = train(run, network())
    retry = replace(run.retried(), reports={})

    result = train(retry, network(seed=99))

    assert result == expected
    assert list(retry.reports) == [5]
    assert (retry.directory / "model.pt").exists()


def test_a_second_fit_in_one_trial_is_refused_instead_of_continuing_the_first(run):
    train(run, network(), epochs=1)

    with pytest.raises(UsageError, match="twice"):
        train(run, network(), epochs=1)


class Trap:
    """Pickled, it is a call: reading it back would leave a mark on the disk."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_a_checkpoint_runs_no_code(tmp_path, run):
    mark = tmp_path / "mark"
    train(run, network(), epochs=1)
    (path,) = run.checkpoint_directory.iterdir()
    torch.save({"attempt": 0, "history": Trap(mark)}, path)

    with pytest.raises(pickle.UnpicklingError):
        train(run.retried(), network(), epochs=2)

    assert not mark.exists()


# --- stopping early


def test_patience_counts_epochs_without_a_better_one(tmp_path):
    def frozen(model):
        return torch.optim.SGD(model.parameters(), lr=0.0), None

    # Without dropout, normalization and learning every epoch's loss is the same: none is better than epoch 0.
    run = new_run(tmp_path / "trial")
    result = train(run, nn.Linear(5, 3), frozen, patience=2, epochs=10)

    assert (result.best_epoch, result.epochs) == (0, 3)


def test_patience_counts_on_through_a_retry(tmp_path):
    def frozen(model):
        return torch.optim.SGD(model.parameters(), lr=0.0), None

    run = new_run(tmp_path / "trial", dies_at=1)
    model = nn.Linear(5, 3)
    with pytest.raises(Killed):
        train(run, copy.deepcopy(model), frozen, patience=2, epochs=10)
    result = train(run.retried(), model, frozen, patience=2, epochs=10)

    assert (result.best_epoch, result.epochs) == (0, 3)


def test_a_pruned_trial_ends_at_once(tmp_path):
    run = new_run(tmp_path / "trial", pruned_at=1)

    with pytest.raises(TrialPruned):
        train(run, network())

    assert list(run.reports) == [0, 1]


# --- what can't be trained


def test_a_training_that_diverges_says_where(run):
    def nan_in_the_ninth_batch(logits, targets):
        calls.append(1)
        return cross_entropy(logits, targets) * (float("nan") if len(calls) == 9 else 1)

    calls = []

    # An epoch is six batches and one validation: the ninth call is the second batch of epoch 1.
    with pytest.raises(FloatingPointError, match=r"training loss is nan in batch 1 of epoch 1 .*0\.02"):
        train(run, network(), loss=nan_in_the_ninth_batch)

    assert list(run.reports) == [0]


def test_a_validation_that_diverges_says_so(run):
    model = network()

    def infinite_in_validation(logits, targets):
        return cross_entropy(logits, targets) * (1 if model.training else float("inf"))

    with pytest.raises(FloatingPointError, match="validation loss is inf after epoch 0"):
        train(run, model, loss=infinite_in_validation)


def test_all_wrong_arguments_are_one_report(run):
    model = network()
    inputs, targets = blobs()

    with pytest.raises(UsageError) as error:
        fit(
            run,
            model,
            (inputs, targets[:-1]),
            (inputs[:0], targets[:0]),
            epochs=0,
            batch_size=16.0,
            optimizer=adam(model)[0],
            minimize="accuracy",
        )

    for fault in (
        "90 inputs and 89",
        "validation is empty",
        "epochs is 0",
        "batch_size is 16.0",
        "'accuracy'",
    ):
        assert fault in error.value.message
    assert "scope.int" in error.value.hint


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_warned_of(run):
    with pytest.warns(UserWarning, match=r"GPU 0, 1.*CPU"):
        device = device_for(replace(run, gpus=("0", "1")))

    assert device.type == "cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_training_and_its_retry_run_on_the_gpu(tmp_path):
    expected = train(new_run(tmp_path / "unbroken"), network(), milestones)
    broken = new_run(tmp_path / "broken", dies_at=2)
    with pytest.raises(Killed):
        train(broken, network(), milestones)

    model = network(seed=99)
    result = train(broken.retried(), model, milestones)

    assert next(model.parameters()).is_cuda
    assert result.loss == pytest.approx(expected.loss, rel=1e-3)


# --- the digits


def test_the_digits_are_split_into_parts_with_equal_shares_of_each_class():
    data = digits()

    parts = [data.train, data.validation, data.test]
    assert [len(targets) for _, targets in parts] == [1257, 270, 270]
    for inputs, targets in parts:
        assert inputs.shape == (len(targets), 64)
        assert inputs.dtype == np.float32
        assert targets.dtype == np.int64
        shares = np.bincount(targets, minlength=len(data.class_names)) / len(targets)
        assert shares == pytest.approx(np.full(10, 0.1), abs=0.005)
    assert data.train[0].mean() == pytest.approx(0, abs=1e-5)
    assert data.train[0].std() == pytest.approx(1, abs=1e-5)


def test_the_parts_together_are_the_digits_each_once():
    from sklearn.datasets import load_digits

    data = digits()

    pixels = np.concatenate([part[0] for part in (data.train, data.validation, data.test)])
    grey = np.rint((pixels - pixels.min()) / (pixels.max() - pixels.min()) * 16)
    assert sorted(grey.tolist()) == sorted(load_digits().data.tolist())


def test_the_split_depends_on_its_seed_alone_and_is_read_once():
    assert digits() is digits()
    assert not np.array_equal(digits().validation[1], digits(seed=1).validation[1])


def test_the_digits_cant_be_changed_by_a_trial():
    with pytest.raises(ValueError, match="read-only"):
        digits().train[0][0] = 0


def test_importing_the_package_brings_no_framework():
    code = "import sys, hpo.training, hpo.training.data; print({'torch', 'sklearn'} & set(sys.modules))"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "set()"
