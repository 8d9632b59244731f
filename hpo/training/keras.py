"""Keras models as trials, on TensorFlow and on PyTorch.

`fit` trains a compiled model: every epoch is reported with per-class metrics and where its time went, the
best weights are kept, and after the worker's death it goes on behind the last finished epoch::

    def objective(params, run):
        data = fashion_mnist()
        seed_everything(run.seed)
        model = keras.Sequential([...])
        model.compile(keras.optimizers.Adam(params["learning_rate"]), "sparse_categorical_crossentropy")
        return fit(run, model, data, epochs=20, batch_size=params["batch_size"]).as_result()

Who would rather call ``model.fit`` gives it a `TrialCallback`.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from hpo.core.errors import UsageError
from hpo.training import Run
from hpo.training.data import Data, Dataset, is_arrays
from hpo.training.evaluation import Classification, Task, metric_names
from hpo.training.fitting import Evaluated, Fit, Training, check_counts

BACKEND = keras.backend.backend()

MOST_STEPS = 2**63
DELIVERIES = 1024  # of the batches of one execution, so many have their time noted
RESIDENT_SHARE = 0.25  # of a GPU's free memory that the training data may take


def fit(
    run: Run,
    model: keras.Model,
    data: Dataset,
    *,
    epochs: int,
    batch_size: int | None = None,
    minimize: str = "loss",
    patience: int | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    keep_model: bool = True,
    validation_batch_size: int = 1024,
    verbose: int = 0,
) -> Fit:
    """Train the compiled model, report every epoch, and leave the best epoch's weights in ``model``.

    An attempt after the worker's death goes on behind the last finished epoch, with the optimizer's state
    and its schedule; an epoch's order of examples is drawn from ``(run.seed, epoch)`` alone. Call
    `seed_everything` before building the model, and `fit` once a trial.

    Where the winner is trained on training and validation data together (``run.final``), an epoch has as many
    steps and examples as in the trial, drawn from both anew each epoch: schedules count steps, and the
    learning rates are to be those it won with.

    Args:
        model: one output; it has been compiled. What the loss says of logits (``from_logits``) holds.
        data: arrays, or any iterable of ``(inputs, targets)`` batches that Keras can train on: a
            ``tf.data.Dataset``, a DataLoader, a PyDataset. These shuffle by themselves.
        batch_size: at most so many examples a step, for arrays; an epoch's batches differ in size by one at
            most. Batches that come as such have their own.
        minimize: ``loss``, ``error`` or another of the task's `MINIMIZED`, on the validation data. It is
            reported as the epoch's loss, decides which epoch is best and is the result.
        patience: stop after so many epochs without a better one.
        callbacks: Keras' own or yours. At the end of an epoch they see ``val_...`` in the logs. Validation is
            one pass of predictions, so that of the test hooks only ``on_test_begin`` and ``on_test_end`` run.
            What they remember begins anew in an attempt after the worker's death, such as the epochs that
            EarlyStopping and ReduceLROnPlateau have waited: ``patience`` goes on counting, and the optimizer
            keeps the learning rate they have set.
        keep_model: write the best epoch's model to ``model.keras`` in ``run.directory``; that of the winner
            of a study (``run.final``) is always kept.

    Reports ``loss, train_loss, validation_loss, learning_rate`` (as the epoch began), the task's metrics, the
    compiled metrics as ``train_NAME`` and ``val_NAME``, and ``time/...``. The validation loss is that of the
    whole outputs, with the regularization of the model's weights, as Keras' ``val_loss``; sample weights
    count in training only.
    Raises FloatingPointError where a loss is NaN or infinite, UsageError for arguments that can't be trained
    with, TrialPruned when the study says stop.
    """
    if not getattr(model, "compiled", False):
        raise UsageError(
            "the model is not compiled", "call model.compile(optimizer, loss, metrics=...) before fit"
        )
    training = Training(
        run, data, epochs=epochs, minimize=minimize, patience=patience, are_logits=_gives_logits(model)
    )
    check_counts({"validation_batch_size": validation_batch_size})
    _check_batch_size(training.train, batch_size)
    _build(model, training.train)
    weights = _Weights(run, model, training)
    weights.load()
    if training.goes_on:
        callback = _Epochs(run, callbacks, model, training, weights, validation_batch_size)
        batches: Any = training.train
        steps = None
        if batch_size is not None:
            left = range(training.epoch, training.epochs)
            # Of the trial's data, also where the final training has more.
            bounds = _bounds(data.train, batch_size)
            batches, steps = callback.shuffled(training.train, bounds, left, model.steps_per_execution)
        model.fit(
            callback.timed(batches),
            initial_epoch=training.epoch,
            steps_per_epoch=steps,
            epochs=training.epochs,
            callbacks=[callback],
            verbose=verbose,
            shuffle=isinstance(batches, keras.utils.PyDataset),
        )
    weights.take_best()
    if keep_model or run.final is not None:
        model.save(run.directory / "model.keras")
        if run.final is not None:
            run.final.load_line = 'keras.saving.load_model("model.keras")'
    return training.finish(lambda part: evaluate(model, part, batch_size=validation_batch_size))


def evaluate(model: keras.Model, data: Data, *, batch_size: int = 1024) -> Evaluated:
    """One pass of predictions over a part of the data; the loss is the compiled one, of all outputs."""
    targets, outputs = _predict(model, data, batch_size)
    return _evaluated(model, targets, outputs)


def seed_everything(seed: int) -> None:
    """Forget the models before, and seed the generators of Python, NumPy and the backend.

    Without the first, layers are called dense_57. It does not free everything: on TensorFlow, a process that
    trains one model after the other grows by some MB a trial. ``hpo optimize --isolate`` gives every trial a
    process of its own.
    """
    keras.utils.clear_session(free_memory=True)
    keras.utils.set_random_seed(seed)


class _Clocked(keras.callbacks.Callback):
    """Keras' loop under the clock of a trial: what it waits for, steps, validates, and what callbacks take.

    ``others``: the callbacks to run, whose time is counted. Subclasses say what an epoch's end is:
    `_complete` the logs before the others see them, `_close` the epoch behind them.

    TensorFlow waits for data inside its compiled step: `timed` puts the measurement into the pipeline.
    PyTorch's loop waits between batches.
    """

    def __init__(self, run: Run, others: Sequence[keras.callbacks.Callback]) -> None:
        super().__init__()
        self._clock = run.clock
        self._seed = run.seed
        self._others = tuple(others)
        self._shuffle: Callable[[int], None] = lambda epoch: None
        self._wait: _Wait | None = None
        self._is_timed = False
        # PyTorch works behind the host, and Keras reads the logs for whoever has this hook: on a GPU, every
        # step would have to be waited for.
        if (
            BACKEND != "torch"
            or not _on_gpu()
            or any(_hears(other, "on_train_batch_end") for other in others)
        ):
            self.on_train_batch_end = self._after_batch

    # --- data

    def shuffled(
        self, part: Data, bounds: np.ndarray, epochs: range, per_execution: int
    ) -> tuple[Any, int | None]:
        """Batches of the arrays, in another order each epoch, and the ``steps_per_epoch`` to train with.

        ``bounds``: ``(steps + 1,)``, where each batch begins and the last ends; of more examples than that,
        others are left out each epoch.
        """
        if BACKEND == "torch":
            batches, self._shuffle = _torch_batches(part, bounds, self._seed)
            return batches, None
        batches, steps, self._shuffle = _tensorflow_batches(part, bounds, self._seed, epochs, per_execution)
        return batches, steps

    def timed(self, batches: Any) -> Any:
        """The same batches, and the time that the training waits for them becomes the clock's ``data``.

        For ``tf.data`` on TensorFlow, for everything that can be iterated on PyTorch. Anything else (a
        generator or a PyDataset on TensorFlow) passes as it is, and waiting for it counts as ``step``.
        """
        if BACKEND == "tensorflow" and _is_tf_dataset(batches):
            self._wait = _Wait()
            self._is_timed = True
            return self._wait.within(batches)
        if BACKEND == "torch" and not isinstance(batches, keras.utils.PyDataset):
            self._is_timed = True
            return _timed_loader(self._clock, batches)
        return batches

    # --- hooks

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        for other in self._others:
            other.set_model(model)

    def set_params(self, params: dict[str, Any]) -> None:
        super().set_params(params)
        for other in self._others:
            other.set_params(params)

    def on_train_begin(self, logs: Any = None) -> None:
        self._clock.device = "cuda:0" if _on_gpu() else "cpu"
        self._clock.begin()
        self._tell("on_train_begin", logs)

    def on_train_end(self, logs: Any = None) -> None:
        self._tell("on_train_end", logs)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._tell("on_epoch_begin", epoch, logs)
        _seed_hosts(self._seed, epoch)
        self._shuffle(epoch)
        self._steps = 0
        self._clock.switch("data" if BACKEND == "torch" else "step")
        if self._wait is not None:
            self._wait.begin(self._per_execution)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._tell("on_train_batch_begin", batch, logs)
        self._clock.switch("step")
        if not self._steps:  # not earlier: a LearningRateScheduler behind this callback sets it, too
            self._learning_rate = _learning_rate(self.model)
        # The last execution of an epoch may have fewer steps than it says.
        self._steps = min(batch + self._per_execution, self.params.get("steps") or MOST_STEPS)

    def _after_batch(self, batch: int, logs: Any = None) -> None:
        if self._wait is not None:
            self._wait.after_execution()
        self._tell("on_train_batch_end", batch, logs)
        if BACKEND == "torch":
            self._clock.switch("data")

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._clock.switch("other")
        if self._wait is not None:
            seconds, steps, examples = self._wait.take()
            self._clock.move("step", "data", seconds)
            self._clock.count(steps, examples)
        elif not self._is_timed:
            self._clock.count(int(self._steps), 0)
        logs = {} if logs is None else logs
        self._complete(epoch, logs)
        self._tell("on_epoch_end", epoch, logs)
        self._close(epoch, logs)

    def on_test_begin(self, logs: Any = None) -> None:
        self._clock.switch("validation")
        self._tell("on_test_begin", logs)

    def on_test_end(self, logs: Any = None) -> None:
        self._tell("on_test_end", logs)
        self._clock.switch("other")

    @property
    def _per_execution(self) -> int:
        return int(self.model.steps_per_execution)

    def _tell(self, hook: str, *arguments: Any) -> None:
        if self._others:
            with self._clock.phase("callbacks"):
                for other in self._others:
                    getattr(other, hook)(*arguments)

    def _complete(self, epoch: int, logs: dict[str, Any]) -> None:
        """Add to the logs what the others may look for."""

    def _close(self, epoch: int, logs: dict[str, Any]) -> None:
        """Report the epoch."""
        raise NotImplementedError


class _Epochs(_Clocked):
    """The end of an epoch in `fit`."""

    def __init__(
        self,
        run: Run,
        others: Sequence[keras.callbacks.Callback],
        model: keras.Model,
        training: Training,
        weights: _Weights,
        batch_size: int,
    ) -> None:
        super().__init__(run, others)
        self._run, self._training, self._weights, self._batch_size = run, training, weights, batch_size
        self._evaluated: Evaluated | None = None

    def _complete(self, epoch: int, logs: dict[str, Any]) -> None:
        self._more = {f"train_{name}": value for name, value in logs.items() if name != "loss"}
        if self._training.validation is None:
            return
        self.on_test_begin()
        targets, outputs = _predict(self.model, self._training.validation, self._batch_size)
        self._clock.count_validation(len(targets))
        self._evaluated = _evaluated(self.model, targets, outputs)
        measured = {f"val_{name}": value for name, value in _compiled(self.model, targets, outputs).items()}
        logs |= {"val_loss": self._evaluated.loss} | measured
        self._more |= measured
        self.on_test_end(
            {name.removeprefix("val_"): value for name, value in logs.items() if name[:4] == "val_"}
        )

    def _close(self, epoch: int, logs: dict[str, Any]) -> None:
        more = _numbers(self._more, self._training.task)
        is_best = self._training.record(logs["loss"], self._learning_rate, self._evaluated, more)
        with self._clock.phase("callbacks"):
            self._weights.save(is_best=is_best)
        self._training.report()
        if not self._training.goes_on:
            self.model.stop_training = True


class TrialCallback(_Clocked):
    """For who calls ``model.fit``: reports every epoch to the study, with its time; the study may stop it.

    ::

        callback = TrialCallback(run, validation=(x, y), task=Classification(names))
        model.fit(callback.timed(dataset), validation_data=..., epochs=20, callbacks=[callback])
        return {"loss": callback.best}

    Args:
        validation: ``(inputs, targets)`` to predict after every epoch, for per-class metrics. Together with
            Keras' ``validation_data`` that is a second pass.
        task: what the outputs are; needs ``validation``.
        callbacks: those whose time is to be told apart; Keras does not get them a second time.
        minimize: the log that is the epoch's loss, such as ``val_loss``; a leading minus turns it round:
            ``-val_accuracy``. By default ``val_loss`` where there is one, else ``loss``.

    ``best``: the smallest so far. Raises TrialPruned out of ``model.fit``, FloatingPointError where the loss
    is NaN or infinite, UsageError for a log that is not there.
    """

    def __init__(
        self,
        run: Run,
        *,
        validation: Data = None,
        task: Task | None = None,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        minimize: str | None = None,
    ) -> None:
        super().__init__(run, callbacks)
        if (validation is None) != (task is None):
            raise UsageError("validation and task belong together", "give both, or neither")
        self._run, self._validation, self._task, self._minimize = run, validation, task, minimize
        self.best = math.inf

    def _complete(self, epoch: int, logs: dict[str, Any]) -> None:
        self._figures: dict[str, float] = {}
        if self._validation is None or self._task is None:
            return
        with self._clock.phase("validation"):
            targets, outputs = _predict(self.model, self._validation, 1024)
            self._clock.count_validation(len(targets))
            predicted = self._task.predict(outputs, are_logits=_gives_logits(self.model))
            self._figures = self._task.metrics(targets, predicted)

    def _close(self, epoch: int, logs: dict[str, Any]) -> None:
        told = _numbers(logs, self._task) | self._figures
        name = self._minimize or ("val_loss" if "val_loss" in told else "loss")
        if (key := name.removeprefix("-")) not in told:
            raise UsageError(f"minimize is {name!r}", f"the logs have {', '.join(told)}")
        loss = -told[key] if name.startswith("-") else told[key]
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"{key} is {loss} after epoch {epoch} (learning rate {self._learning_rate:g})"
            )
        self.best = min(self.best, loss)
        told["train_loss"] = told.pop("loss")
        if "val_loss" in told:
            told["validation_loss"] = told.pop("val_loss")
        told["learning_rate"] = self._learning_rate  # Keras' own callbacks log it, too: as the epoch ended
        self._run.report(epoch, loss, **told)


# --- data


def _tensorflow_batches(
    part: Data, bounds: np.ndarray, seed: int, epochs: range, per_execution: int
) -> tuple[Any, int | None, Callable[[int], None]]:
    """A ``tf.data.Dataset`` of the arrays' batches, the steps of an epoch, and what to call when one begins.

    It goes through all epochs, as a pipeline takes some 10 ms to set up, and Keras would do so twice an
    epoch. Only where an epoch's last execution is shorter than the others, the end of the data has to tell
    it: the steps are None then.
    """
    import tensorflow as tf

    examples = _examples(part)
    with tf.device("CPU:0"):
        arrays = keras.tree.map_structure(tf.constant, part)
        starts = tf.constant(bounds)
        current = tf.Variable(epochs.start, dtype=tf.int64, trainable=False)

    def of_epoch(epoch: Any) -> Any:
        order = tf.random.experimental.stateless_shuffle(
            tf.range(examples, dtype=tf.int64), seed=tf.stack([seed, epoch])
        )

        def batch(number: Any) -> Any:
            rows = order[starts[number] : starts[number + 1]]
            return keras.tree.map_structure(lambda array: tf.gather(array, rows), arrays)

        return _map(tf.data.Dataset.range(len(bounds) - 1), batch)

    steps = len(bounds) - 1
    if steps % per_execution == 0:
        return tf.data.Dataset.range(epochs.start, epochs.stop).flat_map(of_epoch), steps, lambda epoch: None
    one = tf.data.Dataset.range(1).flat_map(lambda _: of_epoch(current.read_value()))
    return one.apply(tf.data.experimental.assert_cardinality(steps)), None, current.assign


def _map(dataset: Any, function: Callable[..., Any]) -> Any:
    """``dataset.map`` for a few small operations: on the thread that asks. The public one hands them to a
    pool of threads, which takes ten times as long (80 µs)."""
    try:
        from tensorflow.python.data.ops.map_op import _MapDataset

        return _MapDataset(dataset, function, use_inter_op_parallelism=False, preserve_cardinality=True)
    except (ImportError, TypeError):
        return dataset.map(function)


def _torch_batches(part: Data, bounds: np.ndarray, seed: int) -> tuple[Any, Callable[[int], None]]:
    """The same as tensors, on the GPU where they take little of it."""
    import torch

    examples = _examples(part)
    arrays = keras.tree.map_structure(_tensor, part)
    size = sum(tensor.nbytes for tensor in keras.tree.flatten(arrays))
    if _on_gpu() and size < RESIDENT_SHARE * torch.cuda.mem_get_info()[0]:
        arrays = keras.tree.map_structure(lambda tensor: tensor.cuda(), arrays)
    batches = _TorchBatches(arrays, bounds)

    def shuffle(epoch: int) -> None:
        batches.order = torch.from_numpy(_order(examples, seed, epoch))

    shuffle(0)
    return batches, shuffle


class _TorchBatches:
    """Batches of tensors in a given order, as often as asked for."""

    order: Any

    def __init__(self, arrays: Any, bounds: np.ndarray) -> None:
        self._arrays, self._bounds = arrays, bounds

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __iter__(self) -> Iterator[Any]:
        order = self.order.to(keras.tree.flatten(self._arrays)[0].device)
        for start, end in itertools.pairwise(self._bounds):
            rows = order[start:end]
            yield keras.tree.map_structure(lambda array, rows=rows: array[rows], self._arrays)


def _tensor(values: Any) -> Any:
    """A tensor over the same memory where that is possible: a worker's trials share one copy of the data."""
    import torch

    if isinstance(values, torch.Tensor):
        return values
    with warnings.catch_warnings():
        # A write into the tensor would change a read-only array. Lookups copy: nobody writes.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.ascontiguousarray(values))


def _bounds(part: Data, batch_size: int) -> np.ndarray:
    """Where each batch begins, and the last ends. Equal shares, so that no epoch ends in a batch of one,
    which batch normalization can't take.
    """
    examples = _examples(part)
    steps = math.ceil(examples / batch_size)
    return np.arange(steps + 1) * examples // steps


def _examples(part: Data) -> int:
    return len(keras.tree.flatten(part)[0])


def _order(examples: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(examples)


def _seed_hosts(seed: int, epoch: int) -> None:
    """An epoch's randomness outside of the model, such as augmentation in Python, is drawn anew."""
    state = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
    random.seed(state)
    np.random.seed(state)
    if BACKEND == "torch":
        import torch

        torch.manual_seed(state)


# --- waiting for data


def _timed_loader(clock: Any, batches: Iterable[Any]) -> Any:
    """A DataLoader, which Keras iterates as it is, of the batches under the clock."""
    import torch

    def tensor(leaf: Any) -> Any:
        return leaf if isinstance(leaf, torch.Tensor) else torch.as_tensor(np.asarray(leaf))

    class Loader(torch.utils.data.DataLoader):
        def __iter__(self) -> Any:
            for batch in clock.batches(batches):
                yield keras.tree.map_structure(tensor, batch)

    class OfNoKnownLength(torch.utils.data.IterableDataset):
        def __iter__(self) -> Any:
            return iter(batches)

    try:
        return Loader(range(len(batches)), batch_size=None)  # type: ignore[arg-type]
    except TypeError:  # it has no length, or a DataLoader's dataset has none
        return Loader(OfNoKnownLength(), batch_size=None)


class _Wait:
    """How long a TensorFlow training waits for its ``tf.data`` pipeline, measured inside the pipeline.

    Behind a last prefetch, every batch is zipped behind the time at which it was asked for, and adds what has
    passed since to a variable, which is read once an epoch: 15 µs a step.

    With several steps per execution TensorFlow asks for the next batches while it computes: most of that
    waiting costs nothing. The time at which each batch came tells how much did (`idle_seconds`).
    """

    def __init__(self) -> None:
        import tensorflow as tf

        with tf.device("CPU:0"):
            self._sums = tf.Variable(np.zeros(3), trainable=False)  # seconds, batches, examples
            self._delivered = tf.Variable(np.zeros(DELIVERIES), trainable=False)
        self._per_execution = 1
        self._begun = self._seen = 0.0
        self._waited = 0.0

    def within(self, dataset: Any) -> Any:
        import tensorflow as tf

        asked = _map(tf.data.Dataset.range(1).repeat(), lambda _: tf.timestamp())

        def measure(since: Any, batch: Any) -> Any:
            now = tf.timestamp()
            examples = tf.cast(tf.shape(tf.nest.flatten(batch)[0])[0], tf.float64)
            one = tf.constant(1.0, tf.float64)
            sums = self._sums.assign_add(tf.stack([now - since, one, examples]), read_value=True)
            place = tf.cast(sums[1] - 1, tf.int64) % DELIVERIES
            self._delivered.scatter_update(tf.IndexedSlices(now, place))
            return batch

        options = tf.data.Options()
        # A prefetch behind the measurement would ask for batches that nobody waits for.
        options.experimental_optimization.inject_prefetch = False
        pipeline = tf.data.Dataset.zip((asked, dataset.prefetch(tf.data.AUTOTUNE)))
        return _map(pipeline, measure).with_options(options)

    def begin(self, per_execution: int) -> None:
        self._per_execution = per_execution
        self._sums.assign(np.zeros(3))
        self._seen = self._waited = 0.0
        self._begun = time.time()

    def after_execution(self) -> None:
        if self._per_execution == 1:
            return
        end = time.time()
        steps = self._sums.numpy()[1]
        places = np.arange(self._seen, steps).astype(int)[-DELIVERIES:] % DELIVERIES
        delivered = self._delivered.numpy()[places]
        self._waited += idle_seconds(self._begun, end, delivered, int(steps - self._seen))
        self._seen, self._begun = steps, time.time()

    def take(self) -> tuple[float, int, int]:
        """Seconds, steps and examples since `begin`."""
        seconds, steps, examples = self._sums.numpy()
        return (
            float(seconds if self._per_execution == 1 else min(seconds, self._waited)),
            int(steps),
            int(examples),
        )


def idle_seconds(begun: float, end: float, delivered: np.ndarray, steps: int) -> float:
    """How long an execution of several steps had nothing to do because a batch had not come yet.

    Args: begun, end: of the execution, in seconds. delivered: ``(batches,)`` the times at which its last
        batches came. steps: how many it had, each taking the same time c.
    Step i of n can't begin before its batch came at d_i, nor before step i-1 has ended, so that
    end = max over i of d_i + (n - i + 1) c. That gives c; what the execution took beyond n c, it was idle.
    """
    if not len(delivered):
        return 0.0
    left = np.arange(len(delivered), 0, -1)
    step_seconds = max(0.0, float(((end - delivered) / left).min()))
    return max(0.0, end - begun - steps * step_seconds)


# --- the model


class _Weights:
    """The model's and its optimizer's variables in one file with all a training needs to go on; whole at
    every instant, so that a kill can't tear it. The best epoch's are kept in memory, too."""

    def __init__(self, run: Run, model: keras.Model, training: Training) -> None:
        self._model, self._training = model, training
        self._path = Path(run.checkpoint_directory) / "fit.npz"
        self._best: list[np.ndarray] = []

    def save(self, *, is_best: bool) -> None:
        values = _values(self._model.variables)
        if is_best:
            self._best = values
        document: dict[str, Any] = {"state": np.array(json.dumps(self._training.state()))}
        kinds = {"model": values, "best": self._best, "optimizer": _values(self._model.optimizer.variables)}
        for kind, arrays in kinds.items():
            if kind != "best" or not is_best:  # the same values once
                document |= {f"{kind}/{number}": array for number, array in enumerate(arrays)}
        unfinished = self._path.with_suffix(".unfinished")
        with open(unfinished, "wb") as file:
            np.savez(file, **document)
        os.replace(unfinished, self._path)

    def load(self) -> None:
        if not self._path.exists():
            return
        # The file may have come over a network: without pickles it runs no code.
        with np.load(self._path, allow_pickle=False) as document:
            state = json.loads(str(document["state"]))
            kinds: dict[str, list[np.ndarray]] = {"model": [], "best": [], "optimizer": []}
            for name in document.files:
                if name != "state":
                    kinds[name.split("/")[0]].append(document[name])
        self._training.restore(state)
        _assign(self._model.variables, kinds["model"])
        _assign(self._model.optimizer.variables, kinds["optimizer"])
        self._best = kinds["best"] or kinds["model"]

    def take_best(self) -> None:
        _assign(self._model.variables, self._best)


def _values(variables: Iterable[Any]) -> list[np.ndarray]:
    """Copies on the host; what NumPy has no type for (bfloat16) as float32, which loses nothing."""
    arrays = [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]
    return [array if array.dtype.isbuiltin else array.astype(np.float32) for array in arrays]


def _assign(variables: Sequence[Any], values: Sequence[np.ndarray]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _build(model: keras.Model, part: Data) -> None:
    """Make the variables of the model and its optimizer, so that a checkpoint has where to go."""
    if not model.built:
        inputs = part[0] if is_arrays(part) else next(iter(part))[0]
        model(keras.tree.map_structure(lambda array: keras.ops.convert_to_tensor(array[:1]), inputs))
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)


def _predict(model: keras.Model, part: Data, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """``(examples, ...)`` targets and outputs."""
    if BACKEND == "torch":
        model.eval()
    elif is_arrays(part):
        _trace_prediction(model, part[0], np.diff(_bounds(part, batch_size)))
    targets: list[np.ndarray] = []
    outputs: list[np.ndarray] = []
    for batch in _batches(part, batch_size):
        output = model.predict_on_batch(_host(batch[0]) if BACKEND == "tensorflow" else batch[0])
        if not isinstance(output, np.ndarray):
            raise UsageError(
                "the model has several outputs",
                "fit takes models with one; call model.fit with a TrialCallback",
            )
        targets.append(_host(batch[1]))
        outputs.append(output)
    # Half precision is for steps, not for sums.
    precision = np.float64 if outputs[0].dtype == np.float64 else np.float32
    return np.concatenate(targets), np.concatenate(outputs).astype(precision)


def _trace_prediction(model: keras.Model, inputs: Any, sizes: np.ndarray) -> None:
    """Where batches differ in size, trace for any size at once: TensorFlow would trace for the first, then
    for any, and warn of it after some models."""
    if model.run_eagerly or sizes.min() == sizes.max():
        return
    import tensorflow as tf

    model.make_predict_function()
    any_size = keras.tree.map_structure(
        lambda array: tf.TensorSpec((None, *array.shape[1:]), np.asarray(array[:1]).dtype), inputs
    )
    model.predict_function.get_concrete_function([(any_size,)])


def _batches(part: Data, batch_size: int) -> Iterator[Any]:
    if is_arrays(part):
        bounds = _bounds(part, batch_size)
        for start, end in itertools.pairwise(bounds):
            yield keras.tree.map_structure(lambda array, start=start, end=end: array[start:end], part)
    elif isinstance(part, keras.utils.PyDataset):
        yield from (part[number] for number in range(part.num_batches))
    else:
        yield from part


def _host(batch: Any) -> Any:
    return keras.tree.map_structure(keras.ops.convert_to_numpy, batch)


def _evaluated(model: keras.Model, targets: np.ndarray, outputs: np.ndarray) -> Evaluated:
    # Activity regularization is left out: it belongs to single batches, and TensorFlow's are symbols by now.
    model._clear_losses()
    loss = model.compute_loss(
        y=keras.ops.convert_to_tensor(targets), y_pred=keras.ops.convert_to_tensor(outputs)
    )
    return Evaluated(float(keras.ops.convert_to_numpy(loss)), targets, outputs)


def _compiled(model: keras.Model, targets: np.ndarray, outputs: np.ndarray) -> dict[str, Any]:
    """The metrics the model was compiled with, as Keras names them."""
    model.reset_metrics()
    tensors = keras.ops.convert_to_tensor(targets), keras.ops.convert_to_tensor(outputs)
    results = model.compute_metrics(None, *tensors)
    model.reset_metrics()
    return {
        name: _plain(keras.ops.convert_to_numpy(value)) for name, value in results.items() if name != "loss"
    }


def _plain(value: Any) -> Any:
    return float(value) if np.ndim(value) == 0 else value


def _numbers(logs: dict[str, Any], task: Task | None) -> dict[str, float]:
    """The logs as numbers: one that has a value for each class becomes ``NAME/CLASS``."""
    classes = task.class_names if isinstance(task, Classification) else ()
    told: dict[str, float] = {}
    for name, value in logs.items():
        array = np.asarray(keras.ops.convert_to_numpy(value))
        if array.ndim == 0:
            told[name] = float(array)
        else:
            flat = array.ravel()
            keys = metric_names(classes) if len(flat) == len(classes) else range(len(flat))
            told |= {f"{name}/{key}": float(number) for key, number in zip(keys, flat, strict=True)}
    return told


def _learning_rate(model: keras.Model) -> float:
    return float(keras.ops.convert_to_numpy(model.optimizer.learning_rate))


def _gives_logits(model: keras.Model) -> bool:
    """Whether the loss takes the outputs for logits; losses by name take probabilities. It may be in a list
    or a dict of one."""
    return any(getattr(loss, "from_logits", False) for loss in keras.tree.flatten(model.loss))


def _is_tf_dataset(batches: Any) -> bool:
    import tensorflow as tf

    return isinstance(batches, tf.data.Dataset)


def _on_gpu() -> bool:
    if BACKEND == "torch":
        import torch

        return torch.cuda.is_available()
    import tensorflow as tf

    return bool(tf.config.list_logical_devices("GPU"))


def _hears(callback: keras.callbacks.Callback, hook: str) -> bool:
    """Does the callback do anything in the hook? LambdaCallback puts its functions into the instance."""
    return hook in vars(callback) or getattr(type(callback), hook) is not getattr(
        keras.callbacks.Callback, hook
    )


def _check_batch_size(part: Data, batch_size: int | None) -> None:
    if is_arrays(part):
        check_counts({"batch_size": batch_size})
    elif batch_size is not None:
        raise UsageError(
            f"batch_size is {batch_size!r}, but the training data come in batches", "leave batch_size out"
        )
