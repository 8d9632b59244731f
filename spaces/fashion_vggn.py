"""Transfer from VGG19 to Fashion-MNIST: which dense blocks to put on it, and whether to tune its last block.

    hpo optimize spaces/fashion_vggn.py --max-evals 100 --set weights=imagenet

``weights``: ``imagenet`` downloads them; a path has them already (PyTorch: torchvision's vgg19-dcbb9e9d.pth;
Keras: a .weights.h5 file, or the .h5 of keras.applications without its top); ``none`` are random ones, to try
things out. What the frozen layers make of the images is computed once in each worker. The other arguments are
those of fashion_fcnn.py.
"""

import numpy as np
from hyperopt import hp
from hyperopt.pyll.base import scope


def block(name, num_layers=1):
    """Dense layers of equal size, then dropout."""
    return {
        "num_layers": num_layers,
        "layer_size": scope.int(hp.qloguniform(f"{name}_layer_size", np.log(128), np.log(1024), 128)),
        "dropout_rate": hp.quniform(f"{name}_dropout_rate", 0.05, 0.5, 0.05),
    }


space = {
    "head": hp.choice(
        "head",
        [
            {"name": "no_block", "blocks": []},
            {"name": "one_block", "blocks": [block("only", hp.uniformint("only_num_layers", 1, 3))]},
            {
                "name": "several_blocks",
                # Each of one layer: 2 or 3 of them.
                "blocks": [block("first"), block("second"), hp.choice("third_block", [None, block("third")])],
            },
        ],
    ),
    "fine_tune_last_block": hp.choice("fine_tune_last_block", [False, True]),
    "batch_size": 2 ** hp.uniformint("log2_batch_size", 4, 8),
    "learning_rate": hp.loguniform("learning_rate", np.log(1e-5), np.log(1e-2)),
    "optimizer": hp.choice("optimizer", ["adam", "adamax", "nadam", "rms-prop"]),
}


def objective(
    params,
    run,
    *,
    framework="torch",
    weights="imagenet",
    epochs=50,
    data=None,
    examples=None,
    minimize="error",
    patience=None,
):
    """The share of validation images that the network gets wrong, or what ``minimize`` says."""
    from hpo.training.data import fashion_mnist
    from objectives.fashion import kit

    # Pixels from 0 to 1, as VGG19's own normalization expects them.
    images = fashion_mnist(data, examples=examples, scale="unit")
    return kit(framework).train_vgg19(
        params, run, images, weights=weights, epochs=epochs, minimize=minimize, patience=patience
    )
