"""A web page to play with a model: `python -m dynamicrafter_jax.app`.

Only `layout.py`, `page.py` and `serving.py` import gradio, an extra; what they show and serve is
made by the plain functions of the other modules.
"""
