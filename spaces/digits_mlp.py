"""A multilayer perceptron on handwritten digits: 20 trials in about half a minute on one core.

    hpo optimize spaces/digits_mlp.py --max-evals 20

Every ``hp`` expression names a parameter; `objective` gets their values in the shape of ``space``.
"""

import numpy as np
from hyperopt import hp
from hyperopt.pyll.base import scope

space = {
    # hp.q... and hp.log... give floats: scope.int makes the integers that layers and batches need.
    "num_layers": hp.uniformint("num_layers", 1, 3),
    "units": scope.int(hp.qloguniform("units", np.log(32), np.log(256), 32)),
    "activation": hp.choice("activation", ["relu", "silu", "tanh"]),
    "dropout": hp.uniform("dropout", 0, 0.5),
    "batch_size": scope.int(hp.qloguniform("batch_size", np.log(16), np.log(256), 16)),
    "optimizer": hp.choice("optimizer", ["adamw", "rmsprop", "sgd"]),
    # Bounds of a log distribution are logarithms: this is 0.0003 to 0.1.
    "learning_rate": hp.loguniform("learning_rate", np.log(3e-4), np.log(1e-1)),
    "weight_decay": hp.loguniform("weight_decay", np.log(1e-6), np.log(1e-2)),
}


def objective(params, run, *, epochs=15):
    """The share of validation digits that the trained network gets wrong."""
    # Imported here, so that the driver, which trains nothing, reads this file without PyTorch.
    from objectives.digits_torch import train

    return train(params, run, epochs=epochs)
