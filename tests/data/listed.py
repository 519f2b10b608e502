"""Sources of videos that tests make up."""

import numpy as np

from dynamicrafter_jax.data.videos import Video


class Listed:
    """A source of the videos of a list."""

    def __init__(self, videos: list[Video]) -> None:
        self.videos = videos

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> Video:
        return self.videos[index]


def encoded(count: int) -> Listed:
    """Videos whose files are noise, each of another length."""
    rng = np.random.default_rng(0)
    return Listed(
        [Video(f"{i}.mp4", f"ein Bär, {i}", rng.bytes(100 * i + 9)) for i in range(count)]
    )
