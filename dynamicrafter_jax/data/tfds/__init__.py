"""Reads and writes videos as TFDS data sets."""
