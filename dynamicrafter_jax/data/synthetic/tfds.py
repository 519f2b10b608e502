"""Drawn clips as a TFDS data set, with their ground truth; without TensorFlow."""

import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from dynamicrafter_jax.data.synthetic.clip_sets import ClipSet
from dynamicrafter_jax.data.tfds.source import film
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.media.sheet import encode_png
from dynamicrafter_jax.runtime import files


class SyntheticMotion(tfds.core.GeneratorBasedBuilder):
    """The TFDS builder of drawn clips.

    Features of a clip of t frames; see `motion.Pose` for those of the trajectory:

    - `name`, `caption`: text.
    - `video`: the bytes of a QuickTime file of PNG pictures, which is lossless and stores the fps.
    - `number` int64, `fps` int32; `motions`: texts.
    - `position` (t, 2), `scale` (t,), `angle` (t,), `view_centre` (t, 2), `view_width` (t,):
      float32.
    """

    name = "synthetic_motion"
    VERSION = tfds.core.Version("1.0.0")
    code_path = None  # where TFDS looks for the checksums of downloads

    def __init__(self, *, clip_set: ClipSet | None = None, **options: Any) -> None:
        """Makes a builder.

        Args:
            clip_set: The clips; their split is the only one in the data set.
            **options: TFDS's own options, such as `data_dir`.
        """
        self._clip_set = ClipSet() if clip_set is None else clip_set
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        t = self._clip_set.num_frames
        features = {
            "name": tfds.features.Text(),
            "caption": tfds.features.Text(),
            "video": tfds.features.Tensor(shape=(), dtype=np.object_, doc="bytes of a video file"),
            "number": tfds.features.Scalar(np.int64),
            "fps": tfds.features.Scalar(np.int32),
            "motions": tfds.features.Sequence(tfds.features.Text()),
            "position": tfds.features.Tensor(shape=(t, 2), dtype=np.float32),
            "scale": tfds.features.Tensor(shape=(t,), dtype=np.float32),
            "angle": tfds.features.Tensor(shape=(t,), dtype=np.float32, doc="degrees clockwise"),
            "view_centre": tfds.features.Tensor(shape=(t, 2), dtype=np.float32),
            "view_width": tfds.features.Tensor(shape=(t,), dtype=np.float32),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Drawn clips, in which objects and the camera move as the captions say.",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(
        self, dl_manager: object, **_: object
    ) -> Mapping[str, Iterator[tuple[int, dict[str, Any]]]]:
        return {self._clip_set.split: self._generate_examples()}

    def _generate_examples(self, **_: object) -> Iterator[tuple[int, dict[str, Any]]]:
        for name, scene, trajectory, frames in self._clip_set:
            arrays = {key: value.astype(np.float32) for key, value in trajectory._asdict().items()}
            yield (
                scene.number,
                {
                    "name": name,
                    "caption": scene.caption,
                    "video": film(name, [encode_png(frame) for frame in frames], scene.fps),
                    "number": scene.number,
                    "fps": scene.fps,
                    "motions": list(scene.motions),
                    **arrays,
                },
            )


def prepare(data_dir: epath.PathLike, clip_set: ClipSet, *, progress: bool = False) -> epath.Path:
    """Writes a data set of drawn clips.

    Args:
        data_dir: Folder of TFDS data sets.
        clip_set: The clips.
        progress: Whether to show a progress bar, if stderr is a terminal.

    Returns:
        The data set's folder, `DATA_DIR/synthetic_motion/VERSION`. It appears once everything is
        written.

    Raises:
        UserError: The data set exists, or writing fails.
    """
    data_dir = files.as_path(data_dir)
    folder = data_dir / SyntheticMotion.name / str(SyntheticMotion.VERSION)
    if folder.exists():
        raise UserError(f"{folder} exists: give another folder, or remove it")
    files.check_writable(folder, folder=True)
    tfds.display_progress_bar(progress and sys.stderr.isatty())
    try:
        # TFDS makes a folder for downloads and reports on stdout, though nothing is downloaded.
        with tempfile.TemporaryDirectory() as none, contextlib.redirect_stdout(io.StringIO()):
            builder = SyntheticMotion(clip_set=clip_set, data_dir=os.fspath(data_dir))
            builder.download_and_prepare(download_dir=none, file_format="array_record")
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{folder} can't be written: {reason}; check the disk") from error
    return folder
