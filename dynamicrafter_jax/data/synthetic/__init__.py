"""An endless supply of captioned clips drawn from numbers, with their ground truth.

A clip shows a sprite over a photograph or a texture; the sprite moves, turns or changes its size,
or the camera moves or zooms, as the caption says. Speeds are constant in time, so the frame rate
alone sets how far things move from frame to frame.
"""

from dynamicrafter_jax.data.synthetic.examples import SyntheticExamples
from dynamicrafter_jax.data.synthetic.motion import (
    CAMERA_MOTIONS,
    MOTIONS,
    OBJECT_MOTIONS,
    Motion,
    Pose,
    Trajectory,
)
from dynamicrafter_jax.data.synthetic.photographs import Split
from dynamicrafter_jax.data.synthetic.rendering import Renderer
from dynamicrafter_jax.data.synthetic.scenes import Scene, draw_scene, trajectory

__all__ = [
    "CAMERA_MOTIONS",
    "MOTIONS",
    "OBJECT_MOTIONS",
    "Motion",
    "Pose",
    "Renderer",
    "Scene",
    "Split",
    "SyntheticExamples",
    "Trajectory",
    "draw_scene",
    "trajectory",
]
