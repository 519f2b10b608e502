"""What often lies in place of a file: a pointer to it, a web page, a server's refusal.

Asked where reading has failed, so that files which are what they should be cost nothing.
"""

import json
import re
import zlib

from etils import epath

from dynamicrafter_jax.errors import UserError

LOOKED_AT = 4096
"""Bytes at the beginning of a file that are enough to tell."""

_SHORT = 600  # characters of a message that stands alone
_QUOTED = 80  # characters of it that we repeat

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
    """Raises an error that says what a file really is, where it is but a placeholder.

    Call it where reading has failed, before the error that is raised otherwise.

    Args:
        name: What the message calls the file.
        content: The file, or how it begins; or its path, local or remote.

    Raises:
        UserError: It is empty, or what `describe_placeholder` knows.
    """
    start = content[:LOOKED_AT] if isinstance(content, bytes) else _start(content)
    if start is None:
        return
    if not start:
        raise UserError(f"{name} is empty (0 bytes): make or copy it again")
    if found := describe_placeholder(start):
        raise UserError(f"{name} is {found}")


def describe_placeholder(start: bytes) -> str:
    """Says what a file is by how it begins, and what to do; nothing where it may be the file.

    Known are pointers of Git LFS and git-annex, links that became text, web pages, what servers
    answer in XML, JSON or plain words, drawings in SVG, the files in which macOS keeps metadata,
    and nothing but zeros.

    Args:
        start: Its first `LOOKED_AT` bytes, or all where there are fewer.
    """
    if pointer := describe_pointer(start):
        return pointer
    if _LINK.match(start):
        return "the text of a link, not the file: copy what it leads to"
    if start.startswith(_MACOS):
        return "metadata of macOS, not the file: take the one of the name without ._"
    if len(start) == start.count(0):
        return "zeros, not the file: download or copy it again"
    if _SAFARI.match(start):
        return _as_page("")
    return _describe_text(_text(start))


def describe_pointer(start: bytes) -> str:
    """Does as `describe_placeholder` for the pointers of Git LFS and git-annex alone.

    It is for files of text, in which all else that is known might stand.
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
    """Parts blanks, comments and declarations from what comes after them."""
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
    """Returns what a JSON text says is wrong; None if it does not seem to say so."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):  # it may be longer than what we have
        said = dict(re.findall(r'"(\w+)"\s*:\s*"([^"]*)"', text))
    for one in said if isinstance(said, list) else [said]:
        for key in _JSON_WORDS if isinstance(one, dict) else ():
            if one.get(key):
                words = one[key]
                return words if isinstance(words, str) else json.dumps(words)
    return None


def _text(start: bytes) -> str:
    """Returns what a file holds as text, "" if it holds none."""
    if start.startswith(_GZIP):  # as servers compress what they answer
        try:
            start = zlib.decompressobj(wbits=31).decompress(start, LOOKED_AT)
        except zlib.error:
            return ""
    utf16 = start.startswith((b"\xff\xfe", b"\xfe\xff"))
    text = start.decode("utf-16" if utf16 else "utf-8-sig", errors="replace")
    return "" if re.search(r"[\0-\x08\x0e-\x1a\x1c-\x1f]", text) else text


def _start(path: epath.PathLike) -> bytes | None:
    """Returns how a file begins; None if it can't be read."""
    try:
        with epath.Path(path).expanduser().open("rb") as file:
            return file.read(LOOKED_AT)
    except (OSError, ImportError, KeyError, ValueError):
        return None
