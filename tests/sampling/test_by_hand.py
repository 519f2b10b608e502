"""Sampling written out in NumPy, from a picture and a prompt to frames, alone and in bulk.

Networks are stand-ins of a few lines. JAX gives the draws alone, by keys that are derived here from
a seed and the sample's number; every other rule is the paper's and the release's.
"""

from typing import Any

import bulk_jobs
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import release_files
import stand_ins
from stand_ins import BASE_SCALE, FRAMES, LATENT, SCALE, SIDE, TOKENS, quick_jit

from dynamicrafter_jax import media, sharding
from dynamicrafter_jax.sampling import bulk, sampler
from dynamicrafter_jax.sampling.noise import KeyedNoise
from dynamicrafter_jax.sampling.sampler import Sampler, shown_frames
from dynamicrafter_jax.sampling.settings import SamplingSettings
from dynamicrafter_jax.sampling.stages import encode_posterior
from dynamicrafter_jax.tokenizer import tokenize

# Of all settings: none that a default is near.
SETTINGS: dict[str, Any] = {
    "height": SIDE,
    "width": SIDE,
    "num_frames": FRAMES,
    "steps": 4,
    "eta": 0.7,
    "guidance_scale": 3.0,
    "image_guidance_scale": None,
    "guidance_rescale": 0.4,
    "spacing": "uniform_trailing",
    "negative_prompt": "blurry",
    "fps": 11,
    "video_fps": 5,
    "seed": 9,
    "vae_frames": 2,
}


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def made() -> Sampler:
    """A sampler of stand-ins, compiled once for all tests."""
    config = release_files.micro()
    config.diffusion.base_scale = BASE_SCALE
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "networks_of", lambda *_: stand_ins.stand_ins())
        return Sampler(config, sharding.make_mesh(1))


def placed(made: Sampler) -> Any:
    """The parameters, where the sampler wants them."""
    return sharding.replicate(stand_ins.params(), made.mesh)


def settings(**changed: Any) -> SamplingSettings:
    return SamplingSettings.from_config(release_files.micro().sampling, **SETTINGS | changed)


@quick_jit
def draws(seed: Any, index: Any) -> dict[str, Any]:
    """All that is drawn for the sample of a number."""
    key = jax.random.fold_in(jax.random.key(seed), index)
    first, last, initial, steps = (jax.random.fold_in(key, stream) for stream in range(4))
    return {
        "first": jax.random.normal(first, LATENT[1:]),
        "last": jax.random.normal(last, LATENT[1:]),
        "initial": jax.random.normal(initial, LATENT),
        "steps": jnp.stack(
            [jax.random.normal(jax.random.fold_in(steps, i), LATENT) for i in range(5)]
        ),
    }


def sample_by_hand(
    image: np.ndarray,
    prompt: str,
    index: int,
    chosen: SamplingSettings,
    end: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Latents and frames of one clip, by arXiv 2010.02502, 2305.08891 and 2310.12190."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), stand_ins.params())
    found = draws(np.uint32(chosen.seed), np.uint32(index))
    drawn = {name: np.asarray(draw, np.float64) for name, draw in found.items()}

    def latents(pixels: np.ndarray, noise: np.ndarray) -> np.ndarray:
        moments = stand_ins.moments(params["vae"], (pixels / 127.5 - 1)[None])[0]
        return SCALE * (moments[..., :4] + np.exp(moments[..., 4:] / 2) * noise)

    def states(text: str) -> np.ndarray:
        return stand_ins.states(params["text_encoder"], tokenize([text], TOKENS)[0])

    given = np.zeros(LATENT)
    given[:] = latents(image, drawn["first"])
    if end is not None:
        given[1:] = 0
        given[-1] = latents(end, drawn["last"])
    seen = stand_ins.image_context(params, image / 127.5 - 1)
    unseen = stand_ins.image_context(params, np.zeros((SIDE, SIDE, 3)))
    root, scale = stand_ins.levels(BASE_SCALE)

    def predict(x: np.ndarray, timestep: int, text: str, context: np.ndarray) -> np.ndarray:
        inputs = np.concatenate([x, given], -1)[None], np.array([timestep])
        told = states(text)[None], context[None], np.array([float(chosen.fps)])
        return stand_ins.unet(params["unet"], *inputs, *told, None)[0]

    def guided(x: np.ndarray, timestep: int) -> np.ndarray:
        full = predict(x, timestep, prompt, seen)
        if chosen.image_guidance_scale is None and chosen.guidance_scale == 1:
            return full
        none = predict(x, timestep, chosen.negative_prompt, unseen)
        if chosen.image_guidance_scale is None:
            out = none + chosen.guidance_scale * (full - none)
        else:
            alone = predict(x, timestep, chosen.negative_prompt, seen)
            out = none + chosen.image_guidance_scale * (alone - none)
            out = out + chosen.guidance_scale * (full - alone)
        phi = chosen.guidance_rescale
        return phi * out * full.std() / out.std() + (1 - phi) * out

    visited = np.round(np.arange(1000, 0, -1000 / chosen.steps)).astype(int) - 1
    x = drawn["initial"]
    for i, t in enumerate(visited):
        lower = visited[i + 1] if i + 1 < len(visited) else None
        a, a_prev = root[t] ** 2, root[0 if lower is None else lower] ** 2
        v = guided(x, t)
        x0, eps = a**0.5 * x - (1 - a) ** 0.5 * v, a**0.5 * v + (1 - a) ** 0.5 * x
        x0 = x0 * scale[t if lower is None else lower] / scale[t]
        sigma = chosen.eta * ((1 - a_prev) / (1 - a) * (1 - a / a_prev)) ** 0.5
        direction = (1 - a_prev - sigma**2) ** 0.5
        x = a_prev**0.5 * x0 + direction * eps + sigma * drawn["steps"][i]
    return x, stand_ins.pictures(params["vae"], x / SCALE)


def assert_close(ours: Any, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("changed", "to"),
    [
        ({}, "anywhere"),
        ({"image_guidance_scale": 1.5, "steps": 3, "eta": 0.0}, "ends"),
        ({"image_guidance_scale": 0.0}, "where they began"),
    ],
)
def test_clips_are_what_the_papers_say(made, changed, to):
    chosen = settings(**changed)
    images, ends, prompts = [picture(1), picture(2)], [picture(3), picture(4)], ["a cat", "dogs"]
    options: Any = {"anywhere": {}, "ends": {"end_image": ends}}.get(to, {"loop": True})
    inputs = made.read(images, prompts, chosen, num_samples=2, **options)
    noise = KeyedNoise.from_seed(chosen.seed, range(6, 10))
    clips = made(placed(made), inputs, chosen, noise)
    lasts = {"anywhere": [None, None], "ends": ends}.get(to, images)
    for row in range(4):  # samples of one image follow one another
        wanted = sample_by_hand(
            images[row // 2], prompts[row // 2], 6 + row, chosen, lasts[row // 2]
        )
        assert_close(clips.latents[row], wanted[0])
        assert_close(clips.video[row], wanted[1])
    assert clips.frames().shape[1] == FRAMES - ("loop" in options)


def test_pictures_of_odd_sides_are_encoded_with_their_borders_repeated():
    params, image = stand_ins.params(), picture(5)[: SIDE - 3, : SIDE - 1]
    found = encode_posterior(
        stand_ins.stand_ins(),
        params,
        jnp.asarray(image / 127.5 - 1, jnp.float32)[None],
        shape=LATENT,
    )
    rows, columns = (np.minimum(np.arange(SIDE), side - 1) for side in image.shape[:2])
    wanted = stand_ins.moments(params["vae"], (image[rows][:, columns] / 127.5 - 1)[None])
    assert_close(np.concatenate(found, axis=-1), wanted)


@pytest.mark.parametrize("to", ["anywhere", "ends", "where they began"])
def test_some_rows_are_what_is_read_of_them_alone(made, to):
    images, prompts = [picture(seed) for seed in (1, 2, 3)], ["a cat", "dogs", ""]

    def read(first: int) -> Any:
        options: Any = {"anywhere": {}, "ends": {"end_image": images[::-1][first:]}}
        return made.read(
            images[first:], prompts[first:], settings(), **options.get(to, {"loop": True})
        )

    part, wanted = read(0)[1:], read(1)
    assert part.count == 2 and (part.loop, part.window) == (wanted.loop, wanted.window)
    for name in ("first", "last", "ids"):
        np.testing.assert_array_equal(getattr(part, name), getattr(wanted, name))


ROWS: list[dict[str, Any]] = [
    {"prompt": "a cat", "seed": 1, "fps": 3, "negative_prompt": "dark", "end_image": "3.png"},
    {"prompt": "dogs", "seed": 2, "fps": 20, "negative_prompt": "", "end_image": "1.png"},
    {"prompt": "a cat", "seed": 1, "guidance_scale": 5.0, "guidance_rescale": 0.9, "loop": True},
]


@pytest.mark.parametrize("to_end", [True, False])
def test_rows_of_a_batch_are_each_their_own(made, tmp_path, to_end):
    for seed in range(4):
        media.write_png(tmp_path / f"{seed}.png", picture(seed))
    hidden = () if to_end else ("end_image", "loop")
    lines = [
        {"id": f"r{i}", "image": f"{i % 2}.png"} | {k: v for k, v in row.items() if k not in hidden}
        for i, row in enumerate(ROWS)
    ]
    section = release_files.micro().sampling
    section.update(**SETTINGS)
    requests = bulk.read_requests(bulk_jobs.table(tmp_path, lines), section)
    loader = bulk.Loader(bulk.Manifest(tmp_path / "none"), {}, TOKENS)
    rows = loader.load([loader.inspect(request) for request in requests]).rows
    sample = bulk.BatchSampler(made, placed(made), 4)
    with made.in_force():
        latents, video = sample(rows)
    assert len(latents) == 4
    for i, (line, request) in enumerate(zip(lines, requests, strict=True)):
        image = picture(i % 2)
        end = picture(int(line["end_image"][0])) if "end_image" in line else None
        end = image if line.get("loop") else end
        wanted = sample_by_hand(image, line["prompt"], request.sample_index, request.settings, end)
        assert_close(latents[i], wanted[0])
        assert_close(video[i], wanted[1])


def test_frames_are_rounded_to_eight_bits_and_a_loop_loses_its_last():
    every = np.arange(256)
    near = every + np.linspace(-0.49, 0.49, 256)
    video = np.stack([every, near, np.where(every < 128, -1e9, 1e9)])[:, :, None, None]
    video = np.repeat((video / 127.5 - 1).astype(np.float32), 3, axis=3)
    frames = shown_frames(video, loop=False)
    assert frames.dtype == np.uint8
    assert (frames[:2] == every[:, None, None]).all()
    assert (frames[2] == np.where(every < 128, 0, 255)[:, None, None]).all()
    assert np.array_equal(shown_frames(video, loop=True), frames[:-1])
