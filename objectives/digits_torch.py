"""A multilayer perceptron on scikit-learn's digits: a training function to copy."""

from functools import partial

import torch
from torch import nn

from hpo.training.data import digits
from hpo.training.torch import fit, seed_everything

ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU, "tanh": nn.Tanh}
OPTIMIZERS = {
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "sgd": partial(torch.optim.SGD, momentum=0.9, nesterov=True),
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
        activation=ACTIVATIONS[params["activation"]],
        dropout=params["dropout"],
    )
    optimizer = OPTIMIZERS[params["optimizer"]](
        model.parameters(), lr=params["learning_rate"], weight_decay=params["weight_decay"]
    )
    fitted = fit(
        run,
        model,
        data,
        epochs=epochs,
        batch_size=params["batch_size"],
        optimizer=optimizer,
        scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs),
        minimize="error",
    )
    return fitted.as_result()


def perceptron(*, features, classes, layers, units, activation, dropout):
    """``(batch, features) -> (batch, classes)`` logits, with as many hidden layers of equal width."""
    hidden = []
    for width in [features] + [units] * (layers - 1):
        hidden += [nn.Linear(width, units), activation(), nn.Dropout(dropout)]
    return nn.Sequential(*hidden, nn.Linear(units, classes))
