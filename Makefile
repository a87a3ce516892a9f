# `make demo` and `make test` need Python 3.11 or newer with venv, and make; the rest is installed into .venv.

PYTHON ?= python3
VENV ?= .venv
# Where pip finds torch. Empty: the package index. https://download.pytorch.org/whl/cpu holds the small CPU-only build.
TORCH_INDEX ?=

ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif

PACKAGE := $(addprefix headstart/,$(sort $(wildcard *.py)) cache extract classify)
SAMPLES := $(abspath ../shared/data)
ifneq ($(wildcard $(SAMPLES)),)
export HEADSTART_SAMPLES ?= $(SAMPLES)
endif

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow torture lint types format bench clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.installed ## Make .venv and install headstart into it

demo: $(VENV)/.installed ## Install, then do the whole job on pictures that ship with scikit-learn
	$(BIN)/headstart demo

test: $(VENV)/.installed-test lint types ## Install, then formatting, lint, types and tests (about 25 minutes on two cores)
	$(BIN)/python -m pytest -q -m "not slow and not torture"

test-slow: $(VENV)/.installed-test ## The tests that take longer
	$(BIN)/python -m pytest -q -m slow

torture: $(VENV)/.installed-test ## Break the cache in every way there is; each test prints its counts
	$(BIN)/python -m pytest -q -s -m torture

lint: $(VENV)/.installed-test ## Formatting and lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

# The checkout's folder may have any name, and mypy takes a package's name from it: it looks through a link of the right one.
types: $(VENV)/.installed-test ## Types, strict on the package
	@mkdir -p $(VENV)/types && ln -sfn "$(CURDIR)" $(VENV)/types/headstart
	cd $(VENV)/types && "$(abspath $(BIN))/mypy" --config-file headstart/pyproject.toml $(PACKAGE)

format: $(VENV)/.installed-test ## Format the code and mend what lint can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.installed-test ## Measure every claim about speed, each against its baseline in the same run
	@for name in main_job tutorial_loop forward pipeline several warm_extract read append verify malloc main_arena collector lock gpu \
	    transformer predict report serve export_parity advice augment views_fit views listing remote object_store engines \
	    out_of_core cost_model; do \
	  echo "== $$name"; $(BIN)/python benchmarks/$$name.py || exit 1; done

clean: ## Remove .venv and what the tools leave behind
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build *.egg-info headstart-demo

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than 3.11; name a newer one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --quiet --upgrade pip
ifneq ($(TORCH_INDEX),)
	$(BIN)/python -m pip install --quiet --quiet --index-url $(TORCH_INDEX) torch torchvision
endif
	@touch $@

$(VENV)/.installed: $(VENV)/.made pyproject.toml
	@echo "installing headstart and what it needs into $(VENV); torch makes this a few minutes the first time"
	$(BIN)/python -m pip install --quiet --quiet --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed pyproject.toml
	$(BIN)/python -m pip install --quiet --quiet --editable ".[test]"
	@touch $@
