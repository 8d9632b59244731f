"""VGG19's convolutions in PyTorch, with torchvision's weights, and what the frozen ones make of images.

Configuration E of Simonyan and Zisserman 2015, arXiv 1409.1556.
"""

import pickle
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from hpo import UsageError

URL = "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"  # 548 MB; the file torchvision loads, too
BLOCKS = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))  # channels and convolutions of each
LAST_BLOCK = 28  # its first layer
SIDE = 32  # five poolings need so many pixels


class Prepare(nn.Module):
    """Pixels ``(batch, height, width, 1 or 3)`` from 0 to 1 -> ``(batch, 3, 32 or more, 32 or more)``.

    Smaller images get a black rim, grey ones three equal channels; ``mean`` and ``deviation`` are by channel.
    """

    def __init__(self, mean, deviation):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("deviation", torch.tensor(deviation).view(3, 1, 1))

    def forward(self, images):
        rim = [max(0, SIDE - side) for side in (images.shape[2], images.shape[1])]
        sides = [side for width in rim for side in (width // 2, width - width // 2)]
        images = nn.functional.pad(images.permute(0, 3, 1, 2), sides)
        return (images.expand(-1, 3, -1, -1) - self.mean) / self.deviation


@lru_cache(maxsize=1)
def prepare(weights):
    """ImageNet's normalization belongs to ImageNet's weights; random ones take the pixels as they are."""
    if weights == "none":
        return Prepare((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return Prepare((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@lru_cache(maxsize=1)
def trunk(weights):
    """The layers up to the last pooling, ``(batch, 3, n, n) -> (batch, 512, n / 32, n / 32)``; read once.

    Args: weights: ``imagenet`` (downloaded into PyTorch's cache), the path of a state dict with torchvision's
    names, or ``none`` for random ones, the same in every trial. Raises UsageError where there are no such
    weights.
    """
    layers, before = [], 3
    for channels, count in BLOCKS:
        for _ in range(count):
            layers += [nn.Conv2d(before, channels, 3, padding=1), nn.ReLU()]
            before = channels
        layers.append(nn.MaxPool2d(2))
    model = nn.Sequential(*layers).requires_grad_(False).eval()
    if weights == "none":
        generator = torch.Generator().manual_seed(0)
        for layer in model:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
                nn.init.zeros_(layer.bias)
        return model
    state = _downloaded() if weights == "imagenet" else _read(Path(weights).expanduser())
    state = {name.removeprefix("features."): value for name, value in state.items() if "features." in name}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UsageError(
            f"the weights {weights} are not VGG19's: {error}", f"they are in {URL}: --set weights=PATH"
        ) from error
    return model


def frozen(weights, is_fine_tuned):
    """Images as `Prepare` takes them -> what the layers that are not trained make of them."""
    layers = trunk(weights)
    return nn.Sequential(prepare(weights), layers[:LAST_BLOCK] if is_fine_tuned else layers)


@lru_cache(maxsize=2)
def frozen_outputs(images, weights, is_fine_tuned, device, *, with_test=False):
    """The data set with what the frozen layers make of its images, ``(examples, 512, ...)``, in their place.

    Computed once per process: every trial learns from it. Without the test part, unless asked for. Of
    Fashion-MNIST's 60 000 images it is 120 MB, or 480 MB before the last block.
    """
    layers = frozen(weights, is_fine_tuned).to(device)

    def outputs(inputs):
        batches = np.array_split(inputs, -(-len(inputs) // 256))
        with torch.inference_mode():
            return np.concatenate([layers(torch.tensor(batch, device=device)).cpu() for batch in batches])

    train, validation, test = images.train, images.validation, images.test if with_test else None
    try:
        return replace(
            images,
            train=(outputs(train[0]), train[1]),
            validation=(outputs(validation[0]), validation[1]),
            test=None if test is None else (outputs(test[0]), test[1]),
        )
    finally:
        layers.cpu()


def _downloaded():
    try:
        return torch.hub.load_state_dict_from_url(
            URL, map_location="cpu", progress=False, check_hash=True, weights_only=True
        )
    except (OSError, RuntimeError) as error:  # no network, no room, another checksum
        raise UsageError(
            f"VGG19's weights can't be downloaded: {error}",
            f"fetch {URL} on another machine and say --set weights=PATH, or try things out with weights=none",
        ) from error


def _read(path):
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise UsageError(
            f"{path} can't be read as weights: {error}",
            f"it is the file {URL}; weights are imagenet, none or such a path",
        ) from error
    if not isinstance(state, dict):
        raise UsageError(f"{path} has a {type(state).__name__}, no state dict", f"fetch {URL}")
    return state
