"""Data sets: read once per process, split the same way in every trial and on every machine.

`images` reads Keras-style NPZ files and folders of IDX files, `fashion_mnist` is such a folder that downloads
itself, `digits` comes with scikit-learn. A `Dataset` can be made of any arrays, or of loaders.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.client
import math
import os
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hpo.core.errors import UsageError
from hpo.training.evaluation import Classification, Regression, Task

Data = Any
"""``(inputs, targets)``, a tuple of arrays with an example in each row; or an iterable of such batches that
can be walked again and again: a PyTorch DataLoader, a ``tf.data.Dataset``."""

Scale = Literal["standard", "unit"]


@dataclass(frozen=True, eq=False)
class Dataset:
    """What a trial learns from, and what it is judged by.

    ``train`` is for fitting, ``validation`` for the loss a study minimizes, ``test`` for one look at the
    end: a study that sees it has nothing left to be judged by. ``class_names``: class 0, 1, ...; none for a
    regression, whose targets are ``target_names``. ``source``: where the data come from, for people.
    ``rows``: by part, the examples' numbers there, ``(examples,)``, so that a prediction can be looked up.

    NumPy arrays become read-only here, as every trial of a process shares them (the caller's own stay as they
    are). Raises UsageError for a part that is empty, whose inputs and targets differ in length, or that has
    classes without a name.
    """

    train: Data
    validation: Data
    test: Data = None
    class_names: tuple[str, ...] = ()
    name: str = "data"
    target_names: tuple[str, ...] = ("target",)
    source: str = ""
    rows: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", tuple(str(name) for name in self.class_names or ()))
        for part, data in self._parts().items():
            if is_arrays(data):
                _check_part(f"{self.name}: {part}", data, len(self.class_names))
                object.__setattr__(self, part, tuple(_read_only(values) for values in data))

    @property
    def task(self) -> Task:
        """A classification where there are class names, else a regression."""
        return Classification(self.class_names) if self.class_names else Regression(self.target_names)

    def describe(self) -> dict[str, Any]:
        """What a result says of its data, as JSON.

        ``name``, ``source``, ``class_names``; of arrays also ``digest`` (16 hex digits of a SHA-256 over all
        parts: other data, another digest; computed once), ``examples`` (by part), ``shape`` (of one input),
        ``dtype``. Of loaders only their arrays' parts are counted, and there is no digest.
        """
        return {**self._description, "class_names": list(self.class_names), "source": self.source}

    @functools.cached_property
    def _description(self) -> dict[str, Any]:
        parts = self._parts()
        counted = {part: data for part, data in parts.items() if is_arrays(data)}
        description: dict[str, Any] = {"name": self.name}
        if len(counted) == len(parts) and (digest := _digest(counted)):
            description["digest"] = digest
        description["examples"] = {part: _length(data[1]) for part, data in counted.items()}
        inputs = next((data[0] for data in counted.values()), None)
        if isinstance(inputs, np.ndarray):
            description |= {"shape": list(inputs.shape[1:]), "dtype": str(inputs.dtype)}
        return description

    def _parts(self) -> dict[str, Data]:
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return {part: data for part, data in parts.items() if data is not None}


def is_arrays(data: Data) -> bool:
    """Is this part of a data set a tuple ``(inputs, targets)``, and not an iterable of batches?"""
    return isinstance(data, tuple) and len(data) == 2


@functools.cache
def digits(seed: int = 0, *, images: bool = False) -> Dataset:
    """Scikit-learn's 1797 handwritten digits, 8 × 8 pixels as 64 features, or ``(8, 8, 1)`` ``images``.

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
    if images:
        inputs = inputs.reshape(-1, 8, 8, 1)
    return Dataset(
        train=(inputs[train], targets[train]),
        validation=(inputs[validation], targets[validation]),
        test=(inputs[test], targets[test]),
        class_names=tuple("0123456789"),
        name="digits",
        source="sklearn.datasets.load_digits",
        rows={"train": train, "validation": validation, "test": test},
    )


FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
FASHION_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
FASHION_MD5 = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
"""The checksums of https://github.com/zalandoresearch/fashion-mnist#get-the-data."""


def fashion_mnist(
    data: str | Path | None = None,
    *,
    validation: float = 0.1,
    seed: int = 0,
    examples: int | None = None,
    scale: Scale = "standard",
) -> Dataset:
    """Zalando's clothes: 28 × 28 × 1 pixels, ten classes, 60 000 to learn from and 10 000 to test.

    Args:
        data: a folder with the four IDX files or an NPZ file, as `images` reads them, such as Keras' own
            cache, ``~/.keras/datasets/fashion-mnist``, or torchvision's ``FashionMNIST/raw``. None: they are
            downloaded once (30 MB) into ``fashion-mnist`` of the folder HPO_DATA, or of ``~/.cache/hpo``.
        The rest as in `images`. Raises UsageError that says what to fetch where there is no network.
    """
    path = _downloaded_fashion() if data is None else data
    return images(
        path,
        class_names=FASHION_CLASSES,
        validation=validation,
        seed=seed,
        examples=examples,
        scale=scale,
        name="fashion-mnist",
    )


def images(
    path: str | Path,
    *,
    class_names: Sequence[object] | None = None,
    validation: float = 0.1,
    test: float | None = None,
    seed: int = 0,
    examples: int | None = None,
    scale: Scale = "standard",
    name: str = "",
) -> Dataset:
    """Images with class labels from an NPZ file or a folder of IDX files; the second call costs nothing.

    Args:
        path: an ``.npz`` with ``x_train, y_train`` and perhaps ``x_test, y_test``, as Keras' data sets have;
            or a folder with ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and perhaps
            ``t10k-images…``, ``t10k-labels…`` (or ``test-…``), compressed or not, with anything before these
            names. Relative to the working directory; ``~`` is the home folder.
        class_names: of label 0, 1, ... By default the labels that occur, in order, whatever they are.
        validation: the share of the training part that is held out, the same share of each class.
        test: the share to hold out for the test, before all else, where the data have no test part. By
            default there is none then.
        seed: of the splits, the same on every machine. Not the trial's, or trials would be compared on
            different examples.
        examples: so many of the training part, the same share of each class, before the validation is held
            out: quick trials. The test part stays whole.
        scale: ``standard``: zero mean and unit variance over all pixels of the training part; ``unit``: 0 to
            1 (bytes / 255; others by their largest in the training part).

    Returns inputs ``(examples, height, width, channels)`` float32 (whatever is not images keeps its shape)
    and targets ``(examples,)`` int64. Raises UsageError for anything that can't be read or split.
    """
    place = Path(path).expanduser().resolve()
    if not place.exists():
        raise UsageError(
            f"there are no data at {place}",
            hint="give a folder of IDX files or an .npz file; relative paths start at the working directory",
        )
    for option, share in {"validation": validation, "test": test}.items():
        if share is not None and not (_is_number(share) and 0 < share < 1):
            raise UsageError(f"{option} is {share!r}", hint="it is a share of the examples, such as 0.1")
    if examples is not None and not (_is_whole(examples) and examples >= 2):
        raise UsageError(f"examples is {examples!r}", hint="it is a whole number from 2, or None for all")
    if not (_is_whole(seed) and 0 <= seed < 2**32):
        raise UsageError(f"seed is {seed!r}", hint="it is a whole number from 0, below 2 ** 32")
    if scale not in ("standard", "unit"):
        raise UsageError(f"scale is {scale!r}", hint="choose standard or unit")
    files = _idx_files(place) if place.is_dir() else {"npz": place}
    # Who replaces a file means the new one.
    stamps = tuple((part, file, *_stamp(file)) for part, file in files.items())
    names = None if class_names is None else tuple(str(name) for name in class_names)
    return _images(stamps, place, names, validation, test, seed, examples, scale, name or place.stem)


@functools.lru_cache(maxsize=4)
def _images(
    stamps: tuple[tuple[Any, ...], ...],
    place: Path,
    class_names: tuple[str, ...] | None,
    validation: float,
    test_share: float | None,
    seed: int,
    examples: int | None,
    scale: Scale,
    name: str,
) -> Dataset:
    files = {part: file for part, file, *_ in stamps}
    raw = _read_npz(files["npz"]) if "npz" in files else _read_idx_files(files)
    parts = {
        part: (_inputs(place, part, raw[f"x_{part}"]), _labels(place, part, raw[f"y_{part}"]))
        for part in ("train", "test")
        if f"x_{part}" in raw
    }
    for part, (inputs, labels) in parts.items():
        if len(inputs) != len(labels):
            raise UsageError(f"{place}: the {part} part has {len(inputs)} images and {len(labels)} labels")
        if not len(labels):
            raise UsageError(f"{place}: the {part} part is empty")
    shapes = {part: inputs.shape[1:] for part, (inputs, _) in parts.items()}
    if len(set(shapes.values())) > 1:
        raise UsageError(f"{place}: an input's shape is {shapes['train']} in train, {shapes['test']} in test")
    if "test" in parts and test_share is not None:
        raise UsageError(f"{place} has a test part, and test is {test_share}", hint="leave test out")
    if class_names is None:
        found = np.unique(np.concatenate([labels for _, labels in parts.values()]))
        class_names = tuple(str(label) for label in found)
        parts = {part: (inputs, np.searchsorted(found, labels)) for part, (inputs, labels) in parts.items()}

    inputs, targets = parts["train"]
    rows = np.arange(len(targets))
    held_for_test = None
    if test_share is not None:
        held_for_test, rows = _draw(rows, targets, round(test_share * len(rows)), seed)
    if examples is not None and examples < len(rows):
        rows, _ = _draw(rows, targets, examples, seed)
    held, rows = _draw(rows, targets, round(validation * len(rows)), seed)
    chosen = {"train": (inputs, targets, rows), "validation": (inputs, targets, held)}
    if held_for_test is not None:
        chosen["test"] = (inputs, targets, held_for_test)
    elif "test" in parts:
        chosen["test"] = (*parts["test"], np.arange(len(parts["test"][1])))

    shift, divisor = _scaling(inputs[rows], scale)
    scaled = {}
    for part, (values, labels, selected) in chosen.items():
        pixels = values[selected].astype(np.float32)
        pixels -= np.float32(shift)
        pixels /= np.float32(divisor)
        scaled[part] = (pixels, labels[selected].astype(np.int64))
    numbers = {part: selected for part, (_, _, selected) in chosen.items()}
    return Dataset(**scaled, class_names=class_names, name=name, source=str(place), rows=numbers)


def read_idx(path: str | Path) -> NDArray[Any]:
    """The array in an IDX file, compressed by gzip or not, whatever it is called.

    Format: http://yann.lecun.com/exdb/mnist/ - two zero bytes, the type, the number of dimensions; their
    sizes as big-endian 32-bit integers; then the values, big-endian. Raises UsageError naming the file.
    """
    place = Path(path)
    try:
        content = place.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(
            f"{place} can't be read: {error}", hint="is it whole? fetch it again, or unpack it by hand"
        ) from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _IDX_TYPES:
        raise UsageError(
            f"{place} is no IDX file: it begins with {content[:4].hex(' ') or 'nothing'}",
            hint="an IDX file begins with 00 00, its type (08 for bytes) and its number of dimensions",
        )
    kind, dimensions = np.dtype(_IDX_TYPES[content[2]]), content[3]
    start = 4 + 4 * dimensions
    shape = tuple(int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4))
    expected, found = math.prod(shape) * kind.itemsize, len(content) - start
    if found != expected:
        raise UsageError(
            f"{place} has {max(found, 0)} bytes of values; its header says {expected} for the shape {shape}",
            hint="the file is " + ("cut off: fetch it again" if found < expected else "not what it says"),
        )
    return (
        np.frombuffer(content, kind, offset=start).reshape(shape).astype(kind.newbyteorder("="), copy=False)
    )


_IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def _idx_files(folder: Path) -> dict[str, Path]:
    """The IDX files of the folder by what they hold: ``x_train, y_train`` and perhaps ``x_test, y_test``."""
    wanted = {
        "x_train": ("train-images",),
        "y_train": ("train-labels",),
        "x_test": ("t10k-images", "test-images"),
        "y_test": ("t10k-labels", "test-labels"),
    }
    found = {}
    for part, kinds in wanted.items():
        names = {
            # The same file packed and unpacked is one; the unpacked one is quicker to read.
            file.name.removesuffix(".gz"): file
            for file in sorted(folder.iterdir(), reverse=True)
            if file.is_file() and "idx" in file.name and any(kind in file.name for kind in kinds)
        }
        if len(names) > 1:
            raise UsageError(
                f"{folder} has several files of {kinds[0]}: {', '.join(sorted(names))}",
                hint="put each data set into a folder of its own",
            )
        if names:
            found[part] = next(iter(names.values()))
    missing = [
        kinds[0]
        for part, kinds in wanted.items()
        if part not in found and (part.endswith("train") or "x_test" in found or "y_test" in found)
    ]
    if missing:
        raise UsageError(
            f"{folder} has no IDX file of {', '.join(missing)}",
            hint="such files are called train-images-idx3-ubyte, train-labels-idx1-ubyte, "
            "t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte, with or without .gz",
        )
    return found


def _read_idx_files(files: Mapping[str, Path]) -> dict[str, NDArray[Any]]:
    return {part: read_idx(file) for part, file in files.items()}


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    known = ("x_train", "y_train", "x_test", "y_test")
    try:
        # Pickles run code: what is not plain arrays is refused.
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise ValueError("it is a single array")
        with loaded as archive:
            present = tuple(archive.files)
            arrays = {key: archive[key] for key in known if key in present}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise UsageError(
            f"{path} can't be read as NPZ: {error}",
            hint="np.savez(path, x_train=..., y_train=..., x_test=..., y_test=...) of numbers makes one",
        ) from error
    needed = known if "x_test" in arrays or "y_test" in arrays else known[:2]
    if missing := [key for key in needed if key not in arrays]:
        raise UsageError(
            f"{path} has no {', '.join(missing)}; it has {', '.join(present) or 'nothing'}",
            hint="the arrays are called x_train, y_train, x_test, y_test (the last two may be left out)",
        )
    return arrays


def _inputs(place: Path, part: str, values: NDArray[Any]) -> NDArray[Any]:
    """``(examples, ...)`` numbers; grey images get their channel."""
    if values.dtype.kind not in "uif" or values.ndim < 2:
        raise UsageError(
            f"{place}: the inputs of the {part} part are {values.dtype} of shape {values.shape}",
            hint="they are numbers, (examples, height, width) or (examples, height, width, channels)",
        )
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise UsageError(f"{place}: the inputs of the {part} part have NaN or infinite values")
    return values[..., np.newaxis] if values.ndim == 3 else values


def _labels(place: Path, part: str, values: NDArray[Any]) -> NDArray[Any]:
    """``(examples,)`` integers, from the same or a column of them."""
    if values.dtype.kind not in "ui" or (values.ndim != 1 and values.shape[1:] != (1,)):
        raise UsageError(
            f"{place}: the labels of the {part} part are {values.dtype} of shape {values.shape}",
            hint="they are integers, one for each example",
        )
    return values.reshape(-1)


def _draw(
    rows: NDArray[np.intp], targets: NDArray[Any], count: int, seed: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """So many of the rows at random, the same share of each class, and the others; both in order.

    At least one row on either side. Classes get whole numbers by largest remainders, so that classes too
    small for their share take turns instead of being refused.
    """
    if len(rows) < 2:
        raise UsageError(f"{len(rows)} examples can't be split", hint="give more data, or more examples")
    count = min(max(count, 1), len(rows) - 1)
    # RandomState, since NumPy promises its numbers to be the same in every version.
    order = np.random.RandomState(seed).permutation(len(rows))
    _, sizes = np.unique(targets[rows], return_counts=True)
    exact = sizes * (count / len(rows))
    quotas = np.floor(exact).astype(int)
    largest_first = np.argsort(quotas - exact, kind="stable")
    quotas[largest_first[: count - quotas.sum()]] += 1
    # Shuffled, then by class: the first of each class are drawn, as many as its quota.
    by_class = order[np.argsort(targets[rows][order], kind="stable")]
    place_in_class = np.arange(len(rows)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    drawn = np.zeros(len(rows), dtype=bool)
    drawn[by_class[place_in_class < np.repeat(quotas, sizes)]] = True
    return rows[drawn], rows[~drawn]


def _scaling(train: NDArray[Any], scale: Scale) -> tuple[float, float]:
    """What to take off every pixel, and what to divide it by then."""
    if scale == "unit":
        largest = 255.0 if train.dtype == np.uint8 else float(np.abs(train.astype(np.float64)).max())
        return 0.0, largest or 1.0
    # In pieces: as float64 at once, Fashion-MNIST would take 400 MB.
    pieces = np.array_split(train, math.ceil(len(train) / 1000))
    mean = sum(float(piece.sum(dtype=np.float64)) for piece in pieces) / train.size
    squares = sum(float(((piece.astype(np.float64) - mean) ** 2).sum()) for piece in pieces)
    return mean, math.sqrt(squares / train.size) or 1.0


def _downloaded_fashion() -> Path:
    """The folder with Fashion-MNIST's files, after fetching those that are not there."""
    root = os.environ.get("HPO_DATA") or "~/.cache/hpo"
    folder = Path(root).expanduser() / "fashion-mnist"
    missing = [file for file in FASHION_MD5 if not (folder / file).exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file in missing:
            _download(FASHION_URL + file, folder / file, FASHION_MD5[file])
    except (OSError, http.client.HTTPException) as error:  # urllib's own errors are OSErrors, too
        raise UsageError(
            f"Fashion-MNIST can't be downloaded from {FASHION_URL}: {error}",
            hint=f"fetch {', '.join(FASHION_MD5)} from there on another machine and put them into {folder}, "
            "or into any folder (one .npz will do, too) and say --set data=PATH",
        ) from error
    return folder


def _download(url: str, path: Path, md5: str) -> None:
    """Fetch beside the place, compare, rename: a file is whole or not there, however many fetch it."""
    checksum = hashlib.md5(usedforsecurity=False)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".unfinished-") as beside:
        unfinished = Path(beside) / path.name
        with urllib.request.urlopen(url, timeout=30) as answer, unfinished.open("wb") as file:
            while piece := answer.read(1 << 20):
                checksum.update(piece)
                file.write(piece)
        if checksum.hexdigest() != md5:
            raise OSError(f"{path.name} arrived with the MD5 {checksum.hexdigest()} instead of {md5}")
        os.replace(unfinished, path)


def _is_number(value: object) -> bool:
    return isinstance(value, float | np.floating) or _is_whole(value)


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _stamp(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_mtime_ns, status.st_size


def _read_only(values: Any) -> Any:
    """A view that can't be written through; what is no NumPy array is passed on."""
    if not isinstance(values, np.ndarray):
        return values
    view = values.view()
    view.flags.writeable = False
    return view


def _check_part(where: str, data: tuple[Any, Any], classes: int) -> None:
    inputs, targets = (_length(values) for values in data)
    if inputs is not None and targets is not None and inputs != targets:
        raise UsageError(f"{where} has {inputs} inputs and {targets} targets")
    if not targets and targets is not None:
        raise UsageError(f"{where} is empty")
    labels = data[1]
    if classes and isinstance(labels, np.ndarray) and labels.ndim == 1 and labels.dtype.kind in "ui":
        lowest, highest = int(labels.min()), int(labels.max())
        if lowest < 0 or highest >= classes:
            raise UsageError(
                f"{where} has class {lowest if lowest < 0 else highest}, and there are {classes} class names",
                hint="class numbers start at 0, and every class needs a name",
            )


def _leaves(values: Any) -> Iterator[Any]:
    """The arrays of inputs or targets that may be several, as Keras takes them."""
    match values:
        case dict():
            for key in sorted(values):
                yield from _leaves(values[key])
        case tuple() | list():
            for part in values:
                yield from _leaves(part)
        case _:
            yield values


def _length(values: Any) -> int | None:
    """How many examples there are, where that can be told."""
    if isinstance(values, dict | tuple):
        values = next(_leaves(values), ())
    try:
        return len(values)
    except TypeError:
        return None


def _digest(parts: Mapping[str, tuple[Any, Any]]) -> str:
    """16 hex digits of all arrays' parts, types, shapes and bytes; empty where one is no plain array."""
    checksum = hashlib.sha256()
    for part, data in parts.items():
        for values in _leaves(data):
            try:
                array = np.asarray(values)
            except (TypeError, ValueError, RuntimeError):  # such as a tensor on a GPU
                return ""
            if array.dtype.hasobject:
                return ""  # its bytes are addresses
            checksum.update(f"{part} {array.dtype.str} {array.shape}\n".encode())
            checksum.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return checksum.hexdigest()[:16]
