"""What a validation set says about a model: metrics of every epoch, and the files of the best one.

A task is `Classification` or `Regression`; both answer the same questions, so that a fit loop knows neither.
Targets and outputs are NumPy arrays, except in `predict`, which takes PyTorch tensors where they are.
"""

from __future__ import annotations

import functools
import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hpo.core.errors import UsageError

Metrics = dict[str, float]

REPORT = "classification_report.txt"
REGRESSION_REPORT = "regression_report.txt"
PREDICTIONS = "predictions.parquet"

MOST_PROBABILITIES = 4_000_000
"""Above so many cells the predictions have one probability per example, that of the predicted class."""


@dataclass(frozen=True, slots=True)
class Classification:
    """One of several classes for each example.

    ``class_names``: the name of class 0, 1, ...; anything but strings is written as one, and names that
    repeat get their class's number (``crane_134``), since metrics and columns are called after them.
    Raises UsageError where there are none.
    """

    class_names: tuple[str, ...]

    HEADLINE: ClassVar = ("accuracy", "f1_macro", "precision_macro", "recall_macro")
    MINIMIZED: ClassVar = ("loss", "error", "negative_squared_accuracy", "f1_error")

    def __post_init__(self) -> None:
        names = _distinct([str(name) for name in self.class_names])
        if not names:
            raise UsageError("a classification has no class names", hint="for numbers, use Regression()")
        object.__setattr__(self, "class_names", names)

    def predict(self, outputs: Any, *, are_logits: bool = True) -> Any:
        """The class of each example, on the device where the outputs are.

        Args: outputs: ``(examples, classes)``; for two classes also ``(examples,)`` or ``(examples, 1)``,
            the logit (or the probability, unless ``are_logits``) of class 1. A NaN is taken for the largest
            output, as `argmax` does, or for class 0 where there is one column.
        Returns ``(examples,)`` integers. Raises UsageError for any other shape.
        """
        if self._has_one_column(outputs):
            # Times one: an array and a tensor both turn booleans into integers so.
            return (outputs.reshape(-1) > (0 if are_logits else 0.5)) * 1
        return outputs.argmax(1)

    def probabilities(self, outputs: ArrayLike, *, are_logits: bool = True) -> NDArray[np.floating]:
        """``(examples, classes)`` probabilities of outputs as `predict` takes them, in their precision."""
        values = np.asarray(outputs)
        if not np.issubdtype(values.dtype, np.floating):
            values = values.astype(np.float64)
        if self._has_one_column(values):
            column = values.reshape(-1)
            # sigmoid(x) is softmax over (0, x).
            values = np.stack([0 * column if are_logits else 1 - column, column], axis=1)
        if not are_logits:
            return values
        with np.errstate(invalid="ignore"):  # inf - inf is NaN, and so is the softmax there
            powers = np.exp(values - values.max(axis=1, keepdims=True))
            return powers / powers.sum(axis=1, keepdims=True)

    def confusion(self, targets: ArrayLike, predicted: ArrayLike) -> NDArray[np.int64]:
        """``(classes, classes)`` counts: a row for each true class, a column for each predicted one.

        Args: targets, predicted: ``(examples,)`` class numbers (floats that are whole will do), or
            ``(examples, classes)`` one-hot. Raises UsageError for anything else.
        """
        truth, guess = self._classes("targets", targets), self._classes("predictions", predicted)
        if len(truth) != len(guess):
            raise UsageError(f"there are {len(truth)} targets and {len(guess)} predictions")
        classes = len(self.class_names)
        return np.bincount(truth * classes + guess, minlength=classes**2).reshape(classes, classes)

    def metrics(self, targets: ArrayLike, predicted: ArrayLike) -> Metrics:
        """``accuracy``, then precision, recall and f1 as ``_macro``, ``_weighted`` and ``/CLASS``.

        What is undefined (no example of the class, none predicted) is 0, and counts in the macro means, which
        are over all classes. In the metrics' names, what MLflow refuses in a class name is ``-``, and so is
        ``/``, with which it groups charts: ``f1/T-shirt-top``. Arguments as in `confusion`.
        """
        scores = _scores(self.confusion(targets, predicted))
        metrics = {"accuracy": scores.accuracy}
        for name, (macro, weighted) in scores.means.items():
            metrics |= {f"{name}_macro": macro, f"{name}_weighted": weighted}
        for name, values in scores.of_classes.items():
            keys = (f"{name}/{key}" for key in metric_names(self.class_names))
            metrics.update(zip(keys, values.tolist(), strict=True))
        return metrics

    def headline(self, metrics: Metrics) -> Metrics:
        """The few metrics to show where there is room for four."""
        return {name: metrics[name] for name in self.HEADLINE}

    def minimized(self, name: str, loss: float, metrics: Metrics) -> float:
        """What a study minimizes, of an epoch's validation loss and metrics.

        Args: name: ``loss``; ``error``, 1 - accuracy; ``negative_squared_accuracy``, which tells good models
            further apart than bad ones; ``f1_error``, 1 - macro f1. Raises UsageError for another.
        """
        match name:
            case "loss":
                return loss
            case "error":
                return 1 - metrics["accuracy"]
            case "negative_squared_accuracy":
                return -(metrics["accuracy"] ** 2)
            case "f1_error":
                return 1 - metrics["f1_macro"]
        raise _not_minimized(name, self.MINIMIZED)

    def report(self, targets: ArrayLike, predicted: ArrayLike) -> str:
        """The table that scikit-learn's ``classification_report`` prints, with 3 digits and all classes."""
        return _report(self.class_names, self.confusion(targets, predicted))

    def write(
        self,
        directory: str | Path,
        targets: ArrayLike,
        outputs: ArrayLike,
        *,
        are_logits: bool = True,
        index: ArrayLike | None = None,
        title: str = "",
    ) -> str:
        """Write the evaluation's files into the directory, and return the report.

        ``classification_report.txt``; ``confusion_matrix.json`` (``class_names``, ``matrix``: a row for each
        true class) and ``.png``; ``predictions.parquet``, a row for each example: ``index``, ``truth`` and
        ``prediction`` as class numbers, ``truth_name`` and ``prediction_name`` (categories in pandas), and
        ``probability/CLASS`` (float32) for each class, or one ``probability``, that of the prediction, above
        `MOST_PROBABILITIES` cells. Without Matplotlib or PyArrow their file is left out, with a warning.

        Args: outputs, are_logits: as in `predict`. index: the examples' numbers in the data set; by default
            0, 1, ... title: stands above the picture.
        """
        directory = _made(directory)
        outputs = np.asarray(outputs)
        truth = self._classes("targets", targets)
        predicted = self._classes("predictions", self.predict(outputs, are_logits=are_logits))
        matrix = self.confusion(truth, predicted)
        report = _report(self.class_names, matrix)
        (directory / REPORT).write_text(report, encoding="utf-8")
        document = {"class_names": list(self.class_names), "matrix": matrix.tolist()}
        _write_json(directory / "confusion_matrix.json", document)
        picture = functools.partial(_draw_confusion, self.class_names, matrix, title)
        _unless_missing("Matplotlib", picture, directory / "confusion_matrix.png")
        columns = {
            "index": _index(index, len(truth)),
            "truth": truth,
            "prediction": predicted,
            "truth_name": _Names(truth, self.class_names),
            "prediction_name": _Names(predicted, self.class_names),
        }
        probabilities = self.probabilities(outputs, are_logits=are_logits).astype(np.float32)
        if probabilities.size > MOST_PROBABILITIES:
            columns["probability"] = probabilities[np.arange(len(predicted)), predicted]
        else:
            for name, column in zip(self.class_names, probabilities.T, strict=True):
                columns[f"probability/{name}"] = column
        _unless_missing("PyArrow", functools.partial(_write_parquet, columns), directory / PREDICTIONS)
        return report

    def _has_one_column(self, outputs: Any) -> bool:
        """Are these the outputs of one unit that tells two classes apart? UsageError for bad shapes."""
        shape, classes = tuple(outputs.shape), len(self.class_names)
        if classes == 2 and (len(shape) == 1 or shape[1:] == (1,)):
            return True
        if shape[1:] != (classes,):
            raise UsageError(
                f"the model's outputs have the shape {shape}, for {_names_of(self.class_names)}",
                hint=f"the last layer needs {classes} units{' (or 1)' if classes == 2 else ''}: "
                "one for each class",
            )
        return False

    def _classes(self, what: str, values: ArrayLike) -> NDArray[np.intp]:
        """Class numbers ``(examples,)`` from numbers, whole floats, a column of them, or one-hot rows."""
        array, classes = np.asarray(values), len(self.class_names)
        if array.ndim == 2 and array.shape[1] == 1:
            array = array.reshape(-1)
        if array.ndim == 2 and array.shape[1] == classes:
            array = array.argmax(1)
        if array.ndim != 1 or array.dtype.kind not in "biuf":
            raise UsageError(
                f"the {what} are {array.dtype} of shape {array.shape}, which are no class numbers",
                hint=f"they are (examples,) integers from 0 to {classes - 1}",
            )
        if not len(array):
            raise UsageError(f"there are no {what}")
        if array.dtype.kind == "f" and not (whole := array == np.floor(array)).all():
            raise UsageError(f"the {what} have {array[~whole][0]}, which is no class number")
        lowest, highest = array.min(), array.max()
        if lowest < 0 or highest >= classes:
            raise UsageError(
                f"the {what} have class {int(highest if highest >= classes else lowest)}, "
                f"outside of {_names_of(self.class_names)}",
                hint="class numbers start at 0, and every class needs a name",
            )
        return array.astype(np.intp)


@dataclass(frozen=True, slots=True)
class Regression:
    """One or several numbers for each example; answers what `Classification` answers.

    ``target_names``: as many as the targets have columns; they are made distinct strings as class names are.
    """

    target_names: tuple[str, ...] = ("target",)

    HEADLINE: ClassVar = ("rmse", "mae", "r2")
    MINIMIZED: ClassVar = ("loss", "rmse", "mae")

    def __post_init__(self) -> None:
        names = _distinct([str(name) for name in self.target_names])
        if not names:
            raise UsageError("a regression has no target names", hint="name each target, or use Regression()")
        object.__setattr__(self, "target_names", names)

    def predict(self, outputs: Any, *, are_logits: bool = True) -> Any:
        """The outputs, ``(examples,)`` for one target, else ``(examples, targets)``; ``are_logits`` is idle.

        Raises UsageError where the outputs have another shape than the targets' names say.
        """
        shape, targets = tuple(outputs.shape), len(self.target_names)
        if targets == 1 and (len(shape) == 1 or shape[1:] == (1,)):
            return outputs.reshape(-1)
        if shape[1:] != (targets,):
            raise UsageError(
                f"outputs or targets have the shape {shape}, for {_names_of(self.target_names, 'target')}",
                hint=f"they are (examples, {targets})" + (" or (examples,)" if targets == 1 else ""),
            )
        return outputs

    def metrics(self, targets: ArrayLike, predicted: ArrayLike) -> Metrics:
        """``rmse, mae, r2, median_absolute_error, max_error``; of several targets their mean (the largest
        error is that of all), then each by itself: ``rmse/TARGET``, ``mae/TARGET``, ``r2/TARGET``.

        ``r2`` of a target that is always the same is 1 where it was hit, else 0. A NaN among the predictions
        is a NaN in the metrics. Args: ``(examples,)`` or ``(examples, targets)``.
        """
        truth, guess = self._columns(targets, predicted)
        of_targets = _errors(truth, guess)
        metrics = {name: float(values.mean()) for name, values in of_targets.items()}
        metrics["max_error"] = float(of_targets["max_error"].max())
        if len(self.target_names) > 1:
            for name in ("rmse", "mae", "r2"):
                keys = (f"{name}/{key}" for key in metric_names(self.target_names))
                metrics.update(zip(keys, of_targets[name].tolist(), strict=True))
        return metrics

    def headline(self, metrics: Metrics) -> Metrics:
        """The few metrics to show where there is room for four."""
        return {name: metrics[name] for name in self.HEADLINE}

    def minimized(self, name: str, loss: float, metrics: Metrics) -> float:
        """What a study minimizes: the validation ``loss``, ``rmse`` or ``mae``; UsageError for another."""
        if name not in self.MINIMIZED:
            raise _not_minimized(name, self.MINIMIZED)
        return loss if name == "loss" else metrics[name]

    def report(self, targets: ArrayLike, predicted: ArrayLike) -> str:
        """A row of errors for each target."""
        truth, guess = self._columns(targets, predicted)
        columns = _errors(truth, guess)
        width = max(len(name) for name in self.target_names)
        head = " ".join(f"{name.replace('_', ' '):>21}" for name in columns)
        lines = [f"{'':>{width}} {head}", ""]
        for number, name in enumerate(self.target_names):
            cells = " ".join(f"{values[number]:>21.6g}" for values in columns.values())
            lines.append(f"{name:>{width}} {cells}")
        return "\n".join([*lines, "", f"{len(truth)} examples", ""])

    def write(
        self,
        directory: str | Path,
        targets: ArrayLike,
        outputs: ArrayLike,
        *,
        are_logits: bool = True,
        index: ArrayLike | None = None,
        title: str = "",
    ) -> str:
        """Write the evaluation's files into the directory, and return the report.

        ``regression_report.txt`` and ``.json`` (the metrics); ``predicted_against_truth.png``, at most four
        targets; ``predictions.parquet``, a row for each example: ``index``, ``truth``, ``prediction``, or for
        several targets ``truth/TARGET`` and ``prediction/TARGET``. The rest as in `Classification.write`.
        """
        directory = _made(directory)
        truth, guess = self._columns(targets, outputs)
        report = self.report(truth, guess)
        (directory / REGRESSION_REPORT).write_text(report, encoding="utf-8")
        metrics = {
            name: value if np.isfinite(value) else None for name, value in self.metrics(truth, guess).items()
        }
        document = {"target_names": list(self.target_names), "examples": len(truth), "metrics": metrics}
        _write_json(directory / "regression_report.json", document)
        picture = functools.partial(_draw_regression, self.target_names, truth, guess, title)
        _unless_missing("Matplotlib", picture, directory / "predicted_against_truth.png")
        columns = {"index": _index(index, len(truth))}
        for number, name in enumerate(self.target_names):
            suffix = "" if len(self.target_names) == 1 else f"/{name}"
            columns |= {f"truth{suffix}": truth[:, number], f"prediction{suffix}": guess[:, number]}
        _unless_missing("PyArrow", functools.partial(_write_parquet, columns), directory / PREDICTIONS)
        return report

    def _columns(self, targets: ArrayLike, predicted: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
        """Both as ``(examples, targets)`` float64; ``(n,)`` beside ``(n, 1)`` must not become ``(n, n)``."""
        truth, guess = (
            self.predict(np.asarray(values, dtype=np.float64)).reshape(-1, len(self.target_names))
            for values in (targets, predicted)
        )
        if len(truth) != len(guess):
            raise UsageError(f"there are {len(truth)} targets and {len(guess)} predictions")
        if not len(truth):
            raise UsageError("there are no targets")
        return truth, guess


Task = Classification | Regression


@functools.cache
def metric_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """The classes' or targets' names as they stand in metrics' names: distinct, and as MLflow allows them."""
    plain = (re.sub(r"[^\w. -]", "-", name)[:200].strip(" .") for name in names)
    return _distinct([name or str(number) for number, name in enumerate(plain)])


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    """The names; those that occur more than once with their position behind them."""
    counts = Counter(names)
    if len(counts) == len(names):
        return tuple(names)
    return _distinct(
        [name if counts[name] == 1 else f"{name}_{position}" for position, name in enumerate(names)]
    )


def _names_of(names: tuple[str, ...], kind: str = "class") -> str:
    """``10 classes (T-shirt/top, Trouser, Pullover, ...)``."""
    listed = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    plural = {"class": "classes", "target": "targets"}[kind] if len(names) > 1 else kind
    return f"{len(names)} {plural} ({listed})"


def _not_minimized(name: str, choices: tuple[str, ...]) -> UsageError:
    return UsageError(f"{name!r} can't be minimized", hint=f"choose one of {', '.join(choices)}")


@dataclass(frozen=True, slots=True)
class _Scores:
    """``of_classes``: ``(classes,)`` each of precision, recall, f1; ``means``: their (macro, weighted) means.
    ``support``: ``(classes,)`` examples of each class."""

    accuracy: float
    of_classes: dict[str, NDArray[np.float64]]
    means: dict[str, tuple[float, float]]
    support: NDArray[np.int64]


def _scores(matrix: NDArray[np.int64]) -> _Scores:
    """Everything there is to say of a confusion matrix ``(classes, classes)``; 0 where undefined."""
    hits, support, predicted = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
    examples = int(support.sum())
    # Counts are whole: whatever is divided by less than one is 0 / 0.
    of_classes = {
        "precision": hits / np.maximum(predicted, 1),
        "recall": hits / np.maximum(support, 1),
        "f1": 2 * hits / np.maximum(support + predicted, 1),
    }
    means = {
        name: (float(values.mean()), float(np.average(values, weights=support)))
        for name, values in of_classes.items()
    }
    return _Scores(float(hits.sum() / examples), of_classes, means, support)


def _report(names: tuple[str, ...], matrix: NDArray[np.int64]) -> str:
    scores = _scores(matrix)
    width = max(len(name) for name in (*names, "weighted avg"))
    examples = int(scores.support.sum())

    def line(name: str, cells: Sequence[float | str], support: int) -> str:
        texts = [cell if isinstance(cell, str) else f"{cell:.3f}" for cell in cells]
        return f"{name:>{width}} " + "".join(f" {text:>9}" for text in [*texts, str(support)])

    rows = zip(names, *scores.of_classes.values(), scores.support, strict=True)
    macro, weighted = zip(*scores.means.values(), strict=True)
    return "\n".join(
        [
            f"{'':>{width}} "
            + "".join(f" {head:>9}" for head in ("precision", "recall", "f1-score", "support")),
            "",
            *(line(name, cells, support) for name, *cells, support in rows),
            "",
            line("accuracy", ["", "", scores.accuracy], examples),
            line("macro avg", macro, examples),
            line("weighted avg", weighted, examples),
            "",
        ]
    )


def _errors(truth: NDArray[Any], guess: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """``(targets,)`` of each kind of error, from ``(examples, targets)``."""
    with np.errstate(all="ignore"):
        error = guess - truth
        squares = (error**2).sum(axis=0)
        spread = ((truth - truth.mean(axis=0)) ** 2).sum(axis=0)
        r2 = 1 - squares / np.where(spread == 0, 1, spread)
        size = np.abs(error)
        return {
            "rmse": np.sqrt(squares / len(truth)),
            "mae": size.mean(axis=0),
            "r2": np.where((spread == 0) & np.isfinite(squares), squares == 0, r2),
            "median_absolute_error": np.median(size, axis=0),
            "max_error": size.max(axis=0),
        }


def _made(directory: str | Path) -> Path:
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    return path


def _index(index: ArrayLike | None, examples: int) -> NDArray[np.int64]:
    if index is None:
        return np.arange(examples)
    numbers = np.asarray(index, dtype=np.int64).reshape(-1)
    if len(numbers) != examples:
        raise UsageError(f"there are {examples} targets and {len(numbers)} numbers in index")
    return numbers


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")


def _unless_missing(package: str, write: Callable[[Path], None], path: Path) -> None:
    """Write the file; where its package is not installed, warn and go on: a trial is worth more."""
    try:
        write(path)
    except ImportError as error:
        warnings.warn(
            f"{path.name} was not written, as {package} can't be imported ({error}): "
            "pip install 'hpo[report]' brings it",
            stacklevel=3,
        )


@dataclass(frozen=True, slots=True)
class _Names:
    """A column of class names: ``(examples,)`` class numbers and what they are called."""

    numbers: NDArray[np.intp]
    names: tuple[str, ...]


def _write_parquet(columns: dict[str, Any], path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    def column(values: Any) -> Any:
        if isinstance(values, _Names):
            numbers = pyarrow.array(values.numbers.astype(np.int32))
            return pyarrow.DictionaryArray.from_arrays(numbers, pyarrow.array(values.names, pyarrow.string()))
        return pyarrow.array(np.ascontiguousarray(values))

    table = pyarrow.table({name: column(values) for name, values in columns.items()})
    parquet.write_table(table, path, compression="zstd")


def _draw_confusion(names: tuple[str, ...], matrix: NDArray[np.int64], title: str, path: Path) -> None:
    # Not pyplot: it keeps figures alive, and asks for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    classes = len(names)
    inches = min(3 + 0.4 * classes, 15)  # of the square
    points = inches * 72 / classes  # of a cell
    name_size = min(10.0, 0.8 * points)
    labels = _drawable(names) if name_size >= 5 else []
    margin = 0.7 + max((len(label) for label in labels), default=0) * name_size * 0.6 / 72
    width, height = margin + inches + 1, margin + inches + 0.5
    figure = Figure(figsize=(width, height), dpi=100)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((margin / width, margin / height, inches / width, inches / height))
    beside = figure.add_axes(
        ((margin + inches + 0.15) / width, margin / height, 0.15 / width, inches / height)
    )

    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    # By its root, a share of 1 % is still seen.
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1))
    figure.colorbar(image, cax=beside, label="share of the true class", ticks=[0, 0.01, 0.1, 0.5, 1])
    axes.set(xticks=[], yticks=[])
    if labels:
        style: dict[str, Any] = {"fontsize": name_size, "parse_math": False}
        axes.set_xticks(range(classes), labels, rotation=90, **style)
        axes.set_yticks(range(classes), labels, **style)
    # At fixed places: to find room for a title and labels, Matplotlib would measure every name three times.
    axes.set_title(title, y=1.01, parse_math=False)
    figure.text((margin + inches / 2) / width, 0.1 / height, "predicted", ha="center")
    figure.text(0.1 / width, (margin + inches / 2) / height, "true", va="center", rotation=90)
    cells = _annotated(matrix)
    numbers = [str(matrix[cell]) for cell in cells]
    number_size = min(10.0, 1.3 * points / max(map(len, numbers), default=1))
    if number_size >= 5:
        for (row, column), number in zip(cells, numbers, strict=True):
            color = "white" if shares[row, column] > 0.35 else "black"
            axes.text(column, row, number, ha="center", va="center", fontsize=number_size, color=color)
    # Few colours on many pixels: packing them harder takes longer than drawing them.
    canvas.print_png(str(path), pil_kwargs={"compress_level": 1})


def _annotated(matrix: NDArray[np.int64], most: int = 100) -> list[tuple[int, int]]:
    """``(row, column)`` of the counts that are written out, as each takes its time: all if there are few,
    else the largest beside the diagonal. Those are the mistakes; hits show well enough as colours."""
    counts = matrix.copy()
    if np.count_nonzero(counts) > most:
        np.fill_diagonal(counts, 0)
    largest = np.argsort(-counts, axis=None, kind="stable")[:most]
    places = zip(*np.unravel_index(largest, counts.shape), strict=True)
    return [(int(row), int(column)) for row, column in places if counts[row, column]]


def _drawable(names: tuple[str, ...], longest: int = 20) -> list[str]:
    """The names as Matplotlib's font can draw them: cut short, or the class's number in place of boxes."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties()))
    return [
        (name if len(name) <= longest else f"{name[: longest - 1]}…")
        if all(font.get_char_index(ord(character)) for character in name)
        else f"class {number}"
        for number, name in enumerate(names)
    ]


def _draw_regression(
    names: tuple[str, ...], truth: NDArray[Any], guess: NDArray[Any], title: str, path: Path
) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = names[:4]
    figure = Figure(figsize=(4.8 * len(shown), 5), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    figure.suptitle(title, parse_math=False)
    some = slice(None, None, len(truth) // 5000 + 1)
    for number, axes in enumerate(figure.subplots(1, len(shown), squeeze=False)[0]):
        true, predicted = truth[some, number], guess[some, number]
        is_finite = np.isfinite(true) & np.isfinite(predicted)
        axes.plot(true[is_finite], predicted[is_finite], ".", markersize=4, alpha=0.4)
        axes.axline((0, 0), slope=1, color="black", linewidth=0.8)
        if is_finite.any():
            both = np.concatenate([true[is_finite], predicted[is_finite]])
            space = 0.05 * np.ptp(both) or 1.0
            limits = (both.min() - space, both.max() + space)
            axes.set(xlim=limits, ylim=limits)
        axes.set(xlabel="true", ylabel="predicted", aspect="equal")
        axes.set_title(_drawable(shown)[number] if len(names) > 1 else "", parse_math=False)
    canvas.print_png(str(path))
