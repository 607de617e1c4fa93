"""What the tests on a real vLLM share."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import psutil

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
END_OF_TURN = "2"  # the token that ends this model's answers
QUESTION = "What is the capital of France, and what is it famous for?"
FIGURES: dict[str, float] = {}
"""What was measured, in seconds."""


@dataclass
class VllmNetwork:
    """A network of this machine, with one host on vLLM."""

    data_dir: Path
    state: dict

    @property
    def client(self) -> openai.OpenAI:
        gateway = self.state["gateway"]
        url = gateway["url"] + "/v1"
        return openai.OpenAI(base_url=url, api_key=gateway["api_key"], max_retries=0, timeout=300)

    @property
    def host(self) -> dict:
        return self.state["hosts"][0]

    def status(self) -> dict:
        """The host's own word on its engine."""
        return self._unix(self.host["control_socket"], "/v1/status").json()["engine"]

    def running(self) -> float:
        """How many requests vLLM itself says that it works on."""
        metrics = self._unix(self.engine_socket, "/metrics").text
        lines = [each for each in metrics.splitlines() if each.startswith("vllm:num_requests_run")]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    @property
    def engine_socket(self) -> Path:
        (found,) = self.data_dir.glob("host-1/**/e.sock")
        return found

    def processes(self) -> list[psutil.Process]:
        """vLLM's processes: the server, its engine core, its workers."""
        main = psutil.Process(self.status()["pid"])
        return [main, *main.children(recursive=True)]

    def stream(self, text: str, max_tokens: int, *, ends: bool = False) -> openai.Stream:
        """Ask; an answer that may not end by itself goes on to its last token."""
        return self.client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": text}],
            max_tokens=max_tokens,
            temperature=0,
            stream=True,
            logit_bias={} if ends else {END_OF_TURN: -100},
        )

    @staticmethod
    def _unix(socket: str | Path, path: str) -> httpx.Response:
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), timeout=20) as http:
            return http.get(f"http://localhost{path}")


@contextlib.contextmanager
def timed(name: str) -> Iterator[None]:
    began_s = time.monotonic()
    yield
    FIGURES[name] = time.monotonic() - began_s


def wait_for(holds: Callable[[], object], within_s: float, what: str) -> None:
    deadline_s = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline_s, f"{what}: not within {within_s:g} s"
        time.sleep(0.02)


def left_of(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [
        each for each in processes if each.is_running() and each.status() != psutil.STATUS_ZOMBIE
    ]
