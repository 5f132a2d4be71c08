# Two commands: `make demo` and `make test`. Both set up .venv on the first call.

PYTHON ?= python3
DETECTOR ?= fcos
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: demo test

demo: $(VENV)/installed
	$(RUN) -m aligndet.demo --detector $(DETECTOR)

test: $(VENV)/installed-dev
	$(RUN) -m pytest

$(VENV)/installed: requirements.txt | $(VENV)/bin/pip
	$(RUN) -m pip install --disable-pip-version-check -r requirements.txt -e .
	touch $@

$(VENV)/installed-dev: requirements-dev.txt requirements.txt | $(VENV)/bin/pip
	$(RUN) -m pip install --disable-pip-version-check -r requirements-dev.txt -e .
	touch $@ $(VENV)/installed

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python 3.10 or newer is needed; name one with: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
