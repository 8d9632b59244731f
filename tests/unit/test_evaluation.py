"""What is said of a model: scikit-learn's numbers, from one confusion matrix, and files people can use."""

import json
import subprocess
import sys
import warnings

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn import metrics as oracle

from hpo.core.errors import UsageError
from hpo.training.evaluation import Classification, Regression, metric_names

LETTERS = ("a", "b", "c")


@st.composite
def classified(draw):
    """Class names, targets and predictions; classes may be missing from either."""
    classes = draw(st.integers(1, 6))
    numbers = st.integers(0, classes - 1)
    pairs = draw(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=60))
    targets, predicted = (np.array(column) for column in zip(*pairs, strict=True))
    return tuple("abcdef"[:classes]), targets, predicted


@st.composite
def regressed(draw):
    """Two columns of targets and predictions, of at least two examples."""
    numbers = st.floats(-1e3, 1e3, width=32)
    rows = draw(st.lists(st.tuples(*[numbers] * 4), min_size=2, max_size=40))
    table = np.array(rows)
    return table[:, :2], table[:, 2:]


# Classes


@given(classified())
def test_every_metric_is_the_one_of_scikit_learn(example):
    names, targets, predicted = example

    found = Classification(names).metrics(targets, predicted)

    expected = {"accuracy": oracle.accuracy_score(targets, predicted)}
    for name, score in {
        "precision": oracle.precision_score,
        "recall": oracle.recall_score,
        "f1": oracle.f1_score,
    }.items():
        settings_ = {"labels": range(len(names)), "zero_division": 0}
        for average in ("macro", "weighted"):
            expected[f"{name}_{average}"] = score(targets, predicted, average=average, **settings_)
        for label, value in zip(names, score(targets, predicted, average=None, **settings_), strict=True):
            expected[f"{name}/{label}"] = value
    assert found == pytest.approx(expected, abs=1e-12)
    assert all(type(value) is float for value in found.values())


@given(classified())
def test_the_report_is_the_one_scikit_learn_prints(example):
    names, targets, predicted = example
    assume((targets == predicted).any())  # else scikit-learn writes the counts with a decimal: 7.0

    report = Classification(names).report(targets, predicted)

    assert report == oracle.classification_report(
        targets, predicted, labels=range(len(names)), target_names=names, digits=3, zero_division=0
    )


def test_the_report_is_as_wide_as_the_longest_name():
    names = ("a class with a long name", "b")

    report = Classification(names).report([0, 1], [0, 0])

    assert report == oracle.classification_report(
        [0, 1], [0, 0], target_names=names, digits=3, zero_division=0
    )


@given(classified())
def test_the_confusion_matrix_has_a_row_for_each_true_class(example):
    names, targets, predicted = example

    matrix = Classification(names).confusion(targets, predicted)

    slow = np.zeros((len(names), len(names)))
    for truth, guess in zip(targets, predicted, strict=True):
        slow[truth, guess] += 1
    assert matrix.tolist() == slow.tolist()


def test_nothing_warns_where_a_class_is_missing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")

        found = Classification(LETTERS).metrics([0, 0], [1, 1])

    assert found["f1/a"] == found["precision/c"] == found["recall/b"] == found["f1_macro"] == 0


@pytest.mark.parametrize(
    "targets",
    [
        [[0], [1], [2]],
        [0.0, 1.0, 2.0],
        np.eye(3),
        np.array([0, 1, 2], dtype=np.uint8),
    ],
    ids=["a column", "whole floats", "one-hot", "bytes"],
)
def test_targets_come_as_frameworks_keep_them(targets):
    assert Classification(LETTERS).metrics(targets, [0, 1, 2])["accuracy"] == 1


@pytest.mark.parametrize(
    ("targets", "predicted", "message"),
    [
        ([0, 3], [0, 0], r"the targets have class 3, outside of 3 classes \(a, b, c\)"),
        ([-1, 3], [0, 0], "the targets have class 3"),
        ([-1, 2], [0, 0], "the targets have class -1"),
        ([0, 1], [0, 7], "the predictions have class 7"),
        ([0.5, 1], [0, 1], "the targets have 0.5"),
        ([0, 1], [np.nan, 1], "the predictions have nan"),
        (["a", "b"], [0, 1], "the targets are <U1 of shape"),
        ([[0, 1]], [0, 1], r"the targets are int64 of shape \(1, 2\)"),
        ([0, 1], [0], "2 targets and 1 predictions"),
        ([], [], "there are no targets"),
    ],
)
def test_what_is_no_class_number_is_named(targets, predicted, message):
    with pytest.raises(UsageError, match=message):
        Classification(LETTERS).metrics(targets, predicted)


def test_names_that_repeat_are_told_apart_by_their_number():
    task = Classification(("crane", "dog", "crane", "crane_0"))

    found = task.metrics([0, 1, 2, 3], [0, 1, 2, 3])

    assert len(set(task.class_names)) == 4
    assert task.class_names[1:3] == ("dog", "crane_2")
    assert sum(name.startswith("f1/") for name in found) == 4


def test_names_may_be_numbers():
    assert Classification(range(3)).class_names == ("0", "1", "2")


def test_names_become_what_mlflow_takes_without_losing_a_class():
    names = ("T-shirt/top", "T-shirt:top", "Größe M", "..", "", "日本")

    found = metric_names(names)

    assert found == ("T-shirt-top_0", "T-shirt-top_1", "Größe M", "3", "4", "日本")
    assert metric_names(("T-shirt/top",)) == ("T-shirt-top",)


@pytest.mark.parametrize("name", ["a/b", "é:ü", "x" * 400, "a\nb", " . ", "%$#"])
def test_mlflow_takes_the_metrics_of_any_class(name):
    from mlflow.utils.validation import _validate_metric_name

    for metric in Classification((name, "other")).metrics([0, 1], [0, 1]):
        _validate_metric_name(metric)


@pytest.mark.parametrize("task", [Classification, Regression])
def test_no_names_are_no_task(task):
    with pytest.raises(UsageError, match="has no"):
        task(())


def test_a_single_class_is_always_right():
    found = Classification(("only",)).metrics([0, 0], [0, 0])

    assert found["accuracy"] == found["f1/only"] == found["f1_macro"] == 1


# Outputs


def test_the_class_is_the_largest_output_of_an_array_or_a_tensor():
    torch = pytest.importorskip("torch")
    outputs = np.array([[0.0, 2, 1], [5, 2, 1], [0, 0, 9]], dtype=np.float32)
    task = Classification(LETTERS)

    found, on_device = task.predict(outputs), task.predict(torch.tensor(outputs))

    assert found.tolist() == [1, 0, 2]
    assert isinstance(on_device, torch.Tensor)
    assert on_device.tolist() == [1, 0, 2]
    assert on_device.dtype == torch.int64


def test_on_a_gpu_the_classes_stay_there():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    outputs = torch.tensor([[0.0, 2, 1], [5, 2, 1]], device="cuda")

    found = Classification(LETTERS).predict(outputs)

    assert found.is_cuda
    assert found.tolist() == [1, 0]


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
@pytest.mark.parametrize("kind", ["array", "tensor"])
def test_one_unit_tells_two_classes_apart(shape, kind):
    outputs = np.array([-3, 0.4, 0.6, 2]).reshape(shape)
    if kind == "tensor":
        outputs = pytest.importorskip("torch").tensor(outputs)
    task = Classification(("no", "yes"))

    assert task.predict(outputs).tolist() == [0, 1, 1, 1]
    assert task.predict(outputs, are_logits=False).tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("names", "shape"), [(LETTERS, (5, 4)), (LETTERS, (5,)), (LETTERS, (5, 1)), (LETTERS, (5, 3, 2))]
)
def test_outputs_that_fit_no_class_names_are_refused(names, shape):
    with pytest.raises(UsageError, match=r"outputs have the shape \(5,.*3 classes"):
        Classification(names).predict(np.zeros(shape))


def test_probabilities_are_the_softmax_however_large_the_logits():
    logits = np.array([[1.0, 2, 3], [1e4, 0, -1e4], [-1e4, -1e4, -1e4]], dtype=np.float32)

    found = Classification(LETTERS).probabilities(logits)

    powers = np.exp([1.0, 2, 3])
    assert found[0] == pytest.approx(powers / powers.sum())
    assert found[1].tolist() == [1, 0, 0]
    assert found[2] == pytest.approx([1 / 3] * 3)
    assert found.dtype == np.float32


@given(st.lists(st.floats(-800, 800), min_size=1, max_size=10))
def test_probabilities_of_one_unit_are_the_sigmoid(logits):
    from scipy.special import expit

    found = Classification(("no", "yes")).probabilities(np.array(logits)[:, None])

    assert found[:, 1] == pytest.approx(expit(logits))
    assert found.sum(axis=1) == pytest.approx(1)


def test_probabilities_of_a_model_that_gives_them_are_passed_on():
    task = Classification(("no", "yes"))

    assert task.probabilities([[0.3, 0.7]], are_logits=False).tolist() == [[0.3, 0.7]]
    assert task.probabilities([[0.75]], are_logits=False).tolist() == [[0.25, 0.75]]


# What a study minimizes


def test_what_is_minimized_follows_from_loss_and_metrics():
    task = Classification(("no", "yes"))
    metrics = task.metrics([0, 0, 0, 1], [0, 0, 0, 0])

    found = {name: task.minimized(name, 0.25, metrics) for name in task.MINIMIZED}

    macro = oracle.f1_score([0, 0, 0, 1], [0, 0, 0, 0], average="macro", zero_division=0)
    assert found == pytest.approx(
        {"loss": 0.25, "error": 0.25, "negative_squared_accuracy": -0.5625, "f1_error": 1 - macro}
    )


@pytest.mark.parametrize(
    ("task", "choices"),
    [
        (Classification(LETTERS), "loss, error, negative_squared_accuracy, f1_error"),
        (Regression(), "loss, rmse, mae"),
    ],
)
def test_what_cannot_be_minimized_names_what_can(task, choices):
    with pytest.raises(UsageError, match="'auc' can't be minimized") as refusal:
        task.minimized("auc", 0.1, {})

    assert choices in refusal.value.hint


def test_the_headline_is_four_of_the_metrics():
    task = Classification(LETTERS)
    metrics = task.metrics([0, 1, 2], [0, 1, 1])

    assert task.headline(metrics) == {
        name: metrics[name] for name in ("accuracy", "f1_macro", "precision_macro", "recall_macro")
    }


# Regression


@given(regressed())
def test_errors_of_a_regression_are_those_of_scikit_learn(example):
    targets, predicted = example

    found = Regression(("x", "y")).metrics(targets, predicted)

    each = "raw_values"
    rmse = oracle.root_mean_squared_error(targets, predicted, multioutput=each)
    mae = oracle.mean_absolute_error(targets, predicted, multioutput=each)
    expected = {
        "rmse": rmse.mean(),
        "mae": mae.mean(),
        "median_absolute_error": oracle.median_absolute_error(targets, predicted),
        "max_error": max(oracle.max_error(targets[:, i], predicted[:, i]) for i in (0, 1)),
        "rmse/x": rmse[0],
        "rmse/y": rmse[1],
        "mae/x": mae[0],
        "mae/y": mae[1],
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert set(found) - set(expected) == {"r2", "r2/x", "r2/y"}


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.floats(0.01, 100))
def test_r2_is_that_of_scikit_learn(seed, noise):
    rng = np.random.default_rng(seed)
    targets = rng.normal(size=(30, 2))
    predicted = targets + noise * rng.normal(size=(30, 2))

    found = Regression(("x", "y")).metrics(targets, predicted)

    each = oracle.r2_score(targets, predicted, multioutput="raw_values")
    assert (found["r2/x"], found["r2/y"]) == pytest.approx(tuple(each))
    assert found["r2"] == pytest.approx(each.mean())


@pytest.mark.parametrize(("predicted", "r2"), [([2, 2, 2], 1), ([2, 2, 3], 0)])
def test_r2_of_a_target_that_never_changes_is_whether_it_was_hit(predicted, r2):
    assert Regression().metrics([2, 2, 2], predicted)["r2"] == r2 == oracle.r2_score([2, 2, 2], predicted)


def test_a_column_of_outputs_meets_flat_targets_row_by_row():
    found = Regression().metrics([1.0, 2.0, 3.0], [[1.0], [2.0], [5.0]])

    assert found["max_error"] == 2
    assert found["mae"] == pytest.approx(2 / 3)
    assert Regression().predict(np.zeros((4, 1))).shape == (4,)


def test_a_prediction_that_is_no_number_makes_none_of_the_metrics():
    with warnings.catch_warnings():
        warnings.simplefilter("error")

        found = Regression().metrics([1.0, 2.0], [1.0, np.nan])

    assert np.isnan(list(found.values())).all()


@pytest.mark.parametrize(
    ("targets", "predicted", "message"),
    [
        ([[1, 2]], [[1, 2]], r"shape \(1, 2\), for 1 target \(target\)"),
        ([1, 2], [1], "2 targets and 1 predictions"),
        ([], [], "there are no targets"),
    ],
)
def test_shapes_that_do_not_fit_a_regression_are_named(targets, predicted, message):
    with pytest.raises(UsageError, match=message):
        Regression().metrics(targets, predicted)


def test_a_regression_minimizes_its_loss_or_an_error():
    task = Regression()
    metrics = task.metrics([0.0, 0.0], [3.0, 4.0])

    assert task.minimized("loss", 7.0, metrics) == 7
    assert task.minimized("mae", 7.0, metrics) == 3.5
    assert task.minimized("rmse", 7.0, metrics) == pytest.approx(12.5**0.5)
    assert set(task.headline(metrics)) == {"rmse", "mae", "r2"}


# Files


def written(directory):
    return {path.name for path in directory.iterdir()}


def test_a_classification_writes_its_report_matrix_picture_and_predictions(tmp_path):
    pandas = pytest.importorskip("pandas")
    task = Classification(("T-shirt/top", "Größe", "c"))
    targets, logits = [0, 1, 2, 1], np.array([[9.0, 0, 0], [0, 9, 0], [0, 9, 0], [0, 0, 0]], dtype=np.float32)

    report = task.write(tmp_path / "new", targets, logits, index=[7, 3, 5, 1], title="validation")

    assert written(tmp_path / "new") == {
        "classification_report.txt",
        "confusion_matrix.json",
        "confusion_matrix.png",
        "predictions.parquet",
    }
    assert (tmp_path / "new/classification_report.txt").read_text(encoding="utf-8") == report
    assert report == task.report(targets, [0, 1, 1, 0])
    document = json.loads((tmp_path / "new/confusion_matrix.json").read_text(encoding="utf-8"))
    assert document == {
        "class_names": ["T-shirt/top", "Größe", "c"],
        "matrix": oracle.confusion_matrix(targets, [0, 1, 1, 0]).tolist(),
    }
    table = pandas.read_parquet(tmp_path / "new/predictions.parquet")
    assert table["index"].tolist() == [7, 3, 5, 1]
    assert table["truth"].tolist() == targets
    assert table["prediction"].tolist() == [0, 1, 1, 0]
    assert table["truth_name"].tolist() == ["T-shirt/top", "Größe", "c", "Größe"]
    assert table["prediction_name"].tolist() == ["T-shirt/top", "Größe", "Größe", "T-shirt/top"]
    probabilities = table[[f"probability/{name}" for name in task.class_names]]
    assert (probabilities.dtypes == np.float32).all()
    assert probabilities.to_numpy() == pytest.approx(task.probabilities(logits))


def test_above_a_limit_only_the_probability_of_the_prediction_is_kept(tmp_path, monkeypatch):
    pandas = pytest.importorskip("pandas")
    monkeypatch.setattr("hpo.training.evaluation.MOST_PROBABILITIES", 5)

    Classification(LETTERS).write(tmp_path, [0, 1], [[0.2, 0.7, 0.1], [0.5, 0.1, 0.4]], are_logits=False)

    table = pandas.read_parquet(tmp_path / "predictions.parquet")
    assert table.columns[-1] == "probability"
    assert table["probability"].tolist() == pytest.approx([0.7, 0.5])


@pytest.mark.parametrize("classes", [1, 2, 10, 100, 150])
def test_the_confusion_matrix_is_drawn_for_any_number_of_classes(tmp_path, classes):
    from matplotlib.image import imread

    names = tuple(f"class {number}" for number in range(classes))
    targets = np.arange(classes).repeat(3)

    Classification(names).write(tmp_path, targets, np.eye(classes)[targets])

    picture = imread(tmp_path / "confusion_matrix.png")[..., :3]
    is_dark_blue = (picture[..., 2] - picture[..., 0] > 0.3) & (picture[..., 0] < 0.1)
    assert is_dark_blue.any()  # the diagonal, where every example is


def test_names_no_font_can_draw_and_those_that_look_like_formulas_do_no_harm(tmp_path):
    names = ("a$b$^{", "日本", "ein Klassenname, der nicht enden will", "\\frac")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Classification(names).write(tmp_path, [0, 1, 2, 3], np.eye(4), title="$\\x$")

    assert "confusion_matrix.png" in written(tmp_path)


def test_outputs_that_are_no_numbers_still_leave_their_files(tmp_path):
    outputs = np.array([[np.nan, 0, 0], [np.inf, np.inf, 0], [0, 1, 0]])

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Classification(LETTERS).write(tmp_path, [0, 1, 2], outputs)

    assert len(written(tmp_path)) == 4


def test_a_regression_writes_its_report_picture_and_predictions(tmp_path):
    pandas = pytest.importorskip("pandas")
    targets, outputs = [1.0, 2.0, 3.0], [[1.0], [2.5], [np.nan]]
    task = Regression(("price",))

    report = task.write(tmp_path, targets, outputs)

    assert written(tmp_path) == {
        "regression_report.txt",
        "regression_report.json",
        "predicted_against_truth.png",
        "predictions.parquet",
    }
    assert (tmp_path / "regression_report.txt").read_text(encoding="utf-8") == report
    assert "price" in report
    assert "3 examples" in report
    document = json.loads((tmp_path / "regression_report.json").read_text(encoding="utf-8"))
    assert document["metrics"]["rmse"] is None  # NaN is no JSON
    table = pandas.read_parquet(tmp_path / "predictions.parquet")
    assert table.columns.tolist() == ["index", "truth", "prediction"]
    assert table["truth"].tolist() == targets


def test_a_regression_of_several_targets_has_columns_for_each(tmp_path):
    pandas = pytest.importorskip("pandas")
    names = ("a", "b", "c", "d", "e")

    report = Regression(names).write(tmp_path, np.ones((4, 5)), np.ones((4, 5)))

    table = pandas.read_parquet(tmp_path / "predictions.parquet")
    assert table.columns.tolist() == [
        "index",
        *(f"{kind}/{n}" for n in names for kind in ("truth", "prediction")),
    ]
    assert all(any(line.strip().startswith(f"{name} ") for line in report.splitlines()) for name in names)


@pytest.mark.parametrize("task", [Classification(("no", "yes")), Regression()])
def test_an_index_of_another_length_is_refused(tmp_path, task):
    with pytest.raises(UsageError, match="2 targets and 3 numbers in index"):
        task.write(tmp_path, [0, 1], np.array([0.5, -0.5]), index=[1, 2, 3])


@pytest.mark.parametrize(
    ("package", "left_out"), [("matplotlib", "confusion_matrix.png"), ("pyarrow", "predictions.parquet")]
)
def test_a_missing_package_costs_its_file_and_one_warning(tmp_path, monkeypatch, package, left_out):
    for module in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)

    with pytest.warns(UserWarning, match=r"pip install 'hpo\[report\]'") as caught:
        Classification(("no", "yes")).write(tmp_path, [0, 1], np.array([0.5, -0.5]))

    assert [left_out in str(warning.message) for warning in caught] == [True]
    assert left_out not in written(tmp_path)
    assert len(written(tmp_path)) == 3


def test_importing_the_module_brings_numpy_alone():
    heavy = "{'torch', 'sklearn', 'matplotlib', 'pyarrow', 'pandas', 'scipy', 'tensorflow'}"
    code = f"import sys, hpo.training.evaluation, hpo.training.data; print({heavy} & set(sys.modules))"

    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert printed.strip() == "set()"
