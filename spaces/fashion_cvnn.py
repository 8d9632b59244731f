"""A convolutional network on Fashion-MNIST: one to three blocks of convolutions, then dense layers.

    hpo optimize spaces/fashion_cvnn.py --max-evals 100 --set data=~/data/fashion-mnist

A trial has the parameters of the blocks that its network has. What a block is like where there are three is
learned from networks with fewer, too: it is the same parameter in all of them. Arguments are those of
fashion_fcnn.py.
"""

import numpy as np
from hyperopt import hp
from hyperopt.pyll.base import scope


def block(name):
    """Convolutions of equal width and a pooling that halves the image."""
    return {
        "num_convolutions": hp.uniformint(f"{name}_num_convolutions", 1, 3),
        "filters": scope.int(hp.qloguniform(f"{name}_filters", np.log(16), np.log(128), 16)),
        "kernel_size": hp.choice(f"{name}_kernel_size", [3, 5]),
        "pooling": hp.choice(f"{name}_pooling", ["max", "average"]),
    }


first, second, third = block("first"), block("second"), block("third")

space = {
    "convolutions": hp.choice(
        "num_blocks",
        [
            {"name": "one_block", "blocks": [first]},
            {"name": "two_blocks", "blocks": [first, second]},
            {"name": "three_blocks", "blocks": [first, second, third]},
        ],
    ),
    "batch_normalization": hp.choice("batch_normalization", [False, True]),
    "activation": hp.choice("activation", ["relu", "selu", "tanh"]),
    "dense": {
        "num_layers": hp.uniformint("dense_num_layers", 1, 3),
        "layer_size": scope.int(hp.qloguniform("dense_layer_size", np.log(64), np.log(512), 64)),
        "dropout_rate": hp.quniform("dense_dropout_rate", 0.05, 0.5, 0.05),
    },
    "batch_size": 2 ** hp.uniformint("log2_batch_size", 4, 8),
    "learning_rate": hp.loguniform("learning_rate", np.log(1e-4), np.log(1e-1)),
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
    from hpo.training.data import fashion_mnist
    from objectives.fashion import kit

    images = fashion_mnist(data, examples=examples)
    return kit(framework).train_convolutional(
        params, run, images, epochs=epochs, minimize=minimize, patience=patience
    )
