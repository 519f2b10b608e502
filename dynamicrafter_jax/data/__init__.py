"""Training data, all on the host: without JAX, so that workers start fast.

Only `cache` and `cache_encoder`, which run the networks, import it.
"""
