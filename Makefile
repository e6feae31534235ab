# Everything runs in .venv, which the first target makes; `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
CONSTRAINTS := constraints.txt
EXTRA := dev
VERSION = $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
BIN := $(VENV)/bin
# torch first and alone: its pin decides which build pip takes, and nothing later may replace it.
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
SRC := sb3_policyopt tests benchmarks examples docs
# Another index for torch alone, such as PyTorch's CPU builds: TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=

.DEFAULT_GOAL := help
.PHONY: help install torch demo test test-fast test-lowest test-python test-slow test-gpu coverage lint format type bench docs docs-figures build clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(VENV)/.installed ## make .venv with everything that tests and demo need

# The build backend is installed before the package, under the same constraints, and pip builds with that one.
$(VENV)/.installed: pyproject.toml $(CONSTRAINTS)
	$(MAKE) torch
	$(PIP) install -c $(CONSTRAINTS) hatchling editables
	$(PIP) install -c $(CONSTRAINTS) --no-build-isolation -e '.[$(EXTRA)]'
	touch $@

torch: ## make .venv with torch alone; `install` begins with it
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -c $(CONSTRAINTS) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch

demo: install ## train TRPO and PPO on CartPole-v1, evaluate them, draw their learning curves
	$(BIN)/python examples/demo.py

test: install lint type ## lint, types and the tests
	$(BIN)/python -m pytest -n auto

test-fast: install ## a few tests of every part, in about a minute on two cores; `make test` runs what they leave out
	$(BIN)/python -m pytest -n auto -m "fast and not slow"

test-lowest: ## the fast tests with the lowest versions that pyproject.toml admits; PYTHON=python3.10 chooses another Python
	$(MAKE) test-fast VENV=.venv-lowest-$(VERSION) CONSTRAINTS=constraints-lowest.txt EXTRA=tests

test-python: ## the fast tests with the newest versions and another Python: make test-python PYTHON=python3.13
	$(MAKE) test-fast VENV=.venv-$(VERSION) EXTRA=tests

test-slow: install ## the tests that take minutes, and further cases of others
	$(BIN)/python -m pytest -m slow

test-gpu: install ## the tests that need a GPU
	$(BIN)/python -m pytest -m gpu

coverage: install ## the tests, with the coverage of the package by line; htmlcov/index.html shows what is not covered
	rm -rf .coverage .coverage.* htmlcov
	$(BIN)/python -m pytest -n auto --cov --cov-report=term --cov-report=html

lint: install ## ruff
	$(BIN)/ruff check $(SRC)
	$(BIN)/ruff format --check $(SRC)

format: install ## rewrite the code as ruff wants it
	$(BIN)/ruff check --fix $(SRC)
	$(BIN)/ruff format $(SRC)

type: install ## mypy, strict on the package and the tests
	$(BIN)/mypy

bench: install ## measure against SB3, sb3-contrib and SBX; writes benchmarks/results
	$(PIP) install -c constraints.txt -e '.[benchmarks]'
	$(BIN)/python -m benchmarks

docs: install ## build the documentation into site/; a broken link or reference fails
	$(PIP) install -c $(CONSTRAINTS) -e '.[docs]'
	$(BIN)/mkdocs build --strict

docs-figures: install ## draw the figures of docs/algorithms again
	$(BIN)/python docs/make_figures.py

build: install ## wheel and source distribution in dist/, checked by twine
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

clean: ## remove what the targets made
	rm -rf .venv .venv-* dist build demo site htmlcov .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .hypothesis
