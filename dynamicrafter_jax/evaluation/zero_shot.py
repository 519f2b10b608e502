"""Generates clips from the first frames of reference clips, for the measures."""

import dataclasses
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from dynamicrafter_jax.data.clips import prompt_ids
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.evaluation.clips import READERS, Clip, Problem
from dynamicrafter_jax.evaluation.footage import read_frames
from dynamicrafter_jax.evaluation.measures import Seen
from dynamicrafter_jax.evaluation.measuring import Item
from dynamicrafter_jax.evaluation.protocol import Protocol
from dynamicrafter_jax.evaluation.reference import Reference
from dynamicrafter_jax.media import Window, fit_image, write_png, write_video
from dynamicrafter_jax.runtime import files
from dynamicrafter_jax.runtime.map_ahead import map_ahead
from dynamicrafter_jax.sampling.bulk.batches import BatchSampler
from dynamicrafter_jax.sampling.bulk.encoder import Row
from dynamicrafter_jax.sampling.bulk.manifest import fingerprint
from dynamicrafter_jax.sampling.bulk.table import Request
from dynamicrafter_jax.sampling.sampler import shown_frames
from dynamicrafter_jax.sampling.settings import SamplingSettings

# Settings that change numbers only by rounding.
_MEMORY = ("sequential_guidance", "vae_frames", "video_fps")


def fs_of(protocol: Protocol, clip: Clip) -> float:
    """Returns the model's condition on a clip's speed.

    Raises:
        UserError: The protocol has no `fs`; or it asks for the clip's true frame rate, which its
            file does not say.
    """
    fs, stride = protocol.fs, protocol.frames.stride
    if fs is None:
        raise UserError(f"{protocol.name} does not say how to generate: it lacks fs")
    if fs.value is not None:
        return fs.value
    if fs.meaning == "stride":
        return float(stride)
    if clip.fps is None:
        raise UserError(f"{clip.name} does not say how many frames a second it has, which fs needs")
    return float(clip.fps // stride)


def settings_for(protocol: Protocol, config: ConfigDict, clip: Clip) -> SamplingSettings:
    """Returns how a clip is generated: by the protocol, except for memory settings, by the config.

    Raises:
        UserError: The protocol does not say how, or is for another kind of model.
    """
    fs, sampling, size = protocol.fs, protocol.sampling, protocol.picture
    if fs is None or sampling is None:
        raise UserError(f"{protocol.name} does not say how to generate: it lacks fs or sampling")
    if fs.meaning != config.data.fs:
        raise UserError(
            f"{protocol.name} gives fs as {fs.meaning}, but {config.name} takes it as "
            f"{config.data.fs}: give a protocol for this model"
        )
    return SamplingSettings.from_config(
        config.sampling,
        **dataclasses.asdict(sampling),
        height=size.height,
        width=size.width,
        num_frames=protocol.frames.count,
        fps=fs_of(protocol, clip),
        fit="crop",
    )


class Generator:
    """Generates a clip from each reference clip's first frame and prompt."""

    def __init__(
        self,
        protocol: Protocol,
        config: ConfigDict,
        reference: Reference,
        made_with: Mapping[str, Any],
    ) -> None:
        """Takes what all clips share.

        Args:
            protocol: How clips are generated.
            config: The model's config.
            reference: The clips to start from.
            made_with: What else every clip depends on, such as the weights.

        Raises:
            UserError: A clip can't be generated like this; see `settings_for`.
        """
        self._reference = reference
        self._size = protocol.picture
        self._made_with = dict(made_with)
        self._requests = {
            clip.name: Request(
                name=clip.name,
                image=clip.name,
                prompt=clip.prompt,
                end_image=None,
                loop=False,
                sample_index=clip.sample_index,
                settings=settings_for(protocol, config, clip),
            )
            for clip in reference.clips
        }

    def items(self) -> list[Item]:
        """Returns the clips to generate, in the order of the references."""
        return [
            Item(name, self._digest(name), request.prompt)
            for name, request in self._requests.items()
        ]

    def produce(
        self, items: Sequence[Item], sample: BatchSampler, batch_size: int
    ) -> Iterator[tuple[Item, Seen | Problem]]:
        """Yields images and the clips generated from them.

        Args:
            items: The clips to generate.
            sample: Samples batches.
            batch_size: Clips in a batch.
        """
        length = sample.sampler.models.text_encoder.context_length
        prompt_ids("", length)  # loads the tokenizer, which two threads must not do at once
        batches = [items[i : i + batch_size] for i in range(0, len(items), batch_size)]

        def read(batch: Sequence[Item]) -> list[tuple[Item, UInt8[np.ndarray, "h w 3"] | Problem]]:
            return [(item, self._image(item)) for item in batch]

        with ThreadPoolExecutor(READERS) as pool:
            for batch in map_ahead(pool, read, batches, READERS):
                good = [(item, seen) for item, seen in batch if not isinstance(seen, Problem)]
                yield from ((item, seen) for item, seen in batch if isinstance(seen, Problem))
                if not good:
                    continue
                rows = [self._row(item, image, length) for item, image in good]
                with sample.sampler.in_force():
                    _, video = sample(rows)
                for (item, image), frames in zip(good, np.asarray(video), strict=False):
                    yield item, np.concatenate([image[None], shown_frames(frames, loop=False)])

    def _image(self, item: Item) -> UInt8[np.ndarray, "h w 3"] | Problem:
        try:
            return self._reference.image(item.name)
        except UserError as error:
            return Problem(item.name, str(error))

    def _row(self, item: Item, image: UInt8[np.ndarray, "h w 3"], length: int) -> Row:
        size, request = self._size, self._requests[item.name]
        first, _ = fit_image(image, size.height, size.width, "crop")
        whole = Window(0, 0, size.height, size.width)
        ids = prompt_ids(request.prompt, length)
        negative = prompt_ids(request.settings.negative_prompt, length)
        digest = self._reference.item(item.name).digest
        return Row(request, first, None, whole, digest, None, ids, negative)

    def _digest(self, name: str) -> str:
        request = self._requests[name]
        settings = dataclasses.asdict(request.settings)
        return fingerprint(
            {
                **self._made_with,
                "image": self._reference.item(name).digest,
                "prompt": request.prompt,
                "sample_index": request.sample_index,
                "settings": {k: v for k, v in settings.items() if k not in _MEMORY},
            }
        )


class ThroughMp4:
    """Writes a clip as `.mp4` and reads it again, to measure what compression does."""

    def __init__(self, fps: float | int, codec: str, crf: int) -> None:
        """Takes the settings of the file; see `media.write_video`."""
        self._fps = fps
        self._options: dict[str, Any] = {"codec": codec, "crf": crf}

    def __call__(self, seen: Seen) -> Seen:
        """Returns the image unchanged, and the frames as read from the file."""
        _, height, width, _ = seen.shape
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "clip.mp4")
            write_video(path, seen[1:], self._fps, **self._options)
            frames = read_frames(path, "clip.mp4", range(len(seen) - 1), height, width)
        return np.concatenate([seen[:1], frames])


def write_inputs(folder: str, protocol: Protocol, reference: Reference) -> None:
    """Writes the inputs that clips are generated from, for other generators and for `sample.py`.

    These are a PNG for each clip, and `prompts.jsonl`, for `sample.py --prompts`.

    Raises:
        UserError: A reference clip can't be read, or the folder can't be written to.
    """
    lines = []
    for clip in reference.clips:
        write_png(files.as_path(folder) / f"{clip.name}.png", reference.image(clip.name))
        said: dict[str, Any] = {"id": clip.name, "image": f"{clip.name}.png", "prompt": clip.prompt}
        if protocol.fs is not None:
            said["fps"] = fs_of(protocol, clip)
        lines.append(json.dumps(said) + "\n")
    files.write_bytes(files.as_path(folder) / "prompts.jsonl", "".join(lines).encode())
