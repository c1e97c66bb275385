.PHONY: setup setup-habitat demo test lint test-main test-habitat
PYTHON ?= python3
BIN := .venv/bin
HABITAT := .venv-habitat/bin

setup: .venv/.done
setup-habitat: .venv-habitat/.done

.venv/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# habitat-lab asks for NumPy 1.26 and for opencv-python, which needs a display's libraries; the headless build replaces it.
.venv-habitat/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-habitat
	$(HABITAT)/pip install --quiet --constraint constraints.txt --editable '.[dev,habitat]'
	$(HABITAT)/pip install --quiet --constraint constraints.txt --force-reinstall --no-deps opencv-python-headless
	touch $@

demo: setup
	$(BIN)/navprune demo

# habitat-lab asks for NumPy 1.26, which ends at Python 3.12.
HAS_HABITAT := $(shell $(PYTHON) -c 'import sys; print(sys.version_info < (3, 13) or "")')
test: lint test-main $(if $(HAS_HABITAT),test-habitat)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-main: setup
	$(BIN)/pytest

# The import comes first: without habitat-lab its tests would be skipped. A cache of its own, so that the kernels compile here too.
test-habitat: setup-habitat
	$(HABITAT)/python -c 'import navprune.habitat'
	NUMBA_CACHE_DIR=$(CURDIR)/.venv-habitat/numba $(HABITAT)/pytest tests/habitat tests/simulator tests/tasks tests/models
