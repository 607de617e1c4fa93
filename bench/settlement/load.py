"""Nodes that submit over HTTP/1.1 on kept connections, each request signed as it is sent."""

import asyncio
import base64
import secrets
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from bench.settlement.world import NETWORK, Post
from p2p.clock import system_clock
from p2p.receipts.messages import REQUEST_PROOF, RequestProof
from p2p.signing import seal
from p2p.types import ID_BYTES, sha256

ANSWER_WAIT_S = 30


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for one request.

    Attributes:
        latency_s: From when it was due to be sent until its answer was here whole.
    """

    post: Post
    status: int
    body: bytes
    latency_s: float


@dataclass(frozen=True, slots=True)
class Load:
    """How requests are sent.

    Attributes:
        connections: At once; each waits for its answer before it sends again.
        per_s: Requests a second, evenly; 0 for as fast as the connections go.
    """

    url: str
    connections: int
    per_s: float = 0.0


async def send_all(load: Load, posts: Sequence[Post]) -> list[Answer]:
    """Send all requests, return all answers."""
    address = urlsplit(load.url)
    loop = asyncio.get_running_loop()
    start_s = loop.time()
    waiting = deque(
        (number / load.per_s if load.per_s else 0.0, each) for number, each in enumerate(posts)
    )
    answers: list[Answer] = []

    async def node() -> None:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        try:
            while waiting:
                after_s, post = waiting.popleft()
                due_s = start_s + after_s if load.per_s else loop.time()
                await asyncio.sleep(max(0.0, due_s - loop.time()))
                writer.write(signed_request(post))
                status, body = await asyncio.wait_for(_answer(reader), ANSWER_WAIT_S)
                answers.append(Answer(post, status, body, loop.time() - due_s))
        finally:
            writer.close()

    async with asyncio.TaskGroup() as nodes:
        for _ in range(load.connections):
            nodes.create_task(node())
    return answers


def signed_request(post: Post) -> bytes:
    """Return a request as its node sends it: with a fresh proof of who asks."""
    proof = RequestProof(
        network_id=NETWORK,
        method="POST",
        path=post.path,
        body_sha256=sha256(post.body),
        issued_at_ns=system_clock(),
        nonce=secrets.token_bytes(ID_BYTES),
    )
    credentials = base64.b64encode(seal(post.node, REQUEST_PROOF, proof)).decode("ascii")
    head = (
        f"POST {post.path} HTTP/1.1\r\nhost: settlement\r\ncontent-type: application/json\r\n"
        f"authorization: Sparewatt {credentials}\r\ncontent-length: {len(post.body)}\r\n\r\n"
    )
    return head.encode("ascii") + post.body


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    status, *lines = head.split("\r\n")
    length = next(line for line in lines if line.startswith("content-length:"))
    return int(status.split()[1]), await reader.readexactly(int(length.partition(":")[2]))
