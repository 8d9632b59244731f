"""A multilayer perceptron on scikit-learn's digits, in Keras: a training function to copy."""

import keras

from hpo.training.data import digits
from hpo.training.keras import fit, seed_everything

OPTIMIZERS = {
    "adam": keras.optimizers.Adam,
    "adamax": keras.optimizers.Adamax,
    "nadam": keras.optimizers.Nadam,
    "rmsprop": keras.optimizers.RMSprop,
}


def train(params, run, *, epochs):
    """Train on the digits for so many epochs; the loss is the error on the validation digits."""
    seed_everything(run.seed)
    data = digits()
    model = perceptron(
        features=data.train[0].shape[1],
        classes=len(data.class_names),
        layers=params["num_layers"],
        units=params["units"],
        activation=params["activation"],
        dropout=params["dropout"],
    )
    model.compile(
        optimizer=OPTIMIZERS[params["optimizer"]](params["learning_rate"]),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    fitted = fit(run, model, data, epochs=epochs, batch_size=params["batch_size"], minimize="error")
    return fitted.as_result()


def perceptron(*, features, classes, layers, units, activation, dropout):
    """``(batch, features) -> (batch, classes)`` logits, with as many hidden layers of equal width."""
    model = keras.Sequential([keras.Input((features,))])
    for _ in range(layers):
        model.add(keras.layers.Dense(units, activation=activation))
        model.add(keras.layers.Dropout(dropout))
    model.add(keras.layers.Dense(classes))
    return model
