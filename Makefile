# One entry point. Every target sets up what it needs: `make demo` and `make test` work on a fresh clone.
PYTHON ?= python3
TORCH ?= 2.12.0
BIN := .venv/bin
# Correctness needs no optimised code, and XLA's compile time is much of a test's time. Its fusion emitters take two
# thirds of that: tests do without, except those that compare values and gradients of operators and models with torch's.
VALUE_FLAGS := XLA_FLAGS=--xla_backend_optimization_level=0
TEST_FLAGS := XLA_FLAGS="--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
VALUES := tests/ops tests/test_parity.py tests/test_step_parity.py tests/test_derivatives.py $(wildcard tests/test_fast_*.py)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-services reference sweep parity evidence versions without-torch lint types bench bench-bridges docs

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 15

setup: .venv/ready  ## make .venv from constraints.txt

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check --quiet --constraint constraints.txt torch setuptools
	$(BIN)/pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[dev,demo]'
	touch $@

demo: setup  ## wrap, train and grow a CNN and an MLP on real images, get PyTorch back, and report on it
	$(BIN)/esper grow configs/quickstart.yaml
	$(BIN)/esper grow configs/quickstart_mlp.yaml
	$(BIN)/esper report runs/quickstart runs/quickstart_mlp -o runs/report.html

test: setup  ## the test suite
	$(VALUE_FLAGS) $(BIN)/python -m pytest -n 2 --dist worksteal -q $(VALUES)
	$(TEST_FLAGS) $(BIN)/python -m pytest -n 2 --dist worksteal -q -m "not browser" $(VALUES:%=--ignore=%)

test-services: setup  ## the tests against real PostgreSQL, Redis and S3-compatible servers on loopback, and Chromium
	tests/services/install.sh
	ESPER_REQUIRE_BROWSER=1 $(TEST_FLAGS) $(BIN)/python -m pytest -n 2 --dist loadfile -q tests/services \
	    tests/report/test_report_browser.py

reference: setup  ## write what the fields of the configuration generate: schema, tables of the docs, deploy/esper.yaml
	$(BIN)/esper config schema configs/esper.schema.json
	$(BIN)/esper config reference docs/configuration.md
	$(BIN)/esper config init --template cluster > deploy/esper.yaml

sweep: setup  ## every operator, convolution, blueprint and fold, where `make test` runs a fixed sample of them
	$(VALUE_FLAGS) $(BIN)/python -m pytest -n 2 --dist worksteal -q --sweep all tests/ops tests/test_blueprints.py \
	    tests/test_fast_convolution.py tests/test_fold.py

parity: setup  ## every case of tests/parity against eager torch, and docs/coverage.md (an hour or two)
	$(BIN)/pip install --disable-pip-version-check --quiet --constraint constraints.txt --no-deps timm
	$(VALUE_FLAGS) PYTHONPATH=tests $(BIN)/python -W ignore -m parity.run --out build/parity
	PYTHONPATH=tests $(BIN)/python -m parity.report build/parity docs/coverage.md

evidence: setup  ## whether growth pays: every claim against equal budgets, and docs/evidence.md (about an hour)
	$(BIN)/pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[evidence]'
	$(BIN)/python -m benchmarks.evidence

versions: .venv-torch-$(TORCH)/ready  ## the core tests on another torch release: make versions TORCH=2.12.0
	$(VALUE_FLAGS) .venv-torch-$(TORCH)/bin/python -m pytest -n 2 -q tests/test_import.py tests/test_extension.py \
	    tests/test_defects.py tests/test_parity.py::test_semantics

.venv-torch-$(TORCH)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-torch-$(TORCH)
	grep -v '^torch==' constraints.txt > .venv-torch-$(TORCH)/constraints.txt
	.venv-torch-$(TORCH)/bin/pip install --disable-pip-version-check --quiet torch==$(TORCH) setuptools
	.venv-torch-$(TORCH)/bin/pip install --disable-pip-version-check --quiet \
	    --constraint .venv-torch-$(TORCH)/constraints.txt --editable '.[dev]'
	touch $@

without-torch: setup .venv-without-torch/ready  ## a saved model where torch is not installed
	ESPER_WITHOUT_TORCH=$(CURDIR)/.venv-without-torch/bin/python $(TEST_FLAGS) $(BIN)/python -m pytest -q \
	    tests/test_save.py -k without_torch

.venv-without-torch/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-without-torch
	.venv-without-torch/bin/pip install --disable-pip-version-check --quiet --constraint constraints.txt \
	    jax flax optax pydantic pydantic-settings pyyaml numpy scipy jaxtyping safetensors rich
	touch $@

lint: setup  ## ruff and the floors of the architecture
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: setup  ## pyright
	$(BIN)/pyright

bench: setup  ## time esper beside eager torch, torch.compile and JAX by hand, and docs/performance.md (about three hours)
	$(BIN)/python -m benchmarks.speed
	$(BIN)/python benchmarks/reserve.py

bench-bridges: setup .venv-bridges/ready  ## the same, with the tracing bridges among the contenders
	$(BIN)/python -m benchmarks.speed

.venv-bridges/ready: benchmarks/requirements-bridges.txt constraints.txt
	$(PYTHON) -m venv .venv-bridges
	.venv-bridges/bin/pip install --disable-pip-version-check --quiet \
	    --constraint constraints.txt torch setuptools
	.venv-bridges/bin/pip install --disable-pip-version-check --quiet \
	    --constraint constraints.txt --requirement benchmarks/requirements-bridges.txt
	touch $@

docs: setup  ## run the code in README.md and docs/
	$(TEST_FLAGS) $(BIN)/python -m pytest -q tests/test_docs.py
