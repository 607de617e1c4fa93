"""A little engine for the supervisor: OpenAI's API on a unix socket, standard library only.

``script_engine.py SOCKET MODE``. It obeys words in the file ``order`` beside its socket: ``break``
(its health is 503), ``hang`` (it answers nothing more, a stream neither), ``die`` (it ends).
MODE: ``ok``, ``slow`` (says how far it is before it listens), ``fail`` (says why and ends),
``mute`` (never listens), ``stuck`` (a stream keeps it from ending at SIGTERM, as vLLM's does).
"""

import http.server
import json
import signal
import socketserver
import sys
import threading
import time
from pathlib import Path

SOCKET, MODE = Path(sys.argv[1]), sys.argv[2]
ORDER = SOCKET.with_name("order")
open_streams = 0


def order() -> str:
    return ORDER.read_text() if ORDER.exists() else ""


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def address_string(self) -> str:
        return "host"

    def do_GET(self) -> None:
        wait_if_told()
        body = b"script_running 1\nscript_waiting 2\n" if self.path == "/metrics" else b"{}"
        self.send_response(503 if order() == "break" else 200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        global open_streams
        length = int(self.headers["content-length"])
        tokens = json.loads(self.rfile.read(length))["max_tokens"]
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        open_streams += 1
        try:
            for index in range(tokens):
                wait_if_told()
                self.event({"choices": [{"index": 0, "delta": {"content": f"w{index} "}}]})
                time.sleep(0.005)
            self.event({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": tokens}})
            self.chunk(b"data: [DONE]\n\n")
            self.chunk(b"")
        finally:
            open_streams -= 1

    def event(self, fields: dict) -> None:
        self.chunk(b"data: " + json.dumps(fields).encode() + b"\n\n")

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.flush()


def wait_if_told() -> None:
    while order() == "hang":
        time.sleep(0.01)


def end_when_streams_did(*_: object) -> None:
    def wait() -> None:
        while open_streams:
            time.sleep(0.01)
        signal.raise_signal(signal.SIGKILL)

    threading.Thread(target=wait).start()


def watch_orders() -> None:
    while order() != "die":
        time.sleep(0.01)
    print("script: dying as told", flush=True)
    signal.raise_signal(signal.SIGKILL)


def main() -> None:
    if MODE == "fail":
        print("script: no such model", flush=True)
        sys.exit(4)
    if MODE == "slow":
        for percent in (10, 60):
            print(f"loaded {percent}", end="\r", flush=True)
            time.sleep(0.5)
    if MODE == "mute":
        threading.Event().wait()
    if MODE == "stuck":
        signal.signal(signal.SIGTERM, end_when_streams_did)
    threading.Thread(target=watch_orders, daemon=True).start()
    Server(str(SOCKET), Handler).serve_forever()


main()
