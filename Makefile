# Two commands: `make demo` and `make test`. Both set up .venv by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

KILLS ?= 100
FLIPS ?= 1000

.PHONY: demo test soak lint types install clean

demo: $(STAMP)
	$(BIN)/fcache demo demo-out

# A worker a core; a file's tests stay together, because they share what is dear to make. In the
# order of the folders, since by default files of few tests, which may be long, would come last.
test: lint types
	$(BIN)/python -m pytest -n logical --dist loadfile --no-loadscope-reorder

# Kills and bit flips by the hundred; takes long. Its log stays in docs/results.
soak: SHELL := bash
soak: $(STAMP)
	@set -o pipefail; \
	{ echo "make soak KILLS=$(KILLS) FLIPS=$(FLIPS) at $$(git describe --always --dirty)," \
	  "$$($(BIN)/python -V), $$(nproc) cores"; \
	  FCACHE_TEST_KILLS=$(KILLS) FCACHE_TEST_FLIPS=$(FLIPS) $(BIN)/python -m pytest \
	  --no-header -vv -s --durations=2 --timeout=14400 -k "kills_at_random or random_flips" \
	  tests/extract/test_faults.py tests/store/test_flips.py; } 2>&1 \
	| sed -u 's#$(CURDIR)/##g; s#/tmp/[^ ]*#TMP#g' | tee docs/results/$$(date +%F)-soak.log

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
