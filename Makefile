# Two commands: `make demo` and `make test`. Both set up .venv by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint types install clean

demo: $(STAMP)
	$(BIN)/fcache demo demo-out

test: lint types
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check fcache tests
	$(BIN)/ruff format --check fcache tests
	$(BIN)/codespell fcache pipelines manifests kernels docs README.md CHANGELOG.md Makefile

types: $(STAMP)
	$(BIN)/mypy

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt requirements-dev.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -r requirements-dev.txt -e .
	touch $@

clean:
	rm -rf demo-out build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
