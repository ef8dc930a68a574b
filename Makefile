# make demo    train the two-minute demo and print what it did
# make test    the whole suite
# make check   formatting, lint, budgets
PYTHON ?= python3.11
VENV   ?= .venv
BIN     = $(VENV)/bin
NAME   ?= demo-$(shell date +%Y%m%d-%H%M%S)

.PHONY: demo test check clean

# torch first: asked for with a range, pip on a machine without an accelerator may fetch gigabytes of CUDA libraries
TORCH  ?= torch==2.13.0

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

demo: $(VENV)/.installed
	$(BIN)/workbench train configs/demo.yaml name=$(NAME)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python -m pytest tests/test_layers.py

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache
