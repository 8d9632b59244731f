"""A fully connected network on Fashion-MNIST: seven parameters, in PyTorch or in Keras.

    hpo optimize spaces/fashion_fcnn.py --max-evals 100 --set framework=keras

The data are downloaded once, or read from a folder of the four IDX files or an NPZ: ``--set data=PATH``. The
ranges are those of guidj's "Fashion, Trees, and Convolutions: Part II" (2020); its loss was
``--set minimize=negative_squared_accuracy``. For a quick look: ``--set examples=2000 --set epochs=5``.
"""

import numpy as np
from hyperopt import hp
from hyperopt.pyll.base import scope

space = {
    # 4, 8, ..., 128. A choice of these numbers would hide their order from the search.
    "batch_size": 2 ** hp.uniformint("log2_batch_size", 2, 7),
    "learning_rate": hp.loguniform("learning_rate", np.log(1e-4), np.log(1)),
    "dropout_rate": hp.quniform("dropout_rate", 0.05, 0.5, 0.05),
    "activation": hp.choice("activation", ["relu", "selu", "tanh"]),
    # 2, 4, ..., 16: hyperopt rounds to multiples of the step, so "1 to 16 in steps of 2" was this, too.
    "num_layers": scope.int(hp.quniform("num_layers", 2, 16, 2)),
    # A range for the sake of its order again; 512, 768, 1024 and 1536 were the choice, 1280 is new.
    "layer_size": scope.int(hp.quniform("layer_size", 512, 1536, 256)),
    "optimizer": hp.choice("optimizer", ["adam", "adamax", "nadam", "rms-prop"]),
}


def objective(
    params,
    run,
    *,
    framework="torch",
    epochs=50,
    data=None,
    examples=None,
    minimize="error",
    patience=None,
):
    """The share of validation images that the network gets wrong, or what ``minimize`` says."""
    # Imported here, so that the driver, which trains nothing, reads this file without PyTorch or Keras.
    from hpo.training.data import fashion_mnist
    from objectives.fashion import kit

    images = fashion_mnist(data, examples=examples)
    return kit(framework).train_fully_connected(
        params, run, images, epochs=epochs, minimize=minimize, patience=patience
    )
