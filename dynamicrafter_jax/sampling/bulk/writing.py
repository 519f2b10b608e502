"""Writes outputs: the video, a record of how it was made, and a line of the manifest."""

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
        """Takes what all outputs share.

        Args:
            manifest: Gets a line for each output.
            output_dir: Folder of the outputs.
            codec: Codec of the videos.
            crf: Constant rate factor of the videos.
            made_with: How outputs were made, for the manifest and for the record of each video.
            details: Further facts, for the record of each video only.
        """
        self._manifest = manifest
        self._folder = files.as_path(output_dir)
        self._options: dict[str, Any] = {"codec": codec, "crf": crf}
        self._made_with = dict(made_with)
        self._details = dict(details)

    def video(
        self, inspected: Inspected, frames: UInt8[np.ndarray, "t h w 3"], seconds: float
    ) -> None:
        """Writes one output. It counts as finished once its line is written, which comes last.

        Args:
            inspected: What it was made from.
            frames: The video.
            seconds: How long it took to make.

        Raises:
            UserError: The output can't be written.
        """
        output = self._folder / video_name(inspected.request.name)
        said = inspected.facts | self._made_with
        # First, because a video without a record is assumed to be somebody else's.
        provenance.write_record(provenance.record_beside(output), said | self._details)
        fps = inspected.request.settings.video_fps
        media.write_video(output, frames, fps, **self._options)
        whole = {"output": output.name, "bytes": output.stat().length}
        timing = {TIME: {"finished": time.time(), "seconds": round(seconds, 3)}}
        self._manifest.add(said | {"status": DONE} | whole | timing)

    def error(self, inspected: Inspected, error: str) -> None:
        """Records why an output can't be made."""
        self._manifest.add(failure(inspected.facts | self._made_with, error))


def video_name(name: str) -> str:
    """Returns the name of an output's file."""
    return f"{name}.mp4"


def summary_name(process: int) -> str:
    """Returns the name of the file in which a process summarises what it did."""
    return "summary.json" if process == 0 else f"summary-{process:05d}.json"


def check_folder(output_dir: str, names: Iterable[str]) -> None:
    """Checks, before anything is made, that a run replaces only files that runs have written.

    Args:
        output_dir: Folder of the outputs; it may be missing.
        names: Names of the outputs.

    Raises:
        UserError: A file that no run wrote has the name of one that the run would write.
    """
    folder = files.as_path(output_dir)
    if not folder.exists():
        return
    manifest = Manifest(folder)
    found = [file.name for file in folder.iterdir()]
    for name in filter(_SUMMARY.fullmatch, found):
        provenance.check_record(folder / name)
    there = {name.casefold() for name in found}  # "A" and "a" are the same name on some disks
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
    """Removes the temporary files of a killed run, for these outputs and the manifest."""
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
                raise UserError(
                    f"{file}, left by a run that was killed, can't be removed: {error}"
                ) from error
