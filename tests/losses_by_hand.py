"""A training loss written out in NumPy, from pixels and token ids to its mean.

Networks are stand-ins of a few lines. JAX gives the draws alone, by keys that are derived here from
a seed and the sample's number; every other rule is the paper's and the release's.
"""

import functools
from typing import Any

import jax
import numpy as np
import stand_ins
from stand_ins import BASE_SCALE, LATENT, SCALE, quick_jit


@quick_jit
@functools.partial(jax.vmap, in_axes=(None, 0))
def draws(rng: Any, index: Any) -> dict[str, Any]:
    """All that is drawn for the sample of a number."""
    key = jax.random.fold_in(rng, index)
    streams = [jax.random.fold_in(key, stream) for stream in range(4)]
    return {
        "posterior": jax.random.normal(streams[0], LATENT),
        "noise": jax.random.normal(streams[1], LATENT),
        "timestep": jax.random.randint(streams[2], (), 0, 1000),
        "share": jax.random.uniform(streams[2]),
        "kept": stand_ins.kept(streams[3][None])[0],
    }


def loss_of_clip(
    params: Any, batch: Any, i: int, drawn: Any, concat: str = "frame", dropout: bool = False
) -> float:
    """The loss of clip i of a batch."""
    drawn = {name: np.asarray(draw[i], np.float64) for name, draw in drawn.items()}

    # Latents: a sample of the posterior of every frame, scaled.
    frame = int(batch.frame[i])
    if batch.moments is None:
        video = batch.video[i] / 127.5 - 1
        moments = stand_ins.moments(params["vae"], video)
        text = stand_ins.states(params["text_encoder"], batch.ids[i])
        # A dropped image is grey.
        image = stand_ins.image_context(params, video[frame] * batch.keep_image[i])
    else:
        moments = batch.moments[i].astype(np.float64)
        text = batch.text[i].astype(np.float64)
        image = stand_ins.context(params["projector"], batch.vision[i].astype(np.float64)[None])[0]
    mean, logvar = moments[..., :4], np.clip(moments[..., 4:], -30, 20)
    z = SCALE * (mean + np.exp(logvar / 2) * drawn["posterior"])

    # What is concatenated: the latent of the conditioning frame for all, or of both ends.
    given = np.zeros(LATENT)
    if concat == "either":
        concat = "ends" if batch.ends[i] else "frame"
    if concat == "frame":
        given[:] = z[frame]
    elif concat == "ends":
        given[0], given[-1] = z[0], z[-1]

    # q(x_t | x_0) of the rescaled latents, and the velocity.
    root, scale = stand_ins.levels(BASE_SCALE)
    timestep, noise = int(drawn["timestep"]), drawn["noise"]
    signal, noise_level = root[timestep], (1 - root[timestep] ** 2) ** 0.5
    x0 = scale[timestep] * z
    x, velocity = signal * x0 + noise_level * noise, signal * noise - noise_level * x0

    found = stand_ins.unet(
        params["unet"],
        np.concatenate([x, given], -1)[None],
        np.array([timestep]),
        text[None],
        image[None],
        np.asarray(batch.fs[i], np.float64)[None],
        None,
    )[0]
    if dropout:
        found = found * drawn["kept"]
    return np.mean((found - velocity) ** 2)


def losses_by_hand(
    batch: Any, rng: jax.Array, params: Any = None, timestep: Any = None, **options: Any
) -> tuple[np.ndarray, np.ndarray]:
    """The losses of all clips, and their timesteps.

    Args:
        batch: Clips as `inputs.Batch`, in NumPy.
        rng: The key that the numbers of samples are folded into.
        params: Of the stand-ins; those of `stand_ins.params` if not given.
        timestep: One a clip; drawn if not given.
        **options: What is concatenated, and whether networks drop out.
    """
    params = stand_ins.params() if params is None else params
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    drawn = draws(rng, batch.sample_index)
    if timestep is not None:
        drawn["timestep"] = timestep
    clips = range(len(batch.sample_index))
    losses = [loss_of_clip(params, batch, i, drawn, **options) for i in clips]
    return np.array(losses), np.asarray(drawn["timestep"])
