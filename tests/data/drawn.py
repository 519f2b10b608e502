"""Scenes that several tests look at: drawing them with every call checked takes its time."""

import functools

from dynamicrafter_jax.data.synthetic import Scene, draw_scene


@functools.cache
def scenes() -> tuple[Scene, ...]:
    """The first scenes of the training split: enough to count how often something comes."""
    return tuple(draw_scene(number) for number in range(2000))
