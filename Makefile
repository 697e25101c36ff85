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

.PHONY: help install demo lint test test-all bench-training bench-export bench-serving bench-client bench-gateway clean

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

test: lint  ## lint, types and tests
	$(BIN)/python -m pytest -m "not slow" $(PARALLEL)

test-all: lint  ## the slow tests too
	$(BIN)/python -m pytest

bench-training: $(DEV)  ## tables: encoding, fitting at full size, real questions without photos (docs/results.md)
	$(BIN)/python benchmarks/features.py
	$(BIN)/python benchmarks/fit_speed.py
	$(if $(VIZWIZ_MATERIAL),$(BIN)/python benchmarks/question_only.py,@echo "left out: question_only.py, which needs real annotations: make bench-training VIZWIZ_MATERIAL=VizWiz")

bench-export: $(DEV)  ## table: CLIP's encoders in PyTorch and as graphs (docs/results.md)
	$(BIN)/python -m benchmarks.export

bench-serving: $(DEV)  ## tables, plot: load on the server, beside the bare encoders and FastAPI (docs/results.md)
	$(BIN)/python -m benchmarks.serving $(if $(VIZWIZ_MATERIAL),--photos "$(VIZWIZ_MATERIAL)/val")

bench-client: $(DEV)  ## tables: start, install, photo to tensor, a question, and how busy a stream keeps the server
	$(BIN)/python -m benchmarks.client

bench-gateway: $(DEV)  ## tables: what the gateway adds to a question, its throughput, and its event loop under load
	$(BIN)/python -m benchmarks.gateway

clean:  ## DELETE your runs/, triton_models/ and encoded features; keeps .venv
	rm -rf .cache build data/demo runs img.jpg
	find triton_models -mindepth 1 -maxdepth 1 -not -name README.md -exec rm -rf {} +
