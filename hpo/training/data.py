"""Data sets to try things on: read once per process, split the same way in every trial."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Split = tuple[NDArray[np.float32], NDArray[np.int64]]
"""``(inputs, targets)``: ``(examples, features)`` and ``(examples,)``; targets index the class names."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """A classification task. The arrays are read-only: every trial of a process shares them.

    ``train`` is for fitting, ``validation`` for the loss a study minimizes, ``test`` for one look at the
    end: a study that sees it has nothing left to be judged by.
    """

    train: Split
    validation: Split
    test: Split
    class_names: tuple[str, ...]


@functools.cache
def digits(seed: int = 0) -> Dataset:
    """Scikit-learn's 1797 handwritten digits, 8 × 8 pixels as 64 features.

    70 % train, 15 % validation, 15 % test, with equal shares of each class; pixels have zero mean and unit
    variance over the training part. ``seed`` decides the split; it is not the trial's seed, or trials would
    be compared on different examples.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    inputs, targets = load_digits(return_X_y=True)
    targets = targets.astype(np.int64)
    split = functools.partial(train_test_split, random_state=seed)
    rows = np.arange(len(targets))
    train, rest = split(rows, test_size=0.3, stratify=targets)
    validation, test = split(rest, test_size=0.5, stratify=targets[rest])
    # One mean and one deviation for all pixels: by its own, a pixel at the rim that is nearly always empty
    # would turn a speck into an outlier.
    inputs = ((inputs - inputs[train].mean()) / inputs[train].std()).astype(np.float32)
    return Dataset(
        train=_frozen(inputs[train], targets[train]),
        validation=_frozen(inputs[validation], targets[validation]),
        test=_frozen(inputs[test], targets[test]),
        class_names=tuple("0123456789"),
    )


def _frozen(*arrays: NDArray[Any]) -> Any:
    for array in arrays:
        array.flags.writeable = False
    return arrays
