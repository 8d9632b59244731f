"""The Keras kit, on TensorFlow here and on PyTorch in a process of its own (the last test)."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, log_loss, precision_score, recall_score

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
keras = pytest.importorskip("keras")

from hpo.core.errors import TrialPruned, UsageError  # noqa: E402
from hpo.core.trial import Answer  # noqa: E402
from hpo.run import Run  # noqa: E402
from hpo.training import Final  # noqa: E402
from hpo.training.data import Dataset  # noqa: E402
from hpo.training.evaluation import Classification  # noqa: E402
from hpo.training.keras import (  # noqa: E402
    BACKEND,
    TrialCallback,
    _torch_batches,
    evaluate,
    fit,
    idle_seconds,
    seed_everything,
)

on_tensorflow = pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's loop")
on_torch = pytest.mark.skipif(BACKEND != "torch", reason="PyTorch's loop")

CLASSES = ("low", "middle", "high")


class Killed(BaseException):
    pass


class Study:
    """What the runs of one trial tell; it may stop the trial, or kill its worker."""

    def __init__(self, root, *, stops_at=None, kills_at=None):
        self.root, self.stops_at, self.kills_at = root, stops_at, kills_at
        self.reports = {}
        (root / "checkpoints").mkdir(parents=True)

    def run(self, attempt=1, **settings):
        directory = self.root / f"artifacts-{attempt}"
        directory.mkdir()
        return Run(0, 7, directory, self.root / "checkpoints", attempt=attempt, send=self.send, **settings)

    def send(self, epoch, loss, metrics, _time):
        if epoch == self.kills_at:
            self.kills_at = None
            raise Killed
        assert epoch not in self.reports or self.reports[epoch] == {"loss": loss, **metrics}
        self.reports[epoch] = {"loss": loss, **metrics}
        return Answer.STOP if epoch == self.stops_at else Answer.CONTINUE


@pytest.fixture
def study(tmp_path):
    return Study(tmp_path / "study")


def clouds(examples, seed):
    """Three overlapping clouds in five dimensions: learnable, but not at once."""
    rng = np.random.default_rng(seed)
    targets = np.arange(examples) % 3
    return (rng.normal(size=(examples, 5)) + targets[:, None] * 0.8).astype(np.float32), targets


def dataset(**parts):
    return Dataset(
        **{"train": clouds(90, 0), "validation": clouds(50, 1), "test": clouds(40, 2)} | parts,
        class_names=CLASSES,
        name="clouds",
    )


def network(*, optimizer=None, metrics=(), loss=None, dropout=0.3, outputs=3, **compiled):
    seed_everything(7)
    model = keras.Sequential(
        [
            keras.layers.Dense(8, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(dropout),
            keras.layers.Dense(outputs),
        ]
    )
    model.compile(
        optimizer or keras.optimizers.Adam(0.02),
        loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=list(metrics),
        **compiled,
    )
    return model


def without_times(reports):
    """The reports less what depends on the machine."""
    return {
        epoch: {name: value for name, value in report.items() if not name.startswith(("time/", "system/"))}
        for epoch, report in reports.items()
    }


# --- what is reported


def test_every_epoch_has_the_figures_that_scikit_learn_gives_for_its_model(study):
    outputs = []
    inputs, targets = clouds(50, 1)
    model = network(metrics=["accuracy"])
    keep = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda *_: outputs.append(model.predict_on_batch(inputs))
    )

    fit(study.run(), model, dataset(), epochs=3, batch_size=16, callbacks=[keep])

    for epoch, logits in enumerate(outputs):
        report, guess = study.reports[epoch], logits.argmax(axis=1)
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        assert report["loss"] == report["validation_loss"]
        assert report["validation_loss"] == pytest.approx(log_loss(targets, probabilities), rel=1e-4)
        assert report["accuracy"] == pytest.approx(accuracy_score(targets, guess))
        assert report["val_accuracy"] == pytest.approx(report["accuracy"])
        assert report["f1_macro"] == pytest.approx(f1_score(targets, guess, average="macro"))
        for score, function in {"precision": precision_score, "recall": recall_score}.items():
            expected = function(targets, guess, average=None, zero_division=0)
            assert [report[f"{score}/{name}"] for name in CLASSES] == pytest.approx(list(expected))
        assert 0 <= report["train_accuracy"] <= 1
        assert report["learning_rate"] == pytest.approx(0.02)


def test_the_validation_loss_is_the_one_keras_has(study):
    model = network()

    fitted = fit(study.run(), model, dataset(), epochs=2, batch_size=16)

    assert evaluate(model, clouds(50, 1)).loss == pytest.approx(fitted.validation_loss, rel=1e-5)
    assert model.evaluate(*clouds(50, 1), verbose=0) == pytest.approx(fitted.validation_loss, rel=1e-5)


def test_the_regularization_of_weights_is_in_the_validation_loss(study):
    seed_everything(7)
    model = keras.Sequential(
        [
            keras.layers.Dense(8, kernel_regularizer="l2", activity_regularizer="l2", activation="relu"),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy")

    fitted = fit(study.run(), model, dataset(), epochs=2, batch_size=16)

    inputs, targets = clouds(50, 1)
    kernel = keras.ops.convert_to_numpy(model.layers[0].kernel)
    expected = log_loss(targets, model.predict_on_batch(inputs)) + 0.01 * (kernel**2).sum()
    assert fitted.validation_loss == pytest.approx(expected, rel=1e-4)


def test_a_metric_of_every_class_is_reported_by_its_class(study):
    targets = np.eye(3, dtype=np.float32)
    data = dataset(
        **{
            part: (x, targets[y])
            for part, (x, y) in {
                "train": clouds(90, 0),
                "validation": clouds(50, 1),
                "test": clouds(40, 2),
            }.items()
        }
    )
    model = network(
        loss=keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=[keras.metrics.F1Score(average=None, name="f1")],
    )

    fit(study.run(), model, data, epochs=1, batch_size=16)

    report = study.reports[0]
    assert [report[f"val_f1/{name}"] for name in CLASSES] == pytest.approx(
        [report[f"f1/{name}"] for name in CLASSES]
    )


def test_outputs_that_are_probabilities_stay_what_they_are(study):
    pyarrow = pytest.importorskip("pyarrow.parquet")
    seed_everything(7)
    model = keras.Sequential([keras.layers.Dense(3, activation="softmax")])
    model.compile("adam", "sparse_categorical_crossentropy")
    run = study.run()

    fit(run, model, dataset(), epochs=1, batch_size=16)

    table = pyarrow.read_table(run.directory / "predictions.parquet")
    written = np.stack([table[f"probability/{name}"] for name in CLASSES], axis=1)
    assert written == pytest.approx(model.predict_on_batch(clouds(50, 1)[0]), abs=1e-6)


@pytest.mark.parametrize("pack", [lambda loss: [loss], lambda loss: {"answer": loss}], ids=["list", "dict"])
def test_the_logits_of_a_loss_in_a_list_or_dict_of_one_become_probabilities(study, pack):
    pyarrow = pytest.importorskip("pyarrow.parquet")
    seed_everything(7)
    inputs = keras.Input((5,))
    model = keras.Model(inputs, keras.layers.Dense(3, name="answer")(inputs))
    model.compile("adam", pack(keras.losses.SparseCategoricalCrossentropy(from_logits=True)))
    run = study.run()

    fit(run, model, dataset(), epochs=1, batch_size=16)

    table = pyarrow.read_table(run.directory / "predictions.parquet")
    written = np.stack([table[f"probability/{name}"] for name in CLASSES], axis=1)
    logits = model.predict_on_batch(clouds(50, 1)[0])
    assert written == pytest.approx(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), abs=1e-6)


def test_a_regression_is_measured_as_one(study):
    rng = np.random.default_rng(0)
    parts = {}
    for part, examples in {"train": 80, "validation": 40}.items():
        inputs = rng.normal(size=(examples, 5)).astype(np.float32)
        parts[part] = inputs, inputs.sum(axis=1)
    model = network(outputs=1, loss="mse", dropout=0)

    fitted = fit(study.run(), model, Dataset(**parts), epochs=4, batch_size=8, minimize="rmse")

    assert fitted.loss == pytest.approx(fitted.validation_loss**0.5, rel=1e-4)
    assert set(fitted.metrics) == {"rmse", "mae", "r2"}


def cosine():
    return keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.02, 18))


def cosine_at(epochs, steps=6):
    """The learning rates of `cosine` as these epochs begin."""
    return [0.02 * (1 + np.cos(np.pi * epoch * steps / 18)) / 2 for epoch in range(epochs)]


def test_the_learning_rate_is_that_of_the_epochs_first_step(study):
    fit(study.run(), network(optimizer=cosine()), dataset(), epochs=3, batch_size=16)

    rates = [study.reports[epoch]["learning_rate"] for epoch in range(3)]
    assert rates == pytest.approx(cosine_at(3))


@on_tensorflow
def test_predictions_are_traced_once_though_batches_differ_in_size(study):
    model = network()
    run = study.run(final=Final(test=True))

    fit(run, model, dataset(), epochs=2, batch_size=16, validation_batch_size=16)

    assert model.predict_function.experimental_get_tracing_count() == 1  # of 12, 13, and then 13, 14 rows


# --- callbacks


def test_callbacks_see_the_validation_in_the_logs(study, tmp_path):
    seen = []
    callbacks = [
        keras.callbacks.ReduceLROnPlateau(
            monitor="val_loss", factor=0.5, patience=1, min_delta=100, cooldown=0
        ),
        keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras", monitor="val_loss"),
        keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(dict(logs))),
        keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(batch)),
    ]

    fit(study.run(), network(metrics=["accuracy"]), dataset(), epochs=3, batch_size=45, callbacks=callbacks)

    assert [entry for entry in seen if isinstance(entry, int)] == [0, 1] * 3
    logs = [entry for entry in seen if isinstance(entry, dict)]
    assert [entry["val_loss"] for entry in logs] == pytest.approx(
        [study.reports[epoch]["validation_loss"] for epoch in range(3)]
    )
    assert {"loss", "accuracy", "val_loss", "val_accuracy"} <= set(logs[0])
    assert [study.reports[epoch]["learning_rate"] for epoch in range(3)] == pytest.approx([0.02, 0.02, 0.01])
    assert sorted(path.name for path in tmp_path.glob("*.keras")) == ["1.keras", "2.keras", "3.keras"]


def test_tensorboard_writes_beside(study, tmp_path):
    pytest.importorskip("tensorboard")
    pytest.importorskip("tensorflow")
    board = keras.callbacks.TensorBoard(tmp_path / "board")

    fit(study.run(), network(), dataset(), epochs=2, batch_size=16, callbacks=[board])

    assert list((tmp_path / "board").rglob("events.out.tfevents*"))


def test_the_time_of_callbacks_is_told_apart(study):
    slow = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: time.sleep(0.2))
    run = study.run()

    fit(run, network(), dataset(), epochs=2, batch_size=16, callbacks=[slow])

    for report in study.reports.values():
        assert report["time/callbacks_share"] * report["time/epoch_seconds"] >= 0.2


def test_early_stopping_of_keras_ends_the_training(study):
    stop = keras.callbacks.EarlyStopping(monitor="val_loss", min_delta=100, patience=2)

    fitted = fit(study.run(), network(), dataset(), epochs=50, batch_size=16, callbacks=[stop])

    assert fitted.epochs == 3


def test_patience_ends_the_training(study):
    still = keras.optimizers.SGD(0.0)
    model = keras.Sequential([keras.layers.Dense(3)])
    model.compile(still, keras.losses.SparseCategoricalCrossentropy(from_logits=True))

    fitted = fit(study.run(), model, dataset(), epochs=50, batch_size=16, patience=2)

    assert (fitted.epochs, fitted.best_epoch) == (3, 0)


# --- the clock


@pytest.mark.parametrize("per_execution", [1, 4, 6] if BACKEND == "tensorflow" else [1])
def test_steps_and_examples_are_counted_whatever_an_execution_has(study, per_execution):
    run = study.run()

    fit(run, network(steps_per_execution=per_execution), dataset(), epochs=2, batch_size=16)

    assert [study.reports[epoch]["time/steps"] for epoch in range(2)] == [6, 6]
    assert run.clock.summary()["batch_size"] == 15
    assert run.clock.summary()["validation_examples"] == 50


def slow_batches(seconds):
    inputs, targets = clouds(90, 0)

    def batches():
        for start in range(0, 90, 5):
            time.sleep(seconds)
            yield inputs[start : start + 5], targets[start : start + 5]

    if BACKEND == "torch":
        import torch

        class Batches(torch.utils.data.IterableDataset):
            def __iter__(self):
                return batches()

        return torch.utils.data.DataLoader(Batches(), batch_size=None)
    import tensorflow as tf

    specification = tf.TensorSpec((None, 5), tf.float32), tf.TensorSpec((None,), tf.int64)
    return tf.data.Dataset.from_generator(batches, output_signature=specification)


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize("per_execution", [1, 6] if BACKEND == "tensorflow" else [1])
def test_a_training_that_waits_for_its_data_shows_it(tmp_path, per_execution):
    shares = {}
    for pause in (0, 0.05):
        study = Study(tmp_path / str(pause))
        model = network(steps_per_execution=per_execution)
        fit(study.run(), model, dataset(train=slow_batches(pause)), epochs=2)
        shares[pause] = study.reports[1]["time/data_share"]

    assert shares[0.05] > max(0.3, shares[0])


def test_idle_seconds_are_those_of_a_loop_played_step_by_step():
    rng = np.random.default_rng(0)
    for _ in range(100):
        steps, step_seconds = rng.integers(1, 12), rng.uniform(0.5, 2)
        delivered = np.cumsum(rng.exponential(1.0, steps))
        now = idle = 0.0
        for batch in delivered:
            idle += max(0.0, batch - now)
            now = max(now, batch) + step_seconds

        found = idle_seconds(0.0, now, delivered, steps)

        assert found == pytest.approx(idle)


# --- death and stopping


@pytest.mark.parametrize("batch_size", [16, 64])
def test_a_training_that_was_killed_goes_on_as_if_nothing_had_been(tmp_path, batch_size):
    def optimizer():
        return keras.optimizers.Adam(keras.optimizers.schedules.ExponentialDecay(0.05, 10, 0.9))

    whole, broken = Study(tmp_path / "whole"), Study(tmp_path / "broken", kills_at=6)
    settings = {"epochs": 9, "batch_size": batch_size}
    expected = fit(whole.run(), network(optimizer=optimizer()), dataset(), **settings)

    with pytest.raises(Killed):
        fit(broken.run(), network(optimizer=optimizer()), dataset(), **settings)
    found = fit(broken.run(attempt=2), network(optimizer=optimizer()), dataset(), **settings)

    assert list(broken.reports) == list(range(9))
    for epoch, report in without_times(whole.reports).items():
        assert without_times(broken.reports)[epoch] == pytest.approx(report, rel=1e-5), epoch
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    assert found.best_epoch == expected.best_epoch


def test_a_study_that_wants_no_more_ends_the_training(study):
    study.stops_at = 1

    with pytest.raises(TrialPruned):
        fit(study.run(), network(), dataset(), epochs=5, batch_size=16)

    assert list(study.reports) == [0, 1]


def test_a_loss_that_is_not_a_number_fails_and_names_its_epoch(study):
    model = network(optimizer=keras.optimizers.SGD(1e38))

    with pytest.raises(FloatingPointError, match=r"loss is (nan|inf) after epoch 0"):
        fit(study.run(), model, dataset(), epochs=5, batch_size=16)


def test_fit_twice_in_one_trial_is_refused(study):
    run = study.run()
    fit(run, network(), dataset(), epochs=1, batch_size=16)

    with pytest.raises(UsageError, match="twice"):
        fit(run, network(), dataset(), epochs=1, batch_size=16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": None}, "batch_size is None"),
        ({"batch_size": 2.0}, "batch_size is 2.0"),
        ({"epochs": 0}, "epochs is 0"),
        ({"minimize": "speed"}, "speed"),
        ({"validation_batch_size": 0}, "validation_batch_size is 0"),
    ],
)
def test_arguments_that_can_not_be_trained_with_are_named(study, changes, message):
    with pytest.raises(UsageError, match=message):
        fit(study.run(), network(), dataset(), **{"epochs": 1, "batch_size": 16} | changes)


def test_a_model_that_was_not_compiled_is_refused(study):
    with pytest.raises(UsageError, match="not compiled"):
        fit(study.run(), keras.Sequential([keras.layers.Dense(3)]), dataset(), epochs=1, batch_size=16)


# --- what is left behind


def test_the_best_epoch_is_left_in_the_model_and_on_disk(study):
    run = study.run()
    model = network(optimizer=keras.optimizers.SGD(2.0))

    fitted = fit(run, model, dataset(), epochs=8, batch_size=16, minimize="negative_squared_accuracy")

    losses = [study.reports[epoch]["loss"] for epoch in range(8)]
    assert fitted.loss == min(losses)
    assert fitted.best_epoch == losses.index(min(losses))
    outputs = evaluate(model, clouds(50, 1)).outputs
    assert fitted.loss == pytest.approx(-(accuracy_score(clouds(50, 1)[1], outputs.argmax(axis=1)) ** 2))
    loaded = keras.saving.load_model(run.directory / "model.keras")
    assert loaded.predict_on_batch(clouds(50, 1)[0]) == pytest.approx(outputs, abs=1e-5)


def test_a_model_with_metrics_of_every_class_loads_in_another_process_and_measures_the_same(study):
    one_hot = np.eye(3, dtype=np.float32)
    parts = {"train": clouds(90, 0), "validation": clouds(50, 1), "test": clouds(40, 2)}
    data = dataset(**{part: (inputs, one_hot[targets]) for part, (inputs, targets) in parts.items()})
    model = network(
        loss=keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=[
            keras.metrics.F1Score(average=None, name="f1"),
            keras.metrics.Precision(class_id=1, name="precision_middle"),
        ],
    )
    run = study.run()
    fit(run, model, data, epochs=2, batch_size=16)
    expected = model.evaluate(*data.validation, verbose=0, return_dict=True)
    np.savez(run.directory / "validation.npz", *data.validation)
    code = (
        "import keras, numpy as np; x, y = np.load('validation.npz').values(); "
        "model = keras.saving.load_model('model.keras'); "
        "logs = model.evaluate(x, y, verbose=0, return_dict=True); "
        "print([float(v) for value in logs.values() for v in np.ravel(value)])"
    )

    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=run.directory,
        env=os.environ | {"KERAS_BACKEND": BACKEND},
        capture_output=True,
        text=True,
        check=True,
    )

    found = [float(number) for number in done.stdout.strip().strip("[]").split(",")]
    assert found == pytest.approx(
        [float(v) for value in expected.values() for v in np.ravel(value)], abs=1e-5
    )


def test_the_winner_is_trained_on_all_and_tested(study):
    run = study.run(final=Final(on="train+validation", epochs=3, test=True))

    fitted = fit(run, network(), dataset(), epochs=9, batch_size=16, patience=1)

    assert fitted.epochs == 3
    assert fitted.validation_loss is None
    assert 0 <= fitted.test["accuracy"] <= 1
    assert "middle" in run.final.report
    assert run.final.load_line == 'keras.saving.load_model("model.keras")'


def test_the_winner_is_trained_on_more_data_with_the_learning_rates_it_won_with(tmp_path):
    trial, final = Study(tmp_path / "trial"), Study(tmp_path / "final")
    run = final.run(final=Final(on="train+validation", epochs=3))

    fit(trial.run(), network(optimizer=cosine()), dataset(), epochs=3, batch_size=16)
    fit(run, network(optimizer=cosine()), dataset(), epochs=9, batch_size=16)

    for study in (trial, final):
        assert [study.reports[epoch]["time/steps"] for epoch in range(3)] == [6] * 3
        rates = [study.reports[epoch]["learning_rate"] for epoch in range(3)]
        assert rates == pytest.approx(cosine_at(3))


def test_each_epoch_of_the_winners_training_draws_from_both_parts_anew(study):
    model, seen = recorder()
    data = dataset(train=numbered(0, 90), validation=numbered(90, 140))
    run = study.run(final=Final(on="train+validation", epochs=2))

    fit(run, model, data, epochs=2, batch_size=18)

    first, second = np.concatenate(seen[-10:-5]), np.concatenate(seen[-5:])
    for drawn in (first, second):
        assert len(drawn) == len(set(drawn)) == 90
        assert min(drawn) < 90 <= max(drawn) < 140
    assert set(first) != set(second)


def test_the_winner_is_kept_where_the_models_of_trials_are_not(tmp_path):
    trial, final = (Study(tmp_path / name) for name in ("trial", "final"))
    in_trial, for_good = trial.run(), final.run(final=Final())

    for run in (in_trial, for_good):
        fit(run, network(), dataset(), epochs=1, batch_size=16, keep_model=False)

    assert not (in_trial.directory / "model.keras").exists()
    assert (for_good.directory / "model.keras").exists()
    assert for_good.final.load_line == 'keras.saving.load_model("model.keras")'


# --- other data


def recorder():
    """A model, and the list where it notes the first feature of what it is trained on, batch by batch."""

    @keras.saving.register_keras_serializable("test")
    class Recorder(keras.Model):
        def __init__(self):
            super().__init__()
            self.layer = keras.layers.Dense(3)

        def call(self, inputs, training=False):
            if training:
                seen.append(np.rint(keras.ops.convert_to_numpy(inputs)[:, 0]).astype(int))
            return self.layer(inputs)

    seen = []
    model = Recorder()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), run_eagerly=True)
    return model, seen


def numbered(start, end):
    """Examples whose features are their number."""
    inputs = np.tile(np.arange(start, end, dtype=np.float32)[:, None], 5)
    return inputs, np.arange(start, end) % 3


@on_tensorflow
def test_tf_data_is_trained_on_as_it_comes(study):
    import tensorflow as tf

    train, validation = (tf.data.Dataset.from_tensor_slices(clouds(n, 0)).batch(10) for n in (90, 50))
    run = study.run()

    fitted = fit(run, network(), dataset(train=train, validation=validation), epochs=2)

    assert study.reports[1]["time/steps"] == 9
    assert run.clock.summary()["validation_examples"] == 50
    assert 0 < fitted.metrics["accuracy"] <= 1


@on_torch
def test_a_data_loader_is_trained_on_as_it_comes(study):
    import torch

    loaders = [
        torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(*map(torch.from_numpy, clouds(n, 0))), batch_size=10
        )
        for n in (90, 50)
    ]
    run = study.run()

    fitted = fit(run, network(), dataset(train=loaders[0], validation=loaders[1]), epochs=2)

    assert study.reports[1]["time/steps"] == 9
    assert run.clock.summary()["batch_size"] == 10
    assert 0 < fitted.metrics["accuracy"] <= 1


class Sliced(keras.utils.PyDataset):
    def __init__(self, examples):
        super().__init__()
        self.inputs, self.targets = clouds(examples, 0)

    def __len__(self):
        return len(self.inputs) // 10

    def __getitem__(self, number):
        rows = slice(10 * number, 10 * number + 10)
        return self.inputs[rows], self.targets[rows]


def test_a_py_dataset_is_trained_on_as_it_comes(study):
    data = dataset(train=Sliced(90), validation=Sliced(50))

    fitted = fit(study.run(), network(), data, epochs=2)

    assert study.reports[1]["time/steps"] == 9
    assert 0 < fitted.metrics["accuracy"] <= 1


def test_batches_that_come_as_such_take_no_batch_size(study):
    with pytest.raises(UsageError, match="come in batches"):
        fit(study.run(), network(), dataset(train=Sliced(90)), epochs=1, batch_size=8)


def test_an_epoch_shows_every_example_once_in_an_order_of_its_own(study):
    model, seen = recorder()

    fit(study.run(), model, dataset(train=numbered(0, 90)), epochs=2, batch_size=20, keep_model=False)

    sizes = [len(batch) for batch in seen[-10:]]
    first, second = np.concatenate(seen[-10:-5]), np.concatenate(seen[-5:])
    assert sizes == [18] * 10
    assert sorted(first) == sorted(second) == list(range(90))
    assert (first != second).any()


@on_torch
def test_trials_share_the_memory_of_their_training_data():
    data = dataset()

    batches, _ = _torch_batches(data.train, np.array([0, 45, 90]), 7)

    for tensor, array in zip(batches._arrays, data.train, strict=True):
        assert np.shares_memory(tensor.numpy(), array)
    for inputs, targets in batches:
        assert not np.shares_memory(inputs.numpy(), data.train[0])
        assert not np.shares_memory(targets.numpy(), data.train[1])


# --- model.fit of one's own


def test_a_loop_of_ones_own_reports_what_keras_logs(study):
    callback = TrialCallback(study.run())

    history = network(metrics=["accuracy"]).fit(
        *clouds(90, 0),
        validation_data=clouds(50, 1),
        epochs=2,
        batch_size=16,
        verbose=0,
        callbacks=[callback],
    )

    for epoch in range(2):
        report = study.reports[epoch]
        assert (
            report["loss"] == report["validation_loss"] == pytest.approx(history.history["val_loss"][epoch])
        )
        assert report["train_loss"] == pytest.approx(history.history["loss"][epoch])
        assert report["val_accuracy"] == pytest.approx(history.history["val_accuracy"][epoch])
        assert report["time/steps"] == 6
        assert report["time/validation_share"] > 0
    assert callback.best == min(history.history["val_loss"])


def test_a_loop_of_ones_own_gets_metrics_of_every_class_and_times_its_callbacks(study):
    slow = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: time.sleep(0.1))
    callback = TrialCallback(
        study.run(),
        validation=clouds(50, 1),
        task=Classification(CLASSES),
        callbacks=[slow],
        minimize="-f1_macro",
    )
    model = network()

    model.fit(*clouds(90, 0), epochs=1, verbose=0, callbacks=[callback])

    guess = model.predict_on_batch(clouds(50, 1)[0]).argmax(axis=1)
    expected = f1_score(clouds(50, 1)[1], guess, average="macro")
    assert study.reports[0]["f1_macro"] == pytest.approx(expected)
    assert study.reports[0]["loss"] == pytest.approx(-expected)
    assert study.reports[0]["time/callbacks_share"] * study.reports[0]["time/epoch_seconds"] >= 0.1


@pytest.mark.parametrize("place", ["inside", "before", "behind"])
@pytest.mark.parametrize("kind", ["plateau", "scheduler"])
def test_a_loop_of_ones_own_reports_the_learning_rates_that_keras_own_callbacks_set(study, place, kind):
    changes = {
        "plateau": keras.callbacks.ReduceLROnPlateau(monitor="loss", factor=0.5, patience=1, min_delta=100),
        "scheduler": keras.callbacks.LearningRateScheduler(lambda epoch: [0.02, 0.02, 0.01][epoch]),
    }[kind]
    callback = TrialCallback(study.run(), callbacks=[changes] if place == "inside" else [])
    callbacks = {"inside": [callback], "before": [changes, callback], "behind": [callback, changes]}[place]

    network().fit(*clouds(90, 0), epochs=3, batch_size=16, verbose=0, callbacks=callbacks)

    rates = [study.reports[epoch]["learning_rate"] for epoch in range(3)]
    assert rates == pytest.approx([0.02, 0.02, 0.01])


def test_a_loop_of_ones_own_reports_a_schedules_learning_rate_as_the_epoch_began(study):
    callback = TrialCallback(study.run())

    network(optimizer=cosine()).fit(*clouds(90, 0), epochs=3, batch_size=15, verbose=0, callbacks=[callback])

    rates = [study.reports[epoch]["learning_rate"] for epoch in range(3)]
    assert rates == pytest.approx(cosine_at(3))


def test_a_loop_of_ones_own_is_stopped_by_the_study(study):
    study.stops_at = 1

    with pytest.raises(TrialPruned):
        network().fit(*clouds(90, 0), epochs=9, verbose=0, callbacks=[TrialCallback(study.run())])

    assert list(study.reports) == [0, 1]


def test_a_log_that_is_not_there_is_named_with_those_that_are(study):
    callback = TrialCallback(study.run(), minimize="val_acc")

    with pytest.raises(UsageError, match="val_acc") as caught:
        network(metrics=["accuracy"]).fit(*clouds(90, 0), epochs=1, verbose=0, callbacks=[callback])

    assert "accuracy, loss" in caught.value.hint or "loss, accuracy" in caught.value.hint


@on_tensorflow
def test_a_loop_of_ones_own_can_have_its_pipeline_timed(study):
    callback = TrialCallback(study.run())

    network().fit(callback.timed(slow_batches(0.05)), epochs=1, verbose=0, callbacks=[callback])

    assert study.reports[0]["time/steps"] == 18
    assert study.reports[0]["time/data_share"] > 0


@on_tensorflow
def test_all_of_this_holds_on_pytorch():
    pytest.importorskip("torch")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", __file__, "-q", "-x", "-p", "no:cacheprovider"],
        env=os.environ | {"KERAS_BACKEND": "torch"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stdout[-5000:]
