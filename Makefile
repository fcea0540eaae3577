# Two commands for a fresh machine: `make demo` runs the main job, `make test` runs everything that is checked. Both
# build .venv first, and reuse it afterwards.
#
#   make setup                      the environment alone
#   make demo DATA=../shared/data   the main job on real data (a folder with the files that the README describes)
#   make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu   a CPU build of torch where the default is CUDA's
#   make test-fast                  the tests without the slow ones (environments, two processes, README commands)
#   make lint                       ruff, mypy, import-linter, codespell

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.10 || command -v python3)
BIN := .venv/bin
TORCH := torch==2.13.0
SEED ?= 1
# One test process more than cores: some tests wait for a subprocess, a server or the disk.
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(1 + (os.cpu_count() or 1))')
OUT ?= $(if $(DATA),runs/demo-data,runs/demo)

# Python never caches bytecode where this is set, and every start of `parlai` then takes seconds longer.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo test test-fast lint format clean

setup: .venv/ready

# torch comes first and with its own dependencies, so that a CUDA machine gets a CUDA build. All else is pinned and
# installed without resolving, because ParlAI's own pins cannot be met beside it.
.venv/ready: requirements/lock.txt pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 10) <= sys.version_info < (3, 14) else "$(PYTHON) is Python %d.%d. This package runs on Python 3.10 to 3.13. Type for example: make PYTHON=python3.11 $(or $(MAKECMDGOALS),setup)" % sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements/lock.txt $(TORCH) \
	  $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement requirements/lock.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

demo: setup
	$(BIN)/parlai safety_demo --out $(OUT) --seed $(SEED) $(if $(DATA),--data $(DATA))

test: lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not gpu and not network" $(ARGS)

test-fast: setup
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not slow and not gpu and not network" $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports
	$(BIN)/codespell

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv runs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
