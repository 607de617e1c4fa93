"""Real processes that are stopped and killed while answers run."""

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from e2e_kit import network, wait_until

pytestmark = pytest.mark.slow
MODEL = "slow/engine"
TOKENS = 400
TOKEN_SECONDS = 0.02
EXPECTED = [f"word{number}" for number in range(TOKENS)]


class SlowEngine(BaseHTTPRequestHandler):
    """An OpenAI-compatible server that says ``EXPECTED``, word by word."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._answer("application/json", json.dumps({"data": [{"id": MODEL}]}).encode())

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if not self.path.endswith("/chat/completions"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        with contextlib.suppress(OSError):  # the host hung up
            words = EXPECTED[: asked["max_tokens"]]
            for word in words:
                self._event({"delta": {"content": f"{word} "}, "index": 0, "finish_reason": None})
                time.sleep(TOKEN_SECONDS)
            self._event({"delta": {}, "index": 0, "finish_reason": "stop"})
            usage = {"prompt_tokens": 5, "completion_tokens": len(words)}
            self.wfile.write(b"data: %s\n\n" % json.dumps({"choices": [], "usage": usage}).encode())
            self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def _event(self, choice: dict) -> None:
        fields = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
        data = json.dumps({**fields, "choices": [choice]}).encode()
        self.wfile.write(b"data: %s\n\n" % data)

    def _answer(self, kind: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Asker(threading.Thread):
    """A client that reads one streamed answer."""

    def __init__(self, net: dict) -> None:
        super().__init__(daemon=True)
        self.net = net
        self.words: list[str] = []
        self.error: dict | None = None
        self.usage: dict | None = None
        self.ended_s = 0.0
        self.start()

    def run(self) -> None:
        with httpx.stream(
            "POST",
            f"{self.net['gateway']['url']}/v1/chat/completions",
            headers={"authorization": f"Bearer {self.net['gateway']['api_key']}"},
            json={
                "model": MODEL,
                "stream": True,
                "stream_options": {"include_usage": True},
                "messages": [{"role": "user", "content": "go on"}],
            },
            trust_env=False,
            timeout=60,
        ) as answer:
            for line in answer.iter_lines():
                self.take(line)
        self.ended_s = time.monotonic()

    def take(self, line: str) -> None:
        if not line.startswith("data: ") or line == "data: [DONE]":
            return
        event = json.loads(line.removeprefix("data: "))
        self.error = event.get("error", self.error)
        self.usage = event.get("usage") or self.usage
        for choice in event.get("choices", ()):
            self.words += choice["delta"].get("content", "").split()

    def wait_begun(self) -> None:
        wait_until(lambda: len(self.words) > 20, 15, "no answer began")

    def check_whole(self) -> None:
        self.join(40)
        assert self.error is None
        assert self.words == EXPECTED
        assert self.usage["completion_tokens"] == TOKENS


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("net")


@pytest.fixture(scope="module")
def net(directory: Path) -> Iterator[dict]:
    with ThreadingHTTPServer(("127.0.0.1", 0), SlowEngine) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        engine = f"openai=http://127.0.0.1:{server.server_port}/v1"
        with network(directory, "--engine", engine, "--price", "$3/$15") as state:
            Asker(state).check_whole()  # and from now on the gateway is no stranger
            yield state
        server.shutdown()


@pytest.mark.parametrize("stopped_s", [2, 5])
def test_answers_go_on_after_their_host_was_stopped(net: dict, stopped_s: int):
    askers = [Asker(net) for _ in range(4)]
    for asker in askers:
        asker.wait_begun()
    os.kill(net["hosts"][0]["pid"], signal.SIGSTOP)
    time.sleep(stopped_s)
    os.kill(net["hosts"][0]["pid"], signal.SIGCONT)
    for asker in askers:
        asker.check_whole()


def test_answer_of_a_host_that_stays_stopped_is_noticed_in_3_s_and_ends_in_an_error(
    net: dict, directory: Path
):
    log = directory / "logs" / "gateway.log"
    asker = Asker(net)
    asker.wait_begun()
    cuts_before = log.read_text().count(" is cut: ")
    os.kill(net["hosts"][0]["pid"], signal.SIGSTOP)
    began_s = time.monotonic()
    try:
        wait_until(lambda: log.read_text().count(" is cut: ") > cuts_before, 3.4, "not noticed")
        asker.join(20)
    finally:
        os.kill(net["hosts"][0]["pid"], signal.SIGCONT)
    assert asker.error
    assert asker.ended_s - began_s < 11


def test_answer_of_a_killed_host_ends_in_an_error_in_3_s(net: dict):
    asker = Asker(net)
    asker.wait_begun()
    os.kill(net["hosts"][0]["pid"], signal.SIGKILL)
    killed_s = time.monotonic()
    asker.join(10)
    assert asker.error
    assert asker.ended_s - killed_s <= 3
