"""TFDS data sets."""
