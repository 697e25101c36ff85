"""Turns a fitted run into a Triton model repository. Run from the checkout: ``python -m export.to_onnx``."""

import os
import sys

# ONNX Runtime 1.29 and later report to their maker by default on Linux, and read this when they are imported:
# https://github.com/microsoft/onnxruntime/blob/main/docs/Privacy.md
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# OpenVINO, when imported, writes a client id into the home folder and reports to its maker, unless this package, which
# does that, cannot be imported: https://docs.openvino.ai/2025/about-openvino/additional-resources/telemetry.html
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
