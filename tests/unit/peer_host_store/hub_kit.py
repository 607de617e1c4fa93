"""A hub on loopback: lists, redirects to where large files are kept, and fails as it is told."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "1234567890abcdef1234567890abcdef12345678"
REPO = "org/model"


@dataclass
class Asked:
    """A request as a server got it."""

    path: str
    range: str
    token: str


@dataclass
class Faults:
    """What goes wrong; each list is used up from its front, one for each answer with a file.

    Attributes:
        cuts: After so many bytes of a body the connection is closed.
        statuses: Sent instead of a file.
        damages: Whether the first byte of a body is another one.
        ignores_range: Answer with the whole file always.
        lies_range: Answer a range with another one.
        extra: So many bytes more than the file has.
    """

    cuts: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    damages: list[bool] = field(default_factory=list)
    ignores_range: bool = False
    lies_range: bool = False
    extra: int = 0


@dataclass
class Hub:
    """The hub and the store of its large files, at two addresses."""

    files: dict[str, bytes]
    large: set[str]
    faults: Faults = field(default_factory=Faults)
    token: str = ""
    repo: str = REPO
    listing: bytes | None = None
    redirect: str = ""
    asked: list[Asked] = field(default_factory=list)
    stored: list[Asked] = field(default_factory=list)
    sent_bytes: int = 0
    url: str = ""
    store_url: str = ""
    gate: threading.Event = field(default_factory=threading.Event)

    def list_files(self) -> bytes:
        if self.listing is not None:
            return self.listing
        siblings = []
        for path, data in self.files.items():
            entry = {"rfilename": path, "size": len(data)}
            entry["blobId"] = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            if path in self.large:
                sha256 = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"sha256": sha256, "size": len(data), "pointerSize": 134}
            siblings.append(entry)
        return json.dumps({"id": REPO, "sha": COMMIT, "siblings": siblings}).encode()


@contextmanager
def open_hub(
    files: dict[str, bytes], *, large: set[str] | None = None, repo: str = REPO
) -> Iterator[Hub]:
    hub = Hub(dict(files), set(files) if large is None else large, repo=repo)
    hub.gate.set()
    with serving(_hub_handler(hub)) as hub.url, serving(_store_handler(hub)) as hub.store_url:
        yield hub


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


class Quiet(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def ask(self) -> Asked:
        token = self.headers.get("authorization", "").removeprefix("Bearer ")
        return Asked(unquote(urlsplit(self.path).path), self.headers.get("range", ""), token)

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _hub_handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(Quiet):
        def do_GET(self) -> None:
            asked = self.ask()
            hub.asked.append(asked)
            if hub.token and asked.token != hub.token:
                self.answer(401)
            elif asked.path == f"/api/models/{hub.repo}/revision/main":
                self.answer(200, hub.list_files())
            elif asked.path.startswith(f"/{hub.repo}/resolve/{COMMIT}/"):
                name = asked.path.removeprefix(f"/{hub.repo}/resolve/{COMMIT}/")
                if name not in hub.files:
                    self.answer(404)
                elif name in hub.large:
                    to = hub.redirect or f"{hub.store_url}/{name}"
                    self.answer(302, location=to)
                else:
                    send_file(self, hub, hub.files[name], asked)
            else:
                self.answer(404)

    return Handler


def _store_handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(Quiet):
        def do_GET(self) -> None:
            asked = self.ask()
            hub.stored.append(asked)
            send_file(self, hub, hub.files[asked.path.lstrip("/")], asked)

    return Handler


def send_file(handler: Quiet, hub: Hub, data: bytes, asked: Asked) -> None:
    """Send a file or the rest of it, as the faults have it."""
    hub.gate.wait(10)
    faults = hub.faults
    if faults.statuses:
        handler.answer(faults.statuses.pop(0))
        return
    begins = int(asked.range.removeprefix("bytes=").rstrip("-") or 0)
    if asked.range and begins >= len(data):
        handler.answer(416)
        return
    if faults.ignores_range:
        begins = 0
    body = data[begins:] + bytes(faults.extra)
    if faults.damages and faults.damages.pop(0):
        body = bytes([body[0] ^ 1]) + body[1:]
    headers = {}
    if asked.range and not faults.ignores_range:
        shown = begins + 1 if faults.lies_range else begins
        headers = {"content_range": f"bytes {shown}-{len(data) - 1}/{len(data)}"}
    cut = faults.cuts.pop(0) if faults.cuts else len(body)
    handler.send_response(206 if headers else 200)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("content-length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body[:cut])
    hub.sent_bytes += min(cut, len(body))
    if cut < len(body):
        handler.close_connection = True
        handler.connection.close()
