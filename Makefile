# `make demo` detects out-of-distribution digits; `make test` runs lint, docs and tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# What the wait is for. On Linux, PyTorch requires CUDA's libraries with or without a GPU, and pip can
# leave them out only where another index has a PyTorch without them: docs/tutorials/quickstart.md.
DOWNLOAD := 0.4 GB
ifeq ($(shell uname -s),Linux)
DOWNLOAD := up to 3.2 GB, 2.5 GB of them the CUDA libraries that PyTorch requires
endif

.PHONY: help demo test test-all lint docs recipes clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

demo: $(VENV)/demo ## install into .venv and run the embedded benchmark
	@$(BIN)/python -m diffguard_pl.test

# Three processes on two cores, since some tests wait: for SLURM, servers and other processes.
test: $(VENV)/dev lint docs ## install the development extras, lint, build the docs, run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist worksteal

test-all: $(VENV)/dev ## run all tests, with those marked slow: about twice as long
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist worksteal -m ""

lint: $(VENV)/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/hadolint Dockerfile
	$(BIN)/mypy

docs: $(VENV)/dev ## build the documentation site into site/; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

recipes: $(VENV)/demo ## retrain the weights of the embedded benchmark
	$(BIN)/python recipes/digits.py

clean: ## remove the environment
	rm -rf $(VENV)

$(VENV)/demo: pyproject.toml constraints.txt
	@echo "installing into $(VENV), some minutes: $(DOWNLOAD)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) -e .
	@touch $@

$(VENV)/dev: pyproject.toml constraints.txt
	@echo "installing into $(VENV), some minutes: $(DOWNLOAD), and the development extras"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) -e '.[dev]'
	@touch $(VENV)/demo $@
