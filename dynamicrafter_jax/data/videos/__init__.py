"""Videos with captions, and what is in their files: containers, codecs, timestamps, frames."""

from typing import NamedTuple, Protocol, runtime_checkable


class Video(NamedTuple):
    """One video of a source.

    Attributes:
        name: What logs and messages call it.
        caption: Its prompt, or "".
        file: A path, local or remote, or the bytes of a file.
    """

    name: str
    caption: str
    file: str | bytes


@runtime_checkable
class VideoSource(Protocol):
    """Videos by number, in a fixed order. Worker processes get it by pickle."""

    def __len__(self) -> int:
        """Returns how many videos there are."""
        ...

    def __getitem__(self, index: int) -> Video:
        """Returns a video by its number, from 0; the file may be missing or broken."""
        ...
