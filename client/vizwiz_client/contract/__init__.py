"""The facts that training, export, serving and the client must agree on, each in one home.

``geometry``: how a photo becomes pixels. ``tokens``: how a question becomes token ids. ``tensors``: what the served
models are called and what they take and give. ``errors``: what is raised when one of them cannot be used.
"""
