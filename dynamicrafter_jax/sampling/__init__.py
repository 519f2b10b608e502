"""Sampling, from an image and a prompt to frames: settings, stages, and what runs them."""
