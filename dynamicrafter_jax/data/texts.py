"""Text from files that others made: names that stay in their folder, UTF-8 or a clear refusal."""

import posixpath
from array import array

from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.placeholders import describe_pointer


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


def decode(data: bytes) -> str:
    """Returns UTF-8 text, without a byte order mark.

    Raises:
        UserError: It is not UTF-8, or a pointer to the file; the message goes on after what names
            the text.
    """
    if pointer := describe_pointer(data):
        raise UserError(f"is {pointer}")
    try:
        return data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UserError(
            f"is not UTF-8: byte 0x{data[error.start]:02x} at place {error.start}; "
            "save the file as UTF-8"
        ) from None


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
