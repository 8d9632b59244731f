"""A multilayer perceptron on handwritten digits, in Keras: small batches and large ones.

    hpo optimize spaces/digits_keras.py --max-evals 20

On TensorFlow where it is installed, else on PyTorch; KERAS_BACKEND=torch chooses. `hpo show` says why some
epochs take twenty times as long as others.
"""

import importlib.util
import os

import numpy as np
from hyperopt import hp
from hyperopt.pyll.base import scope

space = {
    "num_layers": hp.uniformint("num_layers", 1, 3),
    "units": scope.int(hp.qloguniform("units", np.log(32), np.log(256), 32)),
    "activation": hp.choice("activation", ["relu", "silu", "tanh"]),
    "dropout": hp.uniform("dropout", 0, 0.5),
    # Powers of two from 1 to 128. Not hp.choice([1, 2, 4, ...]): the search would not know that 4 is near 8.
    "batch_size": 2 ** hp.uniformint("log2_batch_size", 0, 7),
    "optimizer": hp.choice("optimizer", ["adam", "adamax", "nadam", "rmsprop"]),
    "learning_rate": hp.loguniform("learning_rate", np.log(3e-4), np.log(3e-2)),
}


def objective(params, run, *, epochs=15):
    """The share of validation digits that the trained network gets wrong."""
    # Keras asks for its backend when it is imported: here, and not in the driver, which trains nothing.
    if not importlib.util.find_spec("tensorflow"):
        os.environ.setdefault("KERAS_BACKEND", "torch")
    from objectives.digits_keras import train

    return train(params, run, epochs=epochs)
