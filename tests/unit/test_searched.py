"""Which shown parameters a study searches, and the page that MLflow shows of it."""

import json

from hyperopt import hp
from hyperopt.pyll import scope

from hpo.space import compile_space
from hpo.tracking.mlflow.shown import texts_of
from hpo.tracking.mlflow.view import TAG_LIMIT, view_tag
from hpo.tracking.searched import searched


def found(expression):
    return searched(compile_space(expression).describe())


def test_log_scaled_parameters_are_found_by_the_names_people_see():
    parameters = found(
        {
            "lr": hp.loguniform("label of lr", -5, 0),
            "units": scope.int(hp.qloguniform("u", 2, 6, 1)),
            "widths": [hp.lognormal("w", 0, 1), hp.uniform("v", 0, 1)],
            "decay": 1 - hp.loguniform("d", -5, 0),
            "optimizer": {"momentum": hp.qlognormal("m", 0, 1, 1)},
            "epochs": 5,
        }
    )

    assert {name for name, one in parameters.items() if one.is_log} == {
        "lr",
        "units",
        "widths.0",
        "optimizer.momentum",
    }
    assert parameters.keys() == {"lr", "units", "widths.0", "widths.1", "decay", "optimizer.momentum"}


def test_what_only_some_options_have_is_not_there_always():
    parameters = found(
        {
            "optimizer": hp.choice(
                "o", [{"name": "sgd", "momentum": hp.uniform("m", 0, 1)}, {"name": "adam"}]
            ),
            "batch_size": hp.choice("b", [16, 32]),
        }
    )

    assert {name: (one.is_always, one.is_number) for name, one in parameters.items()} == {
        "optimizer.name": (True, False),
        "optimizer.momentum": (False, True),
        "batch_size": (True, True),
    }


def test_a_space_of_one_parameter_is_called_as_its_value_is_shown():
    assert list(found(hp.uniform("x", 0, 1))) == ["value"]


def test_a_description_that_is_none_finds_nothing():
    assert [searched(odd) for odd in ({}, None, {"expression": {"parameter": "x"}, "parameters": {}})] == [
        {}
    ] * 3


def test_log_scaled_values_are_shown_by_their_power_of_ten_as_well():
    parameters = found({"lr": hp.loguniform("lr", -9, 0), "x": hp.uniform("x", 0, 1)})

    assert texts_of({"lr": 0.001, "x": 0.5}, parameters) == {"lr": "0.001", "x": "0.5", "lr_log10": "-3.0"}
    assert texts_of({"lr": 0.0, "x": 0.5}, parameters) == {"lr": "0.0", "x": "0.5"}
    assert texts_of({"lr": 0.001, "lr_log10": "mine"}, parameters)["lr_log10"] == "mine"


def test_the_view_compares_what_every_trial_has():
    parameters = found(
        {
            "lr": hp.loguniform("lr", -9, 0),
            "batch_size": hp.choice("b", [16, 32]),
            "kind": hp.choice("o", [{"name": "sgd", "momentum": hp.uniform("m", 0, 1)}, {"name": "adam"}]),
        }
    )

    _, text = view_tag("abc", parameters)

    state = json.loads(text)
    charts = {chart["type"]: chart for chart in state["compareRunCharts"]}
    assert set(charts["PARALLEL"]["selectedParams"]) == {"lr_log10", "batch_size", "kind.name"}
    assert charts["SCATTER"]["xaxis"]["key"] == "batch_size"
    assert "params.`kind.momentum`" in state["selectedColumns"]
    assert state["searchFilter"] == "tags.`mlflow.parentRunId` = 'abc'"
    assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} == {
        section["uuid"] for section in state["compareRunSections"]
    }


def test_a_view_of_hundreds_of_parameters_fits_into_a_tag():
    parameters = found({f"parameter_number_{n}": hp.uniform(f"p{n}", 0, 1) for n in range(300)})

    key, text = view_tag("a" * 32, parameters)

    assert len(text) <= TAG_LIMIT
    assert "parameter_number_1" in text
    assert key != view_tag("b" * 32, parameters)[0]
