"""Training data, prepared on the host without JAX, which keeps the start of workers fast.

Only `data.cache.__main__` and `training.cache_encoder`, which run the networks, import JAX.
"""
