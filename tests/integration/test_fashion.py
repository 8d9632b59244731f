"""The Fashion-MNIST spaces, whole: real networks on small images, and what MLflow has of them afterwards."""

import gzip
import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
import pyarrow.parquet
from mlflow.tracking import MlflowClient
from sklearn.metrics import classification_report, confusion_matrix, precision_recall_fscore_support

from hpo.training.data import FASHION_CLASSES, fashion_mnist

ROOT = Path(__file__).resolve().parents[2]
EPOCHS = 2
# The smallest networks of each space: what they learn is not the question.
SMALL = {
    "fashion_fcnn": ["num_layers=2", "layer_size=512", "log2_batch_size=6"],
    "fashion_cvnn": [
        "num_blocks=one_block",
        "first_filters=16",
        "first_num_convolutions=1",
        "log2_batch_size=6",
    ],
    "fashion_vggn": ["weights=none", "examples=150", "log2_batch_size=6"],
}
MINIMIZED = {
    "error": lambda accuracy: 1 - accuracy,
    "negative_squared_accuracy": lambda accuracy: -(accuracy**2),
}
STUDIES = [
    ("fashion_fcnn", "torch", "error"),
    ("fashion_fcnn", "keras", "negative_squared_accuracy"),
    ("fashion_cvnn", "torch", "negative_squared_accuracy"),
    ("fashion_cvnn", "keras", "error"),
    ("fashion_vggn", "torch", "error"),
    ("fashion_vggn", "keras", "error"),
]
WIDE = {"COLUMNS": "200", "TF_CPP_MIN_LOG_LEVEL": "2"}


@pytest.fixture(scope="module")
def project(make_project):
    """A project with the spaces, and Fashion-MNIST as its four files have it, but small."""
    made = make_project()
    for folder in ("spaces", "objectives"):
        shutil.copytree(ROOT / folder, made.folder / folder, ignore=shutil.ignore_patterns("__pycache__"))
    write_clothes(made.folder / "data")
    sys.path.insert(0, str(ROOT))  # for the objectives' models
    yield made
    sys.path.remove(str(ROOT))


def write_clothes(folder):
    """A bright patch whose place tells the class, in noise; of each ten labels one is another class's."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for part, examples in {"train": 600, "t10k": 50}.items():
        classes = np.arange(examples) % 10
        pixels = rng.integers(0, 60, (examples, 28, 28))
        for image, label in zip(pixels, classes, strict=True):
            row, column = divmod(label, 5)
            image[4 + 12 * row : 12 + 12 * row, 1 + 5 * column : 6 + 5 * column] += 180
        wrong = rng.random(examples) < 0.1
        labels = np.where(wrong, rng.integers(0, 10, examples), classes)
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", pixels)
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", labels)


def write_idx(path, values):
    header = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    path.write_bytes(gzip.compress(header + values.astype(np.uint8).tobytes(), 1))


def client_of(project):
    return MlflowClient(f"sqlite:///{project.folder / 'mlflow.db'}")


def runs_of(project, study):
    """The study's child runs by trial."""
    client = client_of(project)
    experiment = client.get_experiment_by_name(study)
    runs = client.search_runs([experiment.experiment_id])
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags and "hpo.trial" in run.data.tags]
    assert len({run.data.tags["hpo.trial"] for run in children}) == len(children)
    return {int(run.data.tags["hpo.trial"]): run for run in children}


def history(client, run, metric):
    return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, metric)]


@pytest.fixture(scope="module", params=STUDIES, ids=lambda study: "-".join(study[:2]))
def study(request, project, tmp_path_factory):
    """A finished study of two trials: what the command line says of it, the best trial's run and files."""
    space, framework, minimize = request.param
    name = f"{space}_{framework}"
    settings = [
        "data=data",
        f"epochs={EPOCHS}",
        f"framework={framework}",
        f"minimize={minimize}",
        *SMALL[space],
    ]
    options = [option for setting in settings for option in ("--set", setting)]

    ended = project.hpo(
        *(
            "optimize",
            f"spaces/{space}.py",
            "--study",
            name,
            "--max-evals",
            2,
            "--seed",
            1,
            "--json",
            *options,
        ),
        env=WIDE,
    )

    assert ended.code == 0, ended
    client, best = client_of(project), ended.json["best"]
    run = runs_of(project, name)[best["trial"]]
    files = Path(client.download_artifacts(run.info.run_id, "", str(tmp_path_factory.mktemp("artifacts"))))
    table = pyarrow.parquet.read_table(files / "predictions.parquet")
    return SimpleNamespace(
        space=space, framework=framework, minimize=minimize, name=name, document=ended.json, best=best,
        project=project, client=client, run=run, files=files, predictions=table.to_pydict(),
        examples=150 if space == "fashion_vggn" else None,
    )  # fmt: skip


def test_both_trials_are_completed_and_finished_in_mlflow(study):
    runs = runs_of(study.project, study.name)

    assert study.document["trials"] == {"completed": 2, "pruned": 0, "failed": 0}
    assert sorted(runs) == [0, 1]
    assert {run.info.status for run in runs.values()} == {"FINISHED"}


def test_mlflow_has_the_parameters_by_their_place_in_the_space(study):
    def flat(value, name=""):
        items = (
            enumerate(value)
            if isinstance(value, list)
            else value.items()
            if isinstance(value, dict)
            else None
        )
        if items is None:
            return {name: value}
        inner = [flat(item, f"{name}.{key}" if name else str(key)) for key, item in items]
        return {key: item for part in inner for key, item in part.items()}

    logged = study.run.data.params

    for name, value in flat(study.best["params"]).items():
        assert logged[name] == str(value)


def test_the_report_is_what_scikit_learn_prints_of_the_predictions(study):
    truth, prediction = study.predictions["truth"], study.predictions["prediction"]

    expected = classification_report(
        truth, prediction, labels=range(10), target_names=FASHION_CLASSES, digits=3, zero_division=0
    )

    assert len(truth) == (15 if study.examples else 60)
    assert (study.files / "classification_report.txt").read_text().strip() == expected.strip()


def test_the_confusion_matrix_is_that_of_the_predictions(study):
    document = json.loads((study.files / "confusion_matrix.json").read_text())
    picture = (study.files / "confusion_matrix.png").read_bytes()

    expected = confusion_matrix(study.predictions["truth"], study.predictions["prediction"], labels=range(10))

    assert document == {"class_names": list(FASHION_CLASSES), "matrix": expected.tolist()}
    assert picture.startswith(b"\x89PNG")


def test_the_predictions_are_of_the_validation_images_and_most_probable(study):
    probabilities = np.array([study.predictions[f"probability/{name}"] for name in FASHION_CLASSES]).T
    validation = images_of(study).validation[1]

    assert study.predictions["truth"] == validation.tolist()
    assert study.predictions["prediction"] == probabilities.argmax(axis=1).tolist()
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-5)


def test_the_curves_have_each_epoch_once_and_the_best_one_agrees_with_the_predictions(study):
    best_epoch = int(study.run.data.metrics["result/best_epoch"])
    truth, prediction = np.array(study.predictions["truth"]), np.array(study.predictions["prediction"])
    accuracy = float((truth == prediction).mean())
    figures = precision_recall_fscore_support(truth, prediction, labels=range(10), zero_division=0)[:3]

    expected = {"accuracy": accuracy, "loss": MINIMIZED[study.minimize](accuracy)}
    for kind, values in zip(("precision", "recall", "f1"), figures, strict=True):
        named = zip(FASHION_CLASSES, values, strict=True)
        # MLflow's own names have no second slash.
        expected |= {f"{kind}/{name.replace('/', '-')}": value for name, value in named}
        expected[f"{kind}_macro"] = values.mean()

    for name, value in expected.items():
        # Behind the epochs' losses stands the trial's, if the last epoch was not the best.
        curve = history(study.client, study.run, name)[: EPOCHS if name == "loss" else None]
        assert [step for step, _ in curve] == list(range(EPOCHS)), name
        assert curve[best_epoch][1] == pytest.approx(value), name
    assert study.best["loss"] == pytest.approx(expected["loss"])


def test_every_epoch_tells_where_its_time_went(study):
    for name in ("time/epoch_seconds", "time/data_share", "time/step_share", "time/validation_share"):
        assert [step for step, _ in history(study.client, study.run, name)] == list(range(EPOCHS))


def test_the_model_file_makes_the_predictions_again(study):
    outputs = outputs_of(study)

    assert outputs.argmax(axis=1).tolist() == study.predictions["prediction"]


def images_of(study):
    scale = "unit" if study.space == "fashion_vggn" else "standard"
    return fashion_mnist(study.project.folder / "data", examples=study.examples, scale=scale)


def outputs_of(study):
    """Logits of the validation images by the model in MLflow."""
    images, params = images_of(study), study.best["params"]
    if study.framework == "keras":
        import keras

        from objectives import vgg19_keras

        if study.space == "fashion_vggn":
            images = vgg19_keras.frozen_outputs(images, "none", params["fine_tune_last_block"])
        model = keras.saving.load_model(study.files / "model.keras")
        return model.predict(images.validation[0], verbose=0)

    import torch

    from objectives import fashion_torch, vgg19_torch

    shape = images.validation[0].shape[1:]
    match study.space:
        case "fashion_fcnn":
            model = fashion_torch.fully_connected(params, shape, 10)
        case "fashion_cvnn":
            model = fashion_torch.convolutional(params, shape, 10)
        case "fashion_vggn":
            cpu = torch.device("cpu")
            images = vgg19_torch.frozen_outputs(images, "none", params["fine_tune_last_block"], cpu)
            model = fashion_torch.on_vgg19(params, "none", images.train[0].shape[1:], 10)
    model.load_state_dict(torch.load(study.files / "model.pt", weights_only=True))
    with torch.inference_mode():
        return model.eval()(torch.tensor(images.validation[0])).numpy()


# --- a worker that dies


MORTAL = '''
"""fashion_fcnn, whose worker is killed once: in the 7th epoch, before anybody has heard of it."""

import os
import signal
from pathlib import Path

from spaces import fashion_fcnn
from spaces.fashion_fcnn import space


def objective(params, run, *, framework="torch", marker="", told="", epochs=9):
    report = run.report

    def report_or_die(epoch, loss=None, **metrics):
        if marker and epoch == 6 and not Path(marker).exists():
            Path(marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if told:
            with open(told, "a") as file:
                file.write(f"{run.attempt} {epoch}\\n")
        report(epoch, loss, **metrics)

    run.report = report_or_die
    return fashion_fcnn.objective(params, run, framework=framework, data="data", epochs=epochs)
'''


def train_mortal(project, name, *settings):
    (project.folder / "mortal.py").write_text(MORTAL)
    fixed = ["num_layers=2", "layer_size=512", "log2_batch_size=6", "learning_rate=0.001", *settings]
    options = [option for setting in fixed for option in ("--set", setting)]
    ended = project.hpo(
        *("optimize", "mortal.py", "--study", name, "--max-evals", 1, "--seed", 3, *options), env=WIDE
    )
    assert ended.code == 0, ended
    return runs_of(project, name)[0]


@pytest.fixture(scope="module")
def killed(request, project):
    """The run of a training that was killed in its 7th epoch, and what each attempt told."""
    framework = request.param
    told = project.folder / f"told_{framework}"

    run = train_mortal(
        project, f"killed_{framework}", f"framework={framework}", f"marker=x_{framework}", f"told={told.name}"
    )

    return run, [tuple(map(int, line.split())) for line in told.read_text().splitlines()]


@pytest.mark.parametrize("killed", ["torch", "keras"], indirect=True)
def test_a_training_killed_in_its_7th_epoch_goes_on_from_its_checkpoint(project, killed):
    run, attempts = killed
    client = client_of(project)

    # The second attempt tells the last epoch of its checkpoint again, and trains none twice that was told.
    assert attempts == [(1, epoch) for epoch in range(6)] + [(2, epoch) for epoch in range(5, 9)]
    assert run.info.status == "FINISHED"
    assert run.data.tags["hpo.attempts"] == "2"
    for metric in ("accuracy", "train_loss", "validation_loss", "precision/Bag", "time/epoch_seconds"):
        assert [step for step, _ in history(client, run, metric)] == list(range(9)), metric


@pytest.mark.parametrize("killed", ["torch"], indirect=True)
def test_the_curves_of_a_killed_pytorch_training_are_those_of_an_unbroken_one(project, killed):
    unbroken = train_mortal(project, "unbroken")

    client = client_of(project)
    for metric in ("train_loss", "validation_loss", "f1/Coat"):
        curve = history(client, killed[0], metric)
        assert len(curve) == 9
        assert curve == history(client, unbroken, metric), metric
