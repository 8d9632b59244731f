"""VGG19's convolutions from keras.applications: and what the frozen ones make of images.

Simonyan and Zisserman 2015, arXiv 1409.1556.
"""

from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import keras
import numpy as np

from hpo import UsageError

URL = (
    "https://storage.googleapis.com/tensorflow/keras-applications/vgg19/"
    "vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5"  # 80 MB
)
SIDE = 32  # five poolings need so many pixels
IMAGENET_BGR = (103.939, 116.779, 123.68)  # the mean of each channel, from 0 to 255


@lru_cache(maxsize=1)
def trunk(weights):
    """Two lists of layers, without the input: all before the last block, and its own; read once.

    Args: weights: ``imagenet`` (downloaded into Keras' cache), the path of a weights file, or ``none`` for
    random ones, the same in every trial. Raises UsageError where there are no such weights.
    """
    build = partial(keras.applications.VGG19, include_top=False, input_shape=(None, None, 3))
    if weights == "imagenet":
        try:
            model = build(weights="imagenet")
        except Exception as error:  # Keras raises nothing narrower
            raise UsageError(
                f"VGG19's weights can't be downloaded: {error}",
                f"fetch {URL} on another machine and say --set weights=PATH, "
                "or try things out with weights=none",
            ) from error
    else:
        model = build(weights=None)
    if weights == "none":
        for seed, layer in enumerate(layer for layer in model.layers if layer.weights):
            layer.kernel.assign(keras.initializers.HeNormal(seed)(layer.kernel.shape))
    elif weights != "imagenet":
        try:
            # Keras' own words for a missing file are about its format.
            model.load_weights(Path(weights).expanduser().resolve(strict=True))
        except (OSError, ValueError, KeyError) as error:
            raise UsageError(
                f"{weights} can't be read as VGG19's weights: {error}",
                f"it is the file {URL}, or a .weights.h5 of that model; "
                "weights are imagenet, none or such a path",
            ) from error
    layers = model.layers[1:]
    cut = [layer.name for layer in layers].index("block5_conv1")
    return layers[:cut], layers[cut:]


def frozen(weights, is_fine_tuned, shape):
    """Pixels ``(height, width, 1 or 3)`` from 0 to 1 -> what the layers that are not trained make of them.

    Smaller images get a black rim, grey ones the same three channels.
    """
    height, width, channels = shape
    rim = [
        (missing // 2, missing - missing // 2) for missing in (max(0, SIDE - height), max(0, SIDE - width))
    ]
    before, last = trunk(weights)
    prepare = keras.layers.Conv2D(3, 1, name="prepare")
    model = keras.Sequential(
        [
            keras.Input(shape),
            keras.layers.ZeroPadding2D(rim),
            prepare,
            *before,
            *([] if is_fine_tuned else last),
        ]
    )
    model.trainable = False
    # A convolution of single pixels repeats grey or turns RGB to BGR, and normalizes as ImageNet's weights
    # want it; random ones take the pixels as they are.
    mixing = np.ones((1, 3)) if channels == 1 else np.eye(3)[::-1]
    scale, mean = (1.0, np.zeros(3)) if weights == "none" else (255.0, np.array(IMAGENET_BGR))
    prepare.set_weights([scale * mixing[np.newaxis, np.newaxis], -mean])
    return model


def last_block(weights, shape):
    """A copy of the last block, to be trained, on inputs ``(height, width, 512)``."""
    pretrained = _pretrained_block(weights, shape)
    block = keras.models.clone_model(pretrained)
    block.set_weights(pretrained.get_weights())
    for layer in block.layers:  # the copies of frozen layers are frozen
        layer.trainable = True
    return block


@lru_cache(maxsize=1)
def _pretrained_block(weights, shape):
    """Made once, as layers remember every model that they were ever part of."""
    return keras.Sequential([keras.Input(shape), *trunk(weights)[1]])


@lru_cache(maxsize=2)
def frozen_outputs(images, weights, is_fine_tuned, *, with_test=False):
    """The data set with what the frozen layers make of its images, ``(examples, ..., 512)``, in their place.

    Computed once per process: every trial learns from it. Without the test part, unless asked for. Of
    Fashion-MNIST's 60 000 images it is 120 MB, or 480 MB before the last block.
    """
    model = frozen(weights, is_fine_tuned, images.train[0].shape[1:])

    def outputs(inputs):
        return model.predict(inputs, batch_size=256, verbose=0)

    train, validation, test = images.train, images.validation, images.test if with_test else None
    return replace(
        images,
        train=(outputs(train[0]), train[1]),
        validation=(outputs(validation[0]), validation[1]),
        test=None if test is None else (outputs(test[0]), test[1]),
    )
