"""What a stranger may send over the network, well-formed or not, and what comes back."""

import json
import socket
import urllib.parse
from dataclasses import dataclass
from typing import Any

PATIENCE = 120  # seconds


@dataclass(frozen=True)
class Answer:
    """The status, 0 where the connection was closed without a word, and all bytes after it."""

    status: int
    body: bytes


class Wire:
    """Connections to a server, each for one request; nothing is tidied up on the way."""

    def __init__(self, address: str) -> None:
        parts = urllib.parse.urlsplit(address)
        assert parts.hostname is not None and parts.port is not None
        self._place = parts.hostname, parts.port
        self._host = parts.netloc

    def raw(self, data: bytes, *, until: bytes | None = None, end: bool = True) -> Answer:
        """Sends bytes, ends there or not, and reads the answer, or as far as `until`."""
        with socket.create_connection(self._place, timeout=PATIENCE) as connection:
            try:
                connection.sendall(data)
                if end:
                    connection.shutdown(socket.SHUT_WR)
                received = b""
                while part := connection.recv(65536):
                    received += part
                    if until is not None and until in received:
                        break
            except ConnectionError:
                return Answer(0, b"")
        first, _, rest = received.partition(b"\r\n")
        words = first.split()
        return Answer(int(words[1]) if len(words) > 1 else 0, rest)

    def send(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        kind: str = "application/json",
        **options: Any,
    ) -> Answer:
        """Sends a request whose frame is well-formed; `path` goes as it is."""
        length = options.pop("length", len(body))
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: {self._host}\r\nConnection: close\r\n"
            f"Content-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
        )
        data = head.encode("utf-8", "surrogateescape") + body
        # A server takes the end of what it hears for the end of the listener.
        return self.raw(data, end=length > len(body), **options)

    def upload(self, name: str, data: bytes) -> Answer:
        """Uploads a file under any name."""
        escaped = name.replace('"', "%22").encode("utf-8", "surrogateescape")
        body = (
            b'--boundary\r\nContent-Disposition: form-data; name="files"; filename="'
            + escaped
            + b'"\r\nContent-Type: image/png\r\n\r\n'
            + data
            + b"\r\n--boundary--\r\n"
        )
        kind = "multipart/form-data; boundary=boundary"
        return self.send("POST", "/gradio_api/upload", body, kind)

    def uploaded(self, name: str, data: bytes) -> str | None:
        """Uploads a file, and returns where it went, if it was taken."""
        answer = self.upload(name, data)
        if answer.status != 200:
            return None
        return json.loads(answer.body[answer.body.index(b"\r\n\r\n") + 4 :])[0]


class Page:
    """The events of the page, as its own script would send them."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        answer = wire.send("GET", "/config")
        config = json.loads(answer.body[answer.body.index(b"\r\n\r\n") + 4 :])
        names = {one["id"]: one["props"].get("elem_id") for one in config["components"]}
        make = next(one for one in config["dependencies"] if one["api_name"] == "make")
        self.events = [one["id"] for one in config["dependencies"]]
        self.make = make["id"]
        self.inputs = [names[one] for one in make["inputs"]]
        self._sessions = 0

    def values(self, changes: dict[str, Any]) -> list[Any]:
        """Returns what Generate sends, some of it changed; by the names of the fields."""
        values = {
            "model": "demo",
            "mode": "Image to video",
            "image": None,
            "end_image": None,
            "prompt": "",
            "num_samples": 1,
            "seed": 0,
            "solver": "ddim",
            "steps": 1,
            "eta": 0,
            "guidance_scale": 1,
            "guidance_rescale": 0,
            "image_guidance_scale": 0,
            "fps": 8,
            "video_fps": 8,
            "spacing": "uniform",
            "fit": "crop",
            "negative_prompt": "",
            "deep_cache_interval": 1,
            "deep_cache_depth": 1,
            "guidance_reuse_interval": 1,
            "guidance_start": 0,
            "guidance_stop": 1,
            None: None,  # the history, which the server has
        } | changes
        return [values[name] for name in self.inputs]

    def run(self, data: Any, event: Any = None) -> str:
        """Joins the queue, waits for the end, and returns all that was said."""
        self._sessions += 1
        session = f"wire{self._sessions}"
        body = {
            "data": data,
            "fn_index": self.make if event is None else event,
            "session_hash": session,
        }
        joined = self.wire.send("POST", "/gradio_api/queue/join", json.dumps(body).encode())
        if joined.status != 200:
            return f"{joined.status} {joined.body.decode(errors='replace')}"
        said = self.wire.send(
            "GET", f"/gradio_api/queue/data?session_hash={session}", until=b"close_stream"
        )
        return said.body.decode(errors="replace")


def file_at(path: Any, **more: Any) -> dict[str, Any]:
    """Returns how a page names a file."""
    return {"path": path, "meta": {"_type": "gradio.FileData"}, **more}
