"""What may reach the server: a short list of addresses, bodies of a few sizes, and own files only.

gradio has many addresses that this page has no use for: a proxy, recordings, links to saved
states, calls by other programs, monitoring. Here they do not exist, so what is wrong with any of
them is wrong with nothing that we serve.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_JSON = 2**18
"""Bytes of a message that is not an upload."""

_API = "/gradio_api"
_FILE = f"{_API}/file="
_UPLOAD = f"{_API}/upload"
_GET = {
    *("/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt"),
    *(f"{_API}/{name}" for name in ("info", "startup-events", "queue/data", "upload_progress")),
}
_GET_UNDER = ("/assets/", "/static/", f"{_API}/heartbeat/", _FILE)
_POST = {f"{_API}/{name}" for name in ("queue/join", "run/predict", "cancel", "reset", "upload")}
_LOOPBACK = {"127.0.0.1", "localhost", "::1"}

# The page's own scripts and styles stand in it; from elsewhere nothing is loaded.
_PAGE_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' blob:; "
    "font-src 'self' data:; worker-src 'self' blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'self'"
)
_FILE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; sandbox"


class Gate:
    """ASGI middleware that lets through what the page needs, and says no to the rest."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        served: Path,
        max_upload: int,
        only_local: bool,
        before_upload: Callable[[], None],
    ) -> None:
        """Stands before an application.

        Args:
            app: The application.
            served: The one folder whose files people may see or name.
            max_upload: Bytes of an upload, all its files together.
            only_local: Whether the server is for this machine: then it answers to no other name,
                so that a page elsewhere, whose name is made to lead here, can't use it.
            before_upload: Called before each, to make room.
        """
        self._app = app
        self._served = served.resolve()
        self._max_upload = max_upload
        self._only_local = only_local
        self._before_upload = before_upload

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers it with a refusal."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        try:
            if scope["type"] != "http":
                raise HTTPException(403, "there are no web sockets here")
            receive = await self._check(scope, receive)
        except HTTPException as refused:
            headers = {"connection": "close"}
            answer = PlainTextResponse(refused.detail, refused.status_code, headers)
            await answer(scope, receive, send)
            return
        is_file = scope["path"].startswith(_FILE)
        await self._app(scope, receive, _with_headers(send, is_file))

    async def _check(self, scope: Scope, receive: Receive) -> Receive:
        """Raises `HTTPException` for what goes no further; returns how the rest is read on."""
        headers = Headers(scope=scope)
        _check_origin(headers, self._only_local)
        method, path = scope["method"], scope["path"]
        if method in ("GET", "HEAD"):
            if path not in _GET and not path.startswith(_GET_UNDER):
                raise HTTPException(404, "there is nothing here")
            if path.startswith(_FILE):
                _check_file(path.removeprefix(_FILE), self._served)
            return receive
        if method != "POST":
            raise HTTPException(405, "this can't be done here")
        if path not in _POST:
            raise HTTPException(404, "there is nothing here")
        if path == _UPLOAD:
            # gradio has a limit for each of a thousand files, and none for all together.
            _check_length(headers, self._max_upload)
            self._before_upload()
            return receive
        _check_length(headers, MAX_JSON)
        try:
            body = await Request(scope, receive).body()
        except ClientDisconnect:
            raise HTTPException(400, "the message was cut short") from None
        _check_paths(body, self._served)
        return _replay(body, receive)


def _check_origin(headers: Headers, only_local: bool) -> None:
    """Refuses what the page of another site sends."""
    host = headers.get("host", "")
    if only_local and _name(host) not in _LOOPBACK:
        raise HTTPException(403, "this server is for its own machine: open it as 127.0.0.1")
    origin = headers.get("origin")
    if origin is not None and origin.split("://")[-1] != host:
        raise HTTPException(403, "pages of other sites can't use this server")


def _check_length(headers: Headers, most: int) -> None:
    """Refuses a body that is too long, or does not say how long it is."""
    length = headers.get("content-length", "")
    if not (length.isascii() and length.isdigit()):
        raise HTTPException(411, "the length of the message is missing")
    if int(length) > most:
        words = f"this is larger than {most / 1e6:.3g} MB, which is the most allowed"
        raise HTTPException(413, words)


def _check_file(name: str, served: Path) -> None:
    """Refuses a file, named in an address, that is elsewhere or on another machine."""
    # What reads it may decode it once more, so that both readings must be harmless.
    if not (_inside(name, served) and _inside(unquote(name), served)):
        raise HTTPException(403, "this file is not for you")


def _check_paths(body: bytes, served: Path) -> None:
    """Refuses a message that is no JSON object, or names a file outside the served folder."""
    try:
        message = json.loads(body)
    except (ValueError, RecursionError):
        raise HTTPException(400, "the message is not JSON") from None
    if not isinstance(message, dict):
        raise HTTPException(400, "the message is not a JSON object")
    waiting: list[Any] = [message]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            path = value.get("path")
            if path is not None and not (isinstance(path, str) and _inside(path, served)):
                raise HTTPException(403, "the message names a file that was not uploaded here")
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _inside(path: str, folder: Path) -> bool:
    try:
        place = Path(path)
        return place.is_absolute() and place.resolve().is_relative_to(folder)
    except (OSError, ValueError, RuntimeError):  # too long, a null character, a circle of links
        return False


def _name(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()


def _replay(body: bytes, receive: Receive) -> Receive:
    """Gives a body that was read once more, then what comes after it."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return waiting.pop() if waiting else await receive()

    return replayed


def _with_headers(send: Send, is_file: bool) -> Send:
    """Says to the browser that nothing comes from elsewhere, and what people upload is no page."""
    policy = _FILE_POLICY if is_file else _PAGE_POLICY
    added = [
        (b"content-security-policy", policy.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
    ]

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *added]
        await send(message)

    return sending
