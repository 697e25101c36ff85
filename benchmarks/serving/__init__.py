"""Load benchmark of the embedded server, beside the bare encoders and FastAPI with PyTorch."""
