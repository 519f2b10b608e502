"""Draws pictures of scenes, and their optical flow."""

import functools

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageFilter

from dynamicrafter_jax.data.synthetic.dice import Dice
from dynamicrafter_jax.data.synthetic.motion import Pose, Trajectory
from dynamicrafter_jax.data.synthetic.scenes import COLOURS, Scene, Sprite
from dynamicrafter_jax.data.synthetic.sprites import REACH, draw_sprite
from dynamicrafter_jax.data.synthetic.textures import (
    crop_photograph,
    draw_palette,
    draw_texture,
    jittered,
)

_CANVAS = 2.2  # frame widths: enough for what the camera sees in 16 frames at any frame rate
_FINER = 2  # pixels drawn per pixel of a frame, in each direction
_BLUR = 0.6 / 64  # frame widths: makes photographs a little soft, as videos are at this size


class Renderer:
    """Draws a scene in any pose."""

    def __init__(self, scene: Scene, height: int, width: int) -> None:
        """Prepares what all frames share.

        Args:
            scene: The scene.
            height: Height of frames, in pixels.
            width: Width of frames, in pixels.
        """
        self._scene, self._height, self._width = scene, height, width
        self._density = _FINER * width  # pixels per frame width
        self._canvas = self._draw_canvas()
        self._sprites = self._draw_sprites()

    def frames(self, trajectory: Trajectory) -> UInt8[np.ndarray, "t h w 3"]:
        """Draws the frames of a clip."""
        return np.stack([self.frame(trajectory.pose(i)) for i in range(len(trajectory.scale))])

    def frame(self, pose: Pose) -> UInt8[np.ndarray, "h w 3"]:
        """Draws a frame, with everything in the given pose."""
        return self.with_sprite(self.background(pose), pose)

    def with_sprite(
        self, background: UInt8[np.ndarray, "h w 3"], pose: Pose
    ) -> UInt8[np.ndarray, "h w 3"]:
        """Draws the sprite, if there is one, over what `background` drew for the same camera."""
        if not self._scene.sprite:
            return background
        covered, layer = self._draw_layer(self._scene.sprite, pose)
        shown = layer[..., :3] + background[covered] * (1 - layer[..., 3:] / 255)
        frame = background.copy()
        frame[covered] = np.minimum(shown + 0.5, 255).astype(np.uint8)
        return frame

    def mask(self, pose: Pose) -> Float32[np.ndarray, "h w"]:
        """Returns how much of each pixel the sprite covers, 0 to 1."""
        mask = np.zeros((self._height, self._width), np.float32)
        if self._scene.sprite:
            covered, layer = self._draw_layer(self._scene.sprite, pose)
            mask[covered] = layer[..., 3] / 255
        return mask

    def background(self, pose: Pose) -> UInt8[np.ndarray, "h w 3"]:
        """Draws a frame without the sprite."""
        unit = pose.view_width * self._density  # pixels of the canvas in one width of the frame
        tall = unit * self._height / self._width
        x, y = (pose.view_centre - 0.5 + _CANVAS / 2) * self._density
        box = (x - unit / 2, y - tall / 2, x + unit / 2, y + tall / 2)
        canvas = self._canvas
        if min(box) < 0 or max(box) > canvas.width:
            canvas = self._mirrored
            # A search for the motion in a video may try views that leave even the mirror images.
            box = tuple(min(max(side + self._canvas.width, 0), canvas.width) for side in box)
        size = self._width, self._height
        # Unlike an affine transformation, this averages over everything that falls into a pixel.
        return np.asarray(canvas.resize(size, Image.Resampling.BILINEAR, box=box))

    def _draw_layer(
        self, sprite: Sprite, pose: Pose
    ) -> tuple[tuple[slice, slice], Float32[np.ndarray, "h w 4"]]:
        """Draws the sprite alone, its colours multiplied by its alpha, 0 to 255.

        Returns:
            The rows and columns of the frame that it may cover, and what is drawn there.
        """
        fine = _FINER * self._width / pose.view_width  # fine pixels in a width of the scene
        middle = (pose.position - pose.view_centre) * fine + _FINER * np.array(
            [self._width / 2, self._height / 2]
        )
        radius = sprite.diameter / 2 * pose.scale * fine
        # A picture with few more pixels than are shown, so that none are skipped.
        level = int(np.clip(np.log2(self._sprites[0].width / (2 * REACH * radius)), 0, None))
        picture = self._sprites[min(level, len(self._sprites) - 1)]
        half = picture.width / 2
        zoom = half / REACH / radius
        angle = np.radians(pose.angle)
        cos, sin = float(np.cos(angle) * zoom), float(np.sin(angle) * zoom)
        reach = (abs(cos) + abs(sin)) / zoom * REACH * radius  # of the turned square, to each side
        size = self._width, self._height
        left, top = np.clip((middle - reach) // _FINER, 0, size).astype(int).tolist()
        right, bottom = np.clip((middle + reach) // _FINER + 1, 0, size).astype(int).tolist()
        covered = slice(top, bottom), slice(left, right)
        if right == left or bottom == top:
            return covered, np.zeros((bottom - top, right - left, 4), np.float32)
        x, y = (middle - _FINER * np.array([left, top])).tolist()
        affine = (cos, sin, half - cos * x - sin * y, -sin, cos, half + sin * x - cos * y)
        layer = picture.transform(
            (_FINER * (right - left), _FINER * (bottom - top)),
            Image.Transform.AFFINE,
            affine,
            resample=Image.Resampling.BILINEAR,
        )
        return covered, np.asarray(layer.reduce(_FINER), np.float32)

    def _draw_canvas(self) -> Image.Image:
        background = self._scene.background
        dice, size = self._dice("background"), round(_CANVAS * self._density)
        if background.texture != "photograph":
            palette = draw_palette(dice, COLOURS[background.colour])
            return draw_texture(dice, background.texture, palette, size)
        canvas = crop_photograph(dice, background.photograph, _CANVAS, size)
        return canvas.filter(ImageFilter.GaussianBlur(_BLUR * self._density))

    def _draw_sprites(self) -> list[Image.Image]:
        """Draws the sprite at decreasing sizes; returns an empty list if there is no sprite."""
        sprite = self._scene.sprite
        if not sprite:
            return []
        dice = self._dice("sprite")
        first, second = (jittered(dice, COLOURS[name]) for name in sprite.colours)
        behind = np.asarray(self._canvas.reduce(self._canvas.width // 11), np.float64)[4:7, 4:7]
        pictures = [
            draw_sprite(
                dice,
                sprite.shape,
                sprite.pattern,
                (first, second),
                sprite.photograph,
                behind.mean(axis=(0, 1)),
                self._density,
            )
        ]
        while pictures[-1].width >= 8:
            pictures.append(pictures[-1].reduce(2))
        return pictures

    @functools.cached_property
    def _mirrored(self) -> Image.Image:
        """The canvas with its mirror images around it, for views that leave it."""
        side = self._canvas.width
        return Image.fromarray(
            np.pad(np.asarray(self._canvas), ((side, side), (side, side), (0, 0)), "symmetric")
        )

    def _dice(self, topic: str) -> Dice:
        return Dice(self._scene.number, f"{self._scene.split} drawing of {topic}")
