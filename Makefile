# `make` lists the targets. Each target sets up .venv beside this file the first time; an activated
# environment is neither used nor changed.

SHELL := bash
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?=
JOBS ?= 2
ARGS ?=

VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.setup-complete
RUNTIME_VENV := .venv-runtime
RUNTIME_PY := $(RUNTIME_VENV)/bin/python
RUNTIME_READY := $(RUNTIME_VENV)/.setup-complete

# Variables of an activated environment.
unexport VIRTUAL_ENV PYTHONHOME PYTHONPATH
export PYTHONNOUSERSITE := 1

# One thread per worker: more would only compete for the cores.
PYTEST = OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(PY) -m pytest --numprocesses=$(JOBS) --dist=worksteal

.PHONY: help setup test test-all test-runtime test-gpu lint format demo docs doctor clean distclean

help:  ## this list of targets
	@echo "V2I-DETR. Usage: make TARGET [PYTHON=python3.12] [JOBS=2] [ARGS='...']"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-13s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(READY)  ## install libraries, detectron2 and this project in .venv
	@echo "Ready: $(PY). To check it: make doctor"

test: $(READY)  ## run the tests except slow ones (ARGS='-k matcher' selects)
	$(PYTEST) $(ARGS)

test-all: $(READY)  ## run all tests
	$(PYTEST) -m "" $(ARGS)

test-runtime: $(RUNTIME_READY)  ## run the tests of projects/Runtime where torch is not installed
	V2I_WITHOUT_TORCH=1 OMP_NUM_THREADS=1 $(RUNTIME_PY) -m pytest -c projects/Runtime/pyproject.toml \
	  --confcutdir=tests/runtime --numprocesses=$(JOBS) --dist=worksteal tests/runtime $(ARGS)

test-gpu: $(READY)  ## run the tests that need a CUDA GPU; skipped without one
	$(PY) -m pytest -m gpu tests/gpu $(ARGS)

lint: $(READY)  ## run ruff format --check, ruff check, pyright
	@failed=0; for check in "ruff format --check ." "ruff check ." pyright; do \
	  echo "$$check"; $(PY) -m $$check || failed=1; \
	done; exit $$failed

format: $(READY)  ## format and fix the code with ruff
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

demo: $(READY)  ## run the demo: synthetic video, training, report in output/demo
	$(PY) tools/demo.py --output output/demo $(ARGS)

docs: $(READY)  ## build the site of the documentation in output/site
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict $(ARGS)
	@echo "Open output/site/index.html; with search: $(PY) -m http.server --directory output/site"

doctor: $(READY)  ## check versions, device and memory, and say how to fix problems
	$(PY) tools/doctor.py $(ARGS)

clean:  ## remove caches and build leftovers (.venv, data/ and output/ stay)
	rm -rf .pytest_cache projects/Runtime/.pytest_cache .ruff_cache .hypothesis build dist
	find . -path './.venv*' -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## clean, and remove .venv and .venv-runtime
	rm -rf $(VENV) $(RUNTIME_VENV)

# A stamp of another folder means a copied tree, whose project is installed from there.
ifneq ($(shell cat $(READY) 2>/dev/null),$(CURDIR))
.PHONY: $(READY)
endif

$(READY): requirements.txt requirements-dev.txt requirements-deploy.txt requirements-pretraining.txt requirements-app.txt requirements-docs.txt pyproject.toml tools/install_detectron2.py
	@PYTHON="$(PYTHON)" bash tools/setup.sh $(VENV)
	@echo "$(CURDIR)" >$@

ifneq ($(shell cat $(RUNTIME_READY) 2>/dev/null),$(CURDIR))
.PHONY: $(RUNTIME_READY)
endif

$(RUNTIME_READY): projects/Runtime/pyproject.toml | $(READY)
	$(PY) -m venv --clear $(RUNTIME_VENV)
	$(RUNTIME_PY) -m pip install --quiet --disable-pip-version-check \
	  --editable 'projects/Runtime[onnx,openvino,video,test]'
	@echo "$(CURDIR)" >$@
