# `make demo` and `make test` are all one needs. Both build the environment in .venv first.
# Needs git, make and Python 3.11 or 3.12; on Windows use the commands in docs/CONTRIBUTING.md.

SHELL := /bin/bash
.DEFAULT_GOAL := help

# The first Python that really starts and has a version that was tested (a shim may exist and not start).
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null && { echo $$p; break; }; done)
TORCH ?= torch==2.13.0
# Without an NVIDIA GPU the CPU build saves gigabytes. Only Linux gets the CUDA build by default.
CPU_INDEX := https://download.pytorch.org/whl/cpu
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
JOBS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n $(JOBS) --dist worksteal
# What Slicer's libraries need to draw, as Debian 12 names it.
DRAWING := libegl1 libgl1 libosmesa6 libxrender1

DEMO := demo
DATA ?=
LABELLED ?=
UNLABELLED ?=
BUDGET ?= 7m

.PHONY: help env system demo test quick lint format schema clean

help:
	@echo "make demo            train on 3 labelled scans of a sample and show what comes out (10 minutes)"
	@echo "make demo DATA=path  the same with your own study"
	@echo "make test            all tests"
	@echo "make quick           the tests that do not train"
	@echo "make lint            ruff and the type check"
	@echo "make env             only the environment, in $(VENV)"
	@echo "make system          the Debian packages the tests need (as root)"

env: $(READY)

$(READY): backend/pyproject.toml backend/constraints.txt Testing/module/requirements.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed and was not found. Name it: make env PYTHON=path"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV) || { echo "On Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	index=""; \
	if [ "$$(uname)" = Linux ] && ! command -v nvidia-smi >/dev/null && \
		$(BIN)/python -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=5)' $(CPU_INDEX)/torch/ 2>/dev/null; \
		then index="--extra-index-url $(CPU_INDEX)"; fi; \
	$(BIN)/pip install -c backend/constraints.txt $$index "$(TORCH)"
	$(BIN)/pip install -c backend/constraints.txt -e "backend[dev]" -r Testing/module/requirements.txt
	touch $@

# The report's test opens it in Chromium; the module's tests draw with Slicer's libraries.
system:
	@if ! command -v dpkg >/dev/null || dpkg -s $(DRAWING) >/dev/null 2>&1; then :; \
	elif [ "$$(id -u)" = 0 ]; then apt-get update && apt-get install -y --no-install-recommends $(DRAWING); \
	else echo "The module's tests draw with Slicer's libraries. On Debian: sudo apt-get install $(DRAWING)"; fi
	@if command -v chromium >/dev/null || command -v google-chrome >/dev/null || command -v chromium-browser >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update && apt-get install -y --no-install-recommends chromium; \
	else echo "The report's test needs Chromium or Chrome. On Debian: sudo apt-get install chromium"; fi

test: $(READY) system
	$(PYTEST) Testing/backend
	$(PYTEST) Testing/module

quick: $(READY)
	$(PYTEST) Testing/backend -m "not slow"
	$(PYTEST) Testing/module -m "not slow"

lint: $(READY)
	$(BIN)/ruff check backend Testing GenSegSlicer
	$(BIN)/ruff format --check backend Testing GenSegSlicer
	cd backend && ../$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix backend Testing GenSegSlicer
	$(BIN)/ruff format backend Testing GenSegSlicer

schema: $(READY)
	$(BIN)/python -m genseg.events > docs/events.schema.json

# Every demo writes a new run folder; sample data are fetched once; DATA, LABELLED, UNLABELLED and BUDGET can be set.
demo: $(READY)
	GENSEG=$(BIN)/genseg DEMO="$(DEMO)" DATA="$(DATA)" LABELLED="$(LABELLED)" UNLABELLED="$(UNLABELLED)" BUDGET=$(BUDGET) \
		bash backend/demo.sh

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache backend/build backend/src/*.egg-info
