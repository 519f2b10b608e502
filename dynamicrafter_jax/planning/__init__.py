"""What a compiled program costs on chips that are not here: `python -m dynamicrafter_jax.plan`."""
