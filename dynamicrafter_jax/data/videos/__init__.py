"""Videos with captions, and reading their files: containers, codecs, timestamps and frames."""

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
    """Videos by number, in a fixed order. It is pickled for worker processes."""

    def __len__(self) -> int:
        """Returns the number of videos."""
        ...

    def __getitem__(self, index: int) -> Video:
        """Returns a video by its number, from 0; the file may be missing or broken."""
        ...
