"""The PyTorch loop: what a trial may rely on, above all after its worker's death."""

import contextlib
import copy
import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import precision_recall_fscore_support, r2_score
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from hpo.core.errors import StoreError, TrialPruned, UsageError
from hpo.core.trial import Answer
from hpo.run import Run
from hpo.training import Final
from hpo.training.clock import Clock
from hpo.training.data import Dataset
from hpo.training.torch import Fit, default_loss, device_for, evaluate, fit, seed_everything


class Killed(BaseException):
    pass


class Study:
    """Takes reports as a store does; the worker dies, or the trial is pruned, at one epoch."""

    def __init__(self, *, dies_at=None, pruned_at=None):
        self.dies_at, self.pruned_at = dies_at, pruned_at
        self.reports = {}

    def __call__(self, epoch, loss, metrics, time):
        if epoch == self.dies_at:
            raise Killed
        self.reports[epoch] = {"loss": loss, **metrics}
        return Answer.STOP if epoch == self.pruned_at else Answer.CONTINUE


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run(tmp_path):
    return new_run(tmp_path / "trial")


def new_run(root, *, seed=7, final=None, **kwargs):
    (root / "artifacts").mkdir(parents=True)
    (root / "checkpoints").mkdir()
    return Run(0, seed, root / "artifacts", root / "checkpoints", send=Study(**kwargs), final=final)


def retried(run):
    """The next attempt: the artifacts are gone, the checkpoints and the reported epochs are not."""
    directory = run.directory / "retry"
    directory.mkdir()
    study = Study()
    study.reports = run.send.reports
    return Run(0, run.seed, directory, run.checkpoint_directory, attempt=run.attempt + 1, send=study)


def blobs(examples=90, seed=0):
    """Three overlapping clouds in five dimensions: learnable, but not at once."""
    rng = np.random.default_rng(seed)
    targets = np.arange(examples) % 3
    return (rng.normal(size=(examples, 5)) + targets[:, None] * 0.8).astype(np.float32), targets


def three_blobs(**parts):
    parts = {"train": blobs(), "validation": blobs(seed=1), "test": blobs(60, seed=2)} | parts
    return Dataset(**parts, class_names=("a", "b", "c"), name="blobs")


def loader(part, batch_size=16, **kwargs):
    return DataLoader(TensorDataset(*map(torch.tensor, part)), batch_size, **kwargs)


def network(seed=0):
    """With dropout and batch normalization: both would give a resumed training away."""
    seed_everything(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=0.02), None


def standstill(model):
    return torch.optim.SGD(model.parameters(), lr=0.0), None


def train(run, model, build=adam, *, data=None, **kwargs):
    optimizer, scheduler = build(model)
    settings = {"epochs": 6, "batch_size": 16} | kwargs
    return fit(run, model, data or three_blobs(), optimizer=optimizer, scheduler=scheduler, **settings)


def curve(run):
    """What was reported but for the clock."""
    return {
        epoch: {name: value for name, value in metrics.items() if not name.startswith("time/")}
        for epoch, metrics in run.send.reports.items()
    }


def same_weights(left, right):
    a, b = left.state_dict(), right.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@contextlib.contextmanager
def working_directory(path):
    before = Path.cwd()
    os.chdir(path)
    yield
    os.chdir(before)


def outputs_of(model, part):
    model.eval()
    with torch.inference_mode():
        return model(torch.tensor(part[0])).numpy()


# --- what is reported and returned


def test_every_epoch_is_reported_with_its_metrics(run):
    train(run, network(), epochs=3)

    assert list(run.send.reports) == [0, 1, 2]
    for metrics in run.send.reports.values():
        assert {
            "loss",
            "validation_loss",
            "train_loss",
            "learning_rate",
            "accuracy",
            "f1_macro",
            "f1/a",
        } <= set(metrics)
        assert all(type(value) is float for value in metrics.values())
        assert metrics["loss"] == metrics["validation_loss"]
        assert metrics["learning_rate"] == 0.02


def test_every_epoch_has_its_time_with_parts_that_add_up(run):
    train(run, network(), epochs=2)

    for metrics in run.send.reports.values():
        shares = {name: value for name, value in metrics.items() if name.endswith("_share")}
        assert metrics["time/epoch_seconds"] > 0
        assert sum(shares.values()) == pytest.approx(1)
        assert metrics["time/steps"] == 6


def test_everything_counts_as_the_phase_it_belongs_to(run, monkeypatch):
    def note(what):
        before = run.clock.switch("other")
        run.clock.switch(before)
        phases.add((what, before))

    class Examples(TensorDataset):
        def __getitem__(self, index):
            note("example")
            return super().__getitem__(index)

    class Spy(nn.Linear):
        def forward(self, inputs):
            note("training" if self.training else "validation")
            return super().forward(inputs)

    def saved(document, path, save=torch.save):
        note(Path(path).name)
        save(document, path)

    def read(losses, isfinite=torch.isfinite):
        note("losses")
        return isfinite(losses)

    phases = set()
    monkeypatch.setattr(torch, "save", saved)
    monkeypatch.setattr(torch, "isfinite", read)
    examples = Examples(*map(torch.tensor, blobs()))

    train(run, Spy(5, 3), data=three_blobs(train=DataLoader(examples, 16)), batch_size=None, epochs=2)

    assert phases == {
        ("example", "data"),
        ("training", "step"),
        ("losses", "step"),  # where a GPU is waited for, once an epoch
        ("validation", "validation"),
        ("fit.unfinished", "callbacks"),
        ("validation", "other"),  # the best model once more, after the last epoch
        ("model.pt", "other"),
    }


def test_the_first_epoch_of_a_retry_begins_when_the_checkpoint_is_read(tmp_path):
    class Slow(nn.Linear):
        def forward(self, inputs):
            now[0] += 1
            return super().forward(inputs)

        def load_state_dict(self, *args, **kwargs):
            now[0] += 1000
            return super().load_state_dict(*args, **kwargs)

    now = [0.0]
    broken = new_run(tmp_path / "broken", dies_at=1)
    with pytest.raises(Killed):
        train(broken, Slow(5, 3))
    retry = retried(broken)
    retry.clock = Clock(now=lambda: now[0])

    train(retry, Slow(5, 3), epochs=3)

    assert retry.send.reports[2]["time/epoch_seconds"] == 6 + 1  # steps and one validation
    assert retry.send.reports[2]["time/step_share"] == pytest.approx(6 / 7)


def test_the_clock_knows_the_device_and_how_much_was_trained_and_validated(run):
    train(run, network(), epochs=2)

    summary = run.clock.summary()
    assert (summary["epochs"], summary["steps_per_epoch"], summary["batch_size"]) == (2, 6, 15)
    assert summary["validation_examples"] == 90
    assert summary["device"] == str(device_for(run))


def test_the_metrics_of_each_class_are_scikit_learns_in_every_epoch(run):
    outputs = []

    class Spy(nn.Linear):
        def forward(self, inputs):
            result = super().forward(inputs)
            if not self.training:
                outputs.append(result.numpy().copy())
            return result

    seed_everything(0)
    train(run, Spy(5, 3), epochs=3)

    truth = blobs(seed=1)[1]
    for metrics, predicted in zip(run.send.reports.values(), outputs, strict=False):
        expected = precision_recall_fscore_support(truth, predicted.argmax(1), zero_division=0)
        for name, values in zip(("precision", "recall", "f1"), expected, strict=False):
            found = [metrics[f"{name}/{klass}"] for klass in "abc"]
            assert found == pytest.approx(values.tolist())
            assert metrics[f"{name}_macro"] == pytest.approx(values.mean())


def test_the_result_is_the_best_epoch_as_it_was_reported(run):
    result = train(run, network(), epochs=8)

    losses = [metrics["loss"] for metrics in run.send.reports.values()]
    best = int(np.argmin(losses))
    reported = run.send.reports[best]
    assert losses[best] < 0.8 * losses[0]
    assert result == Fit(
        loss=losses[best],
        validation_loss=reported["validation_loss"],
        train_loss=reported["train_loss"],
        best_epoch=best,
        epochs=8,
        metrics={n: reported[n] for n in ("accuracy", "f1_macro", "precision_macro", "recall_macro")},
        dataset=three_blobs().describe(),
    )
    assert json.loads(json.dumps(result.as_result()))["accuracy"] == reported["accuracy"]


@pytest.mark.parametrize(
    ("minimize", "of"),
    [
        ("error", lambda metrics: 1 - metrics["accuracy"]),
        ("negative_squared_accuracy", lambda metrics: -(metrics["accuracy"] ** 2)),
        ("f1_error", lambda metrics: 1 - metrics["f1_macro"]),
    ],
)
def test_another_quantity_can_be_minimized_than_the_loss(run, minimize, of):
    result = train(run, network(), minimize=minimize, epochs=8)

    reports = run.send.reports.values()
    minimized = [metrics["loss"] for metrics in reports]
    assert minimized == [of(metrics) for metrics in reports]
    assert result.loss == min(minimized)
    assert result.best_epoch == minimized.index(min(minimized))


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
    assert evaluate(model, blobs(seed=1)).loss == result.validation_loss
    kept = network(seed=99)
    kept.load_state_dict(torch.load(run.directory / "model.pt", weights_only=True))
    assert same_weights(kept, model)


def test_no_model_is_kept_unless_it_is_wanted(run):
    train(run, network(), keep_model=False, epochs=1)

    assert not (run.directory / "model.pt").exists()


def test_the_files_of_the_evaluation_are_those_of_the_best_epoch(run):
    parquet = pytest.importorskip("pyarrow.parquet")
    model = network()

    result = train(run, model)

    assert {path.name for path in run.directory.iterdir()} == {
        "classification_report.txt",
        "confusion_matrix.json",
        "confusion_matrix.png",
        "model.pt",
        "predictions.parquet",
    }
    predicted = outputs_of(model, blobs(seed=1)).argmax(1)
    table = parquet.read_table(run.directory / "predictions.parquet").to_pydict()
    assert table["truth"] == blobs(seed=1)[1].tolist()
    assert table["prediction"] == predicted.tolist()
    assert np.mean(np.equal(table["truth"], table["prediction"])) == result.metrics["accuracy"]


@pytest.mark.parametrize("batch_size", [7, 100, 4096])
def test_evaluation_agrees_with_one_pass_over_all_examples_whatever_the_batch_size(batch_size):
    model = network()
    inputs, targets = (torch.tensor(part) for part in blobs(100))
    expected = outputs_of(model, blobs(100))
    model.train()

    for part in ((inputs, targets), blobs(100), loader(blobs(100), batch_size)):
        evaluated = evaluate(model, part, batch_size=batch_size)

        assert evaluated.loss == pytest.approx(
            cross_entropy(torch.tensor(expected), targets).item(), rel=1e-5
        )
        assert evaluated.outputs == pytest.approx(expected, rel=1e-5, abs=1e-6)
        assert np.array_equal(evaluated.targets, targets.numpy())


def test_an_epoch_visits_every_example_once_in_batches_of_nearly_equal_size(run):
    class Spy(nn.Linear):
        def forward(self, inputs):
            if self.training:
                seen.append(inputs[:, 0].detach().tolist())
            return super().forward(inputs)

    seen = []
    model = Spy(1, 2)
    numbers = (np.arange(65, dtype=np.float32)[:, None] / 65, np.arange(65) % 2)
    data = Dataset(train=numbers, validation=numbers, class_names=("even", "odd"))

    train(run, model, data=data, epochs=2, batch_size=32)

    assert [len(batch) for batch in seen] == [22, 22, 21] * 2
    first, second = np.concatenate(seen[:3]), np.concatenate(seen[3:])
    assert np.array_equal(np.sort(first), numbers[0][:, 0].astype(float))
    assert np.array_equal(np.sort(second), np.sort(first))
    assert not np.array_equal(first, second)


def test_the_training_loss_is_the_mean_over_examples(run):
    # At a learning rate of zero the weights stand still, and one pass over the data is the oracle.
    model = nn.Linear(5, 3)
    expected = evaluate(model, blobs()).loss

    train(run, model, standstill, epochs=1, batch_size=7)

    assert run.send.reports[0]["train_loss"] == pytest.approx(expected, rel=1e-5)


def test_a_model_that_works_in_place_does_not_change_the_data(run):
    data = three_blobs()
    before = [part[0].copy() for part in (data.train, data.validation)]

    train(run, nn.Sequential(nn.ReLU(inplace=True), nn.Linear(5, 3)), data=data, epochs=2)

    for part, expected in zip((data.train, data.validation), before, strict=True):
        assert np.array_equal(part[0], expected)


# --- other tasks, other data


def line(examples=80, seed=0, columns=None):
    """Targets are a linear function of three inputs, and some noise; float64, as NumPy gives it."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(examples, 3))
    slopes = np.array([[1.0, -2.0], [0.5, 1.0], [0.0, 3.0]])[:, : columns or 1]
    targets = inputs @ slopes + 0.1 * rng.normal(size=(examples, columns or 1))
    return inputs, targets if columns else targets[:, 0]


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1), None


@pytest.mark.parametrize("columns", [None, 1, 2])
def test_a_regression_goes_through_the_same_door(run, columns):
    names = ("height", "width")[: columns or 1]
    data = Dataset(train=line(columns=columns), validation=line(seed=1, columns=columns), target_names=names)
    model = nn.Linear(3, columns or 1)

    result = train(run, model, sgd, data=data, epochs=15, minimize="rmse")

    truth, outputs = (
        line(seed=1, columns=columns)[1],
        evaluate(model, data.validation, loss=default_loss(data.task)),
    )
    expected = np.sqrt(np.mean((outputs.outputs.reshape(truth.shape) - truth) ** 2, axis=0)).mean()
    assert result.loss == pytest.approx(expected, rel=1e-4)
    assert result.metrics["r2"] == pytest.approx(
        r2_score(truth, outputs.outputs.reshape(truth.shape)), abs=1e-4
    )
    assert result.metrics["r2"] > 0.9
    assert (run.directory / "regression_report.txt").exists()


@pytest.mark.parametrize("kind", [np.uint8, np.int32])
def test_class_numbers_can_be_integers_of_any_kind(tmp_path, kind):
    usual, other = (new_run(tmp_path / name) for name in ("usual", "other"))
    parts = {
        name: (inputs, targets.astype(kind))
        for name, (inputs, targets) in {"train": blobs(), "validation": blobs(seed=1)}.items()
    }

    train(usual, network(), epochs=2)
    train(other, network(), epochs=2, data=three_blobs(**parts))

    assert curve(other) == curve(usual)


def test_two_classes_can_be_told_apart_by_one_output(run):
    inputs, targets = blobs()
    part = inputs[targets < 2], targets[targets < 2]
    model = nn.Linear(5, 1)

    result = train(run, model, data=Dataset(part, part, class_names=("no", "yes")), epochs=30)

    outputs = outputs_of(model, part)[:, 0]
    assert result.metrics["accuracy"] == np.mean((outputs > 0) == part[1])
    expected = np.mean(np.log1p(np.exp(np.where(part[1] == 1, -outputs, outputs))))
    assert result.loss == pytest.approx(expected, rel=1e-5)
    assert result.metrics["accuracy"] > 0.7


def test_batches_can_come_from_loaders(tmp_path):
    first, again = (new_run(tmp_path / name) for name in "ab")

    for run in (first, again):
        data = three_blobs(
            train=loader(blobs(), shuffle=True), validation=loader(blobs(seed=1), batch_size=50)
        )
        result = train(run, network(), data=data, batch_size=None)

    assert curve(first) == curve(again)
    assert result.loss < 0.8 * first.send.reports[0]["loss"]
    assert first.send.reports[0]["time/steps"] == 6
    assert first.clock.summary()["examples_per_second"] > 0


def test_a_loader_trains_as_the_same_arrays_do(run):
    # One batch an epoch, and nothing is random: both ways must give the same numbers.
    model = nn.Linear(5, 3)
    other = copy.deepcopy(model)
    whole = three_blobs(train=loader(blobs(), batch_size=90), validation=loader(blobs(seed=1), batch_size=90))

    by_loader = train(run, model, data=whole, batch_size=None)
    by_arrays = train(new_run(run.directory / "other"), other, batch_size=90)

    assert by_loader.loss == pytest.approx(by_arrays.loss, rel=1e-4)


class Sum(nn.Module):
    """A model of two inputs by name."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(2, 3), nn.Linear(3, 3)

    def forward(self, inputs):
        return self.left(inputs["left"]) + self.right(inputs["right"])


@pytest.mark.parametrize("batch_size", [16, None])
def test_inputs_can_be_several(tmp_path, batch_size):
    def by_name(part):
        inputs, targets = part
        return {"left": inputs[:, :2], "right": inputs[:, 2:]}, targets

    def batches(part):
        inputs, targets = by_name(part)
        starts = range(0, len(targets), 16)
        return [({k: v[s : s + 16] for k, v in inputs.items()}, targets[s : s + 16]) for s in starts]

    make = by_name if batch_size else batches
    run = new_run(tmp_path / "final", final=Final(test=True))
    seed_everything(0)
    model = Sum()
    data = three_blobs(train=make(blobs()), validation=make(blobs(seed=1)), test=make(blobs(60, seed=2)))

    result = train(run, model, data=data, batch_size=batch_size)

    assert result.loss < 0.8 * run.send.reports[0]["loss"]
    assert result.test["accuracy"] > 0.5
    with working_directory(run.directory):
        exported = eval(run.final.load_line)
    inputs, _ = by_name(blobs(7))
    tensors = {name: torch.tensor(values) for name, values in inputs.items()}
    assert torch.allclose(exported(tensors), model(tensors), atol=1e-6)


def test_an_iterable_that_is_used_up_says_so(run):
    data = three_blobs(train=iter(list(loader(blobs()))))

    with pytest.raises(UsageError, match="no batch in epoch 1"):
        train(run, network(), data=data, batch_size=None)


def test_a_batch_that_is_no_pair_says_so(run):
    data = three_blobs(train=[{"inputs": torch.zeros(2, 5)}])

    with pytest.raises(UsageError, match="is a dict") as error:
        train(run, network(), data=data, batch_size=None)

    assert "run.batches" in error.value.hint


# --- how it is trained


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

    reports = run.send.reports
    assert [metrics["learning_rate"] for metrics in reports.values()] == [0.1, 0.1, 0.05, 0.025]
    assert reports[3]["train_loss"] < reports[0]["train_loss"]


def test_a_scheduler_can_be_stepped_after_every_step(run):
    def counting(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda steps: 1 / (1 + steps))

    train(run, nn.Linear(5, 3), counting, scheduler_interval="step", epochs=3)

    rates = [metrics["learning_rate"] for metrics in run.send.reports.values()]
    assert rates == pytest.approx([1, 1 / 7, 1 / 13])  # six steps an epoch


def norms_of_updates(model, part, **kwargs):
    """Train one batch with SGD at a learning rate of 1, where the update is the gradient; its norm."""
    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    fit(model=model, data=part, epochs=1, batch_size=90, optimizer=optimizer, **kwargs)
    return float((nn.utils.parameters_to_vector(model.parameters()) - before).detach().norm())


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_gradients_are_clipped_to_their_norm(tmp_path, precision):
    free, clipped = (
        norms_of_updates(
            copy.deepcopy(model),
            three_blobs(),
            run=new_run(tmp_path / name),
            clip_norm=norm,
            precision=precision,
        )
        for model in [network()]
        for name, norm in {"free": None, "clipped": 0.01}.items()
    )

    assert free > 0.02
    assert clipped == pytest.approx(0.01, rel=1e-2)


@pytest.mark.parametrize(("precision", "dtype"), [("bfloat16", torch.bfloat16), ("float16", torch.float16)])
def test_mixed_precision_computes_in_fewer_bits_and_keeps_the_weights(run, precision, dtype):
    class Spy(nn.Linear):
        def forward(self, inputs):
            result = super().forward(inputs)
            seen.add(result.dtype)
            return result

    seen = set()
    seed_everything(0)
    model = Spy(5, 3)

    result = train(run, model, precision=precision, epochs=30)

    assert seen == {dtype}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert result.loss < 0.8 * run.send.reports[0]["loss"]


def test_small_gradients_survive_float16(run):
    # A hundred-millionth is zero in float16, unless the loss is scaled.
    model = nn.Linear(5, 3)
    before = copy.deepcopy(model)

    def tiny(logits, targets):
        return cross_entropy(logits, targets) * 1e-7

    train(run, model, sgd, loss=tiny, precision="float16", epochs=1, batch_size=90)

    assert not torch.equal(model.weight, before.weight)


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


def one_cycle(model):
    optimizer = torch.optim.AdamW(model.parameters())
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=36)


def warm_up(model):
    optimizer = torch.optim.RMSprop(model.parameters(), lr=0.01)
    schedules = torch.optim.lr_scheduler
    parts = [schedules.LinearLR(optimizer, 0.1, total_iters=9), schedules.CosineAnnealingLR(optimizer, 27)]
    return optimizer, schedules.SequentialLR(optimizer, parts, [9])


def much_too_large(logits, targets):
    """In float16 its gradients overflow until the scale has come down: the checkpoint has to know it."""
    return 1e5 * cross_entropy(logits, targets)


WAYS = {
    "adam": (adam, {}),
    "plateau": (plateau, {}),
    "milestones": (milestones, {}),
    "numpy": (cosine_with_numpy_numbers, {}),
    "step": (one_cycle, {"scheduler_interval": "step"}),
    "sequence": (warm_up, {"scheduler_interval": "step", "clip_norm": 1.0}),
    "bfloat16": (adam, {"precision": "bfloat16"}),
    "float16": (adam, {"precision": "float16", "clip_norm": 1.0}),
    "overflow": (adam, {"precision": "float16", "loss": much_too_large}),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dies_at", [0, 2, 5])
def test_a_retry_gives_the_numbers_of_an_unbroken_training(tmp_path, way, dies_at):
    build, settings = WAYS[way]
    unbroken = new_run(tmp_path / "unbroken")
    model = network()
    expected = train(unbroken, model, build, **settings)
    broken = new_run(tmp_path / "broken", dies_at=dies_at)
    with pytest.raises(Killed):
        train(broken, network(), build, **settings)

    retry = retried(broken)
    resumed = network(seed=99)  # other first weights: only the checkpoint can give the right ones
    result = train(retry, resumed, build, **settings)

    assert result == expected
    assert curve(retry) == curve(unbroken)
    assert same_weights(resumed, model)
    assert len(list(retry.checkpoint_directory.iterdir())) == 1


def test_a_retry_over_a_loader_gives_the_numbers_of_an_unbroken_training(tmp_path):
    def data():
        return three_blobs(train=loader(blobs(), shuffle=True))

    unbroken = new_run(tmp_path / "unbroken")
    train(unbroken, network(), data=data(), batch_size=None)
    broken = new_run(tmp_path / "broken", dies_at=3)
    with pytest.raises(Killed):
        train(broken, network(), data=data(), batch_size=None)

    retry = retried(broken)
    train(retry, network(seed=99), data=data(), batch_size=None)

    assert curve(retry) == curve(unbroken)


KILLED_IN_THE_SEVENTH = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import torch
from pathlib import Path
from test_torch import network, new_run, train
from torch.nn.functional import cross_entropy

torch.set_num_threads(1)
calls = []
def loss(logits, targets):
    calls.append(1)
    if len(calls) == 6 * 7 + 4:  # an epoch is six batches and one validation
        os.kill(os.getpid(), signal.SIGKILL)
    return cross_entropy(logits, targets)
train(new_run(Path(sys.argv[2])), network(), loss=loss, epochs=10)
"""


def test_a_training_killed_in_its_seventh_epoch_goes_on_in_its_seventh_epoch(tmp_path):
    unbroken = new_run(tmp_path / "unbroken")
    expected = train(unbroken, network(), epochs=10)
    command = [
        sys.executable,
        "-c",
        KILLED_IN_THE_SEVENTH,
        str(Path(__file__).parent),
        str(tmp_path / "killed"),
    ]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == -9, done.stderr

    retry = retried(Run(0, 7, tmp_path, tmp_path / "killed" / "checkpoints", send=Study()))
    result = train(retry, network(seed=99), epochs=10)

    assert result == expected
    # The sixth epoch is told again, with what it was told before.
    assert curve(retry) == {epoch: curve(unbroken)[epoch] for epoch in range(5, 10)}
    assert retry.clock.epochs == 4


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
    retry = retried(broken)
    train(retry, network(seed=99), loss=counting("retry"))

    assert calls["retry"] == 3 * 7 + 1  # in the end the best model is evaluated once more
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
    assert list(run.send.reports) == [0, 1]

    retry = retried(run)

    assert train(retry, network(seed=99)) == expected
    assert curve(retry) == curve(unbroken)


def test_a_retry_after_the_last_epoch_trains_no_more(run):
    expected = train(run, network())
    retry = retried(run)
    retry.send.reports = {}

    result = train(retry, network(seed=99))

    assert result == expected
    assert list(retry.send.reports) == [5]
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
        train(retried(run), network(), epochs=2)

    assert not mark.exists()


def test_an_epoch_that_is_not_better_leaves_the_best_weights_in_the_checkpoint(run):
    train(run, nn.Linear(5, 3), standstill, epochs=3)

    (path,) = run.checkpoint_directory.iterdir()
    document = torch.load(path, weights_only=True)
    assert document["training"]["progress"]["best_epoch"] == 0
    assert document["best_weights"].keys() == document["states"]["model"].keys()


# --- stopping early


def test_patience_counts_epochs_without_a_better_one(run):
    # Without dropout, normalization and learning every epoch's loss is the same: none is better than epoch 0.
    result = train(run, nn.Linear(5, 3), standstill, patience=2, epochs=10)

    assert (result.best_epoch, result.epochs) == (0, 3)


def test_patience_counts_on_through_a_retry(tmp_path):
    run = new_run(tmp_path / "trial", dies_at=1)
    model = nn.Linear(5, 3)
    with pytest.raises(Killed):
        train(run, copy.deepcopy(model), standstill, patience=2, epochs=10)
    result = train(retried(run), model, standstill, patience=2, epochs=10)

    assert (result.best_epoch, result.epochs) == (0, 3)


def test_a_pruned_trial_ends_at_once(tmp_path):
    run = new_run(tmp_path / "trial", pruned_at=1)

    with pytest.raises(TrialPruned):
        train(run, network())

    assert list(run.send.reports) == [0, 1]


def test_a_store_that_fails_for_an_epoch_costs_no_training(run, monkeypatch):
    def failing_once(epoch, *rest):
        if epoch == 1 and not failed:
            failed.append(epoch)
            raise StoreError("the disk is full")
        return study(epoch, *rest)

    failed, study = [], run.send
    run.send = failing_once

    train(run, network(), epochs=3)

    assert failed
    assert list(study.reports) == [0, 1, 2]


# --- the winner, trained for good


def whole_model(run):
    """The model as somebody loads it who has not its code."""
    code = f"import torch; model = {run.final.load_line}; print(model(torch.ones(5, 5)).tolist())"
    done = subprocess.run([sys.executable, "-c", code], cwd=run.directory, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return np.array(json.loads(done.stdout))


def test_the_winner_is_tested_and_loads_in_one_line(tmp_path):
    run = new_run(tmp_path / "final", final=Final(test=True))
    model = network()

    result = train(run, model)

    predicted = outputs_of(model, blobs(60, seed=2)).argmax(1)
    assert result.test["accuracy"] == np.mean(predicted == blobs(60, seed=2)[1])
    assert run.final.was_seen
    assert run.final.report == (run.directory / "test" / "classification_report.txt").read_text()
    assert next(model.parameters()).device.type == device_for(run).type
    expected = outputs_of(model, (np.ones((5, 5), np.float32), None))
    assert whole_model(run) == pytest.approx(expected, rel=1e-5)


def test_the_winner_can_be_trained_on_the_validation_data_too(tmp_path):
    run = new_run(tmp_path / "final", final=Final(on="train+validation", epochs=4, test=True))
    seen = []

    def counting(outputs, targets):
        if model.training:
            seen.append(len(targets))
        return cross_entropy(outputs, targets)

    model = network()
    result = train(run, model, loss=counting, patience=1)

    assert sum(seen) == 4 * 180
    assert (result.epochs, result.best_epoch) == (4, 3)
    assert result.validation_loss is None
    assert result.test["accuracy"] > 0.5
    assert not any(name.startswith(("validation", "accuracy")) for name in run.send.reports[3])
    assert not (run.directory / "classification_report.txt").exists()
    assert (run.directory / "test" / "classification_report.txt").exists()


@pytest.mark.parametrize("kind", ["tuple", "dict", "tensors"])
def test_parts_of_any_arrays_are_joined_for_the_winner(tmp_path, kind):
    run = new_run(tmp_path / "final", final=Final(on="train+validation", epochs=1))

    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(5, 3)

        def forward(self, inputs):
            first = inputs[0] if kind == "tuple" else inputs["a"] if kind == "dict" else inputs
            return self.layer(first.float())

    def part(seed):
        inputs, targets = blobs(seed=seed)
        shaped = {"tuple": (inputs, inputs), "dict": {"a": inputs, "b": inputs}}
        tensors = torch.tensor(inputs).bfloat16(), torch.tensor(targets)
        return tensors if kind == "tensors" else (shaped[kind], targets)

    model = Joined()
    data = Dataset(train=part(0), validation=part(1), class_names=("a", "b", "c"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fit(run, model, data, epochs=3, batch_size=45, optimizer=optimizer)

    assert run.send.reports[0]["time/steps"] == 4
    assert "loss" not in {name for name, value in run.send.reports[0].items() if value is not None}


def test_a_data_set_without_validation_is_refused(tmp_path):
    run = new_run(tmp_path / "trial")
    model = network()
    data = Dataset(train=blobs(), validation=None, class_names=("a", "b", "c"))

    with pytest.raises(UsageError, match="no validation part"):
        fit(run, model, data, epochs=1, batch_size=16, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))


def test_predictions_name_the_rows_of_the_data_set(tmp_path):
    import pandas

    run = new_run(tmp_path / "trial")
    rows = np.arange(90) * 7
    data = Dataset(
        train=blobs(), validation=blobs(seed=1), class_names=("a", "b", "c"), rows={"validation": rows}
    )
    model = network()

    fit(run, model, data, epochs=1, batch_size=16, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))

    assert pandas.read_parquet(run.directory / "predictions.parquet")["index"].tolist() == rows.tolist()


def test_a_schedule_by_steps_is_that_of_the_trial_when_there_are_more_data(tmp_path):
    trial = new_run(tmp_path / "trial")
    final = new_run(tmp_path / "final", final=Final(on="train+validation", epochs=6))

    for run in (trial, final):
        train(run, network(), one_cycle, scheduler_interval="step")

    rates = [[metrics["learning_rate"] for metrics in run.send.reports.values()] for run in (trial, final)]
    assert rates[0] == rates[1]
    assert final.send.reports[0]["time/steps"] == 12


def test_a_model_that_cant_be_exported_is_pickled(tmp_path):
    run = new_run(tmp_path / "final", final=Final())

    with pytest.warns(UserWarning, match="can't be exported"):
        train(run, Undecided(5, 3), epochs=1)

    path = run.directory / "whole_model.pt"
    assert path.name in run.final.load_line
    assert isinstance(torch.load(path, weights_only=False), Undecided)


class Undecided(nn.Linear):
    """What it does depends on numbers, which an exported graph can't."""

    def forward(self, inputs):
        outputs = super().forward(inputs)
        return outputs if outputs.sum() > 0 else 2 * outputs


# --- a loop of one's own


def test_a_loop_of_ones_own_is_timed_and_reported(run):
    model = network()
    optimizer, _ = adam(model)
    batches = loader(blobs(), shuffle=True)

    for epoch in range(3):
        model.train()
        for inputs, targets in run.batches(batches):
            optimizer.zero_grad()
            cross_entropy(model(inputs), targets).backward()
            optimizer.step()
        with run.phase("validation"):
            evaluated = evaluate(model, blobs(seed=1))
        run.report(epoch, evaluated.loss)

    for metrics in run.send.reports.values():
        shares = [metrics[f"time/{phase}_share"] for phase in ("data", "step", "validation")]
        assert min(shares) > 0
        assert metrics["time/steps"] == 6
    assert run.clock.summary()["epochs"] == 3


# --- what can't be trained


def test_a_training_that_diverges_says_where(run):
    def nan_in_the_ninth_batch(logits, targets):
        calls.append(1)
        return cross_entropy(logits, targets) * (float("nan") if len(calls) == 9 else 1)

    calls = []

    # An epoch is six batches and one validation: the ninth call is the second batch of epoch 1.
    with pytest.raises(FloatingPointError, match=r"training loss is nan in batch 1 of epoch 1 .*0\.02"):
        train(run, network(), loss=nan_in_the_ninth_batch)

    assert list(run.send.reports) == [0]


def test_a_validation_that_diverges_says_so(run):
    model = network()

    def infinite_in_validation(logits, targets):
        return cross_entropy(logits, targets) * (1 if model.training else float("inf"))

    with pytest.raises(FloatingPointError, match="validation loss is inf after epoch 0"):
        train(run, model, loss=infinite_in_validation)


def test_all_wrong_counts_are_one_report(run):
    with pytest.raises(UsageError) as error:
        train(run, network(), epochs=0, batch_size=16.0, validation_batch_size=True, patience=-1)

    for fault in ("epochs is 0", "batch_size is 16.0", "validation_batch_size is True", "patience is -1"):
        assert fault in error.value.message
    assert "scope.int" in error.value.hint


def test_all_wrong_choices_are_one_report(run):
    with pytest.raises(UsageError) as error:
        train(
            run,
            network(),
            plateau,
            batch_size=None,
            precision="half",
            clip_norm=0,
            data_on="gpu",
            scheduler_interval="step",
        )

    for fault in ("'half'", "clip_norm is 0", "'gpu'", "ReduceLROnPlateau", "batch_size is missing"):
        assert fault in error.value.message


def test_a_batch_size_beside_batches_is_refused(run):
    with pytest.raises(UsageError, match="batch_size is 16"):
        train(run, network(), data=three_blobs(train=loader(blobs())))


def test_an_unknown_quantity_to_minimize_is_refused_with_the_choices(run):
    with pytest.raises(UsageError) as error:
        train(run, network(), minimize="accuracy")

    assert "'accuracy'" in error.value.message
    assert "negative_squared_accuracy" in error.value.hint


# --- GPUs


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_warned_of(run):
    with pytest.warns(UserWarning, match=r"GPU 0, 1.*CPU"):
        device = device_for(replace(run, gpus=("0", "1")))

    assert device.type == "cpu"


@pytest.mark.parametrize(("free", "stays"), [(4 * 1000 + 1, True), (4 * 1000, False)])
def test_data_stay_on_a_gpu_if_they_take_less_than_a_quarter_of_its_free_memory(monkeypatch, free, stays):
    from hpo.training.torch import fits

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**9))
    part = (np.zeros(75, np.float32), np.zeros(25, np.int64))  # 500 bytes

    assert fits(torch.device("cuda"), part, part, None, loader(blobs())) is stays


class FakeStream:
    """Writes down what is queued; a `with` block of it has no effect."""

    def __init__(self, log, name):
        self.log, self.name = log, name

    def record_event(self):
        return f"arrived {self.log.count('fetch')}"

    def wait_event(self, event):
        self.log.append(event)


@pytest.mark.parametrize("count", [0, 1, 4])
def test_batches_for_a_gpu_are_fetched_one_ahead_and_waited_for_before_their_step(monkeypatch, count):
    from hpo.training.torch import copied_ahead

    def source():
        for number in range(count):
            log.append("fetch")
            yield {"a": torch.full((2,), number)}, torch.tensor([number, number])

    log = []
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: FakeStream(log, "copies"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: FakeStream(log, "steps"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self.clone())
    monkeypatch.setattr(
        torch.Tensor, "record_stream", lambda self, stream: log.append(f"used by {stream.name}")
    )

    found = []
    for inputs, targets in copied_ahead(source(), torch.device("cpu")):
        found.append((inputs["a"].tolist(), targets.tolist()))
        log.append("step")

    assert found == [([number] * 2, [number] * 2) for number in range(count)]
    assert log.count("used by steps") == 2 * count
    order = [entry for entry in log if entry != "used by steps"]
    if count == 4:
        assert order == [
            *("fetch", "arrived 1"),
            *("fetch", "step", "arrived 2"),
            *("fetch", "step", "arrived 3"),
            *("fetch", "step", "arrived 4"),
            "step",
        ]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("data_on", ["device", "cpu"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_training_and_its_retry_run_on_the_gpu(tmp_path, data_on, precision):
    settings = {"data_on": data_on, "precision": precision, "clip_norm": 1.0}
    expected = train(new_run(tmp_path / "unbroken"), network(), milestones, **settings)
    broken = new_run(tmp_path / "broken", dies_at=2)
    with pytest.raises(Killed):
        train(broken, network(), milestones, **settings)

    model = network(seed=99)
    result = train(retried(broken), model, milestones, **settings)

    assert next(model.parameters()).is_cuda
    assert result.loss == pytest.approx(expected.loss, rel=1e-2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_that_are_copied_ahead_arrive_whole_and_in_order(run):
    seen = []

    class Spy(nn.Linear):
        def forward(self, inputs):
            if not self.training:
                seen.append(inputs.clone())
            return super().forward(inputs)

    part = (np.random.default_rng(0).normal(size=(5000, 5)).astype(np.float32), np.zeros(5000, np.int64))
    model = Spy(5, 3).cuda()

    evaluate(model, loader(part, batch_size=64))

    assert np.array_equal(torch.cat(seen).cpu().numpy(), part[0])
