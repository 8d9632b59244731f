"""Which classifier, and how set? A tree: every family of models brings parameters of its own.

    hpo optimize spaces/classifiers.py --max-evals 50

A trial has only the parameters of the branch it took, and the search learns about each branch apart.
"""

import numpy as np
from hyperopt import hp
from hyperopt.pyll.base import scope

logistic_regression = {
    "model": "logistic_regression",
    "C": hp.loguniform("logistic_C", np.log(1e-3), np.log(1e3)),
}

support_vectors = {
    "model": "support_vectors",
    "C": hp.loguniform("svm_C", np.log(1e-2), np.log(1e3)),
    "kernel": hp.choice(
        "svm_kernel",
        [
            {"name": "linear"},
            {"name": "rbf", "gamma": hp.loguniform("svm_rbf_gamma", np.log(1e-4), np.log(1))},
            {
                "name": "poly",
                "gamma": hp.loguniform("svm_poly_gamma", np.log(1e-4), np.log(1)),
                "degree": hp.uniformint("svm_poly_degree", 2, 5),
                "coef0": hp.uniform("svm_poly_coef0", 0, 1),
            },
        ],
    ),
}

random_forest = {
    "model": "random_forest",
    "n_estimators": scope.int(hp.qloguniform("forest_n_estimators", np.log(10), np.log(200), 10)),
    "max_features": hp.uniform("forest_max_features", 0.05, 0.5),
    "min_samples_leaf": hp.uniformint("forest_min_samples_leaf", 1, 10),
    "criterion": hp.choice("forest_criterion", ["gini", "entropy"]),
}

nearest_neighbours = {
    "model": "nearest_neighbours",
    "n_neighbors": hp.uniformint("knn_n_neighbors", 1, 30),
    "weights": hp.choice("knn_weights", ["uniform", "distance"]),
    "p": hp.uniform("knn_p", 1, 4),
}

space = hp.choice("model", [logistic_regression, support_vectors, random_forest, nearest_neighbours])


def objective(params, run, *, folds=3):
    """The share of digits misclassified in cross-validation."""
    # Imported here, so that the driver, which trains nothing, reads this file without scikit-learn.
    from objectives.sklearn_classifiers import cross_validate

    return cross_validate(params, run, folds=folds)
