"""DynamiCrafter in JAX: animate open-domain images with video diffusion."""

from typing import TYPE_CHECKING

from dynamicrafter_jax.runtime.quiet import quiet_libraries

if TYPE_CHECKING:
    from dynamicrafter_jax.pipeline import ImageToVideo

__all__ = ["ImageToVideo"]

quiet_libraries()


def __getattr__(name: str) -> object:
    """Imports the pipeline when it is first used, so that importing the package is fast."""
    if name == "ImageToVideo":
        from dynamicrafter_jax.pipeline import ImageToVideo

        return ImageToVideo
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
