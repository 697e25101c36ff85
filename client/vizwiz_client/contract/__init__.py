"""Facts that training, export, serving and the client share.

``image``: photos to pixels. ``tokenizer``: questions to token ids. ``tensors``: names, shapes and types of the served
models. ``errors``: exceptions. ``wording``: sentences about an answer. ``streams``: standard streams of
the commands.
"""
