r"""Times the denoising of caches and presets beside the plain run, with random weights.

    python benchmarks/faster.py --config=i2v_256 --config.sampling.num_frames=2 --write_docs

All ways take turns in one process. Those without a preset take --steps steps. What is predicted
follows from the passes of the U-Net alone (`passes.py`).
"""

from collections.abc import Sequence
from statistics import median
from typing import Any

import jax
import numpy as np
import timing
from absl import flags
from passes import unet_passes
from random_arguments import PROMPT, picture, random_model

from dynamicrafter_jax import cli, sharding
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.pipeline import ImageToVideo
from dynamicrafter_jax.sampling import stages
from dynamicrafter_jax.sampling.noise import KeyedNoise
from dynamicrafter_jax.sampling.settings import SamplingSettings, preset_of
from dynamicrafter_jax.tokenizer import tokenize

CONFIG = cli.define_config()
STEPS = flags.DEFINE_integer("steps", 10, "Steps of the plain run, and of each cache.")
REPEATS = flags.DEFINE_integer("repeats", 3, "Turns of each way, after one that compiles.")
JSON = flags.DEFINE_string("json", None, "Write the measurements to this file.")
WRITE_DOCS = flags.DEFINE_bool("write_docs", False, f"Put the table into {timing.DOCUMENT}.")

CACHES: dict[str, dict[str, Any]] = {
    "plain": {},
    "deep cache, interval 2": {"deep_cache_interval": 2},
    "deep cache, interval 3": {"deep_cache_interval": 3},
    "deep cache, interval 2, depth 3": {"deep_cache_interval": 2, "deep_cache_depth": 3},
    "reused guidance, interval 2": {"guidance_reuse_interval": 2},
    "guidance in the first half": {"guidance_stop": 0.5},
    "both intervals 2": {"deep_cache_interval": 2, "guidance_reuse_interval": 2},
}


class Denoiser:
    """Denoises one clip, whose conditions are made once."""

    def __init__(self, animate: ImageToVideo) -> None:
        """Encodes a picture and a prompt."""
        self._animate = animate
        sampler, settings = animate.sampler, SamplingSettings.from_config(animate.config.sampling)
        inputs = sampler.read(picture(animate.config), PROMPT, settings)
        self._draws = sharding.split_batch(KeyedNoise.from_seed(0, [0]), sampler.mesh)
        length = animate.models.text_encoder.context_length
        with sampler.in_force():
            self._conditions = jax.jit(
                lambda *given: stages.encode(
                    animate.models,
                    *given,
                    shape=stages.latent_shape(animate.models, settings),
                    num_passes=settings.num_passes,
                )
            )(
                *(animate.params, inputs.first, None, inputs.ids),
                *(tokenize([""], length), np.full(1, settings.fps, np.float32), self._draws),
            )

    def __call__(self, **settings: Any) -> None:
        """Takes all steps, and waits for them."""
        chosen = SamplingSettings.from_config(self._animate.config.sampling, **settings)
        sampler = self._animate.sampler
        with sampler.in_force():
            arguments = self._animate.params, self._conditions, [chosen], self._draws
            jax.block_until_ready(sampler.denoise(*arguments))


def measure(animate: ImageToVideo) -> dict[str, dict[str, float]]:
    """Returns passes and median seconds of each way."""
    section = animate.config.sampling
    ways = {name: {**settings, "steps": STEPS.value} for name, settings in CACHES.items()}
    ways |= {f"preset {name}": preset_of(section, name) for name in ("balanced", "fast")}
    denoise = Denoiser(animate)
    for settings in ways.values():
        denoise(**settings)  # compiles
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(REPEATS.value):
        for name, settings in ways.items():
            seconds[name].append(timing.seconds(lambda settings=settings: denoise(**settings)))
    return {
        name: {"passes": unet_passes(animate, settings), "seconds": median(seconds[name])}
        for name, settings in ways.items()
    }


def table(found: dict[str, dict[str, float]]) -> str:
    """Returns the measurements in Markdown."""
    plain = found["plain"]
    rows = [
        [
            name,
            f"{one['passes']:.1f}",
            f"{one['passes'] / plain['passes']:.2f}",
            f"{one['seconds'] / plain['seconds']:.2f}",
            f"{one['seconds']:.1f}",
        ]
        for name, one in found.items()
    ]
    return timing.markdown(["", "passes", "predicted", "measured", "seconds"], rows)


def main(_: Sequence[str]) -> None:
    if CONFIG.value is None:
        raise UserError("--config is needed: a file or a name, as i2v_256")
    found = measure(random_model(CONFIG.value))
    text = f"{timing.made_with()}\n\n{table(found)}"
    timing.say(text)
    if JSON.value:
        timing.write_json(JSON.value, {"made": timing.made_with(), **found})
    if WRITE_DOCS.value:
        timing.write_docs("faster", text)


if __name__ == "__main__":
    cli.run(main)
