"""Which prompt and which end belong to which image."""

from collections.abc import Sequence
from typing import Any

from dynamicrafter_jax.errors import UserError


def pair(
    image: Any, prompt: str | Sequence[str], end_image: Any, *, loop: bool
) -> tuple[list[Any], list[str], list[Any]]:
    """Returns images, prompts and end images as lists, with one entry per clip.

    Args:
        image: An image, or a list or tuple of them.
        prompt: One prompt for all, or one for each image.
        end_image: Images that clips end at, like `image`; None for none.
        loop: Whether clips end where they began.

    Returns:
        The three lists; that of end images is empty if there are none.

    Raises:
        UserError: Their numbers differ, there is no image, or a loop has end images.
    """
    if end_image is not None and loop:
        raise UserError("an end image and a loop exclude each other: a loop ends as it began")
    images = _as_list(image)
    prompts = [prompt] * len(images) if isinstance(prompt, str) else list(prompt)
    ends = [] if end_image is None else _as_list(end_image)
    for name, values in (
        ("prompts", prompts),
        ("end images", images if end_image is None else ends),
    ):
        if len(values) != len(images):
            raise UserError(f"{len(images)} images but {len(values)} {name}")
    if not images:
        raise UserError("no image to animate")
    return images, prompts, ends


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]
