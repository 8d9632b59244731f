"""Three networks for small images in Keras, as in fashion_torch.py: functions to copy."""

from dataclasses import replace

import keras

from hpo.training.keras import fit, seed_everything
from objectives import vgg19_keras as vgg19

# They keep the signal's variance through many layers; SELU's is LeCun's (Klambauer et al. 2017).
INITIALIZERS = {"relu": "he_normal", "selu": "lecun_normal", "tanh": "glorot_uniform"}
# PyTorch's. With Keras' own 0.99, the moving averages take epochs to forget where they began, and short
# trainings are validated on other activations than they were trained on.
NORMALIZATION = {"momentum": 0.9, "epsilon": 1e-5}
POOLINGS = {"max": keras.layers.MaxPooling2D, "average": keras.layers.AveragePooling2D}
OPTIMIZERS = {
    "adam": keras.optimizers.Adam,
    "adamax": keras.optimizers.Adamax,
    "nadam": keras.optimizers.Nadam,
    "rms-prop": keras.optimizers.RMSprop,
}


def train_fully_connected(params, run, images, **settings):
    """Train `fully_connected` as the trial says; ``settings``: epochs, minimize, patience of `fit`."""
    seed_everything(run.seed)
    model = fully_connected(params, images.train[0].shape[1:], len(images.class_names))
    return _train(params, run, model, images, **settings).as_result()


def train_convolutional(params, run, images, **settings):
    """Train `convolutional` as the trial says; ``settings``: epochs, minimize, patience of `fit`."""
    seed_everything(run.seed)
    model = convolutional(params, images.train[0].shape[1:], len(images.class_names))
    return _train(params, run, model, images, **settings).as_result()


def train_vgg19(params, run, images, *, weights, **settings):
    """Train what is trained on top of VGG19, on what its frozen layers make of the images.

    Args: images: pixels from 0 to 1. weights: as in `vgg19_keras.trunk`. settings: as above.
    ``model.keras`` has the trained layers; where the winner is trained for good, all of them.
    """
    is_fine_tuned = params["fine_tune_last_block"]
    is_tested = run.final is not None and run.final.test
    outputs = vgg19.frozen_outputs(images, weights, is_fine_tuned, with_test=is_tested)
    seed_everything(run.seed)  # now: making the frozen layers draws numbers, in the first trial alone
    model = on_vgg19(params, weights, outputs.train[0].shape[1:], len(images.class_names))
    fitted = _train(params, run, model, outputs, **settings)
    if run.final is not None:
        # In place of what `fit` has left, which begins behind the frozen layers.
        shape = images.train[0].shape[1:]
        whole = keras.Sequential([keras.Input(shape), vgg19.frozen(weights, is_fine_tuned, shape), model])
        compiled(whole, params).optimizer.build(whole.trainable_variables)
        whole.save(run.directory / "model.keras")
    return replace(fitted, dataset=images.describe()).as_result()


def fully_connected(params, shape, classes):
    """``(batch, *shape) -> (batch, classes)`` logits, by so many layers of equal size."""
    sizes = [params["layer_size"]] * params["num_layers"]
    return keras.Sequential(
        [
            keras.Input(shape),
            keras.layers.Flatten(),
            *dense(sizes, params["activation"], params["dropout_rate"]),
            keras.layers.Dense(classes),
        ]
    )


def convolutional(params, shape, classes):
    """``(batch, height, width, channels) -> (batch, classes)`` logits; each block halves height and width."""
    activation = params["activation"]
    layers = []
    for block in params["convolutions"]["blocks"]:
        for _ in range(block["num_convolutions"]):
            layers.append(
                keras.layers.Conv2D(
                    block["filters"],
                    block["kernel_size"],
                    padding="same",
                    kernel_initializer=INITIALIZERS[activation],
                )
            )
            if params["batch_normalization"]:
                layers.append(keras.layers.BatchNormalization(**NORMALIZATION))
            layers.append(keras.layers.Activation(activation))
        layers.append(POOLINGS[block["pooling"]](2))
    top = params["dense"]
    layers += [
        keras.layers.Flatten(),
        *dense([top["layer_size"]] * top["num_layers"], activation, top["dropout_rate"]),
        keras.layers.Dense(classes),
    ]
    return keras.Sequential([keras.Input(shape), *layers])


def on_vgg19(params, weights, shape, classes):
    """The trained layers: outputs of the frozen ones, ``(batch, *shape) -> (batch, classes)`` logits."""
    layers = [vgg19.last_block(weights, shape)] if params["fine_tune_last_block"] else []
    layers.append(keras.layers.Flatten())
    for block in filter(None, params["head"]["blocks"]):  # the third of several may be None
        layers += dense([block["layer_size"]] * block["num_layers"], "relu")
        layers.append(keras.layers.Dropout(block["dropout_rate"]))
    return keras.Sequential([keras.Input(shape), *layers, keras.layers.Dense(classes)])


def dense(sizes, activation, dropout_rate=0.0):
    """Layers of these sizes, each with its activation and dropout."""
    # SELU keeps mean and variance of its inputs; ordinary dropout would not (Klambauer et al. 2017).
    dropout = keras.layers.AlphaDropout if activation == "selu" else keras.layers.Dropout
    layers = []
    for size in sizes:
        layers.append(
            keras.layers.Dense(size, activation=activation, kernel_initializer=INITIALIZERS[activation])
        )
        layers += [dropout(dropout_rate)] if dropout_rate else []
    return layers


def compiled(model, params):
    """The model with the trial's optimizer, and the cross entropy of its logits as loss."""
    model.compile(
        optimizer=OPTIMIZERS[params["optimizer"]](params["learning_rate"]),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def _train(params, run, model, data, **settings):
    return fit(run, compiled(model, params), data, batch_size=params["batch_size"], **settings)
