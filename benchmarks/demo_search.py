r"""Compares small models in how well they recognise what should move while noise still hides it.

    python benchmarks/demo_search.py --model=full=runs/full_model --model=few=runs/few_model

Samples of models trained for half an hour all look alike, so a single step is judged instead. Clips
of the validation split of `data/synthetic` are noised to late timesteps, where little is left to
find out but the motion that the caption names. The model's prediction of the clean clip (x0) is
decoded and compared with the clip, once with the caption and once with an empty prompt. The
difference shows what the words are worth. Clips and timesteps are the same for all models, and so
is the noise if their latents have the same shape.

With --each_clips, clips of one motion each are judged too, told their caption and then that of the
opposite motion: where that makes no difference, a model does not tell the two apart.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import timing
from absl import flags
from drawn_clips import Drawn, draw, psnr, reconstruct
from jaxtyping import Array, Float, Int, PyTree, UInt8
from judging import OPPOSITES

from dynamicrafter_jax import cli, conditioning
from dynamicrafter_jax.conditioning import Conditioning
from dynamicrafter_jax.data.synthetic import Motion
from dynamicrafter_jax.diffusion.prediction import add_noise, per_sample, to_x0_and_eps
from dynamicrafter_jax.diffusion.schedule import Schedule, make_schedule
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.models import Models
from dynamicrafter_jax.pipeline import ImageToVideo
from dynamicrafter_jax.sampling import stages
from dynamicrafter_jax.sampling.sampler import shown_frames
from dynamicrafter_jax.sampling.settings import SamplingSettings
from dynamicrafter_jax.tokenizer import tokenize
from dynamicrafter_jax.training.inputs import pixels

MODEL = flags.DEFINE_multi_string("model", [], "NAME=MODEL, as few_frames=runs/few_model.")
CLIPS = flags.DEFINE_integer("clips", 96, "Clips of the validation split.")
EACH = flags.DEFINE_integer("each_clips", 0, "Validation clips of each motion by itself.")
BATCH = flags.DEFINE_integer("batch_size", 8, "Clips at once.")
TIMESTEPS = flags.DEFINE_multi_integer("timestep", [600, 733, 866, 999], "Where to judge.")
JSON = flags.DEFINE_string("json", None, "Write the measurements to this file.")

Denoiser = Callable[[Float[Array, "b t h w z"], Int[Array, " b"], Conditioning], Array]
"""A U-Net with its parameters bound, as `conditioning.conditioned_unet` returns it."""


class Seen(NamedTuple):
    """The PSNR of a model's predictions for noisy clips, in dB over decoded pixels.

    Attributes:
        told: By timestep, the mean over clips, each with its caption.
        untold: The same with an empty prompt.
        vae: The same for clips that are only encoded and decoded, which is the upper limit.
    """

    told: dict[int, float]
    untold: dict[int, float]
    vae: float

    @property
    def mean(self) -> float:
        """The mean with captions, over all timesteps."""
        return float(np.mean(list(self.told.values())))

    @property
    def gain(self) -> float:
        """How much captions add to the mean."""
        return self.mean - float(np.mean(list(self.untold.values())))


def clean_clips(
    models: Models,
    schedule: Schedule,
    params: PyTree,
    denoiser: Denoiser,
    video: UInt8[Array, "b t h w 3"],
    ids: Int[Array, "b l"],
    fs: Float[Array, " b"],
    numbers: Int[Array, " b"],
    timestep: Int[Array, ""],
) -> Float[Array, "b t h w 3"]:
    """Returns a model's predictions of the clean clips, in [-1, 1], from noisy ones.

    Args:
        models: The networks.
        schedule: The noise schedule.
        params: All parameters.
        denoiser: The U-Net.
        video: The clips; the model is given their first frame.
        ids: Token ids of their prompts.
        fs: Their frames per second.
        numbers: Numbers of the clips, which determine their noise.
        timestep: The timestep, which determines how noisy they are.
    """
    b, t, height, width, _ = video.shape
    frames = pixels(video)
    posterior = models.apply(
        "vae", params, frames.reshape(b * t, height, width, 3), method="encode"
    )
    latents = (models.vae.scale_factor * posterior.mean).reshape(b, t, *posterior.mean.shape[1:])
    condition = Conditioning(
        text=conditioning.text_context(models, params, ids),
        image=conditioning.image_context(models, params, frames[:, 0]),
        concat=conditioning.concat_latents(latents[:, 0], t),
        fs=fs,
    )
    key = jax.random.fold_in(jax.random.key(0), timestep)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
    noise = jax.vmap(lambda key: jax.random.normal(key, latents.shape[1:]))(keys)
    timesteps = jnp.full(b, timestep)
    scale, signal_level, noise_level, alpha_bar = (
        jnp.asarray(table, jnp.float32)[timesteps]
        for table in (
            *(schedule.scale, schedule.signal_level, schedule.noise_level, schedule.alpha_bar),
        )
    )
    noisy = add_noise(per_sample(scale, latents) * latents, noise, signal_level, noise_level)
    predicted = denoiser(noisy, timesteps, condition)
    x0, _ = to_x0_and_eps(schedule.parameterization, noisy, predicted, alpha_bar)
    return stages.decode(
        models,
        params,
        x0 / per_sample(scale, x0),
        height=height,
        width=width,
        vae_frames=b * t,
    )


Judge = Callable[[Sequence[Drawn], Sequence[str], int], float]
"""Returns the mean PSNR of a model's predictions for clips under captions, at a timestep."""


def make_judge(animate: ImageToVideo) -> Judge:
    """Returns the judge of a model, which compiles once."""
    schedule = make_schedule(**animate.config.diffusion.to_dict())
    length = animate.models.text_encoder.context_length

    @jax.jit
    def clean(params: PyTree, *arguments: Array) -> Array:
        unet = conditioning.conditioned_unet(animate.models, params)
        return clean_clips(animate.models, schedule, params, unet, *arguments)

    def judge(clips: Sequence[Drawn], captions: Sequence[str], timestep: int) -> float:
        found = []
        for start in range(0, len(clips), BATCH.value):
            # The last clips come twice where they do not fill a batch; only once they count.
            chosen = [min(start + row, len(clips) - 1) for row in range(BATCH.value)]
            video = np.stack([clips[i].video for i in chosen])
            arguments = (
                jnp.asarray(video),
                jnp.asarray(tokenize([captions[i] for i in chosen], length), jnp.int32),
                jnp.asarray([clips[i].scene.fps for i in chosen], jnp.float32),
                jnp.asarray(chosen, jnp.int32),
                jnp.asarray(timestep, jnp.int32),
            )
            with animate.sampler.in_force():
                made = clean(animate.params, *arguments)
            decibels = psnr(shown_frames(np.asarray(made), loop=False), video)
            found += decibels[: len(clips) - start].tolist()
        return float(np.mean(found))

    return judge


def measure(animate: ImageToVideo, judge: Judge, clips: Sequence[Drawn]) -> Seen:
    """Measures a model on clips."""
    captions = [clip.scene.caption for clip in clips]
    told = {t: judge(clips, captions, t) for t in TIMESTEPS.value}
    untold = {t: judge(clips, [""] * len(clips), t) for t in TIMESTEPS.value}
    through = np.stack([reconstruct(animate, clip.video) for clip in clips])
    real = np.stack([clip.video for clip in clips])
    return Seen(told, untold, float(psnr(through, real).mean()))


def measure_opposites(
    judge: Judge, settings: SamplingSettings, count: int, timesteps: Sequence[int]
) -> dict[str, dict[int, float]]:
    """Returns how much each motion's caption is worth over that of its opposite, in dB.

    Args:
        judge: The judge of a model.
        settings: The model's, for the size of clips.
        count: Clips of each motion.
        timesteps: Where to judge.

    Returns:
        For each pair of opposites, the difference by timestep, as a mean of both motions.
    """

    def drawn(motion: Motion) -> list[Drawn]:
        frames, side = settings.num_frames, settings.height
        return [draw(number, frames, side, "validation", (motion,)) for number in range(count)]

    found: dict[str, dict[int, float]] = {}
    for pair in OPPOSITES:
        one, other = map(drawn, pair)
        gains: dict[int, float] = {}
        for timestep in timesteps:
            gains[timestep] = 0.0
            for clips, opposites in ((one, other), (other, one)):
                told = judge(clips, [clip.scene.caption for clip in clips], timestep)
                misled = judge(clips, [clip.scene.caption for clip in opposites], timestep)
                gains[timestep] += (told - misled) / 2
        found[" and ".join(pair).replace("_", " ")] = gains
    return found


def table(found: dict[str, Seen]) -> str:
    """Returns the measurements in Markdown, with the best model first."""
    columns = [
        "model",
        "x0 under captions (dB)",
        "gain over an empty prompt (dB)",
        "VAE alone (dB)",
    ]
    columns += [f"at {timestep}" for timestep in next(iter(found.values())).told]
    rows = [
        [name, f"{seen.mean:.2f}", f"{seen.gain:.2f}", f"{seen.vae:.2f}"]
        + [f"{value:.2f}" for value in seen.told.values()]
        for name, seen in sorted(found.items(), key=lambda pair: -pair[1].mean)
    ]
    return timing.markdown(columns, rows)


def opposites_table(opposites: Mapping[str, Mapping[str, Mapping[int, float]]]) -> str:
    """Returns in Markdown what captions are worth over their opposites, by model and motions."""
    lines = [
        (name, pair, values) for name, pairs in opposites.items() for pair, values in pairs.items()
    ]
    columns = ["model", "motions", *(f"at {timestep} (dB)" for timestep in lines[0][2])]
    rows = [
        [name, pair, *(f"{value:+.2f}" for value in values.values())]
        for name, pair, values in lines
    ]
    return timing.markdown(columns, rows)


def models_of(entries: Sequence[str]) -> dict[str, str]:
    """Returns the models given by `--model`, by name."""
    named: dict[str, str] = {}
    for entry in entries:
        name, _, path = entry.partition("=")
        if not (name and path):
            raise UserError(f"--model={entry} is not NAME=MODEL, as few_frames=runs/few_model")
        if name in named:
            raise UserError(f"--model names two models {name!r}: give each a name of its own")
        named[name] = path
    if not named:
        raise UserError("--model is needed: NAME=MODEL, as few_frames=runs/few_model")
    return named


def main(_: Sequence[str]) -> None:
    """Measures, and prints a table."""
    models = {
        name: ImageToVideo.from_pretrained(path) for name, path in models_of(MODEL.value).items()
    }
    found: dict[str, Seen] = {}
    opposites: dict[str, dict[str, dict[int, float]]] = {}
    for name, animate in models.items():
        chosen = animate.config.sampling
        clips = [
            draw(number, chosen.num_frames, chosen.height, "validation")
            for number in range(CLIPS.value)
        ]
        judge = make_judge(animate)
        found[name] = measure(animate, judge, clips)
        if EACH.value:
            opposites[name] = measure_opposites(
                judge, SamplingSettings.from_config(chosen), EACH.value, TIMESTEPS.value
            )
        if JSON.value is not None:  # at once: the next model may fail
            values: dict[str, Any] = {
                one: {**seen._asdict(), "mean": seen.mean, "gain": seen.gain}
                for one, seen in found.items()
            }
            content = {"clips": CLIPS.value, "models": values, "opposites": opposites}
            timing.write_json(JSON.value, content)
    timing.say(table(found))
    if opposites:
        timing.say(opposites_table(opposites))


if __name__ == "__main__":
    cli.run(main)
