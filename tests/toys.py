"""What the tests of guidance and of caches both denoise."""

import jax
import jax.numpy as jnp
import numpy as np

SHAPE = (3, 4, 2, 5, 4)
SCALES = {
    "guidance_scale": jnp.float32(7.5),
    "image_guidance_scale": jnp.float32(2.0),
    "guidance_rescale": jnp.float32(0.7),
}


def normal(seed: int, *shape: int) -> jax.Array:
    """Standard normal numbers, of `SHAPE` if no other is given."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape or SHAPE), jnp.float32)
