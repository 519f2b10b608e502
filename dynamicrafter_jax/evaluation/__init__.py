"""Evaluation under a protocol: clips are chosen, measured, compared and reported."""
