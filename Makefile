PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-all test-any-order test-lowest mutants lint audit fuzz

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

demo: $(VENV)/installed  ## the whole adversarial job on the embedded demo shop
	OMP_NUM_THREADS=1 $(BIN)/python recipes/train_adversarial.py  # its models are too small for more threads

test: $(VENV)/installed-dev  ## the fast tests, two at a time
	$(BIN)/python -m pytest -m "not slow" -n 2

test-all: $(VENV)/installed-dev  ## all tests
	$(BIN)/python -m pytest

test-any-order: $(VENV)/installed-dev  ## the fast tests in random order, two at a time, and what they cover
	$(BIN)/python -m pytest -m "not slow" -n 2 --random-order --cov --cov-report=term:skip-covered

test-lowest: $(VENV)/installed-dev  ## the fast tests with the oldest versions that pyproject.toml allows
	$(PYTHON) -m venv $(VENV)-lowest
	$(BIN)/python tests/scripts/lowest_versions.py pyproject.toml > $(VENV)-lowest/requirements.txt
	$(VENV)-lowest/bin/python -m pip install --quiet --disable-pip-version-check -r $(VENV)-lowest/requirements.txt
	$(VENV)-lowest/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	$(VENV)-lowest/bin/python -m pytest -m "not slow"

mutants: $(VENV)/installed-dev  ## do the tests notice changes of losses, rewards, metrics and tests of significance? An hour
	OMP_NUM_THREADS=1 $(BIN)/mutmut run --max-children 2

lint: $(VENV)/installed-dev  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fuzz: $(VENV)/installed-dev  ## ten minutes of broken files for the readers, guided by coverage
	$(BIN)/python -m pip install --quiet --disable-pip-version-check atheris
	$(BIN)/python tests/scripts/fuzz_readers.py -max_total_time=600 -timeout=20 -rss_limit_mb=4096 -max_len=256 -len_control=0

audit: $(VENV)/installed  ## known weaknesses of what is installed, with pip-audit, where pypi.org can be asked
	@if $(BIN)/python -c "import urllib.request as r; r.urlopen('https://pypi.org/simple/pip/', timeout=10)" 2>/dev/null; then \
	  $(PYTHON) -m venv $(VENV)-audit && \
	  $(VENV)-audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit && \
	  $(VENV)-audit/bin/pip-audit --skip-editable --path "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"; \
	else echo "audit skipped: pypi.org does not answer from here"; fi
