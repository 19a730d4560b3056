# `make` alone explains itself. Every target does its own set-up, once, in .venv beside this file;
# an environment that happens to be activated is neither used nor changed.

SHELL := bash
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?=
JOBS ?= 2
ARGS ?=

VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.setup-complete

# What an activated environment would bring in.
unexport VIRTUAL_ENV PYTHONHOME PYTHONPATH
export PYTHONNOUSERSITE := 1

# One thread a worker: two workers with two threads each only wait for each other on two cores.
PYTEST = OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(PY) -m pytest --numprocesses=$(JOBS) --dist=worksteal

.PHONY: help setup test test-all test-gpu lint format demo doctor clean distclean

help:  ## this text
	@echo "V2I-DETR. Usage: make TARGET [PYTHON=python3.12] [JOBS=2] [ARGS='...']"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(READY)  ## libraries, detectron2 and this project in .venv: once, then at once
	@echo "Ready: $(PY). What is in it: make doctor"

test: $(READY)  ## the tests, without the slow ones (ARGS='-k matcher' selects)
	$(PYTEST) $(ARGS)

test-all: $(READY)  ## all tests
	$(PYTEST) -m "" $(ARGS)

test-gpu: $(READY)  ## what needs a CUDA GPU; without one all of it is skipped
	$(PY) -m pytest -m gpu tests/gpu $(ARGS)

lint: $(READY)  ## ruff format --check, ruff check, pyright
	@failed=0; for check in "ruff format --check ." "ruff check ." pyright; do \
	  echo "$$check"; $(PY) -m $$check || failed=1; \
	done; exit $$failed

format: $(READY)  ## let ruff rewrite what it can
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

demo: $(READY)  ## synthetic video, teacher, plain and distilled student, report: output/demo
	$(PY) tools/demo.py --output output/demo $(ARGS)

doctor: $(READY)  ## versions, device, memory: what is wrong and how to mend it
	$(PY) tools/doctor.py $(ARGS)

clean:  ## remove caches and build leftovers (.venv, data/ and output/ stay)
	rm -rf .pytest_cache .ruff_cache .hypothesis build dist
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## clean, and remove .venv
	rm -rf $(VENV)

# A stamp written in another folder is that of a copied tree: its project is installed from there.
ifneq ($(shell cat $(READY) 2>/dev/null),$(CURDIR))
.PHONY: $(READY)
endif

$(READY): requirements.txt requirements-dev.txt pyproject.toml tools/install_detectron2.py
	@PYTHON="$(PYTHON)" bash tools/setup.sh $(VENV)
	@echo "$(CURDIR)" >$@
