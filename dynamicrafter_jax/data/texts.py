"""Text from files that others made: many in little memory, and names that stay in their folder."""

import posixpath
from array import array

from dynamicrafter_jax.errors import UserError


class Texts:
    """A list of strings that takes little more memory than their letters, and pickles as well."""

    def __init__(self) -> None:
        """Starts empty."""
        self._letters, self._ends = bytearray(), array("Q", [0])

    def append(self, text: str) -> None:
        """Adds a string; it may hold what stands for bytes that are not UTF-8, as names may."""
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
    """Returns a path within a folder, in its shortest form.

    Args:
        name: The path, relative to the folder.

    Raises:
        UserError: It leads out of the folder, or nowhere; the message goes on after what names it.
    """
    short = posixpath.normpath(name)
    if name[:1] in ("", "/") or ".." in name.split("/") or "\0" in name or short == ".":
        raise UserError(f"names {name!r}, which is not a file inside the folder of videos")
    return short
