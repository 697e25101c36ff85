"""Embedded Triton server on loopback: the ``tritonserver`` of ``nvidia-pytriton``'s wheel, supervised."""


class ServingError(RuntimeError):
    """The server cannot start, has ended, or refuses a rollout; the message says why and what to do."""
