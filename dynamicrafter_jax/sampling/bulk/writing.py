"""Writing what was sampled: the video, beside it how it was made, and a line of the manifest."""

import re
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8

from dynamicrafter_jax import media
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.runtime import files, provenance
from dynamicrafter_jax.sampling.bulk.loading import Inspected
from dynamicrafter_jax.sampling.bulk.manifest import DONE, TIME, Manifest, failure

_SUMMARY = re.compile(r"summary(-\d{5})?\.json")
_OWN = re.compile(rf"{_SUMMARY.pattern}|manifest(-\d{{5}})?\.jsonl")


class Writer:
    """Writes outputs; several threads may call it."""

    def __init__(
        self,
        manifest: Manifest,
        output_dir: str,
        *,
        codec: str,
        crf: int,
        made_with: Mapping[str, Any],
        details: Mapping[str, Any],
    ) -> None:
        """Binds what all outputs share.

        Args:
            manifest: Gets a line for each.
            output_dir: Folder of the outputs.
            codec: Of the videos.
            crf: Of the videos.
            made_with: What each line and the file beside each video say of how it was made.
            details: What only the file beside each video says.
        """
        self._manifest = manifest
        self._folder = files.as_path(output_dir)
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
        output = self._folder / video_name(inspected.request.name)
        said = inspected.facts | self._made_with
        # First, since a video without a record is taken for somebody else's.
        provenance.write_record(provenance.record_beside(output), said | self._details)
        fps = inspected.request.settings.video_fps
        media.write_video(output, frames, fps, **self._options)
        whole = {"output": output.name, "bytes": output.stat().length}
        timing = {TIME: {"finished": time.time(), "seconds": round(seconds, 3)}}
        self._manifest.add(said | {"status": DONE} | whole | timing)

    def error(self, inspected: Inspected, error: str) -> None:
        """Notes why an output can't be made."""
        self._manifest.add(failure(inspected.facts | self._made_with, error))


def video_name(name: str) -> str:
    """Returns the name of an output's file."""
    return f"{name}.mp4"


def summary_name(process: int) -> str:
    """Returns the name of the file in which a process says what it did."""
    return "summary.json" if process == 0 else f"summary-{process:05d}.json"


def check_folder(output_dir: str, names: Iterable[str]) -> None:
    """Makes sure, before anything is made, that a run replaces only what runs have written.

    Args:
        output_dir: Folder of the outputs; it may be missing.
        names: Of the outputs.

    Raises:
        UserError: A file of another kind has the name of one that the run would write.
    """
    folder = files.as_path(output_dir)
    if not folder.exists():
        return
    manifest = Manifest(folder)
    found = [file.name for file in folder.iterdir()]
    for name in filter(_SUMMARY.fullmatch, found):
        provenance.check_record(folder / name)
    there = {name.casefold() for name in found}  # "A" and "a" are one name on some disks
    for name in names:
        if manifest.knows(name):
            continue
        video = folder / video_name(name)
        record = provenance.record_beside(video)
        if record.name.casefold() in there:
            provenance.check_record(record)
        if video.name.casefold() in there and video.exists() and not record.exists():
            raise UserError(
                f"{video} is there, and no run wrote it: move it, or give another id or folder"
            )


def remove_leftovers(output_dir: str, names: Iterable[str]) -> None:
    """Removes what a killed run was about to write, of these outputs and of the manifest."""
    folder = files.as_path(output_dir)
    if not folder.exists():
        return
    videos = [video_name(name) for name in names]
    records = [provenance.record_beside(video).name for video in videos]
    known = {files.shortened(name) for name in (*videos, *records)}
    for file in folder.iterdir():
        found = files.TEMPORARY.fullmatch(file.name)
        if found and (found[1] in known or _OWN.fullmatch(found[1])):
            try:
                file.unlink(missing_ok=True)
            except OSError as error:
                raise UserError(f"{file}, left by a run that was killed, stays: {error}") from error
