# Everything a developer, CI and the README run. Needs make and Python 3.11 to 3.13; builds its environment itself.
#   make setup   the environment (.venv), from the locks; returns at once when it is up to date
#   make demo    train a few adapters and serve them
#   make test    the whole gate: check, then the tests on the real engine
#   make check   format, lint, types, import contracts, unit tests
#   make lock    resolve requirements/*.in into requirements/*.lock

VENV ?= .venv
BIN := $(VENV)/bin
# The first interpreter that starts and is of a supported version (`make PYTHON=...` chooses another).
PYTHON ?= $(shell for python in python3 python python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	&& { echo $$python; break; }; done)
PYTEST := $(BIN)/python -m pytest
# Two halves side by side: what imports torch, and the rest.
TORCH := tests/training tests/deploy
UNIT := $(PYTEST) -m unit -q $(TORCH) & half=$$!; \
	$(PYTEST) -m unit -q tests --ignore=tests/e2e $(TORCH:%=--ignore=%); rest=$$?; wait $$half && exit $$rest

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format unit e2e long lock clean

help:
	@sed -n 's/^#   //p' Makefile

setup:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11, 3.12 or 3.13 found: install one, or name it with make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) requirements/install.py $(VENV)

demo: setup
	$(BIN)/onebase demo

test: check e2e

check: setup
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(UNIT)

format: setup
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

unit: setup
	$(UNIT)

e2e: setup
	$(PYTEST) -m e2e

long: setup
	$(PYTEST) -m long

lock:
	$(PYTHON) requirements/lock.py

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
