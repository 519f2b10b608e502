"""Exports sampling as serialised programs, which take parameters, tables and inputs."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import traverse_util
from jax import export
from jaxtyping import Array, Float, PyTree, UInt8
from ml_collections import ConfigDict

from dynamicrafter_jax import sharding
from dynamicrafter_jax.artifact.layout import (
    RANDOM_IMPLEMENTATION,
    TABLES_FILE,
    WEIGHTS_FILE,
    program_file,
    write_description,
)
from dynamicrafter_jax.attention import choose_attention
from dynamicrafter_jax.config import config_to_json, matmul_precision, networks_of
from dynamicrafter_jax.diffusion.schedule import make_schedule
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.models import Models
from dynamicrafter_jax.runtime.files import atomic
from dynamicrafter_jax.runtime.provenance import environment
from dynamicrafter_jax.sampling import stages
from dynamicrafter_jax.sampling.noise import KeyedNoise
from dynamicrafter_jax.sampling.settings import GuidanceScales, SamplingSettings
from dynamicrafter_jax.weights.tensors import write_tensors

Arrays = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Target:
    """A program that can be exported.

    Attributes:
        kernel: Attention kernel, by its name in `attention.choose_attention`.
        platforms: Platforms that it runs on, by their names in `jax.export`.
    """

    kernel: str
    platforms: tuple[str, ...]


TARGETS = {
    "portable": Target("chunked", ("cpu", "cuda", "tpu")),
    "tpu": Target("splash", ("tpu",)),
    "cuda": Target("cudnn", ("cuda",)),
}

# JAX does not guarantee that later versions can run this kernel as it was lowered.
_CHECKS = [export.DisabledSafetyCheck.custom_call("__cudnn$fmhaSoftmax")]


def possible_targets() -> list[str]:
    """Returns the programs that can be exported here; tracing cuDNN's needs a GPU."""
    return [name for name in TARGETS if name != "cuda" or _has_nvidia_gpu()]


def export_artifact(
    config: ConfigDict,
    params: PyTree,
    directory: epath.PathLike,
    *,
    targets: Sequence[str] | None = None,
    batch_size: int = 1,
    interpolation: bool = False,
    sources: Sequence[dict[str, Any]] = (),
) -> None:
    """Writes a model as an artifact; `artifact.layout` describes its files.

    Args:
        config: The config of the model. Its section `sampling` is built into the programs.
        params: The parameters, by network.
        directory: Where to write, new or empty. It appears once everything is written.
        targets: Names from `TARGETS`; by default those that can be exported here.
        batch_size: Clips sampled by one call.
        interpolation: Whether clips have an end image.
        sources: Where the parameters come from, as `weights.load.origin` returns it.

    Raises:
        UserError: A target can't be exported here, the config is refused, or the directory can't be
            written.
    """
    targets = possible_targets() if targets is None else targets
    check_targets(targets)
    settings = SamplingSettings.from_config(config.sampling)
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}: give at least 1")
    if interpolation and settings.num_frames < 2:
        raise UserError("interpolation needs sampling.num_frames of at least 2")
    tables = make_tables(config, settings)
    weights = cast(dict[str, Array], traverse_util.flatten_dict(params, sep="/"))
    weight_shapes, table_shapes = _shapes(weights), _shapes(tables)
    inputs = input_shapes(networks_of(config), settings, batch_size, interpolation)
    with atomic(directory) as temporary:
        temporary.mkdir()
        (temporary / "programs").mkdir()
        _write_arrays(temporary / WEIGHTS_FILE, weights)
        _write_arrays(temporary / TABLES_FILE, tables)
        for name in targets:
            exported = export_program(config, TARGETS[name], weight_shapes, table_shapes, inputs)
            (temporary / program_file(name)).write_bytes(bytes(exported.serialize(vjp_order=0)))
        description = {
            "name": config.get("name"),
            "interpolation": interpolation,
            "num_passes": settings.num_passes,
            "settings": dataclasses.asdict(settings),
            "inputs": {name: _describe(shape) for name, shape in inputs.items()},
            "programs": {name: list(TARGETS[name].platforms) for name in targets},
            "parameters": sum(math.prod(leaf.shape) for leaf in weights.values()),
            "config": config_to_json(config),
            "sources": list(sources),
            "made_with": environment(),
        }
        names = (WEIGHTS_FILE, TABLES_FILE, *map(program_file, targets))
        write_description(temporary, description, names)


def check_targets(targets: Sequence[str]) -> None:
    """Checks that programs can be exported here.

    Raises:
        UserError: A program can't be; the message says where it can.
    """
    if not targets:
        raise UserError(f"no program to export: choose from {', '.join(TARGETS)}")
    for name in targets:
        if name not in TARGETS:
            raise UserError(
                f"no program {name!r} can be exported: choose from {', '.join(TARGETS)}"
            )
        if name not in possible_targets():
            raise UserError(
                f"the {name} program can't be exported here: its attention depends on the GPU "
                "and its cuDNN, so export it on a machine with an NVIDIA GPU; the portable "
                "program runs on such GPUs too"
            )


def make_tables(config: ConfigDict, settings: SamplingSettings) -> dict[str, np.ndarray]:
    """Returns what differs from step to step by name, with a row for each step."""
    schedule = make_schedule(**config.diffusion.to_dict())
    _, tables = stages.make_steps(networks_of(config), schedule, settings)
    return {name: np.asarray(table) for name, table in _named(tables).items()}


def input_shapes(
    models: Models, settings: SamplingSettings, batch_size: int, interpolation: bool
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the inputs that a program takes besides weights and tables, by name."""
    length = models.text_encoder.context_length
    image = (batch_size, settings.height, settings.width, 3)
    key_data = jax.eval_shape(lambda: jax.random.key_data(_random_key()))
    floats = jnp.dtype(jnp.float32)
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "image": (image, floats),
        **({"end_image": (image, floats)} if interpolation else {}),
        "token_ids": ((batch_size, length), jnp.dtype(jnp.int32)),
        "negative_token_ids": ((1, length), jnp.dtype(jnp.int32)),
        "fps": ((batch_size,), floats),
        "guidance_scale": ((batch_size,), floats),
        "image_guidance_scale": ((batch_size,), floats),
        "guidance_rescale": ((batch_size,), floats),
        "keys": ((batch_size, *key_data.shape), key_data.dtype),
    }
    return {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}


def export_program(
    config: ConfigDict,
    target: Target,
    weights: dict[str, jax.ShapeDtypeStruct],
    tables: dict[str, jax.ShapeDtypeStruct],
    inputs: dict[str, jax.ShapeDtypeStruct],
) -> export.Exported:
    """Traces and lowers sampling for a target, independently of this machine.

    Args:
        config: The config of the model.
        target: What to export.
        weights: Shapes of the parameters, by path.
        tables: Shapes of the tables from `make_tables`.
        inputs: Shapes of the inputs, as from `input_shapes`.
    """
    function = jax.jit(sampling_function(config, target.kernel))
    with matmul_precision(config), _without_source_paths():
        return export.export(function, platforms=target.platforms, disabled_checks=_CHECKS)(
            weights, tables, inputs
        )


def sampling_function(
    config: ConfigDict, kernel: str
) -> Callable[[Arrays, Arrays, Arrays], Arrays]:
    """Returns sampling as one function of (weights, tables, inputs), for one device.

    The function returns `latents`, scaled and with the padding that the networks need, and 8-bit
    `frames`. They equal those of `pipeline.ImageToVideo` with the same keys.
    """
    mesh = sharding.make_mesh(devices=jax.local_devices()[:1])
    models = networks_of(config, choose_attention(mesh, kernel))
    settings = SamplingSettings.from_config(config.sampling)
    schedule = make_schedule(**config.diffusion.to_dict())
    method, own = stages.make_steps(models, schedule, settings)
    shape = stages.latent_shape(models, settings)

    def sample(weights: Arrays, tables: Arrays, inputs: Arrays) -> Arrays:
        params = traverse_util.unflatten_dict(weights, sep="/")
        rows = jax.tree.unflatten(jax.tree.structure(own), [tables[name] for name in _named(own)])
        noise = KeyedNoise(jax.random.wrap_key_data(inputs["keys"], impl=RANDOM_IMPLEMENTATION))
        conditions = stages.encode(
            models,
            params,
            inputs["image"],
            inputs.get("end_image"),
            inputs["token_ids"],
            inputs["negative_token_ids"],
            inputs["fps"],
            noise,
            shape=shape,
            num_passes=settings.num_passes,
        )
        scales = GuidanceScales(
            inputs["guidance_scale"], inputs["image_guidance_scale"], inputs["guidance_rescale"]
        )
        steps = len(rows.coefficients.timestep)
        state = stages.denoise(
            models,
            params,
            conditions,
            rows,
            scales,
            stages.start(method, noise, shape=shape),
            noise,
            jnp.int32(0),
            jnp.int32(steps),
            method=method,
            sequential=settings.sequential_guidance,
        )
        video = stages.decode(
            models,
            params,
            state.x,
            height=settings.height,
            width=settings.width,
            vae_frames=settings.vae_frames,
        )
        return {"latents": state.x, "frames": _shown(video)}

    return sample


def _named(tables: stages.Tables) -> dict[str, Any]:
    """Returns tables by their names, in the order of the tree's leaves."""
    leaves = jax.tree_util.tree_leaves_with_path(tables)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _shown(video: Float[Array, "b t h w 3"]) -> UInt8[Array, "b t h w 3"]:
    """Converts as `sampler.shown_frames` does, in the program, to output a quarter of the bytes."""
    return jnp.round((jnp.clip(video, -1, 1) + 1) * 127.5).astype(jnp.uint8)


def _random_key() -> Array:
    return jax.random.key(0, impl=RANDOM_IMPLEMENTATION)


def _has_nvidia_gpu() -> bool:
    with contextlib.suppress(RuntimeError):  # raised if there is no such platform
        return bool(jax.devices("cuda"))
    return False


def _shapes(arrays: Mapping[str, Array | np.ndarray]) -> dict[str, jax.ShapeDtypeStruct]:
    return {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in arrays.items()}


def _describe(shape: jax.ShapeDtypeStruct) -> dict[str, Any]:
    return {"shape": list(shape.shape), "dtype": shape.dtype.name}


def _write_arrays(path: epath.Path, arrays: dict[str, Any]) -> None:
    """Writes arrays one by one, in decreasing order of item size."""
    ordered = sorted(arrays.items(), key=lambda item: -item[1].dtype.itemsize)
    layout = {name: (np.dtype(array.dtype), array.shape) for name, array in ordered}
    with path.open("wb") as file:
        write_tensors(file, layout, ((name, np.asarray(array)) for name, array in ordered))


@contextlib.contextmanager
def _without_source_paths() -> Iterator[None]:
    """Keeps the paths of this machine's source files out of lowered programs."""
    name = "jax_traceback_in_locations_limit"
    limit = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, limit)
