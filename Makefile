# `make demo` and `make test` do all the set-up: a new environment in .venv, with the versions of constraints.txt.
PYTHON ?= python3
VENV ?= .venv
DEMO ?= demo
# Test processes; each computes on one thread.
JOBS ?= 2

INSTALL = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test check clean

demo: $(VENV)/osler-installed
	$(VENV)/bin/osler demo $(DEMO)

test: $(VENV)/osler-test-installed
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n $(JOBS) --dist loadfile

check: $(VENV)/osler-test-installed
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

clean:
	rm -rf $(VENV) demo .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Osler needs Python 3.11 or later")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/osler-installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) -e .
	touch $@

$(VENV)/osler-test-installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) -e '.[test]'
	touch $@
