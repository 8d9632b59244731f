"""How many steps a second the fit loops make, beside loops without them.

    python benchmarks/training_loops.py              # minutes; a GPU is used where there is one
    python benchmarks/training_loops.py --rounds 1   # quicker

Scikit-learn's digits, four times over (5028 examples); a perceptron of two layers of 128 units and a small
network of convolutions; Adam. ``steps/s`` is of the training part of an epoch (the clock's data and step),
``epoch ms`` of the whole epoch: with validation, metrics of each class and checkpoint in hpo's loops, with a
validation pass for loss and accuracy in the plain PyTorch loop, with nothing in Keras' own. The loops of one
framework take turns in one process. A figure is that of a loop's best epoch, which other work on the machine
disturbs least; ratios are to the plain loop over tensors in PyTorch, to Keras' own ``fit`` on the same
backend in Keras.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from hpo.run import Run
from hpo.training.data import Dataset, digits

COPIES = 4
BATCH_SIZES = (16, 128)
MODELS = ("perceptron", "convolutions")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=8, help="in a round; the first is not counted")
    parser.add_argument("--threads", type=int, default=1, help="of an operation on the CPU")
    parser.add_argument("--only", choices=["torch", "keras-tensorflow", "keras-torch"])
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        measure = torch_loops if options.only == "torch" else keras_loops
        print(json.dumps(measure(options.rounds, options.epochs)))
        return

    print("| framework | model | batch | loop | steps/s | ratio | epoch ms |\n|---|---|---|---|---|---|---|")
    for framework in [options.only] if options.only else frameworks():
        for row in in_a_process_of_its_own(framework, options):
            figures = f"{row['steps_per_second']:,.0f} | {row['ratio']:.2f} | {row['epoch_ms']:.1f}"
            print(f"| {framework} | {row['model']} | {row['batch_size']} | {row['loop']} | {figures} |")


def frameworks() -> list[str]:
    found = ["torch"]
    if find_spec("keras"):
        found += [f"keras-{backend}" for backend in ("tensorflow", "torch") if find_spec(backend)]
    return found


def in_a_process_of_its_own(framework: str, options: argparse.Namespace) -> list[dict]:
    threads = str(options.threads)
    names = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
    environment = os.environ | dict.fromkeys(names, threads)
    environment |= {"TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": framework.partition("-")[2] or "torch"}
    command = [sys.executable, __file__, "--child", "--only", framework]
    command += ["--rounds", str(options.rounds), "--epochs", str(options.epochs)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def compared(loops: dict, model: str, batch_size: int, rounds: int) -> list[dict]:
    """Every loop once a round, in turns. Loops: name -> () -> [(steps per second, seconds of an epoch)]."""
    figures: dict = {name: [] for name in loops}
    for _ in range(rounds):
        for name, loop in loops.items():
            figures[name] += loop()
    best = {name: max(steps for steps, _ in found) for name, found in figures.items()}
    plain = next(iter(best.values()))
    return [
        {
            "model": model,
            "batch_size": batch_size,
            "loop": name,
            "steps_per_second": best[name],
            "ratio": best[name] / plain,
            "epoch_ms": 1000 * min(seconds for _, seconds in found),
        }
        for name, found in figures.items()
    ]


def many_digits(model: str) -> Dataset:
    data = digits(images=model == "convolutions")
    inputs, targets = (np.concatenate([values] * COPIES) for values in data.train)
    return Dataset((inputs, targets), data.validation, class_names=data.class_names, name="many digits")


def by_the_clock(fit) -> list[tuple[float, float]]:
    """What the clock says of the epochs of a training by ``fit(run)``, but for the first."""
    epochs = []
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder) / name for name in ("artifacts", "checkpoints")]
        for place in places:
            place.mkdir()
        run = Run(0, 0, *places)
        send = run.send

        def kept(epoch, loss, metrics, when):
            epochs.append(metrics)
            return send(epoch, loss, metrics, when)

        run.send = kept
        fit(run)
    return [
        (
            epoch["time/steps"]
            / (epoch["time/epoch_seconds"] * (epoch["time/data_share"] + epoch["time/step_share"])),
            epoch["time/epoch_seconds"],
        )
        for epoch in epochs[1:]
    ]


# --- PyTorch


def torch_loops(rounds: int, epochs: int) -> list[dict]:
    import torch
    from torch import nn
    from torch.nn.functional import cross_entropy
    from torch.utils.data import DataLoader, TensorDataset

    from hpo.training.torch import fit

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def network(model: str) -> nn.Module:
        torch.manual_seed(0)
        if model == "perceptron":
            layers = [nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)]
        else:
            layers = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()]
            layers += [nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10)]
        return nn.Sequential(*layers).to(device)

    def plain_epoch(model, optimizer, batches) -> int:
        model.train()
        losses = []
        for inputs, targets in batches:
            optimizer.zero_grad()
            loss = cross_entropy(model(inputs), targets)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        torch.stack(losses).mean().item()
        return len(losses)

    def plain_validation(model, inputs, targets) -> None:
        model.eval()
        with torch.inference_mode():
            outputs = model(inputs)
            torch.stack(
                [cross_entropy(outputs, targets), (outputs.argmax(1) == targets).float().mean()]
            ).tolist()

    def plain_loop(name, batches, validation) -> list[tuple[float, float]]:
        model = network(name)
        optimizer = torch.optim.Adam(model.parameters())
        found = []
        for _ in range(epochs):
            began = time.perf_counter()
            steps = plain_epoch(model, optimizer, batches())
            trained = time.perf_counter() - began
            plain_validation(model, *validation)
            found.append((steps / trained, time.perf_counter() - began))
        return found[1:]

    def fitted(name, data, batch_size) -> list[tuple[float, float]]:
        model = network(name)
        optimizer = torch.optim.Adam(model.parameters())
        settings = {"epochs": epochs, "batch_size": batch_size, "optimizer": optimizer}
        return by_the_clock(lambda run: fit(run, model, data, **settings))

    def looked_up(inputs, targets, size):
        order = torch.randperm(len(targets), device=device)
        return ((inputs[rows], targets[rows]) for rows in order.split(size))

    def loader(part, size):
        return DataLoader(TensorDataset(*map(torch.tensor, part)), size, shuffle=True)

    def loaded(batches):
        return ((inputs.to(device), targets.to(device)) for inputs, targets in batches)

    rows = []
    for name in MODELS:
        data = many_digits(name)
        if name == "convolutions":  # PyTorch has channels first
            parts = (
                (np.moveaxis(inputs, 3, 1).copy(), targets)
                for inputs, targets in (data.train, data.validation)
            )
            data = Dataset(*parts, class_names=data.class_names, name=data.name)
        train, validation = (
            tuple(torch.tensor(values, device=device) for values in part)
            for part in (data.train, data.validation)
        )
        for size in BATCH_SIZES:
            batches = loader(data.train, size)
            by_loader = Dataset(batches, data.validation, class_names=data.class_names)
            loops = {
                "plain, tensors": partial(plain_loop, name, partial(looked_up, *train, size), validation),
                "hpo fit, arrays": partial(fitted, name, data, size),
                "plain, DataLoader": partial(plain_loop, name, partial(loaded, batches), validation),
                "hpo fit, DataLoader": partial(fitted, name, by_loader, None),
            }
            rows += compared(loops, name, size, rounds)
    return rows


# --- Keras


def keras_loops(rounds: int, epochs: int) -> list[dict]:
    import keras
    from keras import layers

    def network(model: str) -> keras.Model:
        keras.utils.set_random_seed(0)
        if model == "perceptron":
            parts = [keras.Input((64,)), layers.Dense(128, "relu"), layers.Dense(128, "relu")]
        else:
            parts = [keras.Input((8, 8, 1))]
            parts += [layers.Conv2D(filters, 3, padding="same", activation="relu") for filters in (16, 32)]
            parts += [layers.MaxPooling2D(), layers.Flatten(), layers.Dense(64, "relu")]
        built = keras.Sequential([*parts, layers.Dense(10)])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        built.compile(keras.optimizers.Adam(), loss)
        return built

    class Stopwatch(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.seconds = []

        def on_epoch_begin(self, epoch, logs=None):
            self.began = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            self.seconds.append(time.perf_counter() - self.began)

    def own(name, data, batch_size) -> list[tuple[float, float]]:
        watch = Stopwatch()
        network(name).fit(*data.train, batch_size=batch_size, epochs=epochs, verbose=0, callbacks=[watch])
        steps = -(-len(data.train[1]) // batch_size)
        return [(steps / seconds, seconds) for seconds in watch.seconds[1:]]

    def fitted(name, data, batch_size) -> list[tuple[float, float]]:
        from hpo.training.keras import fit

        model = network(name)
        return by_the_clock(lambda run: fit(run, model, data, epochs=epochs, batch_size=batch_size))

    rows = []
    for name in MODELS:
        data = many_digits(name)
        for size in BATCH_SIZES:
            loops = {"keras fit": partial(own, name, data, size)}
            if find_spec("hpo.training.keras"):
                loops["hpo fit"] = partial(fitted, name, data, size)
            rows += compared(loops, name, size, rounds)
    return rows


if __name__ == "__main__":
    main()
