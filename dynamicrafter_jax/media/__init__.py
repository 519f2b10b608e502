"""Reads pictures and videos, and writes them."""

from dynamicrafter_jax.media.cropping import Window, cover_and_crop, letterbox
from dynamicrafter_jax.media.pictures import ImageInput, fit_image, fit_images
from dynamicrafter_jax.media.pillow import MAX_PIXELS, MIN_SIDE, read_picture
from dynamicrafter_jax.media.sheet import contact_sheet, write_png
from dynamicrafter_jax.media.video import CODECS, check_output, read_video, write_video

__all__ = [
    "CODECS",
    "MAX_PIXELS",
    "MIN_SIDE",
    "ImageInput",
    "Window",
    "check_output",
    "contact_sheet",
    "cover_and_crop",
    "fit_image",
    "fit_images",
    "letterbox",
    "read_picture",
    "read_video",
    "write_png",
    "write_video",
]
