"""Measures of videos: the networks that compute features, and the numbers computed from them."""
