"""Runs an artifact: only its programs, without the code of the networks or of diffusion.

animate = load("artifact")
video = animate("picture.png", "a man surfing", seed=0)  # uint8 (t, h, w, 3)
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jax import export
from jaxtyping import Array, Float32, UInt8
from numpy.typing import ArrayLike

from dynamicrafter_jax.artifact.layout import (
    RANDOM_IMPLEMENTATION,
    TABLES_FILE,
    WEIGHTS_FILE,
    check_files,
    program_file,
    read_description,
)
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.media import Window, fit_images
from dynamicrafter_jax.media.pictures import ImageInput
from dynamicrafter_jax.runtime.files import as_path, read_bytes
from dynamicrafter_jax.sampling.noise import KeyedNoise
from dynamicrafter_jax.sampling.pairing import pair
from dynamicrafter_jax.tokenizer import tokenize
from dynamicrafter_jax.weights.tensors import open_tensors

# Settings that a call may change, with their ranges.
_RANGES = {
    "guidance_scale": (-math.inf, math.inf),
    "image_guidance_scale": (-math.inf, math.inf),
    "guidance_rescale": (0, 1),
    "fps": (0, math.inf),
    "seed": (0, 2**32 - 1),
}
_CHANGEABLE = (*_RANGES, "negative_prompt", "fit")


class Samples(NamedTuple):
    """The results of a call.

    Attributes:
        latents: Scaled latents, with the padding that the networks need.
        frames: The frames to show.
    """

    latents: Float32[np.ndarray, "b t h w z"]
    frames: UInt8[np.ndarray, "b t2 h2 w2 3"]


def load(directory: epath.PathLike) -> "Artifact":
    """Opens an exported model on the first device here, with the program that suits it best.

    Every file that is used is compared with its SHA-256. Nothing is executed but XLA programs.

    Args:
        directory: The output of `python -m dynamicrafter_jax.artifact`.

    Raises:
        UserError: It is missing, damaged, of a newer format, or made for other platforms.
    """
    description = read_description(directory)
    name = choose_program(description["programs"], export.default_export_platform())
    check_files(directory, description, (program_file(name), WEIGHTS_FILE, TABLES_FILE))
    path = as_path(directory) / program_file(name)
    try:
        program = export.deserialize(bytearray(read_bytes(path)))
    except Exception as error:  # libraries may raise anything on what another version wrote
        made_with = (
            description.get("made_with", {}).get("versions", {}).get("jax", "another version")
        )
        raise UserError(
            f"{path} was made with JAX {made_with}, and JAX {jax.__version__} can't read it "
            f"({error}): export the model again, or use a version closer to that one"
        ) from error
    weights, tables = (
        _read_arrays(as_path(directory) / file) for file in (WEIGHTS_FILE, TABLES_FILE)
    )
    return Artifact(description, program, weights, tables)


def choose_program(programs: Mapping[str, Sequence[str]], platform: str) -> str:
    """Returns the program for a platform, preferably one made for it alone.

    Args:
        programs: The platforms that each program runs on.
        platform: Name of the platform in `jax.export`: "cpu", "cuda", "rocm" or "tpu".

    Raises:
        UserError: No program runs on the platform.
    """
    fitting = [name for name, platforms in programs.items() if platform in platforms]
    if not fitting:
        made_for = sorted({platform for platforms in programs.values() for platform in platforms})
        raise UserError(
            f"the exported model runs on {', '.join(made_for)}, not on {platform}: export it with "
            "a program for this platform, or choose another platform with JAX_PLATFORMS"
        )
    return min(fitting, key=lambda name: len(programs[name]))


class Artifact:
    """An exported model. It compiles once, when it is first called.

    Attributes:
        description: The contents of `artifact.json`.
        batch_size: Clips that one run of the program makes.
    """

    def __init__(
        self,
        description: dict[str, Any],
        program: export.Exported,
        weights: dict[str, Array],
        tables: dict[str, Array],
    ) -> None:
        """Binds weights and tables to a program; see `load`."""
        self.description = description
        self.batch_size = description["inputs"]["image"]["shape"][0]
        self._program = jax.jit(program.call)
        self._weights = weights
        self._tables = tables

    def __call__(
        self,
        image: ImageInput | Sequence[ImageInput],
        prompt: str | Sequence[str] = "",
        **options: Any,
    ) -> UInt8[np.ndarray, "*n t h w 3"]:
        """Animates an image, or a list of them.

        Args:
            image: A path, picture or uint8 array (h, w, 3); or a list of them.
            prompt: What happens; empty for the image alone. One for all images, or a list.
            **options: As in `sample`.

        Returns:
            The video (t, h, w, 3); for a list of images (n, t, h, w, 3).
        """
        frames = self.sample(image, prompt, **options).frames
        return frames if isinstance(image, (list, tuple)) else frames[0]

    def sample(
        self,
        image: ImageInput | Sequence[ImageInput],
        prompt: str | Sequence[str] = "",
        *,
        end_image: ImageInput | Sequence[ImageInput] | None = None,
        loop: bool = False,
        first_index: int = 0,
        **settings: Any,
    ) -> Samples:
        """Animates images and returns latents and frames, as `pipeline.ImageToVideo` does.

        Any number of images may be given; they are sampled `batch_size` at a time.

        Args:
            image: One image or a list of them.
            prompt: One prompt for all, or a list.
            end_image: Image that each clip ends at. A model exported for interpolation needs it
                unless `loop` is set; others refuse it.
            loop: Whether each clip ends where it began; for interpolation only.
            first_index: Global index of the first clip, which determines its noise together with
                the seed.
            **settings: `guidance_scale`, `image_guidance_scale`, `guidance_rescale`, `fps`,
                `negative_prompt`, `seed` and `fit`, instead of those exported with the model.

        Raises:
            UserError: An input or a setting can't be used; the message says why.
        """
        chosen = self._choose(settings)
        rows, window = self._read(image, prompt, end_image, loop, chosen["fit"])
        count = len(rows["image"])
        rows |= {
            name: np.full(count, chosen[name] or 0.0, np.float32)
            for name in ("fps", "guidance_scale", "image_guidance_scale", "guidance_rescale")
        }
        with jax.default_prng_impl(RANDOM_IMPLEMENTATION):
            noise = KeyedNoise.from_seed(chosen["seed"], range(first_index, first_index + count))
        rows["keys"] = np.asarray(jax.random.key_data(noise.keys))
        negative = {"negative_token_ids": self._tokenize([chosen["negative_prompt"]])}
        runs = []
        for start in range(0, count, self.batch_size):
            # The last row fills up the batch; the surplus results are dropped.
            chosen_rows = np.minimum(np.arange(start, start + self.batch_size), count - 1)
            batch = {name: values[chosen_rows] for name, values in rows.items()}
            runs.append(self.run(batch | negative))
        latents, frames = (
            np.concatenate([np.asarray(run[name]) for run in runs])[:count]
            for name in ("latents", "frames")
        )
        return Samples(latents, window.cut(frames[:, :-1] if loop else frames))

    def run(self, inputs: Mapping[str, ArrayLike]) -> dict[str, Array]:
        """Runs the program once, on the inputs listed in `description["inputs"]`.

        Returns:
            `latents`, float32 (b, t, h, w, z), and `frames`, uint8 (b, t, h, w, 3).

        Raises:
            UserError: An input is missing, unknown, or of another shape or type.
        """
        expected = self.description["inputs"]
        if difference := sorted(set(expected) ^ set(inputs)):
            raise UserError(
                f"the exported model takes the inputs {', '.join(expected)}, and "
                f"{', '.join(difference)} is missing or unknown"
            )
        arrays = {name: np.asarray(inputs[name]) for name in expected}
        for name, wanted in expected.items():
            found, shape = arrays[name], tuple(wanted["shape"])
            if (found.dtype.name, found.shape) != (wanted["dtype"], shape):
                raise UserError(
                    f"the input {name} is {found.dtype} {found.shape}: the exported model takes "
                    f"{wanted['dtype']} {shape}"
                )
        return self._program(self._weights, self._tables, arrays)

    def _choose(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the settings of a call, checked."""
        exported = {"fit": "crop"} | self.description["settings"]  # older artifacts have no fit
        given = {name: value for name, value in settings.items() if value is not None}
        for name, value in given.items():
            if name not in exported:
                raise UserError(f"unknown setting {name}: choose from {', '.join(_CHANGEABLE)}")
            if name not in _CHANGEABLE and value != exported[name]:
                raise UserError(
                    f"{name} is {exported[name]} in this exported model and can't be {value}: "
                    f"export another model; only {', '.join(_CHANGEABLE)} can be changed"
                )
            if name in _RANGES:
                _check_number(name, value)
        chosen = {**exported, **given}
        passes = self.description["num_passes"]
        if passes == 1 and chosen["guidance_scale"] != 1:
            raise UserError("this model was exported without guidance: guidance_scale must be 1")
        if passes < 3 and chosen["image_guidance_scale"] is not None:
            raise UserError("this model was exported without image_guidance_scale: leave it out")
        return chosen

    def _read(
        self,
        image: ImageInput | Sequence[ImageInput],
        prompt: str | Sequence[str],
        end_image: ImageInput | Sequence[ImageInput] | None,
        loop: bool,
        fit: str,
    ) -> tuple[dict[str, np.ndarray], Window]:
        """Returns images and prompts as inputs of the program, with one row per clip.

        It also returns the part of the frames to show.
        """
        if self.description["interpolation"] != (loop or end_image is not None):
            raise UserError(
                "this model was exported for interpolation: give an end_image, or loop"
                if self.description["interpolation"]
                else "this model was not exported for interpolation: it takes no end_image or loop"
            )
        images, prompts, ends = pair(image, prompt, end_image, loop=loop)
        _, height, width, _ = self.description["inputs"]["image"]["shape"]
        pictures, window = fit_images(images + ends, height, width, fit)
        rows = {"image": pictures[: len(images)], "token_ids": self._tokenize(prompts)}
        if self.description["interpolation"]:
            rows["end_image"] = rows["image"] if loop else pictures[len(images) :]
        return rows, window

    def _tokenize(self, texts: list[str]) -> np.ndarray:
        return tokenize(texts, self.description["inputs"]["token_ids"]["shape"][1])


def _check_number(name: str, value: Any) -> None:
    low, high = _RANGES[name]
    kinds = int if name == "seed" else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise UserError(
            f"{name} is {value!r}: a {'whole ' if kinds is int else ''}number is needed"
        )
    if not (low <= value <= high and math.isfinite(value)):
        raise UserError(f"{name} is {value}: choose a finite number from {low} to {high}")


def _read_arrays(path: epath.Path) -> dict[str, Array]:
    """Reads the arrays of a file one by one, and returns them on the device."""
    with open_tensors(path) as tensors:
        return {name: jax.device_put(tensor.read()) for name, tensor in tensors.items()}
