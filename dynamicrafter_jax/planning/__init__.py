"""Plans runs on TPUs that are not at hand, behind `python -m dynamicrafter_jax.plan`."""
