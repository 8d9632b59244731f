"""Scikit-learn's classifiers on its digits, cross-validated: a training function to copy."""

import numpy as np
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC

from hpo.training.data import digits


def cross_validate(params, run, *, folds):
    """Mean error over so many folds of the train and validation digits; the same folds in every trial."""
    data = digits()
    inputs, targets = (np.concatenate(parts) for parts in zip(data.train, data.validation, strict=True))
    splits = StratifiedKFold(folds, shuffle=True, random_state=0)
    accuracies = cross_val_score(
        classifier(params, run.seed), inputs, targets, cv=splits, error_score="raise"
    )
    return {
        "loss": 1 - accuracies.mean(),
        "accuracy": accuracies.mean(),
        "accuracy_deviation": accuracies.std(ddof=1),
    }


def classifier(params, seed):
    """The untrained classifier of the branch that the trial took."""
    settings = {name: value for name, value in params.items() if name != "model"}
    match params["model"]:
        case "logistic_regression":
            return LogisticRegression(**settings, max_iter=1000)
        case "support_vectors":
            kernel = dict(settings.pop("kernel"))
            return SVC(kernel=kernel.pop("name"), **kernel, **settings)
        case "random_forest":
            return RandomForestClassifier(**settings, random_state=seed)
        case "nearest_neighbours":
            return KNeighborsClassifier(**settings)
        case other:
            raise ValueError(f"no classifier is called {other!r}")
