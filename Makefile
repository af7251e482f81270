# Everything rests on `make install`, which makes .venv; nothing is needed beforehand but Python >= 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Byte-compiling five gigabytes of packages takes longer than the quickstart's own work; modules compile when first
# imported. Images of containers often forbid Python to keep what it compiled: each process would compile torch anew.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
# Each test process trains small nets and starts clusters of its own: more than two would wait for each other.
TEST_PROCESSES ?= 2

.PHONY: help install install-dev quickstart test test-slow test-faults lint format bench docs viewer-libraries clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

install: $(VENV)/.installed  ## make .venv with geoflow in it
install-dev: $(VENV)/.installed-dev

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"geoflow needs Python >= 3.11, this is {sys.version.split()[0]}: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(PIP) --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/.installed
	$(PIP) --editable '.[dev]'
	@touch $@

quickstart: install  ## make the sample country, map it, and say how good the map is
	$(BIN)/geoflow sample out/sample
	$(BIN)/geoflow run jobs/quickstart.yaml

test: install-dev  ## all tests but the slow ones
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

test-slow: install-dev  ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

test-faults: install-dev  ## faults on purpose: killed drivers and workers, full disks (an hour and more)
	$(BIN)/python -m pytest -m faults -s

lint: install-dev  ## style, types and the direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install-dev  ## put the style right
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install-dev  ## the small benchmarks
	@for b in imagery labels patches learning ranks maps running export; do echo "== $$b"; $(BIN)/python benchmarks/$$b.py --size small || exit 1; done

docs: install-dev  ## the site of docs/ in build/site, which loads nothing from other machines
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --config-file docs/site/mkdocs.yml
	@echo build/site/index.html

viewer-libraries:  ## bundle the viewer's JavaScript libraries anew (needs npm)
	cd geoflow/viewer/vendor && npm ci --ignore-scripts && npm run build

clean:  ## remove outputs and the environment
	rm -rf out $(VENV)
