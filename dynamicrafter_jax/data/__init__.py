"""Training data, all on the host: without JAX, so that worker processes start fast."""
