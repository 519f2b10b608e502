"""A web page to play with a model: `python -m dynamicrafter_jax.app`.

`page.py` and `serving.py` are the only files that import gradio, an extra; what they show and serve
is made by the plain functions of the others.
"""
