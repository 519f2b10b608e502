"""Evaluation under a protocol: chooses clips, measures and compares them, and writes a report."""
