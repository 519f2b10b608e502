"""Networks of a few lines, so that all that happens around them can be computed in NumPy.

Each result depends on every input, so an input that goes astray shows. Every function takes
arrays of JAX or of NumPy and computes in the type of what it is given.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynamicrafter_jax.models import Models
from dynamicrafter_jax.models.autoencoder import Posterior

FRAMES, SIDE, FACTOR, TOKENS, WIDTH = 3, 16, 4, 5, 6
LATENT = (FRAMES, SIDE // FACTOR, SIDE // FACTOR, 4)
SCALE, BASE_SCALE = 0.3, 0.6
"""The scale factor of latents, and the dynamic rescale's last: no release's, so that a constant in
place of them shows."""


quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""`jax.jit` for programs that run once: most of their time is their compilation."""


class StandIns(Models):
    """What takes the place of the networks."""

    __slots__ = ()

    def apply(self, name: str, params: Any, *inputs: Any, method: str | None = None) -> Any:
        if name == "vae" and method == "encode":
            mean, logvar = jnp.split(moments(params["vae"], *inputs), 2, -1)
            return Posterior(mean, jnp.clip(logvar, -30.0, 20.0))
        if name == "vae" and method == "decode":
            return pictures(params["vae"], *inputs)
        assert method is None
        return {
            "text_encoder": states,
            "image_encoder": tokens,
            "projector": context,
            "unet": unet,
        }[name](params[name], *inputs)


class Sizes:
    """What is asked of a network besides its results."""

    def __init__(self, **sizes: Any) -> None:
        self.__dict__.update(sizes)


def stand_ins() -> Models:
    sizes: Any = {
        "unet": Sizes(size_multiple=1, max_depth=1, clone=lambda **_: Sizes()),
        "vae": Sizes(scale_factor=SCALE, downsampling=FACTOR, z_channels=4),
        "text_encoder": Sizes(context_length=TOKENS),
        "image_encoder": Sizes(image_size=SIDE),
        "projector": Sizes(video_length=FRAMES, num_queries=2),
    }
    return StandIns(**sizes)


def params() -> dict[str, Any]:
    draw = np.random.default_rng(5)

    def normal(*shape: int) -> np.ndarray:
        return draw.standard_normal(shape).astype(np.float32)

    return {
        "vae": {"kernel": normal(3, 8), "decoder": normal(4, 3)},
        "text_encoder": {"table": normal(50, WIDTH)},
        "image_encoder": {"kernel": normal(3, 3)},
        "projector": {"kernel": normal(3, FRAMES, 2, WIDTH)},
        "unet": {
            "kernel": normal(8, 4),
            "text": normal(WIDTH, 4),
            "image": normal(WIDTH, 4),
            "fs": normal(1, 4),
        },
    }


def moments(params: Any, image: Any) -> Any:
    n, h, w, _ = image.shape
    pooled = image.reshape(n, h // FACTOR, FACTOR, w // FACTOR, FACTOR, 3).mean((2, 4))
    return pooled @ params["kernel"]


def pictures(params: Any, z: Any) -> Any:
    return (z @ params["decoder"]).repeat(FACTOR, 1).repeat(FACTOR, 2)


def states(params: Any, ids: Any) -> Any:
    return params["table"][ids % len(params["table"])]


def tokens(params: Any, pixels: Any) -> Any:
    b, h, w, _ = pixels.shape
    return pixels.reshape(b, h * w, 3) @ params["kernel"]


def context(params: Any, tokens: Any) -> Any:
    kernel = params["kernel"]
    return (tokens.mean(1) @ kernel.reshape(3, -1)).reshape(len(tokens), *kernel.shape[1:])


def image_context(params: Any, image: np.ndarray) -> np.ndarray:
    """The context of an image in [-1, 1] of the tower's size, (t, m, d), in NumPy."""
    mean = np.array([0.48145466, 0.4578275, 0.40821073])
    deviation = np.array([0.26862954, 0.26130258, 0.27577711])
    seen = tokens(params["image_encoder"], ((image + 1) / 2 - mean)[None] / deviation)
    return context(params["projector"], seen)[0]


def levels(base_scale: float) -> tuple[np.ndarray, np.ndarray]:
    """sqrt(alpha_bar) with zero terminal SNR (arXiv 2305.08891, Algorithm 1), and s_t."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    root = np.cumprod(1 - betas) ** 0.5
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return root, np.append(np.linspace(1, base_scale, 400), np.full(600, base_scale))


def unet(params: Any, x: Any, timestep: Any, text: Any, image: Any, fs: Any, keys: Any) -> Any:
    share = (1 + timestep / 1000).astype(x.dtype)[:, None, None, None, None]
    told = (text.mean(1) @ params["text"])[:, None] + image.mean(2) @ params["image"]
    told = told + (fs[:, None] @ params["fs"] / 10)[:, None]
    out = x @ params["kernel"] * share + told[:, :, None, None]
    return out if keys is None else out * kept(keys)[:, None, None, None]


def kept(keys: Any) -> Any:
    """What stands for dropout: a factor for each channel of a clip."""
    return jax.vmap(lambda key: jax.random.uniform(key, (4,)))(keys)
