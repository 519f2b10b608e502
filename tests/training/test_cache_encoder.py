"""The networks behind a latent cache: training from it is training from the videos, but cheaper."""

import dataclasses
import functools
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import caches
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import release_files
import runs
import tiny
from quick import xla_flags

from dynamicrafter_jax import conditioning, sharding
from dynamicrafter_jax.conditioning import Conditioning
from dynamicrafter_jax.data.cache import __main__ as cache
from dynamicrafter_jax.data.cache.clips import CachedExamples
from dynamicrafter_jax.data.clips import VideoExamples
from dynamicrafter_jax.data.loader import batches
from dynamicrafter_jax.data.sources import open_source
from dynamicrafter_jax.diffusion.schedule import make_schedule
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.training import cache_encoder, inputs
from dynamicrafter_jax.training.cache_encoder import NetworkEncoder, load_networks, local_mesh
from dynamicrafter_jax.training.feed import to_batch
from dynamicrafter_jax.training.inputs import Batch
from dynamicrafter_jax.training.objectives import denoise
from dynamicrafter_jax.training.throughput import product_flops

pytestmark = pytest.mark.filterwarnings("ignore:.*its place is kept")
SETTINGS = dataclasses.replace(caches.SETTINGS, condition_dropout=0.3)
CLIPS, SEED = 8, 5  # a seed that drops all there is
KINDS = {(): "moments", ("text",): "text", ("text", "vision"): "vision"}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> str:
    return caches.make_videos(tmp_path_factory.mktemp("networks") / "videos")


@functools.cache
def encoder() -> NetworkEncoder:
    model, mesh = tiny.micro(), local_mesh()
    names = ("vae", "text_encoder", "image_encoder")
    params = {name: sharding.replicate(model.params[name], mesh) for name in names}
    return NetworkEncoder(model.config, params, mesh, dtype="float32", frames_per_device=1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, videos: str) -> Path:
    """A cache by the smallest model, of everything."""
    folder = tmp_path_factory.mktemp("made") / "cache"
    caches.make(folder, videos, ("text", "vision"), encoder=encoder(), shapes=encoder().shapes())
    return folder


def read(examples: VideoExamples | CachedExamples) -> Batch:
    (rows,) = batches(examples, batch_size=CLIPS, rows=range(CLIPS), stop=1)
    return to_batch(rows, sharding.make_mesh(1))


def losses(params: Any, batch: Batch) -> jax.Array:
    model = tiny.micro()
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(5), batch.sample_index)
    schedule = make_schedule(**model.config.diffusion.to_dict())
    loss, _ = denoise(
        model.models, schedule, params, batch, keys, concat="frame", vae_frames=2, dropout=True
    )
    return loss


def prepared(params: Any, batch: Batch) -> tuple[jax.Array, Conditioning]:
    """Latents and conditions, of which the loss is a function."""
    models = tiny.micro().models
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(5), batch.sample_index)
    posterior = inputs.posteriors(models, params, batch, 2)
    latents = inputs.clip_latents(models, posterior, keys)
    return latents, inputs.clip_condition(models, params, batch, latents, "frame")


def both(made: Path, videos: str) -> tuple[Batch, Batch, np.ndarray]:
    """A batch from the cache and from the videos, and the weight of each clip."""
    cached = read(CachedExamples(made, SETTINGS, SEED))
    plain = read(VideoExamples(open_source(videos), SETTINGS, SEED))
    weight = np.asarray(plain.weight)
    np.testing.assert_array_equal(cached.weight, weight)
    emptied = np.asarray(plain.ids)[:, 2] == 0
    conditions = zip(emptied[weight > 0], np.asarray(plain.keep_image)[weight > 0], strict=True)
    assert len(set(conditions)) == 4 and weight.sum() < CLIPS
    return cached, plain, weight


def test_latents_and_conditions_are_those_of_the_videos(made: Path, videos: str):
    cached, plain, weight = both(made, videos)
    ours, wanted = (
        jax.tree.leaves(jax.jit(prepared)(tiny.micro().params, batch)) for batch in (cached, plain)
    )
    for a, b in zip(ours, wanted, strict=True):
        a, b = np.asarray(a)[weight > 0], np.asarray(b)[weight > 0]
        assert np.abs(a - b).max() <= 1e-6 * np.abs(b).max()
        assert len({clip.tobytes() for clip in b}) > 1


@pytest.mark.slow
def test_the_loss_is_that_of_the_videos(made: Path, videos: str):
    cached, plain, weight = both(made, videos)
    ours = np.asarray(jax.jit(losses)(tiny.micro().params, cached)) * weight
    wanted = np.asarray(jax.jit(losses)(tiny.micro().params, plain)) * weight
    np.testing.assert_allclose(ours, wanted, rtol=1e-6)
    assert len(np.unique(wanted)) == weight.sum() + 1
    for dtype, tolerance in (("bfloat16", 1e-3), ("float16", 1e-4)):
        rounded = {
            name: jnp.asarray(getattr(cached, name), jnp.dtype(dtype)).astype(jnp.float32)
            for name in ("moments", "text", "vision")
        }
        rough = np.asarray(jax.jit(losses)(tiny.micro().params, cached._replace(**rounded)))
        np.testing.assert_allclose(rough * weight, wanted, rtol=tolerance)


def abstract_batch(made: Path, kinds: tuple[str, ...], **dtypes: str) -> Batch:
    """A batch as `kinds` of caching give it, or of videos."""
    full = read(CachedExamples(made, SETTINGS, SEED))
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), full)
    changed = {
        name: jax.ShapeDtypeStruct(getattr(shapes, name).shape, jnp.dtype(dtype))
        for name, dtype in dtypes.items()
    }
    shapes = shapes._replace(**changed)
    if "text" not in kinds:
        shapes = shapes._replace(text=None, ids=jax.ShapeDtypeStruct((CLIPS, 77), jnp.int32))
    image = jax.ShapeDtypeStruct((CLIPS, 16, 24, 3), jnp.uint8)
    if "vision" not in kinds:
        shapes = shapes._replace(vision=None, image=image)
    if "moments" not in kinds:
        video = jax.ShapeDtypeStruct((CLIPS, 3, 16, 24, 3), jnp.uint8)
        shapes = shapes._replace(moments=None, image=None, video=video)
    return shapes


def flops(function: Any, *arguments: Any) -> int:
    return product_flops(jax.jit(function).trace(*arguments).jaxpr)


def test_what_is_cached_is_not_computed(made: Path):
    """The work of latents and conditions falls by that of each network, to the last operation."""
    models, params = tiny.micro().models, tiny.micro().params
    batch = abstract_batch(made, ())
    images = jax.ShapeDtypeStruct((CLIPS, 16, 24, 3), jnp.float32)
    tokens = jax.ShapeDtypeStruct((CLIPS, 5, 16), jnp.float32)
    saved = {
        "moments": flops(lambda p, rows: inputs.posteriors(models, p, rows, 2), params, batch),
        "text": flops(functools.partial(conditioning.text_context, models), params, batch.ids),
        "vision": flops(functools.partial(conditioning.image_tokens, models), params, images),
    }
    project = functools.partial(conditioning.project_tokens, models)
    work = flops(prepared, params, batch)
    for i, (kind, part) in enumerate(saved.items(), start=1):
        work -= part
        assert part > 0
        assert flops(prepared, params, abstract_batch(made, tuple(saved)[:i])) == work, kind
    assert work == flops(project, params, tokens)


@pytest.mark.parametrize(
    ("dtype", "computed"),
    [("float16", "bfloat16"), ("bfloat16", "float32")],
)
def test_a_step_takes_numbers_of_any_type(made: Path, dtype: str, computed: str):
    """No types are mixed, which would raise here."""
    config = release_files.micro()
    config.precision.dtype = computed
    model = tiny.micro()
    dtypes = dict.fromkeys(("moments", "text", "vision"), dtype)
    batch = abstract_batch(made, ("moments", "text", "vision"), **dtypes)
    models = cache_encoder.networks_of(config)
    keys = jax.vmap(jax.random.key)(np.arange(CLIPS))
    schedule = make_schedule(**config.diffusion.to_dict())

    def loss(params: Any, batch: Batch) -> Any:
        return denoise(models, schedule, params, batch, keys, concat="ends", vae_frames=2)

    found, _ = jax.eval_shape(loss, model.params, batch)
    assert found.dtype == np.float32


def write_release(path: Path, *, without: tuple[str, ...] = (), spoilt: str = "") -> str:
    tensors = release_files.micro_tensors(without=without)
    for name in tensors:
        if spoilt and name.startswith(spoilt):
            tensors[name] = np.full_like(tensors[name], np.nan)
    return os.fspath(release_files.write(path, tensors))


def test_only_what_is_needed_is_read(tmp_path: Path):
    """What is not read may hold anything."""
    config, mesh = release_files.micro(), local_mesh()
    config.init.checkpoint = write_release(tmp_path / "m.safetensors", spoilt="model.diffusion")
    params, weights = load_networks(config, ["vae"], mesh)
    assert params.keys() == weights.keys() == {"vae"}
    assert [entry["name"] for entry in weights["vae"]] == ["m.safetensors"]
    assert len(weights["vae"][0]["sha256"]) == 64
    leaf = params["vae"]["encoder"]["conv_in"]["kernel"]
    assert leaf.sharding.is_fully_replicated and len(leaf.sharding.device_set) == 8
    config.init.checkpoint = write_release(tmp_path / "n.safetensors", without=release_files.FROZEN)
    with pytest.raises(UserError, match=r"the vae and the text_encoder would be random"):
        load_networks(config, ["vae", "text_encoder"], mesh)


def given(videos: str, output: Path, **changes: Any) -> dict[str, Any]:
    config = release_files.micro()
    config.data.source = videos
    flags = {"text": False, "vision": False, "dtype": None, "videos_per_shard": 3, "batch_size": 1}
    return {"config": config, "output": os.fspath(output)} | flags | changes


def test_the_command(tmp_path: Path, videos: str, capsys: pytest.CaptureFixture[str]):
    cache.run(given(videos, tmp_path / "cache", dtype="float16"))
    said = capsys.readouterr().out
    assert "7 videos, 2 of them broken, with 7" in said and "3 shards written now, " in said
    cached = CachedExamples(tmp_path / "cache", SETTINGS, SEED)
    assert cached.recipe.shapes == {"moments": (8, 12, 8)}
    params, _ = load_networks(release_files.micro(), ["vae"], local_mesh())
    plain = VideoExamples(open_source(videos), SETTINGS, SEED)
    index = next(index for index in range(7) if plain(index)["weight"])
    moments = jax.jit(functools.partial(tiny.micro().models.vae.apply, method="moments"))
    pixels = inputs.pixels(jnp.asarray(plain(index)["video"]))
    wanted = moments({"params": params["vae"]}, pixels)
    ours = cached(index)["moments"]
    assert ours.dtype == np.float16
    np.testing.assert_allclose(ours.astype(np.float32), wanted, rtol=2**-11 + 1e-5, atol=1e-6)
    cache.run(given(videos, tmp_path / "cache", dtype="float16"))
    assert "; 0 shards written now, " in capsys.readouterr().out


WRONG = {
    "no config": ({"config": None}, "no --config: see --help"),
    "no output": ({"output": None}, "no --output: see --help"),
    "no videos of a shard": ({"videos_per_shard": 0}, "--videos_per_shard is 0: give 1 or more"),
    "no frames": ({"batch_size": 0}, "--batch_size is 0: give 1 or more"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_flags(tmp_path: Path, videos: str, name: str):
    changes, message = WRONG[name]
    with pytest.raises(UserError, match=message):
        cache.run(given(videos, tmp_path / "cache") | changes)


@pytest.mark.slow
def test_training_from_a_cache_takes_the_same_steps(tmp_path: Path):
    """From the command line, three steps of each."""
    videos = runs.make_videos(tmp_path / "videos")
    output = tmp_path / "cache"
    command = [sys.executable, "-m", "dynamicrafter_jax.data.cache", "--text", "--vision"]
    command += ["--config=tests/configs/micro.py", f"--config.data.source={videos}"]
    done = subprocess.run(
        [*command, f"--output={output}"], cwd=runs.ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "warning: broken.mp4 is truncated or not a video" in done.stderr
    told = []
    for name, source in (("plain", videos), ("cached", output)):
        flags = ["--config.train.steps=3", "--config.data.workers=0"]
        runs.finish(runs.start(tmp_path / name, source, *flags))
        told.append(runs.losses(tmp_path / name))
    assert told[0].keys() == told[1].keys() == {1, 2, 3}
    for step, loss in told[0].items():
        assert told[1][step] == pytest.approx(loss, rel=1e-5)


@pytest.mark.slow
def test_two_hosts_make_the_cache_of_one(tmp_path: Path, videos: str):
    """One of them is killed outright, and both are started again."""
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{port.getsockname()[1]}"

    def start(folder: str, *flags: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "dynamicrafter_jax.data.cache", "--videos_per_shard=2"]
        command += ["--config=tests/configs/micro.py", f"--config.data.source={videos}"]
        command += [f"--output={tmp_path / folder}", "--text", *flags]
        environment = os.environ | {"XLA_FLAGS": xla_flags(2)}
        return subprocess.Popen(command, cwd=runs.ROOT, env=environment)

    def start_both() -> list[subprocess.Popen]:
        flags = (f"--coordinator_address={address}", "--num_processes=2")
        return [start("shared", *flags, f"--process_id={number}") for number in range(2)]

    assert start("alone").wait(timeout=300) == 0
    first, second = start_both()
    while not list((tmp_path / "shared").glob("index-*")):
        time.sleep(0.01)
    for process in (first, second):
        process.kill()
        process.wait()
    assert [process.wait(timeout=300) for process in start_both()] == [0, 0]
    assert caches.contents(tmp_path / "shared") == caches.contents(tmp_path / "alone")
