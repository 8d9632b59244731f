"""Train a PyTorch model inside a trial: one loop, resumable, timed, with every epoch reported.

    def objective(params, run, *, epochs=15):
        seed_everything(run.seed)
        model = nn.Sequential(nn.Linear(64, params["units"]), nn.ReLU(), nn.Linear(params["units"], 10))
        optimizer = torch.optim.AdamW(model.parameters(), lr=params["learning_rate"])
        return fit(run, model, digits(), epochs=epochs, batch_size=32, optimizer=optimizer).as_result()

Who keeps a loop of their own needs three lines of it for the same curves and the same clock; checkpoints in
``run.checkpoint_directory`` are then theirs to write, before `report`::

    for epoch in range(epochs):
        for inputs, targets in run.batches(loader):     # waiting is "data", the body is "step"
            ...
        with run.phase("validation"):
            loss = ...
        run.report(epoch, loss, accuracy=accuracy)      # closes the epoch; adds time/... and system/...
"""

from __future__ import annotations

import contextlib
import copy
import math
import os
import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from hpo.core.errors import UsageError
from hpo.training import Run
from hpo.training.data import Data, Dataset, is_arrays
from hpo.training.evaluation import Regression, Task
from hpo.training.fitting import Evaluated, Fit, Training, check_counts

__all__ = ["Evaluated", "Fit", "device_for", "evaluate", "fit", "save_whole", "seed_everything"]

Batch = tuple[Any, torch.Tensor]
"""``(inputs, targets)``: ``(examples, …)`` each; inputs may be tuples or dicts of such tensors."""

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""``(outputs, targets) -> mean loss`` over the batch."""

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Precision = Literal["float32", "bfloat16", "float16"]

RESIDENT_SHARE = 1 / 4
"""Of the free GPU memory: data that take less stay there, and leave the model its room."""


def fit(
    run: Run,
    model: torch.nn.Module,
    data: Dataset,
    *,
    epochs: int,
    batch_size: int | None = None,
    optimizer: torch.optim.Optimizer,
    scheduler: Any = None,
    scheduler_interval: Literal["epoch", "step"] = "epoch",
    loss: Loss | None = None,
    minimize: str = "loss",
    patience: int | None = None,
    precision: Precision = "float32",
    clip_norm: float | None = None,
    data_on: Literal["auto", "cpu", "device"] = "auto",
    keep_model: bool = True,
    validation_batch_size: int = 4096,
) -> Fit:
    """Train the model, report every epoch, and leave the best epoch's weights in it.

    An attempt after the worker's death goes on behind the last finished epoch, and on a CPU gives the
    very numbers of an unbroken training: each epoch's randomness (order, dropout, augmentation) is seeded by
    ``(run.seed, epoch)`` alone. Call `seed_everything` before building the model, and `fit` once a trial.
    Of several GPUs in ``run.gpus`` one process uses the first.

    Args:
        model: inputs -> outputs; for a classification logits ``(examples, classes)``, of two classes also
            ``(examples, 1)`` or ``(examples,)``; for a regression ``(examples, targets)`` or ``(examples,)``.
            It is moved to `device_for` the run.
        data: parts are ``(inputs, targets)`` arrays or tensors, whose batches are index lookups; or
            DataLoaders and other iterables of such batches. Inputs may be several: a tuple or dict. A
            DataLoader with a ``generator`` of its own shuffles as that says, not as the epoch's seed does.
        batch_size: at most so many examples a step; an epoch's batches differ in size by one at most. None
            where the training part makes its own batches.
        optimizer: any that needs no closure.
        scheduler: stepped after every epoch (ReduceLROnPlateau: with the minimized quantity), or with
            ``scheduler_interval="step"`` after every step: OneCycleLR, CyclicLR. An epoch has
            ``math.ceil(len(data.train[1]) / batch_size)`` steps.
        loss: ``(outputs, targets) -> mean``, for training and validation. By default cross entropy (binary,
            where there is one output), or for a regression the mean squared error.
        minimize: what of the validation is reported as the epoch's loss, decides which epoch is best and is
            the result, so that a study that prunes compares like with like: ``loss``, or of a classification
            ``error``, ``negative_squared_accuracy``, ``f1_error``, of a regression ``rmse``, ``mae``.
        patience: stop after so many epochs without a better one.
        precision: ``bfloat16`` and ``float16`` are mixed: weights stay as they are, and `torch.autocast`
            chooses what is computed in fewer bits. Losses are scaled (GradScaler) for float16.
        clip_norm: gradients are scaled down to at most this norm over all parameters.
        data_on: where arrays stay while a GPU trains: on the ``device``, or on the ``cpu``, whence batches
            are copied one ahead; ``auto``: on the device, if they take less than `RESIDENT_SHARE` of its free
            memory.
        keep_model: write the best weights (a state dict) to ``model.pt`` in ``run.directory``.
        validation_batch_size: as many as fit into memory.

    Reports ``loss, validation_loss, train_loss, learning_rate`` (as the epoch began), the task's metrics,
    class by class, and the clock's. ``run.directory`` gets what the task writes of the best epoch: report,
    confusion matrix, predictions. Of the winner of a study (``run.final``) it also gets the whole model, and
    ``load_line`` tells how to load it: an exported graph, which needs no code of the model's, or a pickle
    where export fails.

    Raises FloatingPointError where a loss is NaN or infinite, UsageError for arguments that can't be trained
    with, TrialPruned when the study says stop.
    """
    counts = {"epochs": epochs, "validation_batch_size": validation_batch_size}
    counts |= {} if batch_size is None else {"batch_size": batch_size}
    check_counts(counts if patience is None else counts | {"patience": patience})
    _check(data, batch_size, scheduler, scheduler_interval, precision, clip_norm, data_on)
    training = Training(
        run, data, epochs=epochs, minimize=minimize, patience=patience, concatenate=_concatenated
    )
    loss = loss or default_loss(training.task)

    device = device_for(run)
    run.clock.device = str(device)
    model.to(device)
    # Some optimizers (Adagrad) have state before their first step: loading moves it to its parameter.
    optimizer.load_state_dict(optimizer.state_dict())
    stepper = _Stepper(model, optimizer, loss, precision, clip_norm)
    home = _home(data_on, device, training.train, training.validation)
    train, validation = _at(training.train, home, model), _at(training.validation, home, model)
    pace = _Pace(scheduler if scheduler_interval == "step" else None, _steps(data.train, batch_size))

    def evaluated(part: Data) -> Evaluated:
        return evaluate(model, part, loss=loss, batch_size=validation_batch_size, precision=precision)

    checkpoint = _Checkpoint(
        Path(run.checkpoint_directory) / "fit.pt",
        {"model": model, "optimizer": optimizer, "scaler": stepper.scaler}
        | ({} if scheduler is None else {"scheduler": scheduler}),
    )
    best_weights = checkpoint.load(training)
    run.clock.begin()
    while training.goes_on:
        learning_rate = float(optimizer.param_groups[0]["lr"])
        seed_everything(_epoch_seed(run.seed, training.epoch))
        # Step is the phase around the batches, so that reading the losses counts as it, too.
        with run.phase("step"):
            batches = run.clock.batches(_training_batches(train, batch_size, device))
            pace.begin_epoch(_steps(train, batch_size))
            model.train()
            train_loss = _train_epoch(stepper, batches, pace, f"epoch {training.epoch}")
        result = None
        if validation is not None:
            with run.phase("validation"):
                result = evaluated(validation)
                run.clock.count_validation(len(result.targets))
        is_best = training.record(train_loss, learning_rate, result)
        with run.phase("callbacks"):
            if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
                last = training.progress.last or {}
                scheduler.step(last.get("loss", last["train_loss"]))
            elif scheduler is not None and scheduler_interval == "epoch":
                scheduler.step()
            if is_best:
                best_weights = _on_cpu(model.state_dict())
            checkpoint.save(training, best_weights, is_best=is_best)
        training.report()

    model.load_state_dict(best_weights)
    if keep_model or run.final is not None:
        torch.save(best_weights, run.directory / "model.pt")
    if run.final is not None:
        inputs, _ = train if is_arrays(train) else next(_pairs(train))
        run.final.load_line = save_whole(model, inputs, run.directory)
    return training.finish(evaluated)


def evaluate(
    model: torch.nn.Module,
    part: Data,
    *,
    loss: Loss = cross_entropy,
    batch_size: int = 4096,
    precision: Precision = "float32",
) -> Evaluated:
    """Mean loss and outputs of the model on a part of the data, without training it.

    Args: part: ``(inputs, targets)`` arrays or tensors, or an iterable of such batches.
    Outputs are float32.
    """
    device = _device_of(model)
    model.eval()
    losses, gathered, wanted = [], [], []
    with torch.inference_mode(), _autocast(device, precision):
        for inputs, targets in _ordered_batches(_at(part, None, model), batch_size, device):
            outputs = model(inputs)
            losses.append(loss(outputs, targets).double() * len(targets))
            gathered.append(outputs)
            wanted.append(targets)
        if not losses:
            raise UsageError("the data to evaluate on have no batch", "an iterable must give them every time")
        return Evaluated(
            loss=float(torch.stack(losses).sum()) / sum(map(len, wanted)),
            targets=torch.cat(wanted).cpu().numpy(),
            outputs=torch.cat(gathered).float().cpu().numpy(),
        )


def seed_everything(seed: int) -> None:
    """Seed the generators of Python, NumPy and PyTorch (CPU and GPUs)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def device_for(run: Run) -> torch.device:
    """The first GPU this process may see, else the CPU; warns where the run was promised a GPU in vain."""
    if torch.cuda.is_available():
        return torch.device("cuda:0")
    if run.gpus:
        warnings.warn(
            f"trial {run.number} has GPU {', '.join(run.gpus)}, but PyTorch {torch.__version__} finds none: "
            "training on the CPU",
            stacklevel=2,
        )
    return torch.device("cpu")


def default_loss(task: Task) -> Loss:
    """Cross entropy of logits for a classification, the mean squared error for a regression."""
    return _squared_error if isinstance(task, Regression) else _cross_entropy


def _cross_entropy(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    if outputs.ndim == 1 or outputs.shape[1] == 1:  # the logit of class 1
        outputs = outputs.reshape(-1)
        return binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype))
    return cross_entropy(outputs, targets if targets.is_floating_point() else targets.long())


def _squared_error(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    # (n, 1) beside (n,) would become (n, n), and integers have no gradient.
    return mse_loss(outputs, targets.reshape(outputs.shape).to(outputs.dtype))


# --- steps


class _Stepper:
    """One step of the optimizer after another, in the wanted precision."""

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: Loss,
        precision: Precision,
        clip_norm: float | None,
    ) -> None:
        self._model, self.optimizer, self._loss = model, optimizer, loss
        self._precision, self._clip_norm = precision, clip_norm
        self._device = _device_of(model)
        # float16 has five bits of exponent, and small gradients would be zero; bfloat16 has float32's eight.
        self.scaler = torch.amp.GradScaler(self._device.type, enabled=precision == "float16")

    def __call__(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The batch's mean loss, left on the device."""
        self.optimizer.zero_grad()
        with _autocast(self._device, self._precision):
            value = self._loss(self._model(inputs), targets)
        self.scaler.scale(value).backward()
        if self._clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return value.detach()


class _Pace:
    """Steps a scheduler within epochs, as often in each as in an epoch of the trial: the winner may be
    trained on more data, and its learning rates have to be those it won with."""

    def __init__(self, scheduler: Any, planned: int) -> None:
        self._scheduler, self._planned = scheduler, planned
        self._done = self._steps = 0

    def begin_epoch(self, steps: int) -> None:
        self._done, self._steps = 0, steps

    def step(self) -> None:
        if self._scheduler is None:
            return
        before = self._done * self._planned // self._steps
        self._done += 1
        if self._done * self._planned // self._steps > before:
            self._scheduler.step()


def _train_epoch(stepper: _Stepper, batches: Iterable[Batch], pace: _Pace, epoch: str) -> float:
    """One pass over the batches; the mean loss of an example."""
    losses, sizes = [], []
    for inputs, targets in batches:
        losses.append(stepper(inputs, targets))
        sizes.append(len(targets))
        pace.step()
    if not losses:
        raise UsageError(
            f"the training data have no batch in {epoch}",
            "an iterable of batches must give them in every epoch, as a DataLoader does",
        )
    # Looked at once an epoch: reading a number off a GPU waits for everything queued before it.
    values = torch.stack(losses).double().cpu()
    finite = torch.isfinite(values)
    if not finite.all():
        first = int((~finite).nonzero()[0])
        raise FloatingPointError(
            f"the training loss is {values[first]:g} in batch {first} of {epoch} "
            f"(learning rate {float(stepper.optimizer.param_groups[0]['lr']):g})"
        )
    weights = torch.tensor(sizes, dtype=torch.float64)
    return float((values * weights).sum() / weights.sum())


def _autocast(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager[Any]:
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=PRECISIONS[precision])


# --- data


def _training_batches(part: Any, batch_size: int | None, device: torch.device) -> Iterator[Batch]:
    """Batches on the device, of arrays in an order drawn from PyTorch's generator."""
    if batch_size is None:
        yield from _moved(_pairs(part), device)
        return
    _, targets = part
    order = torch.randperm(len(targets)).to(targets.device)
    # Equal shares, so that no epoch ends in a batch of one, which batch normalization can't take.
    rows = order.tensor_split(_steps(part, batch_size))
    yield from _moved((_looked_up(part, these) for these in rows), device, targets.device)


def _ordered_batches(part: Any, batch_size: int, device: torch.device) -> Iterator[Batch]:
    if not is_arrays(part):
        yield from _moved(_pairs(part), device)
        return
    _, targets = part
    rows = torch.arange(len(targets), device=targets.device).split(batch_size)
    yield from _moved((_looked_up(part, these) for these in rows), device, targets.device)


def _looked_up(part: Any, rows: torch.Tensor) -> Any:
    """A copy, also where rows are neighbours: what a model does in place must not reach the data."""
    return _each(part, lambda values: values.index_select(0, rows))


def _pairs(batches: Iterable[Any]) -> Iterator[Batch]:
    for batch in batches:
        if not (isinstance(batch, tuple | list) and len(batch) == 2):
            raise UsageError(
                f"a batch of the data is a {type(batch).__name__}, and no pair",
                "fit takes (inputs, targets); for other batches write the loop yourself, with run.batches",
            )
        yield _each(batch[0], torch.as_tensor), torch.as_tensor(batch[1])


def _moved(
    batches: Iterable[Batch], device: torch.device, home: torch.device | None = None
) -> Iterable[Batch]:
    """The batches on the device. To a GPU they are copied one ahead, while it computes."""
    if home == device or device.type == "cpu":
        return batches
    return copied_ahead(batches, device)


def copied_ahead(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches on the GPU, each copied on a stream of its own while the step before it runs."""
    copies, steps = torch.cuda.Stream(device), torch.cuda.current_stream(device)

    def copied(values: torch.Tensor) -> torch.Tensor:
        # Only from pinned memory can a copy run beside the host.
        there = (values.pin_memory() if values.is_cpu else values).to(device, non_blocking=True)
        there.record_stream(steps)  # its memory is not free before the step has used it
        return there

    ready: Batch | None = None
    for batch in batches:
        with torch.cuda.stream(copies):
            ahead = _each(batch, copied)
        arrived = copies.record_event()
        if ready is not None:
            yield ready
        steps.wait_event(arrived)
        ready = ahead
    if ready is not None:
        yield ready


def _at(part: Data | None, home: torch.device | None, model: torch.nn.Module) -> Any:
    """Arrays as tensors in the place (None: where they are), floats as the model's; iterables as they are."""
    if part is None or not is_arrays(part):
        return part
    dtype = next(model.parameters()).dtype
    return _each(part, lambda values: _tensor(values, dtype, home))


def _tensor(values: Any, dtype: torch.dtype, home: torch.device | None) -> torch.Tensor:
    """A tensor over the same memory where that is possible: a worker's trials share one copy of the data."""
    if not isinstance(values, torch.Tensor):
        with warnings.catch_warnings():
            # A write into the tensor would change a read-only array. Lookups copy: nobody writes.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            values = torch.from_numpy(np.ascontiguousarray(values))
    return values.to(home or values.device, dtype if values.is_floating_point() else values.dtype)


def _concatenated(parts: Sequence[Any]) -> Any:
    is_tensors = all(isinstance(part, torch.Tensor) for part in parts)
    return torch.cat(list(parts)) if is_tensors else np.concatenate(parts)


def _each(values: Any, change: Callable[[Any], Any]) -> Any:
    """The same tuple, list or dict with every array or tensor in it changed."""
    if isinstance(values, Mapping):
        return {name: _each(value, change) for name, value in values.items()}
    if isinstance(values, tuple | list):
        return tuple(_each(value, change) for value in values)
    return change(values)


def _home(data_on: str, device: torch.device, *parts: Data | None) -> torch.device:
    """Where arrays stay."""
    if data_on == "device" or (data_on == "auto" and device.type == "cuda" and fits(device, *parts)):
        return device
    return torch.device("cpu")


def fits(device: torch.device, *parts: Data | None) -> bool:
    """Are the arrays among the parts small beside the free memory of the GPU?"""
    needed = 0

    def count(values: Any) -> None:
        nonlocal needed
        needed += values.nbytes

    for part in parts:
        if part is not None and is_arrays(part):
            _each(part, count)
    return needed < RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]


def _steps(part: Data, batch_size: int | None) -> int:
    """Steps of an epoch; 1 where only the iterable knows."""
    return 1 if batch_size is None else math.ceil(len(part[1]) / batch_size)


def _device_of(model: torch.nn.Module) -> torch.device:
    device: torch.device = next(model.parameters()).device
    return device


# --- what is kept


class _Checkpoint:
    """One file with all a training needs to go on; whole at every instant, so that a kill can't tear it."""

    def __init__(self, path: Path, parts: Mapping[str, Any]) -> None:
        self._path, self._parts = path, parts

    def save(self, training: Training, best_weights: Any, *, is_best: bool) -> None:
        states = {name: part.state_dict() for name, part in self._parts.items()}
        if is_best:
            states["model"] = best_weights  # the same tensors are written once
        document = {"training": training.state(), "states": states, "best_weights": best_weights}
        unfinished = self._path.with_suffix(".unfinished")
        torch.save(_plain_numbers(document), unfinished)
        os.replace(unfinished, self._path)

    def load(self, training: Training) -> Any:
        """Go on where the file says; the best weights so far, None if there is no file."""
        if not self._path.exists():
            return None
        # The file may have come over a network: weights_only reads tensors and numbers and runs no code.
        document = torch.load(self._path, map_location="cpu", weights_only=True)
        training.restore(document["training"])
        for name, part in self._parts.items():
            part.load_state_dict(document["states"][name])
        return document["best_weights"]


def save_whole(model: torch.nn.Module, inputs: Any, directory: Path) -> str:
    """Write the model so that one line loads it, without its code where PyTorch can export it; the line.

    Args: inputs: some examples as the model takes them; the exported one takes batches of any size, on the
    CPU. Writes ``model.pt2``, or ``whole_model.pt`` with a warning. The model is left on its device.
    """
    device = _device_of(model)
    model.eval().cpu()
    try:
        # Two examples, also of a single one: of a batch of one, export would make a constant.
        example = _each(inputs, lambda values: torch.cat([values[:2], values[:2]])[:2].cpu())
        dimension = torch.export.Dim("batch")
        exported = torch.export.export(
            model, (example,), dynamic_shapes=(_each(inputs, lambda _: {0: dimension}),)
        )
        torch.export.save(exported, directory / "model.pt2")
        return 'torch.export.load("model.pt2").module()'
    except Exception as error:  # whatever export finds that it can't follow
        warnings.warn(
            f"the model can't be exported ({type(error).__name__}) and was pickled: "
            "loading it needs the code of its class",
            stacklevel=2,
        )
        torch.save(model, directory / "whole_model.pt")
        return 'torch.load("whole_model.pt", weights_only=False)'
    finally:
        model.to(device)


def _on_cpu(weights: Mapping[str, Any]) -> dict[str, Any]:
    """A copy in the host's memory, which is larger than a GPU's; the checkpoint needs it there anyway."""
    return {
        name: value.detach().to("cpu", copy=True) if isinstance(value, torch.Tensor) else copy.deepcopy(value)
        for name, value in weights.items()
    }


def _epoch_seed(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])


def _plain_numbers(value: Any) -> Any:
    """The document with NumPy scalars as Python's, which is what weights_only reads back."""
    if isinstance(value, np.generic):
        return value.item()
    if type(value) is dict:
        return {key: _plain_numbers(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain_numbers(item) for item in value)
    return value


def _check(
    data: Dataset,
    batch_size: int | None,
    scheduler: Any,
    scheduler_interval: str,
    precision: str,
    clip_norm: float | None,
    data_on: str,
) -> None:
    faults = []
    for name, value, choices in (
        ("scheduler_interval", scheduler_interval, ("epoch", "step")),
        ("precision", precision, PRECISIONS),
        ("data_on", data_on, ("auto", "cpu", "device")),
    ):
        if value not in choices:
            faults.append(f"{name} is {value!r}, and not one of {', '.join(choices)}")
    if clip_norm is not None and not clip_norm > 0:
        faults.append(f"clip_norm is {clip_norm!r}, and not above zero")
    if is_arrays(data.train) and batch_size is None:
        faults.append("batch_size is missing")
    if not is_arrays(data.train) and batch_size is not None:
        faults.append(f"batch_size is {batch_size}, but the training data come in batches: leave it out")
    if scheduler_interval == "step" and isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        faults.append("ReduceLROnPlateau needs a validation, and can't be stepped after every step")
    if faults:
        raise UsageError("; ".join(faults), "see help(hpo.training.torch.fit)")
