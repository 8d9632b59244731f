"""The networks of the Fashion-MNIST spaces at the corners of these, the same in PyTorch and in Keras."""

import itertools
import os
import sys
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch

from hpo.core.errors import UsageError
from hpo.run import Run
from hpo.space import compile_space
from hpo.training import Final
from hpo.training.data import Dataset

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # as the loader does
import keras

from objectives import fashion_keras, fashion_torch, vgg19_keras, vgg19_torch
from objectives.fashion import kit
from spaces import fashion_cvnn, fashion_fcnn, fashion_vggn

sys.path.pop(0)

SHAPE, CLASSES = (28, 28, 1), 10
SPACES = [fashion_fcnn, fashion_cvnn, fashion_vggn]
CPU = torch.device("cpu")
TRAINING = {"batch_size": 16, "learning_rate": 1e-3, "optimizer": "adam"}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def images():
    """Sixteen images of noise, and twenty each to validate and to test."""
    rng = np.random.default_rng(0)

    def part(examples):
        pixels = rng.random((examples, *SHAPE)).astype(np.float32)
        return pixels, (np.arange(examples) % CLASSES).astype(np.int64)

    return Dataset(part(16), part(20), part(20), class_names=tuple("abcdefghij"), name="noise")


@pytest.fixture
def new_run(tmp_path_factory):
    def build(final=None):
        folders = (tmp_path_factory.mktemp(name) for name in ("artifacts", "checkpoints"))
        return Run(0, 7, *folders, final=final)

    return build


def torch_logits(model, inputs):
    with torch.inference_mode():
        return model.eval()(torch.tensor(inputs)).numpy()


def keras_logits(model, inputs):
    return model.predict(inputs, verbose=0)


def torch_sizes(model):
    return sorted(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def keras_sizes(model):
    return sorted(int(np.prod(weight.shape)) for weight in model.trainable_weights)


def ends(space, label):
    """The smallest and the largest value of a parameter, or all of a choice."""
    (column,) = [column for column in compile_space(space).columns if column.label == label]
    if column.options is not None:
        return list(column.options)
    low, high = column.distribution.from_unit(np.array([0.0, 1.0])).tolist()
    return [round(low), round(high)]


# --- what the spaces say


@pytest.mark.parametrize("space", SPACES, ids=lambda module: module.__name__)
def test_both_frameworks_know_every_option_of_a_space(space):
    columns = {column.label: column for column in compile_space(space.space).columns}

    for training in (fashion_torch, fashion_keras):
        assert set(columns["optimizer"].options) == set(training.OPTIMIZERS)
        for label, column in columns.items():
            if label.endswith("_pooling"):
                assert set(column.options) == set(training.POOLINGS)
    if "activation" in columns:
        assert set(columns["activation"].options) == set(fashion_torch.ACTIVATIONS)
        assert set(columns["activation"].options) == set(fashion_keras.INITIALIZERS)


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_a_kit_trains_all_three_networks(framework):
    module = kit(framework)

    for name in ("train_fully_connected", "train_convolutional", "train_vgg19"):
        assert callable(getattr(module, name))


def test_an_unknown_framework_is_named_with_the_known_ones():
    with pytest.raises(UsageError, match="'jax'") as raised:
        kit("jax")

    assert "torch or keras" in raised.value.hint


def test_the_layers_of_the_fully_connected_space_are_even_numbers_up_to_16():
    space = compile_space(fashion_fcnn.space)
    drawn = [space.params(space.point(row)) for row in space.sample(np.random.default_rng(0), 500)]

    assert {params["num_layers"] for params in drawn} == set(range(2, 17, 2))
    assert {params["layer_size"] for params in drawn} == {512, 768, 1024, 1280, 1536}
    assert {params["batch_size"] for params in drawn} == {4, 8, 16, 32, 64, 128}
    assert {type(params["batch_size"]) for params in drawn} == {int}


def test_the_heads_on_vgg19_are_none_one_block_of_1_to_3_layers_or_2_to_3_blocks_of_one():
    space = compile_space(fashion_vggn.space)
    drawn = [space.params(space.point(row)) for row in space.sample(np.random.default_rng(0), 500)]

    heads = {tuple(block["num_layers"] for block in params["head"]["blocks"] if block) for params in drawn}

    assert heads == {(), (1,), (2,), (3,), (1, 1), (1, 1, 1)}


# --- fully connected


CORNERS = list(
    itertools.product(
        ends(fashion_fcnn.space, "activation"),
        ends(fashion_fcnn.space, "num_layers"),
        ends(fashion_fcnn.space, "layer_size"),
    )
)


@pytest.mark.parametrize(("activation", "layers", "size"), CORNERS)
def test_every_corner_of_the_fully_connected_space_is_a_network_that_passes_a_signal(
    images, activation, layers, size
):
    params = TRAINING | {
        "activation": activation, "num_layers": layers, "layer_size": size, "dropout_rate": 0.5
    }  # fmt: skip
    torch.manual_seed(0)
    keras.utils.set_random_seed(0)

    in_torch = fashion_torch.fully_connected(params, SHAPE, CLASSES)
    in_keras = fashion_keras.fully_connected(params, SHAPE, CLASSES)

    inputs = images.validation[0]
    hidden = [784 * size] + [size * size] * (layers - 1) + [size] * layers
    assert torch_sizes(in_torch) == keras_sizes(in_keras) == sorted([*hidden, size * CLASSES, CLASSES])
    for logits in (torch_logits(in_torch, inputs), keras_logits(in_keras, inputs)):
        assert logits.shape == (20, CLASSES)
        # PyTorch's own initial weights leave 1e-5 of the differences between images behind 16 layers.
        assert 0.003 < logits.std(axis=0).mean() < 10


@pytest.mark.parametrize("activation", ["relu", "selu"])
def test_dropout_keeps_the_mean_and_variance_that_selu_has_made(activation):
    params = TRAINING | {
        "activation": activation, "num_layers": 2, "layer_size": 512, "dropout_rate": 0.5
    }  # fmt: skip

    in_torch = fashion_torch.fully_connected(params, SHAPE, CLASSES)
    in_keras = fashion_keras.fully_connected(params, SHAPE, CLASSES)

    expected = "AlphaDropout" if activation == "selu" else "Dropout"
    for layers in (in_torch, in_keras.layers):
        names = [type(layer).__name__ for layer in layers]
        assert [name for name in names if "Dropout" in name] == [expected] * 2


# --- convolutions


@pytest.mark.parametrize("blocks", [1, 2, 3])
@pytest.mark.parametrize("is_large", [False, True])
@pytest.mark.parametrize("is_normalized", [False, True])
@pytest.mark.parametrize("pooling", ["max", "average"])
def test_every_corner_of_the_convolutional_space_is_the_same_network_in_both_frameworks(
    images, blocks, is_large, is_normalized, pooling
):
    space = fashion_cvnn.space
    block = {
        "num_convolutions": ends(space, "first_num_convolutions")[is_large],
        "filters": ends(space, "first_filters")[is_large],
        "kernel_size": [3, 5][is_large],
        "pooling": pooling,
    }
    params = TRAINING | {
        "convolutions": {"blocks": [block] * blocks},
        "batch_normalization": is_normalized,
        "activation": "relu",
        "dense": {
            "num_layers": ends(space, "dense_num_layers")[is_large],
            "layer_size": ends(space, "dense_layer_size")[is_large],
            "dropout_rate": 0.5,
        },
    }

    in_torch = fashion_torch.convolutional(params, SHAPE, CLASSES)
    in_keras = fashion_keras.convolutional(params, SHAPE, CLASSES)

    inputs = images.validation[0][:2]
    assert torch_sizes(in_torch) == keras_sizes(in_keras)
    assert torch_logits(in_torch, inputs).shape == keras_logits(in_keras, inputs).shape == (2, CLASSES)


def test_batch_normalization_is_the_same_in_both_frameworks():
    block = {"num_convolutions": 1, "filters": 4, "kernel_size": 3, "pooling": "max"}
    params = TRAINING | {
        "convolutions": {"blocks": [block]},
        "batch_normalization": True,
        "activation": "relu",
        "dense": {"num_layers": 1, "layer_size": 8, "dropout_rate": 0.0},
    }

    in_torch = fashion_torch.convolutional(params, SHAPE, CLASSES)
    in_keras = fashion_keras.convolutional(params, SHAPE, CLASSES)

    (here,) = [layer for layer in in_torch.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    (there,) = [layer for layer in in_keras.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert there.epsilon == here.eps
    assert 1 - there.momentum == pytest.approx(here.momentum)  # Keras says what stays, PyTorch what is new


# --- VGG19


def block(size, layers=1):
    return {"num_layers": layers, "layer_size": size, "dropout_rate": 0.5}


HEADS = {
    "none": [],
    "one of three": [block(1024, layers=3)],
    "two": [block(128), block(128), None],
    "three": [block(1024), block(128), block(1024)],
}


@pytest.mark.parametrize("is_fine_tuned", [False, True])
@pytest.mark.parametrize("head", HEADS)
def test_every_head_fits_on_the_frozen_layers(images, head, is_fine_tuned):
    params = TRAINING | {"head": {"blocks": HEADS[head]}, "fine_tune_last_block": is_fine_tuned}
    in_torch, _ = vgg19_torch.frozen_outputs(images, "none", is_fine_tuned, CPU).train
    in_keras, _ = vgg19_keras.frozen_outputs(images, "none", is_fine_tuned).train

    torch_model = fashion_torch.on_vgg19(params, "none", in_torch.shape[1:], CLASSES)
    keras_model = fashion_keras.on_vgg19(params, "none", in_keras.shape[1:], CLASSES)

    assert in_torch.shape == ((16, 512, 2, 2) if is_fine_tuned else (16, 512, 1, 1))
    assert in_keras.shape == ((16, 2, 2, 512) if is_fine_tuned else (16, 1, 1, 512))
    assert torch_sizes(torch_model) == keras_sizes(keras_model)
    assert torch_sizes(torch_model).count(512 * 512 * 9) == (4 if is_fine_tuned else 0)
    assert torch_logits(torch_model, in_torch).shape == (16, CLASSES)
    assert keras_logits(keras_model, in_keras).shape == (16, CLASSES)


def state_of(keras_model):
    """Keras' weights by torchvision's names: a convolution's place among layers, activations and poolings."""
    places = [0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34]
    convolutions = [layer for layer in keras_model.layers if layer.weights]
    state = {}
    for place, layer in zip(places, convolutions, strict=True):
        kernel, bias = layer.get_weights()
        state[f"features.{place}.weight"] = torch.tensor(kernel.transpose(3, 2, 0, 1).copy())
        state[f"features.{place}.bias"] = torch.tensor(bias)
    return state


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """Files with the same weights for both frameworks; torchvision's has a classifier, too."""
    folder = tmp_path_factory.mktemp("weights")
    model = keras.applications.VGG19(include_top=False, weights=None, input_shape=(32, 32, 3))
    model.save_weights(folder / "vgg19.weights.h5")
    torch.save(state_of(model) | {"classifier.0.weight": torch.zeros(2, 2)}, folder / "vgg19.pth")
    return folder, model


def test_the_layers_in_pytorch_are_those_of_keras_applications(pretrained):
    folder, model = pretrained
    inputs = np.random.default_rng(0).random((3, 64, 64, 3)).astype(np.float32)
    reference = keras.applications.VGG19(include_top=False, weights=None, input_shape=(64, 64, 3))
    reference.set_weights(model.get_weights())

    found = torch_logits(vgg19_torch.trunk(str(folder / "vgg19.pth")), inputs.transpose(0, 3, 1, 2).copy())

    expected = keras_logits(reference, inputs).transpose(0, 3, 1, 2)
    assert found.shape == (3, 512, 2, 2)
    assert np.allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_keras_gets_images_as_its_own_preprocessing_makes_them(pretrained, images):
    folder, model = pretrained
    colour = np.random.default_rng(0).random((2, 32, 32, 3)).astype(np.float32)
    grey = images.validation[0]
    padded = np.pad(grey, ((0, 0), (2, 2), (2, 2), (0, 0))).repeat(3, axis=-1)
    path = str(folder / "vgg19.weights.h5")

    for inputs, as_colour in ((colour, colour), (grey, padded)):
        found = keras_logits(vgg19_keras.frozen(path, False, inputs.shape[1:]), inputs)

        expected = keras_logits(model, keras.applications.vgg19.preprocess_input(255 * as_colour))
        assert np.allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_pytorch_gets_images_as_torchvision_normalizes_them(images):
    grey = images.validation[0]
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])

    found = torch_logits(vgg19_torch.prepare("imagenet"), grey)

    padded = np.pad(grey, ((0, 0), (2, 2), (2, 2), (0, 0)))
    assert np.allclose(found.transpose(0, 2, 3, 1), (padded - mean) / deviation, atol=1e-6)


def test_random_weights_are_the_same_in_every_process_and_take_pixels_as_they_are(images):
    first = torch_logits(vgg19_torch.frozen("none", False), images.validation[0])
    vgg19_torch.trunk.cache_clear()
    torch.manual_seed(3)
    again = torch_logits(vgg19_torch.frozen("none", False), images.validation[0])
    in_keras = keras_logits(vgg19_keras.frozen("none", False, SHAPE), images.validation[0])
    vgg19_keras.trunk.cache_clear()
    keras.utils.set_random_seed(3)
    again_in_keras = keras_logits(vgg19_keras.frozen("none", False, SHAPE), images.validation[0])

    assert np.array_equal(first, again)
    assert np.array_equal(in_keras, again_in_keras)
    assert np.array_equal(torch_logits(vgg19_torch.prepare("none"), images.validation[0])[:, 2, 2:30, 2:30],
                          images.validation[0][..., 0])  # fmt: skip


def test_frozen_outputs_are_computed_once_and_belong_to_the_images_labels(images):
    before = vgg19_torch.frozen_outputs(images, "none", False, CPU)

    after = vgg19_torch.frozen_outputs(images, "none", False, CPU)

    assert after is before
    assert np.array_equal(before.validation[1], images.validation[1])
    expected = torch_logits(vgg19_torch.frozen("none", False), images.validation[0])
    assert np.allclose(before.validation[0], expected, atol=1e-5)
    assert before.test is None


@pytest.mark.parametrize(("framework", "module"), [("torch", vgg19_torch), ("keras", vgg19_keras)])
def test_a_workers_first_trial_is_as_its_later_ones(images, new_run, framework, module):
    params = TRAINING | {"head": {"blocks": HEADS["two"]}, "fine_tune_last_block": False}
    settings = {"weights": "none", "epochs": 1, "minimize": "loss", "patience": None}
    module.trunk.cache_clear()
    module.frozen_outputs.cache_clear()

    first, later = (kit(framework).train_vgg19(params, new_run(), images, **settings) for _ in range(2))

    assert first["loss"] == pytest.approx(later["loss"], rel=1e-5)
    assert first["train_loss"] == pytest.approx(later["train_loss"], rel=1e-5)


@pytest.mark.parametrize("module", [vgg19_torch, vgg19_keras])
def test_weights_that_are_not_there_or_no_weights_are_one_clear_error(module, tmp_path, pretrained):
    (tmp_path / "notes.txt").write_text("no weights")
    torch.save({"features.0.weight": torch.zeros(3)}, tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")

    for name in ("missing.pth", "notes.txt", "other.pth", "list.pth"):
        with pytest.raises(UsageError, match=name) as raised:
            module.trunk(str(tmp_path / name))

        assert module.URL in raised.value.hint


def test_without_a_network_the_error_names_the_file_to_fetch(monkeypatch):
    def unreachable(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", unreachable)
    monkeypatch.setattr(keras.applications, "VGG19", unreachable)

    for module in (vgg19_torch, vgg19_keras):
        module.trunk.cache_clear()
        with pytest.raises(UsageError, match="no network") as raised:
            module.trunk("imagenet")

        assert module.URL in raised.value.hint
        assert "--set weights=PATH" in raised.value.hint


# --- the winner


@pytest.mark.parametrize("is_fine_tuned", [False, True])
@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_the_winner_on_vgg19_is_kept_whole_and_loads_in_one_line(
    images, new_run, framework, is_fine_tuned, monkeypatch
):
    run = new_run(Final(on="train+validation", epochs=1, test=True))
    params = TRAINING | {"head": {"blocks": HEADS["two"]}, "fine_tune_last_block": is_fine_tuned}

    result = kit(framework).train_vgg19(
        params, run, images, weights="none", epochs=3, minimize="error", patience=None
    )

    monkeypatch.chdir(run.directory)
    model = eval(run.final.load_line, {"torch": torch, "keras": keras})
    inputs, targets = images.test
    with torch.inference_mode():
        logits = keras_logits(model, inputs) if framework == "keras" else model(torch.tensor(inputs)).numpy()
    accuracy = float((logits.argmax(axis=1) == targets).mean())
    assert result["epochs"] == 1
    assert result["test"]["accuracy"] == pytest.approx(accuracy)
    log_of_sums = np.log(np.exp(logits.astype(float)).sum(axis=1))
    loss = (log_of_sums - logits[np.arange(len(targets)), targets]).mean()
    assert result["test"]["loss"] == pytest.approx(loss, rel=1e-4)
    assert result["dataset"]["digest"] == images.describe()["digest"]


def test_copies_of_the_last_block_leave_no_trace_in_the_shared_layers():
    layers = vgg19_keras.trunk("none")[1]
    vgg19_keras.last_block("none", (2, 2, 512))
    before = [len(layer._inbound_nodes) for layer in layers]

    for _ in range(3):
        vgg19_keras.last_block("none", (2, 2, 512))

    assert [len(layer._inbound_nodes) for layer in layers] == before


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_fine_tuning_changes_the_copy_and_not_the_shared_layers(images, new_run, framework):
    params = TRAINING | {"head": {"blocks": []}, "fine_tune_last_block": True}
    is_keras = framework == "keras"

    def shared():
        if is_keras:
            return [weight for layer in vgg19_keras.trunk("none")[1] for weight in layer.get_weights()]
        layers = vgg19_torch.trunk("none")[vgg19_torch.LAST_BLOCK :]
        return [parameter.detach().clone().numpy() for parameter in layers.parameters()]

    before = shared()
    run = new_run()

    kit(framework).train_vgg19(params, run, images, weights="none", epochs=1, minimize="loss", patience=None)

    assert all(np.array_equal(a, b) for a, b in zip(before, shared(), strict=True))
    if is_keras:
        trained = keras.saving.load_model(run.directory / "model.keras").layers[0].get_weights()
    else:
        state = torch.load(run.directory / "model.pt", weights_only=True)
        trained = [value.numpy() for name, value in state.items()][: len(before)]
    assert not any(np.array_equal(a, b) for a, b in zip(before, trained, strict=True))
