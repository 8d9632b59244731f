# Everything happens in .venv. `make quickstart` and `make test` need Python 3.11 or later and nothing else.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# Processes that run tests: most of them wait for a process that they have started.
JOBS ?= 2
PYTEST = $(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadgroup
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: quickstart test test-all check format bench clean

quickstart: .venv/quickstart  ## a real search: 20 networks on real images
	$(BIN)/hpo optimize spaces/digits_mlp.py --max-evals 20

test: .venv/dev  ## all tests but the long ones
	$(PYTEST) -m "not slow" $(TESTS)

test-all: .venv/dev  ## the long ones, too: many seeds of every crash
	$(PYTEST) $(TESTS)

check: .venv/dev  ## format, lint, types, who imports whom
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/dev  ## what a trial costs, beside hyperopt and Optuna
	$(PIP) --editable '.[bench]'
	$(BIN)/python benchmarks/overhead.py

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed (python3.11 or python3 on PATH)"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/quickstart: .venv/bin/python pyproject.toml constraints.txt
	@echo "Installing hpo, PyTorch and MLflow into .venv: a minute or two."
	$(PIP) --editable '.[torch,ui]'
	@touch $@

.venv/dev: .venv/bin/python pyproject.toml constraints.txt
	@echo "Installing what the tests need into .venv: a minute or two."
	$(PIP) --editable '.[dev]'
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
