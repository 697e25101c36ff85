#!/usr/bin/env bash
# Everything that needs a CUDA GPU, in one go:  benchmarks/gpu.sh [FOLDER FOR LOGS]
# Needs an environment with the project in it (`make install`, or PYTHON=... of another one).
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
out=${1:-.cache/gpu}
mkdir -p "$out"
failed=0

step() {  # step NAME COMMAND...: run, keep the log, go on whatever happens
  local name=$1
  shift
  printf '\n== %s: %s\n' "$name" "$*"
  if ! "$@" 2>&1 | tee "$out/$name.log"; then
    failed=1
    printf '== %s FAILED\n' "$name"
  fi
}

step machine nvidia-smi
step versions "$python" -c 'import torch; print(torch.__version__, torch.version.cuda, torch.cuda.get_device_name())'
step tests "$python" -m pytest -q tests/training/test_cuda.py
step fit "$python" -m training.fit --device cuda --runs "$out/runs"
step export "$python" -m export.to_onnx --runs "$out/runs" --repository "$out/triton_models"
exit "$failed"
