import asyncio
import json
from pathlib import Path

import pytest

from dynamicrafter_jax.app.gate import MAX_JSON, Gate

HOST = (b"host", b"127.0.0.1:7860")


class Inner:
    """An application that notes what reaches it."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, bytes]] = []

    async def __call__(self, scope, receive, send) -> None:
        body = b""
        if scope["method"] == "POST":
            body = (await receive())["body"]
        self.seen.append((scope["path"], body))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"fine"})


class Door:
    """A gate, and what happens at it."""

    def __init__(self, folder: Path, *, only_local: bool = True) -> None:
        self.served = folder / "served"
        self.served.mkdir()
        (self.served / "a.png").write_bytes(b"a picture")
        (folder / "secret.txt").write_text("a secret")
        (self.served / "link").symlink_to(folder / "secret.txt")
        self.inner = Inner()
        self.rooms_made = 0
        self.gate = Gate(
            self.inner,
            served=self.served,
            max_upload=1000,
            only_local=only_local,
            before_upload=self.make_room,
        )

    def make_room(self) -> None:
        self.rooms_made += 1

    def knock(self, method: str, path: str, body: bytes = b"", headers=(HOST,)) -> int:
        """Returns the status of the answer."""
        return self.answer(method, path, body, headers)["status"]

    def answer(self, method: str, path: str, body: bytes = b"", headers=(HOST,)) -> dict:
        sent = []
        names = {name for name, _ in headers}
        if method == "POST" and b"content-length" not in names:
            headers = [*headers, (b"content-length", str(len(body)).encode())]

        async def receive():
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": method, "path": path, "headers": list(headers)}
        asyncio.run(self.gate(scope, receive, send))
        return sent[0]


@pytest.fixture
def door(tmp_path) -> Door:
    return Door(tmp_path)


@pytest.mark.parametrize("path", ["/", "/config", "/assets/index.js", "/gradio_api/queue/data"])
def test_what_the_page_needs_passes(door, path):
    assert door.knock("GET", path) == 200


@pytest.mark.parametrize(
    "method, path, status",
    [
        ("GET", "/gradio_api/proxy=http://example.com", 404),
        ("GET", "/gradio_api/deep_link", 404),
        ("GET", "/monitoring", 404),
        ("GET", "/gradio_api/run-history/buckets", 404),
        ("GET", "/gradio_api/custom_component/a/client/b/c", 404),
        ("POST", "/gradio_api/vibe-edit", 404),
        ("POST", "/gradio_api/component_server", 404),
        ("POST", "/gradio_api/process_recording", 404),
        ("POST", "/gradio_api/call/make", 404),
        ("POST", "/login", 404),
        ("PUT", "/", 405),
        ("DELETE", "/gradio_api/upload", 405),
        ("OPTIONS", "/gradio_api/queue/join", 405),
    ],
)
def test_all_else_does_not_exist(door, method, path, status):
    assert door.knock(method, path, b"{}") == status
    assert door.inner.seen == []


def test_only_served_files_are_read(door):
    served = str(door.served)
    assert door.knock("GET", f"/gradio_api/file={served}/a.png") == 200
    for name in (
        "/etc/passwd",
        f"{served}/../secret.txt",
        f"{served}/%2e%2e/secret.txt",
        f"{served}/link",
        f"{served}_of_another/a.png",
        "a.png",
        "../secret.txt",
        "http://example.com/a.png",
        "file:///etc/passwd",
        "a\0b",
        "",
    ):
        assert door.knock("GET", f"/gradio_api/file={name}") == 403, name
    assert len(door.inner.seen) == 1


def message(path) -> bytes:
    return json.dumps({"data": [{"a": [{"path": path, "meta": {}}]}], "fn_index": 0}).encode()


def test_messages_name_served_files_only(door):
    join = "/gradio_api/queue/join"
    for path in (f"{door.served}/a.png", None):
        body = message(path)
        assert door.knock("POST", join, body) == 200
        assert door.inner.seen[-1] == (join, body)
    passed = len(door.inner.seen)
    for path in ("/etc/passwd", "../a", f"{door.served}/../secret.txt", "https://a.b/c", 5, ["/"]):
        assert door.knock("POST", join, message(path)) == 403, path
    assert len(door.inner.seen) == passed


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"5", b"\xff\xfe", b'{"a": NaN', b"[" * 100_000, b"x" * 300]
)
def test_messages_that_are_none_are_refused(door, body):
    assert door.knock("POST", "/gradio_api/queue/join", body) == 400
    assert door.inner.seen == []


def test_deep_messages_are_no_trouble(door):
    deep = b'{"data": ' + b"[" * 500 + b"]" * 500 + b"}"
    assert door.knock("POST", "/gradio_api/queue/join", deep) == 200


def test_long_messages_are_refused_unread(door):
    too_long = (HOST, (b"content-length", str(MAX_JSON + 1).encode()))
    assert door.knock("POST", "/gradio_api/queue/join", b"{}", too_long) == 413
    for length in (b"", b"-5", b"many", "٣".encode()):
        headers = (HOST, (b"content-length", length))
        assert door.knock("POST", "/gradio_api/queue/join", b"{}", headers) == 411
    assert door.inner.seen == []


def test_uploads_are_limited_and_make_room(door):
    assert door.knock("POST", "/gradio_api/upload", b"x" * 1000) == 200
    assert door.rooms_made == 1
    assert door.knock("POST", "/gradio_api/upload", b"x" * 1001) == 413
    assert door.rooms_made == 1


def test_other_sites_cannot_use_a_local_server(door):
    for host in (b"127.0.0.1:7860", b"localhost", b"[::1]:7860", b"LOCALHOST:1"):
        assert door.knock("GET", "/", headers=[(b"host", host)]) == 200
    for host in (b"evil.example", b"evil.example:7860", b"127.0.0.1.evil.example", b""):
        assert door.knock("GET", "/", headers=[(b"host", host)]) == 403
    own = [HOST, (b"origin", b"http://127.0.0.1:7860")]
    assert door.knock("POST", "/gradio_api/reset", b"{}", own) == 200
    for origin in (b"http://evil.example", b"null", b"http://127.0.0.1:9999", b""):
        headers = [HOST, (b"origin", origin)]
        assert door.knock("POST", "/gradio_api/reset", b"{}", headers) == 403


def test_a_public_server_answers_to_any_name(tmp_path):
    door = Door(tmp_path, only_local=False)
    assert door.knock("GET", "/", headers=[(b"host", b"pictures.example")]) == 200


def test_answers_keep_browsers_at_home(door):
    def policy(path: str) -> str:
        headers = dict(door.answer("GET", path)["headers"])
        assert headers[b"x-content-type-options"] == b"nosniff"
        return headers[b"content-security-policy"].decode()

    assert "default-src 'self'" in policy("/") and "http" not in policy("/")
    assert "sandbox" in policy(f"/gradio_api/file={door.served}/a.png")


def test_web_sockets_are_refused(door):
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "websocket.connect"}

    scope = {"type": "websocket", "path": "/", "headers": [HOST]}
    asyncio.run(door.gate(scope, receive, send))
    assert door.inner.seen == []
