"""The embedded server: Triton on loopback, from the ``tritonserver`` that ``nvidia-pytriton``'s wheel carries."""
