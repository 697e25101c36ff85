# Every target does its own set-up: the first one run creates .venv and installs into it what it needs.
PYTHONS := $(or $(PYTHON),python3.12 python3.11 python3.10 python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
USE := $(VENV)/.installed-use
DEV := $(VENV)/.installed-dev
# Two processes of tests, a file in one of them: much of a test of a server is waiting. Fixtures are made in each.
# A process that crashes ends the run: in place of another one, pytest-xdist may wait for ever.
PARALLEL ?= -n 2 --dist loadfile --max-worker-restart=0
# a VizWiz folder of real data (docs/data.md); tests and benchmarks that need it are skipped without it
VIZWIZ_MATERIAL ?=

.PHONY: help install demo lint test test-all bench clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 18

install: $(DEV)  ## create .venv and install everything into it, tools for tests and benchmarks included

$(VENV)/pyvenv.cfg:
	@found=$$(sh find_python.sh $(PYTHONS)) && echo "$$found -m venv $(VENV)" && { $$found -m venv $(VENV) || { rm -rf $(VENV); exit 1; }; }

$(USE): pyproject.toml constraints.txt | $(VENV)/pyvenv.cfg
	@$(BIN)/python -c 'import shutil; free = shutil.disk_usage(".").free >> 30; print(f"installing packages into $(VENV): a few minutes, 7 GB of disk ({free} GB are free)")'
	$(PIP) -e '.[all]'
	@touch $@

$(DEV): $(USE)
	$(PIP) -e '.[dev]'
	@touch $@

demo: $(USE)  ## fit, export, serve and ask, on the embedded demo material
	$(BIN)/python -m demo

lint: $(DEV)  ## style, import rules, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

# one thread of PyTorch's in each process: threads that outnumber the cores wait for each other, which took half the time
test: export OMP_NUM_THREADS ?= 1
test: lint  ## lint, types and tests
	$(BIN)/python -m pytest -m "not slow" $(PARALLEL)

test-all: lint  ## the slow tests too
	$(BIN)/python -m pytest

bench: $(DEV)  ## measure all speeds, and write docs/results.md; make bench-NAME for a part: encoders, peers, start, ...
	$(BIN)/python -m benchmarks

bench-%: $(DEV)
	$(BIN)/python -m benchmarks $*

clean:  ## DELETE your runs/, triton_models/ and encoded features; keeps .venv
	rm -rf .cache build data/demo runs img.jpg
	find triton_models -mindepth 1 -maxdepth 1 -not -name README.md -exec rm -rf {} +
