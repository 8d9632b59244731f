"""Three networks for small images in PyTorch, as in fashion_keras.py: functions to copy."""

import copy
from dataclasses import replace

import torch
from torch import nn

from hpo.training.torch import device_for, fit, save_whole, seed_everything
from objectives import vgg19_torch as vgg19

ACTIVATIONS = {"relu": nn.ReLU, "selu": nn.SELU, "tanh": nn.Tanh}
POOLINGS = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}
OPTIMIZERS = {
    "adam": torch.optim.Adam,
    "adamax": torch.optim.Adamax,
    "nadam": torch.optim.NAdam,
    "rms-prop": torch.optim.RMSprop,
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

    Args: images: pixels from 0 to 1. weights: as in `vgg19_torch.trunk`. settings: as above.
    ``model.pt`` has the trained layers; where the winner is trained for good, all of them.
    """
    is_fine_tuned = params["fine_tune_last_block"]
    is_tested = run.final is not None and run.final.test
    outputs = vgg19.frozen_outputs(images, weights, is_fine_tuned, device_for(run), with_test=is_tested)
    seed_everything(run.seed)  # now: making the frozen layers draws numbers, in the first trial alone
    model = on_vgg19(params, weights, outputs.train[0].shape[1:], len(images.class_names))
    fitted = _train(params, run, model, outputs, **settings)
    if run.final is not None:
        whole = nn.Sequential(vgg19.frozen(weights, is_fine_tuned), model).cpu().eval()
        # In place of what `fit` has left, which begins behind the frozen layers.
        torch.save(whole.state_dict(), run.directory / "model.pt")
        example = torch.from_numpy(images.train[0][:2].copy())
        run.final.load_line = save_whole(whole, example, run.directory)
    return replace(fitted, dataset=images.describe()).as_result()


def fully_connected(params, shape, classes):
    """``(batch, *shape) -> (batch, classes)`` logits, by so many layers of equal size."""
    features = torch.Size(shape).numel()
    sizes = [params["layer_size"]] * params["num_layers"]
    hidden = dense(features, sizes, params["activation"], params["dropout_rate"])
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(([features, *sizes])[-1], classes))


def convolutional(params, shape, classes):
    """``(batch, height, width, channels) -> (batch, classes)`` logits; each block halves height and width."""
    height, width, channels = shape
    activation = params["activation"]
    layers = [ChannelsFirst()]
    for block in params["convolutions"]["blocks"]:
        for _ in range(block["num_convolutions"]):
            size = block["kernel_size"]
            convolution = nn.Conv2d(channels, block["filters"], size, padding="same")
            channels = block["filters"]
            layers.append(initialized(convolution, activation))
            if params["batch_normalization"]:
                layers.append(nn.BatchNorm2d(channels))
            layers.append(ACTIVATIONS[activation]())
        layers.append(POOLINGS[block["pooling"]](2))
        height, width = height // 2, width // 2
    features, top = height * width * channels, params["dense"]
    sizes = [top["layer_size"]] * top["num_layers"]
    layers += [nn.Flatten(), *dense(features, sizes, activation, top["dropout_rate"])]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], classes))


def on_vgg19(params, weights, shape, classes):
    """The trained layers: outputs of the frozen ones, ``(batch, *shape) -> (batch, classes)`` logits."""
    layers, features = [], torch.Size(shape).numel()
    if params["fine_tune_last_block"]:
        last_block = copy.deepcopy(vgg19.trunk(weights)[vgg19.LAST_BLOCK :])
        layers += last_block.requires_grad_(True)
        features = shape[0] * (shape[1] // 2) * (shape[2] // 2)
    layers.append(nn.Flatten())
    for block in filter(None, params["head"]["blocks"]):  # the third of several may be None
        sizes = [block["layer_size"]] * block["num_layers"]
        layers += dense(features, sizes, "relu")
        layers.append(nn.Dropout(block["dropout_rate"]))
        features = sizes[-1]
    return nn.Sequential(*layers, nn.Linear(features, classes))


def dense(features, sizes, activation, dropout_rate=0.0):
    """Layers of these sizes, each with its activation and dropout."""
    # SELU keeps mean and variance of its inputs; ordinary dropout would not (Klambauer et al. 2017).
    dropout = nn.AlphaDropout if activation == "selu" else nn.Dropout
    layers = []
    for size in sizes:
        layers += [initialized(nn.Linear(features, size), activation), ACTIVATIONS[activation]()]
        layers += [dropout(dropout_rate)] if dropout_rate else []
        features = size
    return layers


def initialized(layer, activation):
    """The layer with weights that keep the signal's variance: PyTorch's own fade out in 16 layers."""
    match activation:
        case "relu":
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        case "selu":  # LeCun's
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
        case "tanh":
            nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class ChannelsFirst(nn.Module):
    """``(batch, height, width, channels) -> (batch, channels, height, width)``."""

    def forward(self, images):
        return images.permute(0, 3, 1, 2)


def _train(params, run, model, data, **settings):
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = OPTIMIZERS[params["optimizer"]](parameters, lr=params["learning_rate"])
    return fit(run, model, data, batch_size=params["batch_size"], optimizer=optimizer, **settings)
