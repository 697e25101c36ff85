"""Fits the gated head on frozen CLIP features. Run from the checkout: ``python -m training.fit``."""
