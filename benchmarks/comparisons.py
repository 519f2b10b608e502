"""The comparisons with the PyTorch release: generators that compute the rows of each table."""

import functools
import itertools
import json
import multiprocessing
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor

import golden_weights
import jax.numpy as jnp
import numpy as np
import tiny
from flax import traverse_util
from jaxtyping import PyTree
from measures import DTYPES, Case, Row, measure, psnr, relative_error
from ml_collections import ConfigDict
from numpy.typing import ArrayLike
from tqdm import tqdm

from dynamicrafter_jax.config import load_config, networks_of
from dynamicrafter_jax.diffusion.schedule import make_grid, make_schedule
from dynamicrafter_jax.diffusion.solvers.ddim import ddim_coefficients
from dynamicrafter_jax.models import Models, abstract_models
from dynamicrafter_jax.models.clip import preprocess
from dynamicrafter_jax.pipeline import Clips, ImageToVideo
from dynamicrafter_jax.runtime import provenance
from dynamicrafter_jax.tokenizer import tokenize
from dynamicrafter_jax.weights.release import release_tensors

RELEASES = ("256", "512", "1024")
NETWORKS = ("U-Net", "VAE encoder", "VAE decoder", "text tower", "vision tower", "projector")

EXACT = 0.0
SCHEDULE_TARGET = 1e-6
PREPROCESSING_TARGET = 5e-5
SMALL_NETWORK_TARGET = 1e-5
FULL_NETWORK_TARGET = 1e-4
RUN_TARGET = 1e-4
LEAST_RUN_PSNR = 30.0  # below it, the worst layer is named

# At 4 frames, and at 6 with 96 tokens, each has 16 tokens of its own; else all see all 64.
FRAME_COUNTS = {
    "U-Net, 2 frames": "2",
    "U-Net, 3 frames": "3",
    "U-Net, 4 frames": "4",
    "U-Net, 6 frames": "6",
    "U-Net, 6 frames, each its tokens": "6_split",
    "U-Net, 16 frames": "16",
}

# Model -> the golden file of its networks.
GOLDEN = {"tiny_v": "tiny_v_modules", "tiny_eps": "tiny_eps_modules", "512": "full_512"}


def host_rows() -> Iterator[Row]:
    """Compares everything that does not depend on weights: schedules, tokens, preprocessing."""
    golden = tiny.golden("schedule")
    schedules = {
        name: make_schedule(**load_config(f"i2v_{name}").diffusion.to_dict()) for name in RELEASES
    }
    pairs = [(schedules[name].alpha_bar, golden[f"alphas_cumprod_{name}"]) for name in RELEASES]
    yield _worst_of("alpha_bar, 256, 512 and 1024", pairs, SCHEDULE_TARGET)
    pairs = [(schedules[name].scale, golden[f"scale_arr_{name}"]) for name in ("512", "1024")]
    yield _worst_of("dynamic rescale, 512 and 1024", pairs, SCHEDULE_TARGET)

    spacings, steps = ("uniform", "uniform_trailing"), (5, 10, 25, 30, 50)
    runs = {
        f"{name}_{spacing}_{count}": ddim_coefficients(
            make_grid(schedules[name], spacing, count), eta=1.0
        )
        for name, spacing, count in itertools.product(RELEASES, spacings, steps)
    }
    for column, key, target in (
        ("timestep", "ts", EXACT),
        ("alpha_bar", "alphas", SCHEDULE_TARGET),
        ("alpha_bar_prev", "alphas_prev", SCHEDULE_TARGET),
        ("sigma", "sigmas", SCHEDULE_TARGET),
    ):
        pairs = [
            (getattr(ours, column)[::-1], golden[f"{key}_{run}"]) for run, ours in runs.items()
        ]
        yield _worst_of(f"DDIM {column}, {len(pairs)} tables", pairs, target)

    tokens = json.loads((tiny.GOLDEN / "tokens.json").read_text())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two of the texts are meant to be cut
        pairs = list(zip(tokenize(tokens["texts"]), tokens["ids"], strict=True))
    yield _worst_of(f"token ids, {len(pairs)} texts", pairs, EXACT)

    golden = tiny.golden("clip_preprocess")
    for size in (name.removeprefix("out_") for name in golden if name.startswith("out_")):
        height, width = map(int, size.split("x"))
        picture = golden_weights.picture(int(golden[f"seed_{size}"]), height, width)
        ours = preprocess(jnp.asarray(picture)[None])[0, ::4, ::4]
        error = relative_error(ours, golden[f"out_{size}"])
        yield Row(f"preprocessing of {size} pixels", error, PREPROCESSING_TARGET)


def small_network_rows() -> Iterator[Row]:
    """Compares the networks of the two small models, and the blocks of their U-Nets."""
    for model in ("tiny_v", "tiny_eps"):
        yield from measure_network(model, "U-Net", SMALL_NETWORK_TARGET)[0]
        yield from measure_network(model, "U-Net, small inputs", SMALL_NETWORK_TARGET)[0]
    tokens = None
    for name in FRAME_COUNTS:
        yield from measure_network("tiny_v", name, SMALL_NETWORK_TARGET)[0]
    for network in NETWORKS[1:]:
        rows, tokens = measure_network("tiny_v", network, SMALL_NETWORK_TARGET, tokens)
        yield from rows


def full_network_rows() -> Iterator[Row]:
    """Compares the networks of the 512 release, each in a separate process.

    So the memory in a row is that of one network, and is freed before the next.
    """
    spawn = multiprocessing.get_context("spawn")
    tokens = None
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as pool:
        for network in NETWORKS:
            row, tokens = pool.submit(_measure_full_network, network, tokens).result()
            yield row


def run_rows() -> Iterator[Row]:
    """Replays whole runs of the release from its noise, in float32 and in bfloat16."""
    for path in sorted(tiny.GOLDEN.glob("sample_*.npz")):
        golden = tiny.golden(path.stem)
        settings = json.loads(str(golden["settings"]))
        exact, rough = (_replay(golden, settings, dtype) for dtype in DTYPES)
        t = golden["latents"].shape[1]
        for name, what in (("latents", "latents"), ("video", "frames")):
            ours, coarse = getattr(exact, name), getattr(rough, name)
            error, decibels = relative_error(ours, golden[name]), psnr(coarse, ours)
            worst = "" if decibels >= LEAST_RUN_PSNR else _worst_layer(settings)
            yield Row(f"{_describe(settings, t)}: {what}", error, RUN_TARGET, decibels, worst)


def measure_network(
    model: str, network: str, target: float, tokens: np.ndarray | None = None
) -> tuple[list[Row], np.ndarray]:
    """Measures one of `NETWORKS`; see `measures.measure`.

    Args:
        model: One of `GOLDEN`.
        network: One of `NETWORKS`, "U-Net, small inputs", or one of `FRAME_COUNTS`.
        target: The largest error allowed.
        tokens: The vision tower's output, which the projector reads.
    """
    case = _case(model, network, tokens)
    name = network if model == "512" else f"{model}: {network}"
    return measure(name, case, _config(model), _params(model, case.section), target)


def _measure_full_network(network: str, tokens: np.ndarray | None) -> tuple[Row, np.ndarray]:
    started = time.perf_counter()
    (row,), output = measure_network("512", network, FULL_NETWORK_TARGET, tokens)
    seconds = time.perf_counter() - started
    return row._replace(seconds=seconds, memory=provenance.peak_memory()), output


def _case(model: str, network: str, tokens: np.ndarray | None) -> Case:
    """Returns the golden call of a network."""
    golden = tiny.golden(GOLDEN[model])
    match network:
        case "U-Net":
            inputs = _unet_inputs(golden)
            blocks = {k.removeprefix("tap_"): v for k, v in golden.items() if k.startswith("tap_")}
            return Case("unet", inputs, golden["unet"], blocks=blocks)
        case "U-Net, small inputs":
            return Case("unet", _unet_inputs(golden, 0.01), golden["unet_small"])
        case _ if network in FRAME_COUNTS:
            return _frames_case(FRAME_COUNTS[network])
        case "VAE encoder":
            return Case("vae", (_pictures(golden),), golden["vae_moments"], method="moments")
        case "VAE decoder":
            return Case("vae", (golden["vae_z"],), golden["vae_decoded"], method="decode")
        case "text tower":
            ids = tiny.token_ids()[[1, 0]][: len(golden["text_tower"])]
            return Case("text_encoder", (ids,), golden["text_tower"])
        case "vision tower":
            pixels = preprocess(jnp.asarray(_pictures(golden)))
            return Case("image_encoder", (pixels,), golden["vision_tower"])
        case "projector" if tokens is not None:
            return Case("projector", (tokens,), golden["resampler"])
    raise ValueError(f"there is no call of {network!r}")


def _frames_case(case: str) -> Case:
    """Returns the golden call of the U-Net for another number of frames (see `FRAME_COUNTS`)."""
    golden = tiny.golden("tiny_v_frames")
    t, _, split = case.partition("_")
    image = golden["image_context_96" if split else "image_context"]
    b, n, d = image.shape
    if n == 16 * int(t):
        image = image.reshape(b, int(t), 16, d)
    inputs = golden[f"x_{t}"], golden["timesteps"], golden["text_context"], image, golden["fs"]
    return Case("unet", inputs, golden[f"unet_{case}"])


def _unet_inputs(golden: Mapping[str, np.ndarray], scale: float = 1.0) -> tuple[ArrayLike, ...]:
    x, text, image = (
        np.float32(scale) * golden[name] for name in ("x", "text_context", "image_context")
    )
    image = image.reshape(len(image), x.shape[1], -1, image.shape[-1])
    return x, golden["timesteps"], text, image, golden["fs"]


def _pictures(golden: Mapping[str, np.ndarray]) -> np.ndarray:
    seeds = golden["picture_seeds"] if "picture_seeds" in golden else golden["picture_seed"][None]
    return np.stack([golden_weights.picture(int(seed), 64, 96) for seed in seeds])


def _config(model: str) -> ConfigDict:
    return load_config("i2v_512") if model == "512" else tiny.config(model.removeprefix("tiny_"))


@functools.cache
def _params(model: str, section: str) -> PyTree:
    """Rebuilds a network's weights from the names in a manifest, one tensor at a time."""
    manifest = json.loads((tiny.GOLDEN / f"manifest_{model}.json").read_text())
    places = release_tensors({section: abstract_models(networks_of(_config(model)))[section]})
    params = {}
    for name, place in tqdm(
        places.items(), desc=section, unit=" tensors", leave=False, disable=None
    ):
        shape, _ = manifest[name]
        values = np.asarray(golden_weights.tensor(name, tuple(shape)))
        params[place.path[1:]] = jnp.asarray(place.from_release(values))
    return traverse_util.unflatten_dict(params)


@functools.cache
def _animate(release: str, dtype: str) -> ImageToVideo:
    """Returns the small model of a release's kind, with the diffusion of that release."""
    model = "tiny_eps" if release == "256" else "tiny_v"
    config = _config(model)
    config.diffusion = load_config(f"i2v_{release}").diffusion
    config.precision.dtype = dtype
    return ImageToVideo(config, {name: _params(model, name) for name in Models._fields})


def _replay(golden: Mapping[str, np.ndarray], settings: Mapping, dtype: str) -> Clips:
    first, last = (golden[name].reshape(-1, 64, 96, 3) for name in ("first", "last"))
    sampling = ("steps", "eta", "guidance_scale", "image_guidance_scale", "guidance_rescale")
    return _animate(settings["kind"], dtype).sample(
        list(first),
        settings["prompts"],
        end_image=list(last) if settings["interp"] else None,
        loop=settings["loop"],
        noise=golden,
        num_frames=golden["latents"].shape[1],
        fps=settings["fs"],
        **{name: settings[name] for name in (*sampling, "spacing")},
    )


def _describe(settings: Mapping, num_frames: int) -> str:
    """Describes a run in a few words; it has 4 frames unless they say otherwise."""
    mode = "interpolation, " if settings["interp"] else "loop, " if settings["loop"] else ""
    clips = len(settings["prompts"])
    scales = [settings["guidance_scale"], settings["image_guidance_scale"]]
    guidance = " and ".join(f"{scale:g}" for scale in scales if scale is not None)
    many = f"{clips} clips, " if clips > 1 else ""
    many += f"{num_frames} frames, " if num_frames != 4 else ""
    steps, eta = settings["steps"], settings["eta"]
    return f"{settings['kind']}, {mode}{many}{steps} steps, eta {eta:g}, guidance {guidance}"


def _worst_layer(settings: Mapping) -> str:
    """Returns the layer of a run's U-Net that loses most in bfloat16."""
    model = "tiny_eps" if settings["kind"] == "256" else "tiny_v"
    *_, row = measure_network(model, "U-Net", SMALL_NETWORK_TARGET)[0]
    return row.worst_layer


def _worst_of(name: str, pairs: Iterable[tuple[ArrayLike, ArrayLike]], target: float) -> Row:
    """Returns one row for many comparisons, with the largest error; NaN counts as largest."""
    return Row(name, float(np.max([relative_error(*pair) for pair in pairs])), target)
