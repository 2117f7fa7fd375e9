# Every target creates the environment that it needs. PYTHON picks the interpreter (3.11 or newer).
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: demo test lint compiled clean

demo: $(STAMP)  ## serve, calibrate, simulate, compare and draw on this machine, into results/demo/
	$(BIN)/pdv demo --out results/demo

test: $(STAMP)  ## lint, types and the whole suite
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --numprocesses 2

compiled: $(STAMP)  ## compile the scheduler and the simulator with mypyc, and compare runs; needs a C compiler
	$(BIN)/python -m experiments.program.compile
	$(BIN)/python -m pytest -q tests/experiments/test_compiled.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "pdv needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[engines,dev]'
	@touch $@

clean:
	rm -rf $(VENV) build/compiled .pytest_cache .mypy_cache .ruff_cache .hypothesis
