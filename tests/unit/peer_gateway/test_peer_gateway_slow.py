"""A client that never reads, on a real socket: it costs one window, here and at the host."""

import socket
from pathlib import Path

import msgspec
import pytest
import trio
from gateway_kit import MODEL, Script
from test_peer_gateway_http import ASK, open_gateway

from p2p import limits
from peer.http.exchange import Exchange
from peer.http.limits import SEND_BUFFER_BYTES
from peer.http.messages import HttpRequest

pytestmark = pytest.mark.sockets

WORD = "x" * 3000
ANSWER_WORDS = 1000  # 3 MB, far beyond a window and every buffer
RECEIVE_BYTES = 64 * 1024


async def test_client_that_never_reads_costs_one_window_at_gateway_and_host(
    tmp_path: Path,
) -> None:
    script = Script(wait_s=0.01, gap_s=0.0)
    async with open_gateway(tmp_path, script) as (gateway, host):
        host.script.words = (WORD,) * ANSWER_WORDS
        exchanges: list[Exchange] = []
        handle = gateway.handler.handle

        def noting(request: HttpRequest, exchange: Exchange) -> None:
            exchanges.append(exchange)
            handle(request, exchange)

        gateway.handler.handle = noting
        port = int(gateway.url.rpartition(":")[2])
        client = trio.socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
        with client:
            await client.connect(("127.0.0.1", port))
            await client.send(request_bytes(gateway.key))
            session = host.links[-1].session
            with trio.fail_after(20):
                while session.statistics()["bytes_out"] < limits.WINDOW_BYTES:  # noqa: ASYNC110
                    await trio.sleep(0.01)
            exchange, sent_bytes = exchanges[0], -1
            while sent_bytes != session.statistics()["bytes_out"]:  # until nothing moves
                sent_bytes = session.statistics()["bytes_out"]
                await trio.sleep(0.3)
            kernel_bytes = 4 * (SEND_BUFFER_BYTES + RECEIVE_BYTES)
            assert exchange.buffered_bytes <= limits.WINDOW_BYTES
            assert sent_bytes <= limits.WINDOW_BYTES + kernel_bytes
            assert exchange.is_open
            # Somebody else's answer comes meanwhile, over the same link.
            host.script.words = ("honest",)
            answer = await gateway.ask(json={"model": MODEL, "messages": ASK})
            assert answer.json()["choices"][0]["message"]["content"] == "honest"
            # And as soon as the client reads, its own goes on to the end.
            with trio.fail_after(20):
                data = b""
                while not data.endswith(b"0\r\n\r\n"):
                    data += await client.recv(1 << 20)
        assert data.count(WORD.encode()) == ANSWER_WORDS


def request_bytes(key: str) -> bytes:
    body = msgspec.json.encode({"model": MODEL, "messages": ASK, "stream": True})
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        f"Authorization: Bearer {key}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
