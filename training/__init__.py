"""Fit and evaluate the gated head on frozen CLIP features; run from the checkout: ``python -m training.fit``."""
