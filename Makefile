# Two commands matter: `make demo` and `make test`. Both make .venv on first use and are quick the second time.
SHELL := bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CHAPTER ?= 0

# Two kernels on two cores: one thread each, and no spinning while waiting (together a factor of 4 to 20).
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: help demo test test-units test-lessons data rehearse gpu-bundle lab lint lessons results clean

help:  ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

demo: $(VENV)/ready  ## install, run one short lesson of each chapter, print the results
	@$(BIN)/python -m common run demo --jobs 2

test: test-units test-lessons  ## everything: lint, types, unit tests, a sample at full scale, every lesson

test-units: $(VENV)/ready-test data
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -n 2 --dist loadfile --cov=common --cov-report=term:skip-covered --cov-fail-under=90
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.rehearse sample

test-lessons: $(VENV)/ready-test data
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --nbval-lax -n 2 --dist loadfile $(wildcard $(CHAPTER)*-*/)

data: $(VENV)/ready
	@$(BIN)/python -m common data --fetch

rehearse: $(VENV)/ready-test  ## every lesson at full scale, with small random models of the real classes from a local Hub
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.rehearse all

gpu-bundle: $(VENV)/ready  ## one archive that measures everything that needs a GPU, where one is at hand
	@$(BIN)/python -m tests.gpu.bundle

lab: $(VENV)/ready-docs  ## JupyterLab
	@$(BIN)/jupyter lab --ip 127.0.0.1

lint: $(VENV)/ready-test  ## style, types and the lesson lint only
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/python -m tests.lint

lessons: $(VENV)/ready  ## execute every lesson and store its outputs in place
	@$(BIN)/python -m common run all --store

results: $(VENV)/ready  ## rebuild RESULTS.md from the last stored runs
	@$(BIN)/python -m common results --store

clean:  ## remove what runs have written (not the data cache)
	rm -rf outputs .pytest_cache .mypy_cache .ruff_cache .coverage

$(VENV)/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "Python's venv is missing; on Debian or Ubuntu: apt install python3-venv"; exit 1; }
	@rm -rf $(VENV) && $(PYTHON) -m venv $(VENV) && touch $@

# The mark is written last, so an interrupted installation is finished, not trusted, next time.
$(VENV)/ready: $(VENV)/made pyproject.toml constraints.txt
	@echo "Installing PyTorch, Transformers and the other libraries into $(VENV): 2 to 3 minutes the first time, silent until done."
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt "torch==2.13.0" -e . 2> >(grep -v "^WARNING: Location" >&2)
	@touch $@

$(VENV)/ready-%: $(VENV)/ready
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt "torch==2.13.0" -e ".[$*]" 2> >(grep -v "^WARNING: Location" >&2)
	@touch $@
