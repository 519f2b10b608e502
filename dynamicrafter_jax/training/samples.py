"""Videos sampled during training, always of the same subjects and from the same noise."""

import dataclasses
import warnings
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import PyTree, UInt8
from ml_collections import ConfigDict

from dynamicrafter_jax import media, sharding
from dynamicrafter_jax.data.opening import open_examples
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.runtime import files
from dynamicrafter_jax.sampling.noise import KeyedNoise
from dynamicrafter_jax.sampling.sampler import Inputs, Sampler
from dynamicrafter_jax.sampling.settings import SamplingSettings
from dynamicrafter_jax.training.metrics import MetricWriter
from dynamicrafter_jax.training.motion import MotionMonitor
from dynamicrafter_jax.training.settings import TrainSettings

FOLDER = "samples"
"""Folder of the videos in a run's folder, as STEP/NAME.mp4."""

# Clips that are tried for each one wanted, since some can't be read.
_TRIES = 4


class Subjects(NamedTuple):
    """What is sampled during training.

    Attributes:
        sampler: A sampler for the mesh that the parameters are on.
        settings: How to sample.
        inputs: What to sample, one row or more; the same in every process.
        names: A name for each row.
    """

    sampler: Sampler
    settings: SamplingSettings
    inputs: Inputs
    names: tuple[str, ...]


class Samples:
    """Samples the same subjects at each call, and monitors the motion in them.

    Each device works on one clip at a time. The programs are compiled at the first call.

    Attributes:
        names: Names of the subjects' files.
    """

    def __init__(
        self, subjects: Subjects, *, workdir: epath.PathLike, writer: MetricWriter
    ) -> None:
        """Takes what stays the same.

        Args:
            subjects: What to sample.
            workdir: Folder of the run, local or remote.
            writer: Gets the videos; if it is not enabled, no file is written either.

        Raises:
            UserError: The videos can't be written.
        """
        self._sampler, self._settings, self._inputs, self.names = subjects
        self._folder = files.as_path(workdir) / FOLDER
        self._writer = writer
        self._motion = MotionMonitor()
        if writer.enabled:
            fps = self._settings.video_fps
            media.check_output(self._folder / "0" / f"{self.names[0]}.mp4", fps)

    def __call__(self, step: int, params: PyTree) -> dict[str, float]:
        """Samples, and writes the videos if the writer is enabled.

        All processes that share the mesh must call this together.

        Args:
            step: Names the folder of the videos.
            params: All parameters by section, on the mesh.

        Returns:
            The results of `MotionMonitor.check`; empty if the writer is not enabled.
        """
        videos = self.sample(params)
        if not self._writer.enabled:
            return {}
        for name, video in zip(self.names, videos, strict=True):
            self._write(step, name, video)
        self._writer.flush()
        return self._motion.check(videos)

    def sample(self, params: PyTree) -> UInt8[np.ndarray, "n t h w 3"]:
        """Returns the videos, in every process."""
        rows = sharding.batch_multiple(self._sampler.mesh)
        sampled = []
        for start in range(0, self._inputs.count, rows):
            inputs = self._inputs[start : start + rows]
            indices = range(start, start + inputs.count)
            draws = KeyedNoise.from_seed(self._settings.seed, indices)
            sampled.append(self._sampler(params, inputs, self._settings, draws).frames())
        return np.concatenate(sampled)

    def observe(self, rows: Mapping[str, np.ndarray]) -> None:
        """Adds clips of a training batch, for comparison; one batch per sampling is enough.

        Args:
            rows: Arrays by the names of `Batch`. Without `video`, or if frames are left out, there
                is nothing to compare.
        """
        if self._writer.enabled and "video" in rows and "places" not in rows:
            self._motion.observe(rows["video"], rows["weight"])

    def _write(self, step: int, name: str, video: UInt8[np.ndarray, "t h w 3"]) -> None:
        fps = self._settings.video_fps
        try:
            media.write_video(self._folder / str(step) / f"{name}.mp4", video, fps)
            self._writer.video(step, f"{FOLDER}/{name}", video, fps)
        except UserError as error:  # a full disk must not end a run
            warnings.warn(f"{error}; training continues without this video", stacklevel=3)


def open_subjects(config: ConfigDict, settings: TrainSettings, mesh: Mesh) -> Subjects | None:
    """Returns what a config asks to sample; None if it asks for nothing.

    These are `train.sample_images`, which loop if the model is trained for interpolation. Without
    any, clips of `data.validation`, or else of `data.source`, are generated again from their
    conditioning image (or both ends) and prompt.

    Args:
        config: The full config; `config.sampling` says how to sample.
        settings: Its section `train`.
        mesh: The mesh that the parameters are on.

    Raises:
        UserError: An image or a clip can't be read, or a setting can't be used.
    """
    if not settings.sample_every:
        return None
    sampler = Sampler(config, mesh)
    chosen = SamplingSettings.from_config(config.sampling)
    if settings.sample_images:
        images, prompts = list(settings.sample_images), list(settings.sample_prompts)
        inputs = sampler.read(images, prompts, chosen, loop=settings.concat == "ends")
        names = [f"{i}_{epath.Path(image).stem}" for i, image in enumerate(images)]
    else:
        inputs = _inputs_of_clips(config, settings, sampler, chosen)
        names = [f"clip_{i}" for i in range(inputs.count)]
    return Subjects(sampler, chosen, inputs, tuple(names))


def _inputs_of_clips(
    config: ConfigDict, settings: TrainSettings, sampler: Sampler, chosen: SamplingSettings
) -> Inputs:
    source = config.data.validation or config.data.source
    examples = open_examples(config, source, settings.seed, training=False)
    images, ends, ids = [], [], []
    for index in range(_TRIES * settings.sample_clips):
        example = examples(index)
        if not example["weight"]:
            continue
        if "ids" not in example or not {"video", "image"} & set(example):
            raise UserError(
                f"{source} holds no pictures or prompts to sample: give train.sample_images and "
                "train.sample_prompts, or set train.sample_every to 0"
            )
        video = example.get("video")
        images.append(example["image"] if video is None else video[int(example["frame"])])
        if settings.concat == "ends" and video is not None:
            ends.append(video[-1])
        ids.append(example["ids"])
        if len(images) == settings.sample_clips:
            break
    if not images:
        raise UserError(
            f"none of the first {_TRIES * settings.sample_clips} clips of {source} can be read "
            "for sampling: check the videos, or give train.sample_images"
        )
    loop = settings.concat == "ends" and not ends
    inputs = sampler.read(images, "", chosen, end_image=ends or None, loop=loop)
    return dataclasses.replace(inputs, ids=np.stack(ids))
