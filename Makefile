.PHONY: setup setup-habitat demo test lint test-main test-habitat
PYTHON ?= python3
BIN := .venv/bin
HABITAT := .venv-habitat/bin

# Programs are called as modules of python: their own first lines hold the checkout's path, which may be any.

setup: .venv/.done
setup-habitat: .venv-habitat/.done

.venv/.done: pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# habitat-lab asks for NumPy 1.26 and for opencv-python, which needs a display's libraries; the headless build replaces it.
.venv-habitat/.done: pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv .venv-habitat
	$(HABITAT)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,habitat]'
	$(HABITAT)/python -m pip install --quiet --constraint constraints.txt --force-reinstall --no-deps opencv-python-headless
	touch $@

demo: setup
	$(BIN)/python -m navprune.cli demo

# habitat-lab asks for NumPy 1.26, which ends at Python 3.12.
HAS_HABITAT := $(shell $(PYTHON) -c 'import sys; print(sys.version_info < (3, 13) or "")')
# Both at once, and one thread of torch each: threads that wait for one another slow down beside another process.
test: lint
	OMP_NUM_THREADS=1 $(MAKE) -j2 test-main $(if $(HAS_HABITAT),test-habitat)

lint: setup
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

test-main: setup
	$(BIN)/python -m pytest

# The import comes first: without habitat-lab its tests would be skipped. A cache of its own, so that the kernels compile here too.
test-habitat: setup-habitat
	$(HABITAT)/python -c 'import navprune.habitat'
	NUMBA_CACHE_DIR='$(CURDIR)/.venv-habitat/numba' $(HABITAT)/python -m pytest tests/habitat tests/simulator tests/tasks tests/models
