"""Export a fitted run to ONNX and publish it as a Triton model repository: ``python -m export.to_onnx``."""

import os
import sys

# ONNX Runtime 1.29 and later send telemetry on Linux unless this is set before the import:
# https://github.com/microsoft/onnxruntime/blob/main/docs/Privacy.md
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# On import, OpenVINO writes a client id into the home folder and sends telemetry through this package; where it cannot
# be imported, OpenVINO does neither: https://docs.openvino.ai/2025/about-openvino/additional-resources/telemetry.html
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
