"""A hub of models on this machine, for the real client: lists of files, and the files."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"

Files = Mapping[str, bytes]


@contextlib.contextmanager
def serve(
    repositories: Mapping[str, Files], gated: tuple[str, ...] = ()
) -> Iterator[tuple[str, list[str]]]:
    """Serves repositories on a free port until the block ends.

    Args:
        repositories: The files of each by "owner/name@revision".
        gated: Ids of those whose files nobody may have.

    Yields:
        The address, and the requests so far.
    """
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def log_message(self, format: str, *args: Any) -> None:
            requests.append(format % args)

        def _answer(self) -> None:
            path = unquote(urlsplit(self.path).path).strip("/")
            if path.startswith("api/models/"):
                owner, name, *rest = path.removeprefix("api/models/").split("/")
                kind, revision = rest[:2] if rest else ("revision", "main")
                file = None
            else:
                owner, name, kind, revision, *rest = path.split("/")
                file = "/".join(rest)
            id = f"{owner}/{name}"
            if not any(known.split("@")[0] == id for known in repositories):
                return self._refuse(401, "RepoNotFound")
            files = repositories.get(f"{id}@{revision}")
            if revision == COMMIT:
                files = next(f for known, f in repositories.items() if known.split("@")[0] == id)
            if files is None:
                return self._refuse(404, "RevisionNotFound")
            if file is None:
                return self._send(json.dumps(self._listing(id, kind, files)).encode(), "list")
            if id in gated:
                return self._refuse(403, "GatedRepo")
            if file not in files:
                return self._refuse(404, "EntryNotFound")
            return self._send(files[file], hashlib.sha256(files[file]).hexdigest())

        def _listing(self, id: str, kind: str, files: Files) -> Any:
            if kind == "tree":
                return [
                    {"type": "file", "path": path, "size": len(data), "oid": "0" * 40}
                    for path, data in files.items()
                ]
            return {"id": id, "sha": COMMIT, "siblings": [{"rfilename": path} for path in files]}

        def _refuse(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _send(self, data: bytes, etag: str) -> None:
            self.send_response(200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{etag}"')
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
