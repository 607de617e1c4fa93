"""The small HTTP/1.1 server and engine client, moved by callbacks on one epoll.

Used by the gateway's API, the host's engines and the host's control socket; it grows no feature
that they don't need.
"""

from peer.http.client import EngineCall, EngineClient, ResponseHandler
from peer.http.connection import Handler
from peer.http.errors import EngineError, EngineErrorKind, ListenError
from peer.http.exchange import Exchange
from peer.http.limits import ClientLimits, HttpLimits
from peer.http.loop import Loop, Timer
from peer.http.messages import Headers, HttpRequest
from peer.http.server import HttpServer
from peer.http.target import EngineTarget, resolve

__all__ = [
    "ClientLimits",
    "EngineCall",
    "EngineClient",
    "EngineError",
    "EngineErrorKind",
    "EngineTarget",
    "Exchange",
    "Handler",
    "Headers",
    "HttpLimits",
    "HttpRequest",
    "HttpServer",
    "ListenError",
    "Loop",
    "ResponseHandler",
    "Timer",
    "resolve",
]
