"""Compiled sampling: reads inputs, splits them over a mesh and runs the three stages."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Array, Float32, Int32, PyTree, UInt8
from ml_collections import ConfigDict
from PIL import Image

from dynamicrafter_jax import sharding
from dynamicrafter_jax.attention import choose_attention
from dynamicrafter_jax.conditioning import Conditioning
from dynamicrafter_jax.config import matmul_precision, networks_of
from dynamicrafter_jax.diffusion.loop import LoopState
from dynamicrafter_jax.diffusion.schedule import make_schedule
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.media import Window, fit_images
from dynamicrafter_jax.models import Models, abstract_models
from dynamicrafter_jax.runtime.program import Program
from dynamicrafter_jax.sampling import stages
from dynamicrafter_jax.sampling.noise import Noise
from dynamicrafter_jax.sampling.pairing import pair
from dynamicrafter_jax.sampling.settings import GuidanceScales, SamplingSettings
from dynamicrafter_jax.tokenizer import tokenize

ImageLike = str | epath.Path | Image.Image | np.ndarray


@runtime_checkable
class Progress(Protocol):
    """Receives progress updates."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Takes the stage, such as "denoise", and how many of its steps are done."""
        ...


@dataclasses.dataclass(frozen=True)
class Clips:
    """The results of sampling, before they are turned into pictures.

    Attributes:
        latents: Scaled latents, with the padding that the networks need.
        video: Frames around [-1, 1], unclipped; with the fit "letterbox", only the part of them
            that shows the picture.
        loop: Whether the last frame repeats the first.
    """

    latents: Float32[np.ndarray, "b t h w z"]
    video: Float32[np.ndarray, "b t h2 w2 3"]
    loop: bool = False

    def frames(self) -> UInt8[np.ndarray, "b t2 h2 w2 3"]:
        """Returns the frames to show; see `shown_frames`."""
        return shown_frames(self.video, self.loop)


def shown_frames(
    video: Float32[np.ndarray, "*b t h w 3"], loop: bool
) -> UInt8[np.ndarray, "*b t2 h w 3"]:
    """Returns a video's frames to show: 8 bits, without a loop's repeated last frame.

    Raises:
        UserError: A value is NaN or infinite, which would be shown as black or white.
    """
    if not np.isfinite(video).all():
        raise UserError(
            "the model made frames with NaN or infinite values: check the checkpoint, or compute "
            "with precision.dtype=float32"
        )
    video = video[..., :-1, :, :, :] if loop else video
    return np.round((np.clip(video, -1, 1) + 1) * 127.5).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Images and prompts, read and checked: one row per clip.

    Attributes:
        first: Images in [-1, 1].
        last: Images that clips end at, in [-1, 1], or None.
        ids: Token ids of the prompts.
        window: The part of the frames to show.
        loop: Whether each clip ends where it began.
    """

    first: Float32[np.ndarray, "b h w 3"]
    last: Float32[np.ndarray, "b h w 3"] | None
    ids: Int32[np.ndarray, "b l"]
    window: Window
    loop: bool = False

    @property
    def count(self) -> int:
        """Number of clips."""
        return len(self.first)

    def __getitem__(self, chosen: slice) -> "Inputs":
        """Returns some of the rows."""
        last = None if self.last is None else self.last[chosen]
        return Inputs(self.first[chosen], last, self.ids[chosen], self.window, self.loop)


def load_sampler(
    source: epath.PathLike,
    mesh: Mesh | None = None,
    *,
    config: ConfigDict | None = None,
    towers: epath.PathLike | None = None,
) -> tuple["Sampler", PyTree[Array]]:
    """Loads a model and places its parameters where its sampler needs them.

    Args:
        source: The model; see `weights.load.load_pretrained`, also for `config` and `towers`.
        mesh: What batches are split over; by default the config's mesh.
        config: A config to use instead of the model's own.
        towers: Where to load frozen towers from, if they are not in `source`.

    Returns:
        The sampler, which has the config in use, and the parameters on its mesh.

    Raises:
        UserError: The model can't be loaded, as in `load_pretrained`, or the mesh can't be made.
    """
    # Orbax and its storage take seconds to import, which sampling itself does not need.
    from dynamicrafter_jax.weights.load import load_pretrained

    config, params = load_pretrained(source, config=config, towers=towers)
    sampler = Sampler(config, sharding.mesh_of(config) if mesh is None else mesh)
    return sampler, sampler.place(params)


def _unwatched(stage: str, done: int, total: int) -> None:
    """Ignores progress updates; a `Progress`."""


class Sampler:
    """The stages compiled for a config and a mesh, with parameters passed to each call.

    Parameters are used in place and never copied, so training can sample from its own.

    Attributes:
        config: A config, as in `configs/`.
        models: The five networks.
        schedule: The noise schedule.
        mesh: What batches are split over.
        compile_seconds: How long compilation has taken so far.
    """

    def __init__(self, config: ConfigDict, mesh: Mesh) -> None:
        """Builds the networks; each stage compiles when it is first called.

        Raises:
            UserError: The config is refused.
        """
        self.config = config
        self.mesh = mesh
        self.models = networks_of(config, choose_attention(mesh))
        self.schedule = make_schedule(**config.diffusion.to_dict())
        self._encode, self._start, self._denoise, self._decode = _programs(self.models)
        self.compile_seconds = 0.0

    def place(self, params: PyTree) -> PyTree[Array]:
        """Returns the parameters placed on the mesh."""
        where = sharding.parameter_shardings(abstract_models(networks_of(self.config)), self.mesh)
        return sharding.place_parameters(params, where)

    def read(
        self,
        image: ImageLike | Sequence[ImageLike],
        prompt: str | Sequence[str],
        settings: SamplingSettings,
        *,
        end_image: ImageLike | Sequence[ImageLike] | None = None,
        loop: bool = False,
        num_samples: int = 1,
    ) -> Inputs:
        """Reads images at the size in `settings`; for the arguments, see `ImageToVideo.sample`.

        Raises:
            UserError: An input can't be used; the message says why.
        """
        images, prompts, ends = pair(image, prompt, end_image, loop=loop)
        if (end_image is not None or loop) and settings.num_frames < 2:
            raise UserError("interpolation and looping need sampling.num_frames of at least 2")
        if num_samples < 1:
            raise UserError(f"num_samples is {num_samples}: give at least 1")
        # Together, because the end of a clip must show the same part of the frame.
        pictures, window = fit_images(images + ends, settings.height, settings.width, settings.fit)
        first = np.repeat(pictures[: len(images)], num_samples, axis=0)
        last = np.repeat(pictures[len(images) :], num_samples, axis=0) if ends else None
        ids = tokenize(prompts, self.models.text_encoder.context_length)
        ids = np.repeat(ids, num_samples, axis=0)
        return Inputs(first, first if loop else last, ids, window, loop)

    def num_steps(self, settings: SamplingSettings) -> int:
        """Returns how many steps are taken, which may be one more than requested."""
        _, tables = stages.make_steps(self.models, self.schedule, settings)
        return len(tables.coefficients.timestep)

    def __call__(
        self,
        params: PyTree,
        inputs: Inputs,
        settings: SamplingSettings,
        draws: Noise,
        progress: Progress | None = None,
    ) -> Clips:
        """Samples one batch.

        If several processes share the mesh, all of them must call this with the same arguments,
        and each gets all clips.

        Args:
            params: A dict of parameter trees by section, placed on the mesh.
            inputs: Images and prompts.
            settings: How to sample.
            draws: The noise of each clip.
            progress: Receives progress updates.
        """
        with self.in_force():
            return self._run(params, inputs, settings, draws, progress or _unwatched)

    @contextlib.contextmanager
    def in_force(self) -> Iterator[None]:
        """Applies the mesh and the config's precision, as all methods but `__call__` require."""
        with (
            matmul_precision(self.config),
            sharding.use_mesh(self.mesh),
        ):
            yield

    def compiled(self, program: Program, *args: Any, **static: Any) -> Callable[..., Any]:
        """Returns a program's executable, and adds any compilation to `compile_seconds`."""
        started = time.perf_counter()
        executable = program.compile(*args, **static)
        self.compile_seconds += time.perf_counter() - started
        return executable

    def _run(
        self,
        params: PyTree,
        inputs: Inputs,
        settings: SamplingSettings,
        draws: Noise,
        report: Progress,
    ) -> Clips:
        """Encodes, denoises and decodes."""
        length = self.models.text_encoder.context_length
        fs = np.full(inputs.count, settings.fps, np.float32)
        batch = (inputs.first, inputs.last, inputs.ids, fs, draws)
        multiple = sharding.batch_multiple(self.mesh, settings.passes_at_once)
        pad = functools.partial(_pad_batch, multiple=multiple)
        batch = sharding.split_batch(jax.tree.map(pad, batch), self.mesh)
        first, last, ids, fs, draws = batch
        negative_ids = self._whole(tokenize([settings.negative_prompt], length))

        report("compile", 0, 3)
        arguments = (params, first, last, ids, negative_ids, fs, draws)
        shape = stages.latent_shape(self.models, settings)
        passes = {"shape": shape, "num_passes": settings.num_passes}
        executable = self.compiled(self._encode, *arguments, **passes)
        report("compile", 1, 3)
        conditions = executable(*arguments)

        latents = self.denoise(params, conditions, [settings] * len(fs), draws, report)
        video = self.decode(params, latents, settings, report)
        videos = inputs.window.cut(np.asarray(self.to_every_process(video))[: inputs.count])
        report("decode", 1, 1)
        return Clips(
            np.asarray(self.to_every_process(latents))[: inputs.count], videos, inputs.loop
        )

    def denoise(
        self,
        params: PyTree,
        conditions: tuple[Conditioning, ...],
        settings: Sequence[SamplingSettings],
        draws: Noise,
        report: Progress = _unwatched,
    ) -> Array:
        """Returns the latents of a batch, without waiting for them unless `report` is given.

        Args:
            params: As in `__call__`.
            conditions: What each guided pass is conditioned on, placed on the mesh.
            settings: The settings of each clip. They may differ in scales, `fps` and seed.
            draws: The noise of each clip, placed on the mesh.
            report: Receives progress updates.
        """
        method, tables = stages.make_steps(self.models, self.schedule, settings[0])
        steps = len(tables.coefficients.timestep)
        # Padding with rows that no step reaches makes the program the same for any number of steps.
        rows = len(self.schedule.alpha_bar) - steps
        tables = self._whole(jax.tree.map(lambda table: np.pad(table, (0, rows)), tables))
        scales = sharding.split_batch(GuidanceScales.per_clip(settings), self.mesh)
        shape = stages.latent_shape(self.models, settings[0])
        state = self.compiled(self._start, draws, method=method, shape=shape)(draws)
        options = {"method": method, "sequential": settings[0].sequential_guidance}
        # One call runs all steps; to report progress, the same program runs one step at a time.
        stride = steps if report is _unwatched else 1
        for start in range(0, steps, stride):
            bounds = self._whole(
                (np.asarray(start, np.int32), np.asarray(start + stride, np.int32))
            )
            arguments = (params, conditions, tables, scales, state, draws, *bounds)
            executable = self.compiled(self._denoise, *arguments, **options)
            if start == 0:
                report("compile", 2, 3)
            state = executable(*arguments)
            if report is not _unwatched:
                jax.block_until_ready(state)
            report("denoise", min(start + stride, steps), steps)
        return state.x

    def decode(
        self,
        params: PyTree,
        latents: Array,
        settings: SamplingSettings,
        report: Progress = _unwatched,
    ) -> Array:
        """Returns the video of latents, without waiting for it; see `denoise` for the arguments."""
        size = {"height": settings.height, "width": settings.width}
        size["vae_frames"] = settings.vae_frames
        executable = self.compiled(self._decode, params, latents, **size)
        report("compile", 3, 3)
        return executable(params, latents)

    def to_every_process(self, rows: Array) -> Array:
        """Returns an array that every process can read, without waiting for it."""
        if rows.is_fully_addressable:
            return rows
        return jax.jit(_identity, out_shardings=sharding.replicated(self.mesh))(rows)

    def _whole(self, tree: PyTree) -> PyTree:
        return sharding.replicate(tree, self.mesh)


@functools.lru_cache(maxsize=4)
def _programs(models: Models) -> tuple[Program, Program, Program, Program]:
    """The stages of some networks, which samplers of other parameters share."""
    encode, denoise, decode = (
        Program(functools.partial(stage, models))
        for stage in (stages.encode, stages.denoise, stages.decode)
    )
    return encode, Program(_start), denoise, decode


def _identity(rows: Array) -> Array:
    return rows


def _start(draws: Noise, *, method: stages.Method, shape: tuple[int, int, int, int]) -> LoopState:
    return stages.start(method, draws, shape=shape)


def _pad_batch(rows: Any, multiple: int) -> Any:
    """Repeats the last row to make the batch size a multiple; results drop the added rows."""
    missing = -len(rows) % multiple
    if not missing:
        return rows
    return jnp.concatenate([rows, jnp.repeat(rows[-1:], missing, axis=0)])
