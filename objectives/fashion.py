"""Image classifiers to tune on Fashion-MNIST, the same ones in PyTorch and in Keras."""

import importlib.util
import os

from hpo import UsageError


def kit(framework):
    """The module that trains in ``torch`` or ``keras``; both have the same functions.

    Keras runs on TensorFlow, or on what KERAS_BACKEND says; on PyTorch where TensorFlow is not installed.
    """
    match framework:
        case "torch":
            from objectives import fashion_torch

            return fashion_torch
        case "keras":
            if importlib.util.find_spec("tensorflow") is None:
                os.environ.setdefault("KERAS_BACKEND", "torch")
            from objectives import fashion_keras

            return fashion_keras
    raise UsageError(f"framework is {framework!r}", "choose torch or keras: --set framework=keras")
