"""Writing what was sampled: the video, beside it how it was made, and a line of the manifest."""

import re
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8

from dynamicrafter_jax import files, media
from dynamicrafter_jax.bulk.loading import Inspected
from dynamicrafter_jax.bulk.manifest import DONE, ERROR, TIME, Manifest
from dynamicrafter_jax.errors import UserError

_TEMPORARY = re.compile(r"\.(.+)\.(mp4|json|jsonl)\.[0-9a-f]{8}\.tmp")


class Writer:
    """Writes outputs; several threads may call it."""

    def __init__(
        self,
        manifest: Manifest,
        output_dir: str,
        *,
        video_fps: float,
        codec: str,
        crf: int,
        made_with: Mapping[str, Any],
        details: Mapping[str, Any],
    ) -> None:
        """Binds what all outputs share.

        Args:
            manifest: Gets a line for each.
            output_dir: Folder of the outputs.
            video_fps: Frames a second.
            codec: Of the videos.
            crf: Of the videos.
            made_with: What each line and the file beside each video say of how it was made.
            details: What only the file beside each video says.
        """
        self._manifest = manifest
        self._folder = files.as_path(output_dir)
        self._fps = video_fps
        self._options: dict[str, Any] = {"codec": codec, "crf": crf}
        self._made_with = dict(made_with)
        self._details = dict(details)

    def video(
        self, inspected: Inspected, frames: UInt8[np.ndarray, "t h w 3"], seconds: float
    ) -> None:
        """Writes one output. It counts as finished once its line is there, which comes last.

        Args:
            inspected: What it was made from.
            frames: The video.
            seconds: What making it took.

        Raises:
            UserError: It can't be written.
        """
        output = self._folder / f"{inspected.request.name}.mp4"
        media.write_video(output, frames, self._fps, **self._options)
        said = inspected.facts | self._made_with
        files.write_json(self._folder / f"{inspected.request.name}.json", said | self._details)
        whole = {"output": output.name, "bytes": output.stat().length}
        timing = {TIME: {"finished": time.time(), "seconds": round(seconds, 3)}}
        self._manifest.add(said | {"status": DONE} | whole | timing)

    def error(self, inspected: Inspected) -> None:
        """Notes that an output can't be made."""
        said = {"status": ERROR, "error": inspected.error, TIME: {"finished": time.time()}}
        self._manifest.add(inspected.facts | self._made_with | said)


def remove_leftovers(output_dir: str, names: Iterable[str]) -> None:
    """Removes what a killed run was about to write, of these outputs and of the manifest."""
    folder = files.as_path(output_dir)
    known = {*names, "manifest", "summary"}
    if not folder.exists():
        return
    for file in folder.iterdir():
        found = _TEMPORARY.fullmatch(file.name)
        if found and found[1] in known:
            try:
                file.unlink(missing_ok=True)
            except OSError as error:
                raise UserError(f"{file}, left by a run that was killed, stays: {error}") from error
