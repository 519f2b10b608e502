"""A bucket store that speaks the part of Google Cloud Storage's JSON interface that we need.

Objects live in memory. What clients ask for is answered as the service documents it: objects by
name with generations and preconditions, ranges, listings by prefix and delimiter, simple and
resumable uploads, moves and deletions.
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

_OBJECT = re.compile(r"(?:/download)?/storage/v1/b/([^/]+)/o/([^/]+)")
_LISTING = re.compile(r"/storage/v1/b/([^/]+)/o")
_BUCKET = re.compile(r"/storage/v1/b/([^/]+)")
_UPLOAD = re.compile(r"/(?:resumable/)?upload/storage/v1/b/([^/]+)/o")
_MOVE = re.compile(r"/storage/v1/b/([^/]+)/o/([^/]+)/moveTo/o/([^/]+)")

Name = tuple[str, str]  # bucket, object


class Stored(NamedTuple):
    data: bytes
    generation: int


class Answer(NamedTuple):
    status: int
    body: bytes = b""
    headers: Mapping[str, str] = MappingProxyType({})


class Bucket:
    """The objects, and the requests that change or show them.

    Attributes:
        objects: By bucket and name.
        room: Uploads still taken before the service refuses all; None is no limit.
    """

    def __init__(self) -> None:
        self.objects: dict[Name, Stored] = {}
        self.room: int | None = None
        self._uploads: dict[str, tuple[Name, dict[str, str], bytes]] = {}
        self._generation = 0
        self._lock = threading.RLock()

    def answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Answer:
        url = urlsplit(target)
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        with self._lock:
            if match := _UPLOAD.fullmatch(url.path):
                return self._upload(match[1], query, headers, body)
            if match := _MOVE.fullmatch(url.path):
                return self._move(match[1], unquote(match[2]), unquote(match[3]))
            if match := _OBJECT.fullmatch(url.path):
                return self._object(method, (match[1], unquote(match[2])), query, headers)
            if match := _LISTING.fullmatch(url.path):
                return self._list(match[1], query)
            if match := _BUCKET.fullmatch(url.path):
                return _as_json({"kind": "storage#bucket", "name": match[1]})
        return Answer(404)

    def _object(
        self, method: str, name: Name, query: dict[str, str], headers: dict[str, str]
    ) -> Answer:
        stored = self.objects.get(name)
        if refusal := self._refusal(name, query):
            return refusal
        if stored is None:
            return Answer(404)
        if method == "DELETE":
            del self.objects[name]
            return Answer(204)
        if query.get("alt") != "media":
            return _as_json(_describe(name, stored))
        shown = {"x-goog-generation": str(stored.generation)}
        if match := re.fullmatch(r"bytes=(\d*)-(\d*)", headers.get("range", "")):
            size = len(stored.data)
            first = int(match[1]) if match[1] else size - int(match[2])
            last = min(int(match[2]), size - 1) if match[1] and match[2] else size - 1
            if first >= size:
                return Answer(416)
            shown["Content-Range"] = f"bytes {first}-{last}/{size}"
            return Answer(206, stored.data[first : last + 1], shown)
        return Answer(200, stored.data, shown)

    def _upload(
        self, bucket: str, query: dict[str, str], headers: dict[str, str], body: bytes
    ) -> Answer:
        if "upload_id" in query:
            return self._continue_upload(query["upload_id"], headers, body)
        if query["uploadType"] == "media":
            return self._store((bucket, query["name"]), query, body)
        name = query["name"]
        key = str(len(self._uploads))
        self._uploads[key] = ((bucket, name), query, b"")
        place = f"http://{headers['host']}/upload/storage/v1/b/{bucket}/o?upload_id={key}"
        return Answer(200, b"", {"Location": place})

    def _continue_upload(self, key: str, headers: dict[str, str], body: bytes) -> Answer:
        name, query, data = self._uploads[key]
        data += body
        self._uploads[key] = name, query, data
        if headers["content-range"].endswith("/*"):
            return Answer(308, b"", {"Range": f"bytes=0-{len(data) - 1}"})
        return self._store(name, query, data)

    def _store(self, name: Name, query: dict[str, str], data: bytes) -> Answer:
        if refusal := self._refusal(name, query):
            return refusal
        if self.room is not None:
            if self.room == 0:
                return Answer(403, b"the bucket is full")
            self.room -= 1
        self._generation += 1
        self.objects[name] = Stored(data, self._generation)
        return _as_json(_describe(name, self.objects[name]))

    def _move(self, bucket: str, source: str, destination: str) -> Answer:
        if (bucket, source) not in self.objects:
            return Answer(404)
        stored = self.objects.pop((bucket, source))
        return self._store((bucket, destination), {}, stored.data)

    def _list(self, bucket: str, query: dict[str, str]) -> Answer:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        items, prefixes = [], set()
        for (place, name), stored in sorted(self.objects.items()):
            outside = name < query.get("startOffset", "") or name >= query.get("endOffset", "\x7f")
            if place != bucket or not name.startswith(prefix) or outside:
                continue
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                prefixes.add(prefix + rest.split(delimiter)[0] + delimiter)
            else:
                items.append(_describe((place, name), stored))
        return _as_json({"items": items, "prefixes": sorted(prefixes)})

    def _refusal(self, name: Name, query: dict[str, str]) -> Answer | None:
        stored = self.objects.get(name)
        generation = stored.generation if stored else 0
        if int(query.get("ifGenerationMatch", generation)) != generation:
            return Answer(412)
        if "ifGenerationNotMatch" in query and int(query["ifGenerationNotMatch"]) == generation:
            return Answer(304)
        return None


@contextlib.contextmanager
def serve(bucket: Bucket) -> Iterator[str]:
    """Serves on the loopback interface; gives the address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # an answer in one piece: two would wait for each other
        disable_nagle_algorithm = True

        def handle_one_request(self) -> None:
            with contextlib.suppress(ConnectionError):
                super().handle_one_request()

        def _answer(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            body = self.rfile.read(int(headers.get("content-length", 0)))
            answer = bucket.answer(self.command, self.path, headers, body)
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        do_GET = do_POST = do_PUT = do_DELETE = _answer

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _describe(name: Name, stored: Stored) -> dict[str, object]:
    return {
        "kind": "storage#object",
        "bucket": name[0],
        "name": name[1],
        "size": str(len(stored.data)),
        "generation": str(stored.generation),
        "md5Hash": base64.b64encode(hashlib.md5(stored.data).digest()).decode(),
        "timeCreated": "2024-01-01T00:00:00.000Z",
        "updated": "2024-01-01T00:00:00.000Z",
    }


def _as_json(value: object) -> Answer:
    return Answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})
