"""Turns a fitted run into a Triton model repository. Run from the checkout: ``python -m export.to_onnx``."""

import os

# ONNX Runtime 1.29 and later report to their maker by default on Linux, and read this when they are imported:
# https://github.com/microsoft/onnxruntime/blob/main/docs/Privacy.md
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
