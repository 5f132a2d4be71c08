# `make demo`, `make test`, `make docs-check` (the part of the tests that types what README and docs
# give), `make lint`, `make bench` (steps and inference beside torchvision's), `make walkthrough`
# (writes and runs docs/walkthrough.ipynb) and `make study-smoke` (the machinery of experiments/ on
# the built-in dataset). Each sets up .venv on its first run.

PYTHON ?= python3
DETECTOR ?= fcos
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: demo test docs-check lint bench walkthrough study-smoke

demo: $(VENV)/installed
	$(RUN) -m aligndet.demo --detector $(DETECTOR)

test: $(VENV)/installed-dev
	$(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

docs-check: $(VENV)/installed-dev
	$(RUN) -m pytest tests/test_documented_commands.py tests/test_python_docs.py

lint: $(VENV)/installed-dev
	$(RUN) -m ruff check .

bench: $(VENV)/installed
	$(RUN) benchmarks/train_step.py
	$(RUN) benchmarks/inference.py

walkthrough: $(VENV)/installed-dev
	$(RUN) docs/make_walkthrough.py

SMOKE := runs/study-smoke
study-smoke: $(VENV)/installed-dev
	rm -rf $(SMOKE)
	$(RUN) -m data.shapes --output $(SMOKE)/data/shapes --train 24 --val 8 --size 96
	$(RUN) -m data.shapes --output $(SMOKE)/data/unlabelled --train 8 --val 1 --size 96 --seed 1
	$(RUN) -m experiments.gains experiments/smoke.yaml --data $(SMOKE)/data --work $(SMOKE)/work
	$(RUN) -m experiments.report experiments/smoke.yaml

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
