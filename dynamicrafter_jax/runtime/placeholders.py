"""Recognises what is often found instead of a file: a pointer, a web page, a server's refusal.

It is called after reading has failed, so good files cost nothing.
"""

import json
import re
import zlib

from etils import epath

from dynamicrafter_jax.errors import UserError

LOOKED_AT = 4096
"""Bytes at the beginning of a file that are looked at."""

_SHORT = 600  # characters in the longest text that may be a plain message
_QUOTED = 80  # characters of a message that are quoted

_LFS = re.compile(rb"version https?://(git-lfs\.github\.com|hawser\.github\.com|git-media\.io)/")
_ANNEX = re.compile(rb"(\.\./)*(\.git)?/?annex/objects/[^\n\0]+\s*\Z")
_LINK = re.compile(rb"\.{1,2}/[^\n\0]+\n?\Z")
_MACOS = b"\x00\x05\x16\x07"  # AppleDouble
_SAFARI = re.compile(rb"bplist00.*WebMainResource", re.DOTALL)
_GZIP = b"\x1f\x8b"

_PROLOG = re.compile(r"\s+|<\?.*?(\?>|\Z)|<!--.*?(-->|\Z)", re.DOTALL)
_HTML = re.compile(r"<(!doctype\s+html|html|head|body|title|meta|script)\b", re.I)
_DRAWING = re.compile(r"<(!doctype\s+)?svg\b", re.I)
_XML = re.compile(r"<[A-Za-z]")
_MHTML = re.compile(r"^(snapshot-content-location:|content-type:\s*multipart/related)", re.I | re.M)
_TITLE = re.compile(r"<title[^>]*>(.*?)</title>", re.I | re.DOTALL)
_XML_WORDS = re.compile(r"<(?:Message|Code|Error)>([^<]+)<", re.I)
_JSON_WORDS = ("error", "message", "detail", "errors", "error_description", "msg", "reason")
_REFUSAL = re.compile(
    r"not found|denied|forbidden|unauthori[sz]ed|not authori[sz]ed|invalid|expired|error|"
    r"too many requests|rate limit|quota|log ?in|sign in|moved|redirect|unavailable|timed? ?out|"
    r"gated|restricted|\b[45]\d\d\b",
    re.I,
)


def refuse_placeholder(name: epath.PathLike, content: bytes | epath.PathLike) -> None:
    """Raises an error that says what a file really is, if it is only a placeholder.

    Call it after reading has failed, before raising another error.

    Args:
        name: What the message calls the file.
        content: The contents of the file, or their beginning; or its path, local or remote.

    Raises:
        UserError: The file is empty, or a placeholder that `describe_placeholder` knows.
    """
    start = content[:LOOKED_AT] if isinstance(content, bytes) else _start(content)
    if start is None:
        return
    if not start:
        raise UserError(f"{name} is empty (0 bytes): make or copy it again")
    if found := describe_placeholder(start):
        raise UserError(f"{name} is {found}")


def describe_placeholder(start: bytes) -> str:
    """Returns what kind of placeholder a file is, and what to do; "" if it may be a real file.

    It knows pointers of Git LFS and git-annex, links that became text, web pages, servers' answers
    in XML, JSON or plain words, SVG drawings, metadata files of macOS, and nothing but zeros.

    Args:
        start: The first `LOOKED_AT` bytes, or all if there are fewer.
    """
    if pointer := describe_pointer(start):
        return pointer
    if _LINK.match(start):
        return "the text of a link, not the file: copy what it points to"
    if start.startswith(_MACOS):
        return "metadata of macOS, not the file: give the file without ._ in its name"
    if len(start) == start.count(0):
        return "zeros, not the file: download or copy it again"
    if _SAFARI.match(start):
        return _as_page("")
    return _describe_text(_text(start))


def describe_pointer(start: bytes) -> str:
    """Does what `describe_placeholder` does, but only for pointers of Git LFS and git-annex.

    It is for text files, which might contain anything else.
    """
    if _LFS.match(start):
        return "a Git LFS pointer, not the file: fetch it with git lfs pull"
    if _ANNEX.match(start):
        return "a git-annex pointer, not the file: fetch it with git annex get"
    return ""


def _describe_text(text: str) -> str:
    prolog, body = _split_prolog(text)
    if _DRAWING.match(body):
        return "a vector drawing (SVG): export it as PNG"
    if _HTML.match(body) or _MHTML.search(text) or (not body and "<!--" in prolog):
        title = _TITLE.search(text)
        return _as_page(title[1] if title else "")
    if _XML.match(body) or "<?xml" in prolog:
        words = _XML_WORDS.search(text)
        return _as_answer("XML", words[1] if words else "")
    if body[:1] in ("{", "["):
        words = _json_words(text)
        return "" if words is None else _as_answer("JSON", words)
    if text.startswith("HTTP/") or (0 < len(text) < _SHORT and _REFUSAL.search(text)):
        return _as_answer("", text)
    return ""


def _split_prolog(text: str) -> tuple[str, str]:
    """Splits leading blanks, comments and declarations from the rest of a text."""
    end = 0
    while found := _PROLOG.match(text, end):
        end = found.end()
    return text[:end], text[end:]


def _as_page(title: str) -> str:
    return f"a web page, not the file: download the file itself{_quoted('its title is', title)}"


def _as_answer(language: str, words: str) -> str:
    kind = f"the {language} answer" if language else "the answer"
    return f"{kind} of a server, not the file: download the file itself{_quoted('it says', words)}"


def _quoted(before: str, words: str) -> str:
    words = " ".join(words.split())
    words = words if len(words) <= _QUOTED else f"{words[:_QUOTED]}..."
    return f" ({before} {words!r})" if words else ""


def _json_words(text: str) -> str | None:
    """Returns the error message in a JSON text; None if there seems to be none."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):  # the text may be cut off
        said = dict(re.findall(r'"(\w+)"\s*:\s*"([^"]*)"', text))
    for one in said if isinstance(said, list) else [said]:
        for key in _JSON_WORDS if isinstance(one, dict) else ():
            if one.get(key):
                words = one[key]
                return words if isinstance(words, str) else json.dumps(words)
    return None


def _text(start: bytes) -> str:
    """Returns the beginning of a file as text; "" if it is not text."""
    if start.startswith(_GZIP):  # servers compress their answers
        try:
            start = zlib.decompressobj(wbits=31).decompress(start, LOOKED_AT)
        except zlib.error:
            return ""
    utf16 = start.startswith((b"\xff\xfe", b"\xfe\xff"))
    text = start.decode("utf-16" if utf16 else "utf-8-sig", errors="replace")
    return "" if re.search(r"[\0-\x08\x0e-\x1a\x1c-\x1f]", text) else text


def _start(path: epath.PathLike) -> bytes | None:
    """Returns the beginning of a file; None if it can't be read."""
    try:
        with epath.Path(path).expanduser().open("rb") as file:
            return file.read(LOOKED_AT)
    except (OSError, ImportError, KeyError, ValueError):
        return None
