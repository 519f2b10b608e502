"""Measures of videos: the networks they look through, and what is made of features."""
