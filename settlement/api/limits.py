"""What stands before every route: bounds on the body, its time and all bodies, our own Date.

The body is read whole before a route sees anything, so that a slow or endless sender costs a
buffer and nothing else. All buffers together are bounded too: beyond that the answer is 503 with
Retry-After, which nodes take as the wish that they try again.
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
BODIES_BYTES_MAX = 64 * 1024 * 1024  # held at once, from the first byte to the answer


class BoundedRequests:
    """ASGI middleware: refuse large and slow bodies and too many, and tell settlement's time."""

    def __init__(
        self, app: ASGIApp, clock: WallClock, *, bodies_bytes_max: int = BODIES_BYTES_MAX
    ) -> None:
        self._app = app
        self._clock = clock
        self._bodies_bytes_max = bodies_bytes_max
        self._held_bytes = 0

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

        body = bytearray()
        try:
            problem = await self._read_body(body, scope, receive)
            if problem is None:
                await self._app(scope, _replayed(bytes(body), receive), dated_send)
            else:
                await problem_response(problem)(scope, receive, dated_send)
        finally:
            self._held_bytes -= len(body)

    async def _read_body(self, body: bytearray, scope: Scope, receive: Receive) -> Problem | None:
        """Fill ``body``; return why it is not taken, if it is not."""
        said = Headers(scope=scope).get("content-length", "")
        if said.isdecimal() and int(said[:20]) > BODY_BYTES_MAX:
            return _TOO_LARGE
        try:
            async with asyncio.timeout(BODY_WAIT_S):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return Problem(400, "hung_up", "The client hung up.")
                    piece: bytes = message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) + len(piece) > BODY_BYTES_MAX:
                        return _TOO_LARGE
                    if self._held_bytes + len(piece) > self._bodies_bytes_max:
                        return Problem(503, "overloaded", "Too much waits to be read already.")
                    body += piece
                    self._held_bytes += len(piece)
        except TimeoutError:
            return Problem(408, "too_slow", f"The body must come within {BODY_WAIT_S} s.")
        return None


_TOO_LARGE = Problem(413, "too_large", f"A body has at most {BODY_BYTES_MAX} bytes.")


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return a ``receive`` that gives the body at once, then what comes after it."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay
