"""Load on the embedded server: closed loops over models, ensembles, concurrencies and batches, and what others give."""
