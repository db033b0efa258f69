PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DATA ?=
ROUNDS ?= 200
PARALLEL ?= -n auto
# Tests of what stands above the engine and has no kernels of its own.
ABOVE := bench datasets integrations migrate
SECONDS ?= 60

.PHONY: setup demo test test-jit test-nojit lint crash bench-core clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check 'hnswlib>=0.8' # no compiler: its tests are skipped
	touch $@

demo: setup
	$(BIN)/corenn demo

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint test-jit test-nojit

test-jit: setup
	$(BIN)/python -m pytest $(PARALLEL) -m 'not slow'

# The suite once more with the kernels as plain Python, on small data: what the compiler may hide.
test-nojit: setup
	NUMBA_DISABLE_JIT=1 $(BIN)/python -m pytest -q $(PARALLEL) -m 'not slow and not compiled' $(ABOVE:%=--ignore=tests/%)

crash: setup
	$(BIN)/python -m tests.crash.harness --rounds $(ROUNDS)
	NUMBA_BOUNDSCHECK=1 $(BIN)/python -m tests.crash.harness --rounds 5
	$(BIN)/python -m tests.crash.readers --seconds $(SECONDS)

bench-core: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]' 'hnswlib>=0.8'
	$(BIN)/python -m corenn.bench.core $(if $(DATA),--data $(DATA)) --json bench-results/core.json

clean:
	rm -rf $(VENV) dist build bench-results
