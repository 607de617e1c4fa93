"""What stands before every route: a bound on the body, a bound on its time, our own Date.

The body is read whole before a route sees anything, so that a slow or endless sender costs a
buffer and nothing else.
"""

import asyncio
import email.utils

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from p2p import limits
from p2p.clock import WallClock
from settlement.api.problems import Problem, problem_response

BODY_BYTES_MAX = 4 * 1024 * 1024
BODY_WAIT_S = 10


class BoundedRequests:
    """ASGI middleware: refuse large and slow bodies, and tell settlement's time."""

    def __init__(self, app: ASGIApp, clock: WallClock) -> None:
        self._app = app
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def dated_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["date"] = email.utils.formatdate(
                    self._clock() // limits.SECOND_NS, usegmt=True
                )
                headers["cache-control"] = "no-store"
            await send(message)

        body = await _read_body(scope, receive)
        if isinstance(body, Problem):
            await problem_response(body)(scope, receive, dated_send)
            return
        await self._app(scope, _replayed(body, receive), dated_send)


async def _read_body(scope: Scope, receive: Receive) -> bytes | Problem:
    too_large = Problem(413, "too_large", f"A body has at most {BODY_BYTES_MAX} bytes.")
    said = Headers(scope=scope).get("content-length", "")
    if said.isdecimal() and int(said[:20]) > BODY_BYTES_MAX:
        return too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_WAIT_S):
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return Problem(400, "hung_up", "The client hung up.")
                body += message.get("body", b"")
                more = message.get("more_body", False)
                if len(body) > BODY_BYTES_MAX:
                    return too_large
    except TimeoutError:
        return Problem(408, "too_slow", f"The body must come within {BODY_WAIT_S} s.")
    return bytes(body)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return a ``receive`` that gives the body at once, then what comes after it."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay
