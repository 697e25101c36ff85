"""Turns a fitted run into a Triton model repository. Run from the checkout: ``python -m export.to_onnx``."""
