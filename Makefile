# Two commands matter: `make demo` and `make test`. Each sets up what it needs.
PYTHON ?= python3
BIN := .venv/bin
# CPU is all that privserve uses; pip would otherwise keep asking about its own version.
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

COMPILE := from privserve.engines.ottt import compute, dealer, jit; jit.compile_kernels()

.PHONY: demo test test-all bench dist format clean

demo: .venv/.demo
	@$(BIN)/python scripts/demo.py

# The engine's kernels take a minute to compile, which two tests at a time would both begin with.
test: .venv/.dev
	$(BIN)/python -c '$(COMPILE)' & \
	{ $(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy \
	&& $(BIN)/lint-imports --no-cache --no-logo && wait $$!; } || { kill $$! 2>/dev/null; exit 1; }
	$(BIN)/pytest -m "not slow" -n 2 --dist worksteal

test-all: .venv/.dist
	$(BIN)/pytest

# The wheel and the sdist, into dist/, checked and used in an empty environment.
dist: .venv/.dist
	$(BIN)/python -c 'from setuptools import build_meta as b; b.build_sdist("dist"); b.build_wheel("dist")'
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl
	$(BIN)/pytest tests/test_packaging.py

bench: .venv/.demo
	$(BIN)/python -m privserve.bench

format: .venv/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "privserve needs Python 3.11 or newer; name one with: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/.demo: .venv/bin/python pyproject.toml constraints.txt
	@echo "Installing torch, CrypTen and the rest into .venv (some minutes, once) ..."
	$(PIP) --editable .
	@touch $@

.venv/.dev: .venv/bin/python pyproject.toml constraints.txt
	@echo "Installing privserve and its development tools into .venv (some minutes, once) ..."
	$(PIP) --editable '.[dev]'
	@touch $@ .venv/.demo

.venv/.dist: .venv/.dev
	$(PIP) --editable '.[dev,dist]'
	@touch $@

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build site *.egg-info
