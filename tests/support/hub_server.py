"""A server on 127.0.0.1 that answers as the Hugging Face hub does, for folders of checkpoints."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """What the server serves, and what was asked of it.

    Attributes:
        endpoint: The value for HF_ENDPOINT.
        downloads: The files whose content was sent, in order.
        tokens: Every bearer token that came in.
    """

    def __init__(
        self, repositories: dict[str, Path], *, token: str | None, seconds_per_file: float
    ) -> None:
        self.repositories = repositories
        self.token = token
        self.seconds_per_file = seconds_per_file
        self.downloads: list[str] = []
        self.tokens: set[str] = set()
        self.endpoint = ""


@contextmanager
def serve_hub(
    repositories: dict[str, Path], *, token: str | None = None, seconds_per_file: float = 0.0
) -> Iterator[Hub]:
    """Serve folders as repositories by name, to anyone or only to who has the token."""
    hub = Hub(repositories, token=token, seconds_per_file=seconds_per_file)
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, *_: object) -> None:
        """Say nothing: the tests read what was asked from the hub itself."""

    def _answer(self, *, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        name = "/".join(path.removeprefix("api/models/").split("/")[:2])
        rest = path.removeprefix("api/models/").split("/")[2:]
        folder = self.hub.repositories.get(name)
        bearer = (self.headers.get("authorization") or "").removeprefix("Bearer ")
        self.hub.tokens |= {bearer} - {""}
        if folder is None:
            self._send(401 if not bearer else 404, b"{}", "RepoNotFound", with_body=with_body)
        elif self.hub.token not in (None, bearer):
            status = 403 if bearer else 401
            self._send(status, b"{}", "GatedRepo", with_body=with_body)
        elif len(rest) > 1 and rest[1] not in ("main", COMMIT):
            self._send(404, b"{}", "RevisionNotFound", with_body=with_body)
        elif path.startswith("api/") and rest[:1] == ["tree"]:
            self._send_json([_entry(file) for file in sorted(folder.iterdir())])
        elif path.startswith("api/"):
            siblings = [{"rfilename": file.name} for file in sorted(folder.iterdir())]
            self._send_json({"id": name, "sha": COMMIT, "siblings": siblings})
        else:
            self._send_file(folder / rest[-1], with_body=with_body)

    def _send_file(self, file: Path, *, with_body: bool) -> None:
        if not file.is_file():
            self._send(404, b"{}", "EntryNotFound", with_body=with_body)
            return
        if with_body:
            self.hub.downloads.append(file.name)
            threading.Event().wait(self.hub.seconds_per_file)
        self._send(200, file.read_bytes(), with_body=with_body, etag=_digest(file))

    def _send_json(self, answer: object) -> None:
        self._send(200, json.dumps(answer).encode(), with_body=True)

    def _send(
        self, status: int, body: bytes, code: str = "", *, with_body: bool, etag: str = ""
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", COMMIT)
        if code:
            self.send_header("X-Error-Code", code)
        if etag:
            self.send_header("ETag", f'"{etag}"')
        self.end_headers()
        if with_body:
            self.wfile.write(body)


def _digest(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


def _entry(file: Path) -> dict[str, object]:
    size = file.stat().st_size
    return {"type": "file", "path": file.name, "size": size, "oid": _digest(file)}
