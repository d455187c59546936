PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-all lint

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

demo: $(VENV)/installed  ## the whole adversarial job on the embedded demo shop
	OMP_NUM_THREADS=1 $(BIN)/python recipes/train_adversarial.py  # its models are too small for more threads

test: $(VENV)/installed-dev  ## the fast tests
	$(BIN)/python -m pytest -m "not slow"

test-all: $(VENV)/installed-dev  ## all tests
	$(BIN)/python -m pytest

lint: $(VENV)/installed-dev  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
