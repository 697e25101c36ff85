# Every target does its own set-up: the first one run creates .venv and installs into it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
# two processes of tests, a file in one of them: much of a test of a server is waiting. Fixtures are made in each.
PARALLEL ?= -n 2 --dist loadfile
# of VizWiz, for bench-training
ANNOTATIONS ?= ../shared/data/vizwiz/Annotations
# JPEG files for bench-serving; drawn ones are sent where there are none
PHOTOS ?= ../shared/data/vizwiz/val

.PHONY: help install demo lint test test-all bench-training bench-export bench-serving bench-client clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 18

install: $(READY)  ## create .venv and install everything into it

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v <= (3, 12) else f"Python 3.10 to 3.12 is needed, this is {v[0]}.{v[1]}: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	@$(PYTHON) -c 'import shutil; free = shutil.disk_usage(".").free >> 30; print(f"installing the packages into $(VENV): a few minutes, 7 GB of disk ({free} GB are free)")'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(READY)  ## fit, export, serve and ask, on the embedded demo material
	$(BIN)/python demo.py

lint: $(READY)  ## style, import rules, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

test: lint  ## lint, types and tests
	$(BIN)/python -m pytest -m "not slow" $(PARALLEL)

test-all: lint  ## the slow tests too
	$(BIN)/python -m pytest

bench-training: $(READY)  ## tables: encoding, fitting at full size, real questions without photos (docs/results.md)
	$(BIN)/python benchmarks/features.py
	$(BIN)/python benchmarks/fit_speed.py
	@if [ -d "$(ANNOTATIONS)" ]; then $(BIN)/python benchmarks/question_only.py --annotations "$(ANNOTATIONS)"; \
	else echo "question_only.py needs real annotations, not in $(ANNOTATIONS): make bench-training ANNOTATIONS=..."; fi

bench-export: $(READY)  ## table: CLIP's encoders in PyTorch and as graphs, and folds (docs/export.md)
	$(BIN)/python -m benchmarks.export
	$(BIN)/python -m benchmarks.folds

bench-serving: $(READY)  ## tables, plot: load on the server, beside the bare encoders and FastAPI (docs/results.md)
	$(BIN)/python -m benchmarks.serving $(if $(wildcard $(PHOTOS)),--photos "$(PHOTOS)")

bench-client: $(READY)  ## tables: start, install, photo to tensor, a question, and how busy a stream keeps the server
	$(BIN)/python -m benchmarks.client

clean:  ## DELETE your runs/, triton_models/ and encoded features; keeps .venv
	rm -rf .cache data/demo runs img.jpg
	find triton_models -mindepth 1 -maxdepth 1 -not -name README.md -exec rm -rf {} +
