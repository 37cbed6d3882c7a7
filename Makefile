# One entry point. Every target sets up what it needs: `make demo` and `make test` work on a fresh clone.
PYTHON ?= python3
BIN := .venv/bin
# Correctness needs no optimised code, and XLA's compile time is most of a test's time.
TEST_FLAGS := XLA_FLAGS=--xla_backend_optimization_level=0

.DEFAULT_GOAL := help
.PHONY: help setup demo test sweep lint types bench docs

help:  ## list the targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: .venv/ready  ## make .venv from constraints.txt

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check --quiet --constraint constraints.txt torch setuptools
	$(BIN)/pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[dev,demo]'
	touch $@

demo: setup  ## wrap, train and grow a CNN and an MLP on real images, and get PyTorch back
	$(BIN)/esper grow configs/quickstart.yaml
	$(BIN)/esper grow configs/quickstart_mlp.yaml

test: setup  ## the test suite
	$(TEST_FLAGS) $(BIN)/python -m pytest -n 2 --dist worksteal -q

sweep: setup  ## every operator case, where `make test` runs a fixed sample of them
	$(TEST_FLAGS) $(BIN)/python -m pytest -n 2 --dist worksteal -q --sweep all tests/ops

lint: setup  ## ruff and the floors of the architecture
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: setup  ## pyright
	$(BIN)/pyright

bench: setup  ## time a wrapped train step beside eager torch and hand-written JAX
	$(BIN)/python benchmarks/train_step.py

docs: setup  ## run the code in README.md and docs/
	$(TEST_FLAGS) $(BIN)/python -m pytest -q tests/test_docs.py
