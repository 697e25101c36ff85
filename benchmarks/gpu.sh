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
step export "$python" -m export.to_onnx --runs "$out/runs" --repository "$out/triton_models"  # what is recommended here
for target in 'portable fp32' 'portable fp16' 'fused fp32' 'fused fp16'; do
  read -r variant precision <<<"$target"
  step "export-$variant-$precision" "$python" -m export.to_onnx --runs "$out/runs" \
    --variant "$variant" --precision "$precision" --repository "$out/triton_models-$variant-$precision"
done
step export-tests "$python" -m pytest -q tests/export/test_clip_graph.py  # on CUDA where ONNX Runtime can use it
step bench-encoders "$python" -m benchmarks encoders --device cuda --no-write --cache "$out/benchmarks"
exit "$failed"
