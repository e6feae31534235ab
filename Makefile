# Everything runs in .venv, which the first target makes; `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# torch first and alone: its pin decides which build pip takes, and nothing later may replace it.
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
SRC := sb3_policyopt tests benchmarks examples

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-gpu lint format type bench build clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(VENV)/.installed ## make .venv with everything that tests and demo need

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt torch
	$(PIP) install -c constraints.txt -e '.[dev]'
	touch $@

demo: install ## train TRPO and PPO on CartPole-v1, evaluate them, draw their learning curves
	$(BIN)/python examples/demo.py

test: install lint type ## lint, types and the tests
	$(BIN)/python -m pytest -n auto

test-slow: install ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

test-gpu: install ## the tests that need a GPU
	$(BIN)/python -m pytest -m gpu

lint: install ## ruff
	$(BIN)/ruff check $(SRC)
	$(BIN)/ruff format --check $(SRC)

format: install ## rewrite the code as ruff wants it
	$(BIN)/ruff check --fix $(SRC)
	$(BIN)/ruff format $(SRC)

type: install ## mypy, strict on the package
	$(BIN)/mypy

bench: install ## measure against SB3, sb3-contrib and SBX; writes benchmarks/results
	$(PIP) install -c constraints.txt -e '.[benchmarks]'
	$(BIN)/python -m benchmarks

build: install ## wheel and source distribution in dist/
	$(BIN)/python -m build

clean: ## remove what the targets made
	rm -rf $(VENV) dist build demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
