"""How a part of the host adds its own routes to the control API.

A part has a module of its own (``control_terms`` and so on) with a function that returns
``Routes``; ``main`` hands them to ``ControlApi.add``. A route gets the request and returns what is
encoded as JSON, ``Later`` with what is to be awaited for it, or ``Streamed`` if it answers by
itself. What the owner did wrong is raised as a ``ControlError`` that says what, where, and what to
do instead.
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import parse_qs

import msgspec

from p2p.errors import SparewattError
from peer.http.exchange import Exchange
from peer.http.messages import HttpRequest

BodyT = TypeVar("BodyT")

BODY_BYTES_MAX = 256 * 1024  # a few thousand names in lists; prompts say what they need
_WHERE = re.compile(r" - at `(?:key in )?\$\.?(?P<path>.*?)`\Z")


class ControlError(SparewattError):
    """Raised by a route to refuse a request.

    Attributes:
        status: Of HTTP.
        message: What was wrong and what to do; one or two sentences for the owner.
        param: The field at fault, e.g. ``schedule.windows[2].end``; empty if none is.
    """

    def __init__(self, status: int, message: str, *, param: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param


@dataclass(frozen=True, slots=True)
class Later:
    """An answer that takes time; its work is done by one of a few tasks, in turn.

    What takes minutes does not belong here but in a task of the part's own, whose progress
    another route tells.
    """

    work: Callable[[], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Streamed:
    """An answer that its route gives over time, by itself.

    ``begin`` is called at once; it keeps the exchange and must answer in the end.
    """

    begin: Callable[[Exchange], None]


Route = Callable[[HttpRequest], object]
Routes = Mapping[tuple[str, str], Route]
"""By method and path, e.g. ``("PUT", "/v1/terms")``; paths are compared whole."""


def read_body(request: HttpRequest, kind: type[BodyT], *, bytes_max: int = BODY_BYTES_MAX) -> BodyT:
    """Return a request's JSON body as a value of a msgspec type.

    Args:
        request: Its body must be JSON; no content type is asked for.
        kind: Should be a Struct with ``forbid_unknown_fields``, so that no typing error passes.
        bytes_max: The longest body.

    Raises:
        ControlError: 413 or 400, with the field at fault.
    """
    if len(request.body) > bytes_max:
        message = f"the body has {len(request.body)} bytes; at most {bytes_max} are taken here"
        raise ControlError(413, message)
    if not request.body:
        raise ControlError(400, "the body is empty; send a JSON object")
    try:
        return msgspec.json.decode(request.body, type=kind)
    except msgspec.ValidationError as error:
        raise _misfit(str(error), request.path) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ControlError(400, f"the body is not JSON: {error}; send a JSON object") from error


def query_text(request: HttpRequest, name: str) -> str:
    """Return a parameter of the query, unescaped; empty if it is missing."""
    return parse_qs(request.query, max_num_fields=100).get(name, [""])[0]


def error_body(message: str, param: str = "") -> dict[str, object]:
    """Return an error as the control API says it."""
    return {"error": {"message": message, "param": param or None}}


def _misfit(said: str, path: str) -> ControlError:
    """Return msgspec's complaint with its place in front."""
    found = _WHERE.search(said)
    where = found["path"] if found else ""
    what = said[: found.start()] if found else said
    message = f"{where + ': ' if where else ''}{what}; GET {path} shows what is expected"
    return ControlError(400, message, param=where)
