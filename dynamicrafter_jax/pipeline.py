"""Image and prompt to video: the three stages composed, compiled and fed."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Float32, PyTree, UInt8
from ml_collections import ConfigDict
from PIL import Image

from dynamicrafter_jax import sampling, sharding
from dynamicrafter_jax.config import load_config, networks_of
from dynamicrafter_jax.diffusion.loop import initial_state
from dynamicrafter_jax.diffusion.schedule import make_schedule, spaced_timesteps
from dynamicrafter_jax.diffusion.solver import DDIM, DDIMCoefficients, ddim_coefficients
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.media import load_image
from dynamicrafter_jax.models import abstract_models
from dynamicrafter_jax.models.layers import init_params
from dynamicrafter_jax.noise import KeyedNoise, Noise, replay
from dynamicrafter_jax.program import Program
from dynamicrafter_jax.sampling import GuidanceScales, SamplingSettings
from dynamicrafter_jax.tokenizer import tokenize

ImageLike = str | epath.Path | Image.Image | np.ndarray


@runtime_checkable
class Progress(Protocol):
    """Is told how far a call has come, as it goes."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Takes "compile", "encode", "denoise" or "decode", and steps done of how many."""
        ...


@dataclasses.dataclass(frozen=True)
class Clips:
    """What sampling made, before it is turned into pictures.

    Attributes:
        latents: Scaled latents, with the padding that the networks need.
        video: Frames around [-1, 1], unclipped.
        loop: Whether the last frame repeats the first.
    """

    latents: Float32[np.ndarray, "b t h w z"]
    video: Float32[np.ndarray, "b t h2 w2 3"]
    loop: bool = False

    def frames(self) -> UInt8[np.ndarray, "b t2 h2 w2 3"]:
        """Returns the frames to show: 8 bits, without a loop's repeated last frame."""
        video = self.video[:, :-1] if self.loop else self.video
        return np.round((np.clip(video, -1, 1) + 1) * 127.5).astype(np.uint8)


class ImageToVideo:
    """Animates images.

        animate = ImageToVideo.from_pretrained("model_directory")
        video = animate("picture.png", "a man surfing", seed=0)  # uint8 (t, h, w, 3)

    Attributes:
        config: The full config; `config.sampling` holds the defaults of a call.
        models: The five networks.
        params: Their parameters, by the names of `models`.
    """

    def __init__(self, config: ConfigDict, params: PyTree) -> None:
        """Binds parameters to the networks of a config.

        Args:
            config: As in `configs/`.
            params: A dict of parameter trees by section, as `from_pretrained` reads them.

        Raises:
            UserError: If the config is refused.
        """
        self.config = config
        self.models = networks_of(config)
        self.schedule = make_schedule(**config.diffusion.to_dict())
        self.mesh = sharding.make_mesh(config.mesh.data)
        self.params = sharding.replicate(params, self.mesh)
        self._encode = Program(functools.partial(sampling.encode, self.models))
        self._denoise = Program(functools.partial(sampling.denoise, self.models))
        self._decode = Program(functools.partial(sampling.decode, self.models))

    @classmethod
    def from_pretrained(
        cls,
        source: str | epath.Path,
        *,
        config: ConfigDict | str | None = None,
        towers: str | epath.Path | None = None,
    ) -> "ImageToVideo":
        """Loads a converted directory, or a release file (`.ckpt`, `.pt`, `.safetensors`).

        Args:
            source: The directory or file.
            config: A config, its name or its file. A file needs one, since the 512, 1024 and
                interpolation releases hold the same tensors; a directory knows its own.
            towers: For files without the frozen VAE and towers: another file or directory to
                take those from.

        Raises:
            UserError: If the source is missing, broken, or does not fit the config.
        """
        # Orbax and its storage take seconds to import, which sampling itself does not need.
        from dynamicrafter_jax.weights import load_pretrained

        loaded = None if config is None else load_config(config)
        return cls(*load_pretrained(source, config=loaded, towers=towers))

    @classmethod
    def from_random(cls, config: ConfigDict | str, seed: int = 0) -> "ImageToVideo":
        """Builds an untrained model: it runs the whole path and makes noise."""
        config = load_config(config)
        params = init_params(abstract_models(networks_of(config)), jax.random.key(seed))
        return cls(config, params)

    def __call__(
        self,
        image: ImageLike | Sequence[ImageLike],
        prompt: str | Sequence[str] = "",
        **options: Any,
    ) -> UInt8[np.ndarray, "*n t h w 3"]:
        """Animates an image, or a list of them as one batch.

        Args:
            image: A path, picture or uint8 array (h, w, 3); or a list of them.
            prompt: What happens; empty for the image alone. One for all, or a list.
            **options: As in `sample`.

        Returns:
            The video (t, h, w, 3); with a list, or `num_samples` above 1, (n, t, h, w, 3).
        """
        frames = self.sample(image, prompt, **options).frames()
        many = isinstance(image, (list, tuple)) or options.get("num_samples", 1) > 1
        return frames if many else frames[0]

    def sample(
        self,
        image: ImageLike | Sequence[ImageLike],
        prompt: str | Sequence[str] = "",
        *,
        end_image: ImageLike | Sequence[ImageLike] | None = None,
        loop: bool = False,
        num_samples: int = 1,
        first_index: int = 0,
        noise: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
        **settings: Any,
    ) -> Clips:
        """Animates images and returns latents and unclipped frames.

        Args:
            image: One image or a list of them.
            prompt: One prompt for all, or a list.
            end_image: Where each clip ends (interpolation).
            loop: Whether each clip ends where it began.
            num_samples: Clips of each image; they follow one another in the result.
            first_index: Global index of the first clip. A clip's randomness comes from the
                seed and its index alone, so it is the same in any batch.
            noise: Draws of another run to replay, as `noise.replay` takes them.
            progress: Told about compilation and steps.
            **settings: Any of `SamplingSettings`, in place of the config's.

        Raises:
            UserError: If an input or a setting can't be used; the message says why.
        """
        chosen = SamplingSettings.from_config(self.config.sampling, **settings)
        clips = _Clips.read(image, prompt, end_image, loop, num_samples, chosen)
        shape = sampling.latent_shape(self.models, chosen)
        timesteps = spaced_timesteps(chosen.spacing, chosen.steps, self.config.diffusion.timesteps)
        coefficients = ddim_coefficients(self.schedule, timesteps, chosen.eta)
        # Rows that no step reaches make every number of steps the same program.
        rows = len(self.schedule.alpha_bar) - len(timesteps)
        coefficients = jax.tree.map(lambda table: np.pad(table, (0, rows)), coefficients)
        if noise is None:
            indices = range(first_index, first_index + clips.count)
            draws = KeyedNoise.from_seed(chosen.seed, indices)
        else:
            draws = replay(dict(noise), clips.count, len(timesteps), shape)
        with (
            jax.default_matmul_precision(self.config.precision.matmul),
            sharding.use_mesh(self.mesh),
        ):
            latents, video = self._run(
                clips, chosen, shape, coefficients, len(timesteps), draws, progress
            )
        return Clips(latents[: clips.count], video[: clips.count], loop)

    def _run(
        self,
        clips: "_Clips",
        settings: SamplingSettings,
        shape: tuple[int, int, int, int],
        coefficients: DDIMCoefficients,
        steps: int,
        draws: Noise,
        progress: Progress | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Encodes, denoises and decodes one batch."""
        report = progress or (lambda stage, done, total: None)
        length = self.models.text_encoder.context_length
        ids = tokenize(clips.prompts, length)
        fs = np.full(clips.count, settings.fps, np.float32)
        batch = (clips.first, clips.last, ids, fs, draws)
        pad = functools.partial(_pad_batch, multiple=sharding.batch_multiple(self.mesh))
        split = functools.partial(sharding.split_batch, mesh=self.mesh)
        whole = functools.partial(sharding.replicate, mesh=self.mesh)
        first, last, ids, fs, draws = split(jax.tree.map(pad, batch))
        negative_ids = whole(tokenize([settings.negative_prompt], length))
        coefficients = whole(coefficients)
        scales = whole(GuidanceScales.from_settings(settings))

        report("compile", 0, 3)
        inputs = (self.params, first, last, ids, negative_ids, fs, draws)
        passes = {"shape": shape, "num_passes": settings.num_passes}
        self._encode.compile(*inputs, **passes)
        report("compile", 1, 3)
        conditions = self._encode(*inputs, **passes)

        solver = DDIM(self.schedule.parameterization)
        state = split(initial_state(solver, draws.initial(shape)))
        options = {"solver": solver, "sequential": settings.sequential_guidance}
        # One call runs all steps; with someone watching, the same program runs one at a time.
        stride = steps if progress is None else 1
        for start in range(0, steps, stride):
            bounds = whole((np.int32(start), np.int32(start + stride)))
            inputs = (self.params, conditions, coefficients, scales, state, draws, *bounds)
            if start == 0:
                self._denoise.compile(*inputs, **options)
                report("compile", 2, 3)
            state = jax.block_until_ready(self._denoise(*inputs, **options))
            report("denoise", min(start + stride, steps), steps)

        size = {"height": settings.height, "width": settings.width}
        size["vae_frames"] = settings.vae_frames
        self._decode.compile(self.params, state.x, **size)
        report("compile", 3, 3)
        video = np.asarray(self._decode(self.params, state.x, **size))
        report("decode", 1, 1)
        return np.asarray(state.x), video


@dataclasses.dataclass(frozen=True)
class _Clips:
    """The inputs of a batch, read and checked: one row a clip."""

    first: Float32[np.ndarray, "b h w 3"]
    last: Float32[np.ndarray, "b h w 3"] | None
    prompts: tuple[str, ...]

    @property
    def count(self) -> int:
        return len(self.first)

    @classmethod
    def read(
        cls,
        image: ImageLike | Sequence[ImageLike],
        prompt: str | Sequence[str],
        end_image: ImageLike | Sequence[ImageLike] | None,
        loop: bool,
        num_samples: int,
        settings: SamplingSettings,
    ) -> "_Clips":
        if end_image is not None and loop:
            raise UserError("an end image and a loop exclude each other: a loop ends as it began")
        if (end_image is not None or loop) and settings.num_frames < 2:
            raise UserError("interpolation and looping need sampling.num_frames of at least 2")
        if num_samples < 1:
            raise UserError(f"num_samples is {num_samples}: at least 1")
        images = _as_list(image)
        prompts = [prompt] * len(images) if isinstance(prompt, str) else list(prompt)
        ends = None if end_image is None else _as_list(end_image)
        for name, values in (("prompts", prompts), ("end images", ends or images)):
            if len(values) != len(images):
                raise UserError(f"{len(images)} images but {len(values)} {name}")
        if not images:
            raise UserError("no image to animate")

        def load(pictures: list[ImageLike]) -> np.ndarray:
            size = settings.height, settings.width
            loaded = np.stack([load_image(picture, *size) for picture in pictures])
            return np.repeat(loaded, num_samples, axis=0)

        first = load(images)
        last = first if loop else None if ends is None else load(ends)
        return cls(first, last, tuple(p for p in prompts for _ in range(num_samples)))


def _as_list(value: Any) -> list:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _pad_batch(rows: Any, multiple: int) -> Any:
    """Repeats the last row until the batch is a multiple; what is added is dropped at the end."""
    missing = -len(rows) % multiple
    if not missing:
        return rows
    return jnp.concatenate([rows, jnp.repeat(rows[-1:], missing, axis=0)])
