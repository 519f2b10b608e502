"""What strangers send leaves the page serving, and touches nothing outside its own folder."""

import io
import json
import os
import random
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from app.servers import ROOT, Server, running
from app.wire import Page, Wire, file_at
from PIL import Image

pytestmark = pytest.mark.slow

SECRET = b"nobody may read this"
ROUNDS = 10  # of each of the twenty kinds below


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("stormy")
    (folder / "secret.txt").write_bytes(SECRET)
    with running(folder, max_upload=300_000, keep_results=3) as server:
        yield server


def png(width: int, height: int) -> bytes:
    """A PNG of few bytes that says it is of this size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(3 * 64 + 1)))
        + chunk(b"IEND", b"")
    )


def photograph() -> bytes:
    buffer = io.BytesIO()
    draw = np.random.default_rng(0)
    Image.fromarray(draw.integers(0, 256, (40, 60, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


PHOTOGRAPH = photograph()
NAMES = (
    *("../../evil.png", "/etc/cron.d/evil", "..\\..\\evil.png", "....//....//evil.png", "..", "."),
    *("%2e%2e%2fevil.png", "~/.bashrc", "$(touch evil).png", "`id`.png", "a/b/c.png", "", " "),
    *(
        "x" * 3000 + ".png",
        "\u202egnp.exe",
        "con.png",
        "<img src=x>.png",
        "a\tb.png",
        "é\udcff.png",
    ),
    *("file:///etc/passwd", "https://example.com/a.png", ".htaccess", "-rf.png", "a;b|c&d.png"),
)
FILES = (
    *(b"", b"GIF89a", b"\xff\xd8\xff\xe0", b"<html><script>alert(1)</script></html>", SECRET[:4]),
    b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
    b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><svg>&e;</svg>',
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n(/etc/passwd) (r) file\n",
    *(png(1, 1), png(30_000, 30_000), png(2**31 - 1, 2**31 - 1), png(0, 0), png(64, 2**20)),
    *(PHOTOGRAPH[:50], PHOTOGRAPH[:-500], PHOTOGRAPH + bytes(1000), PHOTOGRAPH[8:]),
    *(b"II*\0" + bytes(200), b"RIFF\xff\xff\xff\xffWEBPVP8 ", b"BM" + b"\xff" * 60, bytes(250_000)),
)
WRONG = (
    *(None, True, -1, 2**70, 1e400, -0.5, "", "1", "x" * 5000, [], [[]], {}, {"a": {"b": []}}),
    *("__import__('os').system('id')", "../../etc/passwd", "\0", "\ud800", file_at("/etc/passwd")),
)
JUNK_PATHS = (
    *("/etc/passwd", "{outside}", "{served}/../../secret.txt", "{served}/..%2f..%2fsecret.txt"),
    *("/proc/self/environ", "~/.ssh/id_rsa", "file:///etc/passwd", "http://127.0.0.1:1/", "//etc"),
    *("{served}/" + "../" * 40 + "etc/passwd", "\\\\host\\share", "{served}", "/dev/zero", "C:\\a"),
)


class Storm:
    """Draws malformed requests; each method sends one."""

    def __init__(self, server: Server) -> None:
        self.draw = random.Random(0)
        self.wire = Wire(server.address)
        self.page = Page(self.wire)
        self.served = server.workdir / "served"
        self.outside = server.workdir.parent / "secret.txt"
        taken = self.wire.uploaded("fine.png", PHOTOGRAPH)
        assert taken is not None
        self.fine = taken

    @property
    def kinds(self) -> list[Callable[[], Any]]:
        return [getattr(self, name) for name in dir(self) if name.startswith("send_")]

    def junk_path(self) -> str:
        path = self.draw.choice(JUNK_PATHS)
        return path.replace("{served}", str(self.served)).replace("{outside}", str(self.outside))

    def noise(self, most: int = 2000) -> bytes:
        return self.draw.randbytes(self.draw.randrange(most))

    def field(self) -> str:
        return self.draw.choice([name for name in self.page.inputs if name is not None])

    def send_upload_with_a_strange_name(self):
        return self.wire.upload(self.draw.choice(NAMES), PHOTOGRAPH)

    def send_upload_that_is_no_picture_and_use_it(self):
        path = self.wire.uploaded("a.png", self.draw.choice(FILES))
        return self.page.run(self.page.values({"image": path and file_at(path)}))

    def send_upload_that_is_too_large(self):
        return self.wire.upload("a.png", bytes(self.draw.randrange(300_001, 900_000)))

    def send_upload_in_a_broken_form(self):
        kind = self.draw.choice(
            ["multipart/form-data", "multipart/form-data; boundary=", "text/plain", "", "\xff"]
        )
        return self.wire.send("POST", "/gradio_api/upload", self.noise(), kind)

    def send_upload_cut_short(self):
        body = b'--boundary\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\nxx'
        kind = "multipart/form-data; boundary=boundary"
        return self.wire.send("POST", "/gradio_api/upload", body, kind, length=5000)

    def send_upload_of_parts_that_are_no_files(self):
        body = b'--boundary\r\nContent-Disposition: form-data; name="files"\r\n\r\n/etc/passwd'
        body += b"\r\n--boundary--\r\n"
        kind = "multipart/form-data; boundary=boundary"
        return self.wire.send("POST", "/gradio_api/upload?upload_id=../../x", body, kind)

    def send_request_with_a_wrong_value(self):
        changes = {"image": file_at(self.fine), self.field(): self.draw.choice(WRONG)}
        return self.page.run(self.page.values(changes))

    def send_request_with_all_wrong(self):
        return self.page.run([self.draw.choice(WRONG) for _ in self.page.inputs])

    def send_request_of_another_length(self):
        data = [self.draw.choice(WRONG) for _ in range(self.draw.randrange(40))]
        return self.page.run(self.draw.choice([data, {}, "data", None, 5]))

    def send_request_for_a_file_elsewhere(self):
        field = self.draw.choice(["image", "end_image", "prompt", "model"])
        changes = {
            "mode": "Interpolation",
            "image": file_at(self.fine),
            "end_image": file_at(self.fine),
        }
        return self.page.run(self.page.values(changes | {field: file_at(self.junk_path())}))

    def send_request_with_data_in_an_address(self):
        url = self.draw.choice(["data:image/png;base64,AAAA", "http://127.0.0.1:1/a", "file:///x"])
        image = file_at(self.draw.choice([None, self.fine]), url=url, orig_name="../../a.svg")
        return self.page.run(self.page.values({"image": image}))

    def send_any_event(self):
        data = [self.draw.choice(WRONG) for _ in range(self.draw.randrange(4))]
        event = self.draw.choice([*self.page.events, -1, 10**9, "0", None, [], 1.5])
        return self.page.run(data, event)

    def send_event_at_once(self):
        body = {
            "data": [self.draw.choice(WRONG)],
            "fn_index": self.draw.choice([*self.page.events, -7, "x"]),
            "session_hash": self.draw.choice(["a", None, "../../x", 5, "y" * 9000]),
            "event_data": {"index": self.draw.choice([0, -1, "a", None, [1, 2]])},
        }
        path = self.draw.choice(["run/predict", "api/make", "call/make", "call/v2/make", "run/x"])
        return self.wire.send("POST", f"/gradio_api/{path}", json.dumps(body).encode())

    def send_body_that_is_no_json(self):
        path = self.draw.choice(["queue/join", "run/predict", "cancel", "reset"])
        body = self.draw.choice([self.noise(), b"[" * 60_000, b"{" * 999, b'{"data":', b"null"])
        return self.wire.send("POST", f"/gradio_api/{path}", body)

    def send_body_that_is_too_long(self):
        body = b'{"data": "' + b"x" * 400_000 + b'"}'
        return self.wire.send("POST", "/gradio_api/queue/join", body)

    def send_question_for_a_file(self):
        way = self.draw.choice(["/gradio_api/file=", "/gradio_api/file/", "/file=", "/static/"])
        return self.wire.send("GET", way + self.junk_path().replace(" ", "%20"))

    def send_question_with_a_way_out(self):
        steps = self.draw.choice(["../", "..%2f", "%2e%2e/", "..%252f", "..\\", "....//"])
        start = self.draw.choice(["/", "/assets/", "/static/", f"/gradio_api/file={self.served}/"])
        return self.wire.send("GET", start + steps * 12 + "etc/passwd")

    def send_address_that_is_not_there(self):
        path = self.draw.choice(
            [
                *("proxy=http://127.0.0.1:1/", "component_server", "vibe-edit", "monitoring"),
                *("deep_link?session_hash=a", "process_recording", "stream/a/b/1/playlist.m3u8"),
                *("run-history/buckets", "custom_component/x/client/y/z", "heartbeat/../../x"),
            ]
        )
        method = self.draw.choice(["GET", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "X"])
        return self.wire.send(method, f"/gradio_api/{path}", b"{}", length=2)

    def send_something_else_than_http(self):
        return self.wire.raw(
            self.draw.choice([self.noise() + b"\r\n\r\n", b"GET\r\n\r\n", b"\0" * 99])
        )

    def send_headers_that_mislead(self):
        header = self.draw.choice(
            [
                *("Host: evil.example", "Origin: http://evil.example", "X-Forwarded-Host: evil"),
                *("Content-Length: -1", "Content-Length: x", "Transfer-Encoding: chunked"),
                *("Range: bytes=9999999-1", "X: " + "y" * 70_000, "Upgrade: websocket"),
            ]
        )
        host = "" if header.startswith("Host") else f"Host: {self.wire._host}\r\n"
        request = f"POST /gradio_api/reset HTTP/1.1\r\n{host}Connection: close\r\n{header}\r\n\r\n"
        return self.wire.raw(request.encode(), end="chunked" in header)


def opened(server: Server) -> list[tuple[str, Path]]:
    lines = server.log.read_text(errors="replace").splitlines()
    return [(line[0], Path(line[2:])) for line in lines]


def is_inside(path: Path, *folders: Path | str) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)


def test_two_hundred_malformed_requests_are_survived(server):
    before = sorted(server.workdir.parent.iterdir())
    storm = Storm(server)
    assert len(storm.kinds) * ROUNDS == 200
    answers = []
    for send in storm.kinds * ROUNDS:
        answer = send()
        said = answer.encode() if isinstance(answer, str) else answer.body
        answers.append((send.__name__, getattr(answer, "status", None), said))
    for name, status, said in answers:
        assert SECRET not in said and b"root:x:0" not in said, name
        assert b"Traceback" not in said, name
        assert status not in (201, 302, 307), name

    # It still serves, and makes videos.
    assert server.process.poll() is None
    assert storm.wire.send("GET", "/").status == 200
    said = storm.page.run(storm.page.values({"image": file_at(storm.fine)}))
    assert '"success":true' in said and "video.mp4" not in said and ".mp4" in said

    # Nothing outside its folder was written, and nothing of other people's was read.
    assert sorted(server.workdir.parent.iterdir()) == before
    own = (server.workdir, os.environ["JAX_COMPILATION_CACHE_DIR"], "/dev/null")
    code = {sys.prefix, sys.base_prefix, str(ROOT), *filter(None, sys.path)}
    strangers = [
        (kind, path)
        for kind, path in opened(server)
        if not is_inside(path, *own)
        and (kind == "w" or (path.exists() and not is_inside(path, *code)))
    ]
    assert strangers == []
    assert len(list((server.workdir / "served" / "results").iterdir())) <= 3
