"""Training samples from a latent cache: the same as from its videos, but without pixels."""

import os

import numpy as np
from av.error import FFmpegError
from etils import epath

from dynamicrafter_jax.data.cache.format import DTYPES, DamagedCacheError, Entry, read_cache
from dynamicrafter_jax.data.cache.shards import Shards
from dynamicrafter_jax.data.clips import Example, _problem, blank_draw, drawn_arrays, prompt_ids
from dynamicrafter_jax.data.draws import ClipSettings, Draw, check_length, draw_clip, video_of
from dynamicrafter_jax.data.sources import open_source
from dynamicrafter_jax.data.videos import VideoSource
from dynamicrafter_jax.data.videos.decoding import open_video
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.runtime import files


class CachedExamples:
    """The samples of the videos in a cache, by number.

    They are drawn as `clips.VideoExamples` draws them from the videos, so sample i is the same
    clip under the same conditions. Its arrays are those of `VideoExamples`, except for

    - `moments` (t, h2, w2, 2 z), in the cache's type, instead of `video`;
    - `text` (l, d), if text states are cached, instead of `ids`: the states of "" if the prompt is
      dropped;
    - `vision` (n, e), if vision tokens are cached: the tokens of the zero image if the image
      condition is dropped. Otherwise `image` uint8 (h, w, 3): the conditioning frame, read from
      the video.

    Attributes:
        recipe: What the cache holds.
    """

    def __init__(
        self,
        folder: epath.PathLike,
        settings: ClipSettings,
        seed: int,
        *,
        videos: str | None = None,
    ) -> None:
        """Opens a cache, local or in a `gs://` bucket.

        Args:
            folder: Folder of the cache.
            settings: How clips are cut.
            seed: Seed of the run.
            videos: The folder that the videos are in now, if they were moved since the cache was
                made; their names are relative to it.

        Raises:
            UserError: The cache is unfinished or damaged, or its frames have another size than the
                settings'.
        """
        if seed < 0:
            raise UserError(f"train.seed is {seed}: give 0 or more")
        self.recipe = recipe = read_cache(folder)
        for name in ("height", "width"):
            made, wanted = getattr(recipe, name), getattr(settings, name)
            if made != wanted:
                raise UserError(
                    f"{folder} was made with sampling.{name} = {made}, but here it is {wanted}: "
                    f"set it to {made}, or make another cache"
                )
        self._shards = Shards(folder)
        self._settings, self._seed, self._videos = settings, seed, videos
        self._source: VideoSource | None = None

    def __len__(self) -> int:
        """Returns the number of videos, which is also the number of samples in an epoch."""
        return self.recipe.num_videos

    def __call__(self, index: int) -> Example:
        """Makes a sample; its weight is 0 if its video can't be used, as in `VideoExamples`.

        Raises:
            UserError: The cache itself is damaged.
        """
        item = video_of(self._seed, index, len(self))
        shard, place = divmod(item, self.recipe.videos_per_shard)
        video = self._shards.video(shard, place)
        example = self._blank() | {
            "index": np.asarray(index, np.int64),
            "item": np.asarray(item, np.int64),
        }
        try:
            return example | self._cut(index, item, video)
        except DamagedCacheError:
            raise
        except (UserError, OSError, FFmpegError) as error:
            text = str(error)
            if not isinstance(error, UserError):
                text = f"{video.name} can't be read: {error}"
            return example | {"problem": _problem(text)}

    def _cut(self, index: int, item: int, video: Entry) -> Example:
        settings, recipe = self._settings, self.recipe
        if not video.frames:
            raise UserError(video.problem)
        check_length(video.name, video.frames, settings)
        draw = draw_clip(self._seed, index, video.frames, settings)
        shard, place = divmod(item, recipe.videos_per_shard)
        records = self._shards.frames("moments", shard, place, draw.frames)
        if not all(records):
            raise UserError(video.problem)
        fs = settings.fs_condition(video.fps, draw.stride)
        return {
            "weight": np.asarray(1, np.float32),
            "moments": recipe.decode("moments", records),
            **drawn_arrays(draw, settings),
            "fs": np.asarray(fs, np.float32),
            **self._prompt(shard, place, video, draw),
            **self._image(shard, place, item, video, draw),
        }

    def _prompt(self, shard: int, place: int, video: Entry, draw: Draw) -> Example:
        if "text" not in self.recipe.shapes:
            caption = video.caption if draw.keep_text else ""
            return {"ids": prompt_ids(caption, self._settings.context_length)}
        shards = self._shards
        record = shards.text(shard, place) if draw.keep_text else shards.dropped("text", shard)
        return {"text": self.recipe.decode("text", [record])[0]}

    def _image(self, shard: int, place: int, item: int, video: Entry, draw: Draw) -> Example:
        frame = draw.frames[draw.frame_read]
        if "vision" not in self.recipe.shapes:
            size = self._settings.height, self._settings.width
            with open_video(self._file(item, video), video.name) as reader:
                return {"image": reader.read([frame], *size)[0]}
        if draw.keep_image:
            (record,) = self._shards.frames("vision", shard, place, [frame])
        else:
            record = self._shards.dropped("vision", shard)
        return {"vision": self.recipe.decode("vision", [record])[0]}

    def _file(self, item: int, video: Entry) -> str | bytes:
        """Returns the video file: a path, or its bytes."""
        if self._videos is not None:
            return f"{os.fspath(files.as_path(self._videos))}/{video.name}"
        if video.file is not None:
            return video.file
        if self._source is None:
            self._source = open_source(**self.recipe.source)
        return self._source[item].file

    def _blank(self) -> Example:
        """Returns a sample with weight 0."""
        settings, recipe = self._settings, self.recipe
        clip = {"moments": settings.num_read}
        example: Example = {
            kind: np.zeros((clip[kind], *shape) if kind in clip else shape, DTYPES[recipe.dtype])
            for kind, shape in recipe.shapes.items()
        }
        if "text" not in example:
            example["ids"] = np.zeros(settings.context_length, np.int32)
        if "vision" not in example:
            example["image"] = np.zeros((settings.height, settings.width, 3), np.uint8)
        return example | {
            "weight": np.zeros((), np.float32),
            **blank_draw(settings),
            "fs": np.zeros((), np.float32),
            "problem": _problem(""),
        }
