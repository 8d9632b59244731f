"""Train a PyTorch classifier inside a trial: one loop, resumable, with every epoch reported.

The data stay resident on the device and batches are index lookups: data sets that fit into memory need no
loader, and none of its processes.
"""

from __future__ import annotations

import copy
import math
import os
import random
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from hpo.core.errors import UsageError
from hpo.training import Run

Data = Sequence[Any]
"""``(inputs, targets)``, tensors or arrays of equal length; targets are class indices (int64)."""

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""``(logits, targets) -> mean loss`` over the batch."""


@dataclass(frozen=True, slots=True)
class Fit:
    """What a training came to, at its best epoch.

    ``loss``: the minimized quantity. ``accuracy``, ``validation_loss``: on the validation data.
    ``train_loss``: mean over the epoch's batches, as they were seen. ``best_epoch``: from 0; the earlier
    of equals. ``epochs``: how many were trained, in all attempts together.
    """

    loss: float
    accuracy: float
    validation_loss: float
    train_loss: float
    best_epoch: int
    epochs: int

    def as_result(self) -> dict[str, float]:
        """The dict an objective returns."""
        return asdict(self)


def fit(
    run: Run,
    model: torch.nn.Module,
    train: Data,
    validation: Data,
    *,
    epochs: int,
    batch_size: int,
    optimizer: torch.optim.Optimizer,
    scheduler: Any = None,
    loss: Loss = cross_entropy,
    minimize: Literal["loss", "error"] = "loss",
    patience: int | None = None,
    keep_model: bool = True,
    validation_batch_size: int = 4096,
) -> Fit:
    """Train the classifier, report every epoch, and leave the best epoch's weights in ``model``.

    An attempt after the worker's death goes on behind the last finished epoch, and on a CPU gives the
    very numbers of an unbroken training: each epoch's randomness (order, dropout, augmentation) is seeded by
    ``(run.seed, epoch)`` alone. Call `seed_everything` before building the model, and `fit` once a trial.

    Args:
        model: inputs -> logits, classes along dimension 1; moved to `device_for` the run.
        batch_size: at most so many examples a step; an epoch's batches differ in size by one at most.
        scheduler: stepped after every epoch (ReduceLROnPlateau: with the minimized quantity).
        minimize: the validation ``loss``, or the ``error`` (1 - accuracy). It is reported as the epoch's
            loss, decides which epoch is best and is the result: a study that prunes compares like with like.
        patience: stop after so many epochs without a better one.
        keep_model: write the best weights (a state dict) to ``model.pt`` in ``run.directory``.

    Reports ``loss, accuracy, validation_loss, train_loss, learning_rate, time/epoch_seconds`` (training and
    validation). Raises FloatingPointError where a loss is NaN or infinite, UsageError for arguments that
    can't be trained with, TrialPruned when the study says stop.
    """
    counts = {"epochs": epochs, "batch_size": batch_size, "validation_batch_size": validation_batch_size}
    _check(train, validation, counts if patience is None else counts | {"patience": patience}, minimize)
    device = device_for(run)
    model.to(device)
    # Some optimizers (Adagrad) have state before their first step: loading moves it to its parameter.
    optimizer.load_state_dict(optimizer.state_dict())
    train, validation = _resident(train, device), _resident(validation, device)

    checkpoint = _Checkpoint(run, model, optimizer, scheduler)
    history = checkpoint.load()
    if history.last:
        # The worker may have died between writing the checkpoint and reporting; twice is harmless.
        _report(run, history.epochs - 1, history.last)
    while history.epochs < epochs and not history.is_stale(patience):
        epoch = history.epochs
        started = time.perf_counter()
        learning_rate = float(optimizer.param_groups[0]["lr"])
        seed_everything(_epoch_seed(run.seed, epoch))
        train_loss = _train_epoch(model, train, optimizer, loss, batch_size, epoch)
        validation_loss, accuracy = evaluate(model, validation, loss=loss, batch_size=validation_batch_size)
        if not math.isfinite(validation_loss):
            raise FloatingPointError(
                f"the validation loss is {validation_loss} after epoch {epoch} "
                f"(learning rate {learning_rate:g})"
            )
        minimized = validation_loss if minimize == "loss" else 1 - accuracy
        metrics = {
            "loss": minimized,
            "accuracy": accuracy,
            "validation_loss": validation_loss,
            "train_loss": train_loss,
            "learning_rate": learning_rate,
            "time/epoch_seconds": time.perf_counter() - started,
        }
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            scheduler.step(minimized)
        elif scheduler is not None:
            scheduler.step()
        history = history.extended(metrics, model)
        checkpoint.save(history)
        _report(run, epoch, metrics)

    model.load_state_dict(history.best_weights)
    if keep_model:
        torch.save(_on_cpu(history.best_weights), run.directory / "model.pt")
    kept = ("loss", "accuracy", "validation_loss", "train_loss")
    return Fit(
        **{name: history.best[name] for name in kept}, best_epoch=history.best_epoch, epochs=history.epochs
    )


def evaluate(
    model: torch.nn.Module, data: Data, *, loss: Loss = cross_entropy, batch_size: int = 4096
) -> tuple[float, float]:
    """Mean loss and accuracy (0 to 1) of the classifier on the data, without training it."""
    inputs, targets = _resident(data, next(model.parameters()).device)
    model.eval()
    losses, hits = [], []
    with torch.inference_mode():
        for batch, wanted in zip(inputs.split(batch_size), targets.split(batch_size), strict=True):
            logits = model(batch)
            losses.append(loss(logits, wanted).double() * len(batch))
            hits.append((logits.argmax(dim=1) == wanted).double().mean() * len(batch))
    total_loss, total_hits = torch.stack([torch.stack(losses).sum(), torch.stack(hits).sum()]).tolist()
    return total_loss / len(inputs), total_hits / len(inputs)


def seed_everything(seed: int) -> None:
    """Seed the generators of Python, NumPy and PyTorch (CPU and GPUs)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def device_for(run: Run) -> torch.device:
    """The first GPU this process may see, else the CPU; warns where the run was promised a GPU in vain."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if run.gpus:
        warnings.warn(
            f"trial {run.number} has GPU {', '.join(run.gpus)}, but PyTorch {torch.__version__} finds none: "
            "training on the CPU",
            stacklevel=2,
        )
    return torch.device("cpu")


def _train_epoch(
    model: torch.nn.Module,
    train: Data,
    optimizer: torch.optim.Optimizer,
    loss: Loss,
    batch_size: int,
    epoch: int,
) -> float:
    """One pass over the data in an order drawn from PyTorch's generator; the mean loss of an example."""
    inputs, targets = train
    order = torch.randperm(len(inputs)).to(inputs.device)
    # Equal shares, so that no epoch ends in a batch of one, which batch normalization can't take.
    batches = order.tensor_split(math.ceil(len(order) / batch_size))
    model.train()
    losses = []
    for batch in batches:
        optimizer.zero_grad()
        value = loss(model(inputs[batch]), targets[batch])
        value.backward()
        optimizer.step()
        losses.append(value.detach())
    # Looked at once an epoch: reading a number off a GPU waits for everything queued before it.
    values = torch.stack(losses).double().cpu()
    finite = torch.isfinite(values)
    if not finite.all():
        first = int((~finite).nonzero()[0])
        raise FloatingPointError(
            f"the training loss is {values[first]:g} in batch {first} of epoch {epoch} "
            f"(learning rate {float(optimizer.param_groups[0]['lr']):g})"
        )
    sizes = torch.tensor([len(batch) for batch in batches], dtype=torch.float64)
    return float((values * sizes).sum() / len(order))


@dataclass(frozen=True, slots=True)
class _History:
    """How far a training has come: finished epochs, the last and the best one's metrics, the best weights."""

    epochs: int = 0
    last: dict[str, float] | None = None
    best: Any = None
    best_epoch: int = -1
    best_weights: Any = None

    def extended(self, metrics: dict[str, float], model: torch.nn.Module) -> _History:
        if self.best is not None and metrics["loss"] >= self.best["loss"]:
            return _History(self.epochs + 1, metrics, self.best, self.best_epoch, self.best_weights)
        return _History(self.epochs + 1, metrics, metrics, self.epochs, copy.deepcopy(model.state_dict()))

    def is_stale(self, patience: int | None) -> bool:
        return patience is not None and self.epochs - 1 - self.best_epoch >= patience


class _Checkpoint:
    """One file with all a training needs to go on; whole at every instant, so that a kill can't tear it."""

    def __init__(
        self, run: Run, model: torch.nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any
    ) -> None:
        self._attempt = run.attempt
        self._path = Path(run.checkpoint_directory) / "fit.pt"
        self._parts: dict[str, Any] = {"model": model, "optimizer": optimizer}
        if scheduler is not None:
            self._parts["scheduler"] = scheduler

    def save(self, history: _History) -> None:
        states = {name: part.state_dict() for name, part in self._parts.items()}
        document = {"attempt": self._attempt, "history": asdict(history), "states": states}
        unfinished = self._path.with_suffix(".unfinished")
        torch.save(_plain_numbers(document), unfinished)
        os.replace(unfinished, self._path)

    def load(self) -> _History:
        if not self._path.exists():
            return _History()
        # The file may have come over a network: weights_only reads tensors and numbers and runs no code.
        document = torch.load(self._path, map_location="cpu", weights_only=True)
        if document["attempt"] == self._attempt:
            raise UsageError(
                "fit was called twice in one trial: the second call would continue the first one's training",
                hint="train once per trial; call evaluate for more numbers",
            )
        for name, part in self._parts.items():
            part.load_state_dict(document["states"][name])
        return _History(**document["history"])


def _report(run: Run, epoch: int, metrics: dict[str, float]) -> None:
    run.report(epoch, metrics["loss"], **{name: value for name, value in metrics.items() if name != "loss"})


def _epoch_seed(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])


def _resident(data: Data, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The data on the device; arrays are copied, since PyTorch warns of sharing read-only ones."""
    inputs, targets = (
        part.to(device) if isinstance(part, torch.Tensor) else torch.tensor(np.asarray(part), device=device)
        for part in data
    )
    return inputs, targets


def _on_cpu(weights: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.cpu() if isinstance(value, torch.Tensor) else value for name, value in weights.items()
    }


def _plain_numbers(value: Any) -> Any:
    """The document with NumPy scalars as Python's, which is what weights_only reads back."""
    if isinstance(value, np.generic):
        return value.item()
    if type(value) is dict:
        return {key: _plain_numbers(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain_numbers(item) for item in value)
    return value


def _check(train: Data, validation: Data, counts: dict[str, int], minimize: str) -> None:
    faults = []
    for name, (inputs, targets) in {"train": train, "validation": validation}.items():
        if len(inputs) != len(targets):
            faults.append(f"{name} has {len(inputs)} inputs and {len(targets)} targets")
        elif len(inputs) == 0:
            faults.append(f"{name} is empty")
    for name, number in counts.items():
        if not isinstance(number, int | np.integer) or number < 1:
            faults.append(f"{name} is {number!r}")
    if minimize not in ("loss", "error"):
        faults.append(f"minimize is {minimize!r}")
    if faults:
        raise UsageError(
            "; ".join(faults),
            hint="counts are integers from 1 (in a space: scope.int(hp.quniform(...))), "
            "minimize is loss or error, data are (inputs, targets) of equal length",
        )
