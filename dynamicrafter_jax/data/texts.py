"""Text from files of any origin: compact lists, and file names that stay in their folder."""

import posixpath
from array import array

from dynamicrafter_jax.errors import UserError


class Texts:
    """A list of strings that takes little more space than their letters, pickled or not."""

    def __init__(self) -> None:
        """Makes an empty list."""
        self._letters, self._ends = bytearray(), array("Q", [0])

    def append(self, text: str) -> None:
        """Adds a string; like a file name, it may hold surrogates for bytes that are not UTF-8."""
        self._letters += text.encode("utf-8", errors="surrogatepass")
        self._ends.append(len(self._letters))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"no text {index} among {len(self)}")
        letters = self._letters[self._ends[index] : self._ends[index + 1]]
        return letters.decode("utf-8", errors="surrogatepass")


def safe_name(name: str) -> str:
    """Returns the shortest form of a path within a folder.

    Args:
        name: The path, relative to the folder.

    Raises:
        UserError: It leads out of the folder, or nowhere. The message continues one that names the
            path's origin.
    """
    short = posixpath.normpath(name)
    if name[:1] in ("", "/") or ".." in name.split("/") or "\0" in name or short == ".":
        raise UserError(f"names {name!r}, which is not a file inside the folder of videos")
    return short
