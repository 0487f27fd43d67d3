# `make demo` and `make test` do all the set-up: a new environment in .venv, with the versions of constraints.txt.
PYTHON ?= python3
VENV ?= .venv
DEMO ?= demo
# Test processes; each computes on one thread.
JOBS ?= 2

INSTALL = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test check pictures clean

demo: $(VENV)/osler-installed
	$(VENV)/bin/osler demo $(DEMO)

test: $(VENV)/osler-test-installed
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n $(JOBS) --dist loadfile --max-worker-restart=0

check: $(VENV)/osler-test-installed
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

# The pictures of the README, from the pages of the demo; the second one with the map in front. And the augmentations and phantoms.
pictures:
	mkdir -p docs/images
	$(call shot,1100x1290,docs/images/evaluation.png,$(DEMO)/evaluation/evaluation.html)
	page=$$(grep -l 'verdict">nodule' $(DEMO)/diagnoses/*/diagnosis.html | head -1) && \
	sed 's/id="pane1" checked/id="pane1"/; s/id="pane2"/id="pane2" checked/' $$page > $(DEMO)/with-map.html
	$(call shot,1100x860,docs/images/diagnosis.png,$(DEMO)/with-map.html)
	rm $(DEMO)/with-map.html
	$(VENV)/bin/python benchmarks/augmentation_pictures.py docs/images/augmentations.png
	$(VENV)/bin/python benchmarks/phantom_pictures.py docs/images/phantoms.jpg

shot = chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=$(subst x,$(comma),$(1)) \
	--screenshot=$(abspath $(2)) file://$(abspath $(3)) 2> /dev/null
comma := ,

clean:
	rm -rf $(VENV) demo .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Osler needs Python 3.11 or later")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/osler-installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) -e '.[speed]'
	touch $@

$(VENV)/osler-test-installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) -e '.[test]'
	touch $@
