"""Training samples from videos: a clip, its prompt, and the random choices made for them."""

import warnings

import numpy as np
from av.error import FFmpegError
from jaxtyping import Int32

from dynamicrafter_jax.data.draws import ClipSettings, Draw, check_length, draw_clip, video_of
from dynamicrafter_jax.data.videos import Video, VideoSource
from dynamicrafter_jax.data.videos.decoding import open_video
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.tokenizer import tokenize

Example = dict[str, np.ndarray]
"""The arrays of one sample, by name; numbers are arrays without axes."""

PROBLEM_BYTES = 200
"""Length of the description of a broken video; the rest is cut off."""


class VideoExamples:
    """The samples of a source of videos, by number.

    A sample is these arrays:

    - `index` int64, its number; `item` int64, its video's number in the source.
    - `weight` float32: 1, or 0 if its video can't be used. Then `problem` (`PROBLEM_BYTES` bytes,
      otherwise empty) says why, starting with the video's name, and all arrays except the two
      numbers are 0.
    - `video` uint8 (t, h, w, 3): the frames that are read.
    - `frame` int32: which of these is the conditioning image; `keep_image` float32: 1, or 0 where
      that condition is dropped; `ends` bool: whether both ends of the clip are conditions.
    - `places` int32 (t,): which frames of the clip are read; absent if all are.
    - `ids` int32 (l,): the tokens of the prompt, or of "" if it is dropped.
    - `fs` float32: the model's condition of that name.
    """

    def __init__(self, source: VideoSource, settings: ClipSettings, seed: int) -> None:
        """Prepares the samples of a source; they depend on nothing but the three arguments.

        Raises:
            UserError: The seed is negative.
        """
        if seed < 0:
            raise UserError(f"train.seed is {seed}: give 0 or more")
        self._source, self._settings, self._seed = source, settings, seed

    def __len__(self) -> int:
        """Returns the number of videos, which is also the number of samples in an epoch."""
        return len(self._source)

    def __call__(self, index: int) -> Example:
        """Makes a sample. A video that is broken, too short or missing never raises an error."""
        item = video_of(self._seed, index, len(self))
        example = _blank(self._settings) | {
            "index": np.asarray(index, np.int64),
            "item": np.asarray(item, np.int64),
        }
        name = f"video {item}"
        try:
            video = self._source[item]
            name = video.name
            return example | self._cut(video, index)
        except (UserError, OSError, FFmpegError) as error:
            text = str(error) if isinstance(error, UserError) else f"{name} can't be read: {error}"
            return example | {"problem": _problem(text)}

    def _cut(self, video: Video, index: int) -> Example:
        settings = self._settings
        with open_video(video.file, video.name) as reader:
            check_length(video.name, reader.num_frames, settings)
            draw = draw_clip(self._seed, index, reader.num_frames, settings)
            clip = reader.read(draw.frames, settings.height, settings.width)
        fs = settings.fs_condition(reader.fps, draw.stride)
        caption = video.caption if draw.keep_text else ""
        return {
            "weight": np.asarray(1, np.float32),
            "video": clip,
            **drawn_arrays(draw, settings),
            "ids": prompt_ids(caption, settings.context_length),
            "fs": np.asarray(fs, np.float32),
        }


def prompt_ids(caption: str, context_length: int) -> Int32[np.ndarray, " l"]:
    """Returns the token ids of a caption; a caption that is too long is cut without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tokenize([caption], context_length)[0]


def drawn_arrays(draw: Draw, settings: ClipSettings) -> Example:
    """Returns the arrays of a sample that describe its draw, as listed in `VideoExamples`."""
    arrays = {
        "frame": np.asarray(draw.frame_read, np.int32),
        "keep_image": np.asarray(draw.keep_image, np.float32),
        "ends": np.asarray(draw.ends),
    }
    if settings.frames is not None:
        arrays["places"] = np.asarray(draw.places, np.int32)
    return arrays


def blank_draw(settings: ClipSettings) -> Example:
    """Returns the arrays of `drawn_arrays` for a sample with weight 0."""
    places = (0,) * settings.num_read
    nothing = Draw(1, 0, 0, keep_text=False, keep_image=False, ends=False, places=places)
    return drawn_arrays(nothing, settings)


def _blank(settings: ClipSettings) -> Example:
    """Returns a sample with weight 0."""
    shape = settings.num_read, settings.height, settings.width, 3
    return {
        "weight": np.zeros((), np.float32),
        "video": np.zeros(shape, np.uint8),
        **blank_draw(settings),
        "ids": np.zeros(settings.context_length, np.int32),
        "fs": np.zeros((), np.float32),
        "problem": _problem(""),
    }


def _problem(text: str) -> np.ndarray:
    """Returns a text as one line of at most `PROBLEM_BYTES` bytes, cut between characters."""
    line = " ".join(text.split()).encode("utf-8", errors="backslashreplace")[:PROBLEM_BYTES]
    whole = line.decode("utf-8", errors="ignore").encode()
    return np.asarray(whole, f"S{PROBLEM_BYTES}")
