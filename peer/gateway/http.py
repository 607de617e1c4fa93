"""The gateway's HTTP face: OpenAI's paths, and our own beside them."""

import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote

import msgspec

from p2p.clock import WallClock
from p2p.types import timed_id
from peer.gateway import ratelimit, views
from peer.gateway.calls import KIND_REQUEST, Call
from peer.gateway.dispatch import Dispatcher
from peer.gateway.guard import Guard, bearer
from peer.gateway.hosts import HostTable
from peer.gateway.journal import Journal
from peer.gateway.keys import KeyInfo, KeyStore, key_digest, shorten
from peer.gateway.openai_api import parse_chat
from peer.gateway.openai_errors import (
    ApiError,
    BadRequestError,
    invalid_key,
    invalid_request,
    model_not_found,
    not_serving,
    rate_limited,
)
from peer.gateway.ratelimit import Bucket, Standing
from peer.gateway.sinks import JSON_TYPE, FoldSink, StreamSink, Trail
from peer.group_commit import JournalError
from peer.http.exchange import Exchange
from peer.http.messages import HttpRequest

ANSWER_ID_BYTES = 10  # random ones, behind 6 of time
BUCKETS_COUNT_MAX = 4096
Spawn = Callable[[Callable[[], Awaitable[None]]], None]


@dataclass(frozen=True, slots=True)
class Rates:
    """What a key may use if it has no limits of its own: a guard against runaway loops."""

    requests_per_minute: int = 600_000
    tokens_per_minute: int = 60_000_000


@dataclass(slots=True)
class _Visit:
    """One request on its way in."""

    request: HttpRequest
    exchange: Exchange
    answer_id: str
    arrived_ns: int
    limits: tuple[Standing, Standing] | None = None


@dataclass(slots=True)
class _Buckets:
    requests: Bucket
    tokens: Bucket


_Serve = Callable[["_Visit", KeyInfo], None]


@dataclass(frozen=True, slots=True)
class _Known:
    """What a head that may come again has been found to be: good, apart from its key.

    Attributes:
        owner: Who found it: another handler knows other names and paths.
        serve: What answers it.
        key_digest: Of the key that it shows.
    """

    owner: "GatewayHandler"
    serve: _Serve
    key_digest: bytes


@dataclass
class GatewayHandler:
    """Implements ``peer.http``'s Handler.

    Attributes:
        spawn: Starts one of the few answers that must wait for the disk.
        trouble: Why nothing may be served right now, or empty.
    """

    dispatcher: Dispatcher
    table: HostTable
    keys: KeyStore
    journal: Journal
    guard: Guard
    rates: Rates
    now: Callable[[], int]
    clock: WallClock
    spawn: Spawn
    trouble: Callable[[], str] = lambda: ""
    started_at_s: int = 0
    _buckets: dict[str, _Buckets] = field(default_factory=dict)
    _routes: Mapping[str, tuple[str, _Serve]] = field(init=False)

    def __post_init__(self) -> None:
        self._routes = {
            "/v1/chat/completions": ("POST", self._chat),
            "/v1/models": ("GET", self._models),
            "/v1/hosts": ("GET", self._hosts),
            "/v1/generation": ("GET", self._generation),
            "/v1/route/preview": ("POST", self._preview),
        }

    def handle(self, request: HttpRequest, exchange: Exchange) -> None:
        """Answer a request now or later."""
        chance = secrets.token_bytes(ANSWER_ID_BYTES)
        answer_id = "req_" + timed_id(self.clock(), chance).hex()
        visit = _Visit(request, exchange, answer_id, self.now())
        exchange.is_strangers = True  # until a key says otherwise
        try:
            self._route(visit)
        except BadRequestError as error:
            self._respond_error(visit, error.error)

    # -- the way in ------------------------------------------------------------------------------

    def _route(self, visit: _Visit) -> None:
        head = visit.request.head
        if head is not None and isinstance(known := head.note, _Known) and known.owner is self:
            key = self.keys.find_digest(known.key_digest, now_ns=visit.arrived_ns)
            if key is not None:
                visit.exchange.is_strangers = False
                return known.serve(visit, key)
        return self._judge(visit)

    def _judge(self, visit: _Visit) -> None:
        """Look at all that a head says, and note if it may go straight to its answer next time."""
        request = visit.request
        objection = self.guard.objection(request.headers)
        if objection is not None:
            raise BadRequestError(objection)
        path = request.path
        if path not in self._routes:
            path = unquote(path).rstrip("/") or "/"
        if path == "/health":
            self._require_method(visit, "GET")
            trouble = self.trouble() or self.journal.trouble
            return self._respond(visit, views.health(self.table, trouble))
        if not path.startswith("/v1/"):
            raise BadRequestError(_unknown_path(request))
        key = self._authenticate(visit)
        if path.startswith("/v1/models/"):
            self._require_method(visit, "GET")
            return self._one_model(visit, path.removeprefix("/v1/models/"))
        route = self._routes.get(path)
        if route is None:
            raise BadRequestError(_unknown_path(request))
        method, serve = route
        self._require_method(visit, method)
        if method == "POST":
            self._require_json(visit)
        if request.head is not None:
            request.head.note = _Known(self, serve, key_digest(bearer(request.headers)))
        return serve(visit, key)

    def _authenticate(self, visit: _Visit) -> KeyInfo:
        text = bearer(visit.request.headers)
        key = self.keys.find(text, now_ns=visit.arrived_ns) if text else None
        if key is None:
            raise BadRequestError(invalid_key(shorten(text)))
        visit.exchange.is_strangers = False
        return key

    def _require_method(self, visit: _Visit, method: str) -> None:
        if visit.request.method not in (method, "HEAD" if method == "GET" else method):
            message = f"{visit.request.path} takes {method}, not {visit.request.method}."
            raise BadRequestError(invalid_request(message, code="method_not_allowed", status=405))

    def _require_json(self, visit: _Visit) -> None:
        headers = visit.request.headers
        kind = headers.get("content-type", "")
        if kind != JSON_TYPE:
            kind = kind.partition(";")[0].strip().lower()
        if kind != JSON_TYPE or headers.get("content-encoding", "identity") != "identity":
            raise BadRequestError(
                invalid_request(
                    "Send the body as 'content-type: application/json', uncompressed.",
                    code="unsupported_media_type",
                    status=415,
                )
            )

    def _admit(self, visit: _Visit, key: KeyInfo) -> _Buckets:
        """Count a request against its key.

        Raises:
            BadRequestError: If the key is over its rate.
        """
        buckets = self._buckets_of(key)
        now_ns = visit.arrived_ns
        requests = buckets.requests.take(1, now_ns=now_ns)
        tokens = buckets.tokens.standing(0, now_ns=now_ns)
        visit.limits = (requests, tokens)
        if not (requests.admitted and tokens.admitted):
            unit, standing = ("tokens", tokens) if requests.admitted else ("requests", requests)
            wait_ms = -(-standing.retry_after_ns // 1_000_000)
            message = f"Rate limit reached for {unit}: {standing.limit} per minute and key."
            raise BadRequestError(rate_limited(message, wait_ms))
        return buckets

    def _buckets_of(self, key: KeyInfo) -> _Buckets:
        buckets = self._buckets.get(key.key_id)
        if buckets is None:
            if len(self._buckets) >= BUCKETS_COUNT_MAX:
                del self._buckets[next(iter(self._buckets))]
            rates = self.rates
            buckets = self._buckets[key.key_id] = _Buckets(
                Bucket(key.requests_per_minute or rates.requests_per_minute),
                Bucket(key.tokens_per_minute or rates.tokens_per_minute),
            )
        return buckets

    # -- the paths -------------------------------------------------------------------------------

    def _chat(self, visit: _Visit, key: KeyInfo) -> None:
        buckets = self._admit(visit, key)
        request = parse_chat(visit.request.body)
        self._refuse_in_trouble()
        call = Call(
            answer_id=visit.answer_id,
            request=request,
            kind=KIND_REQUEST,
            arrived_ns=visit.arrived_ns,
        )
        trail = Trail(
            headers=lambda: self._headers(visit),
            used=lambda tokens: buckets.tokens.charge(tokens, now_ns=self.now()),
        )
        sink: StreamSink | FoldSink
        if request.stream:
            sink = StreamSink(visit.exchange, trail, include_usage=request.include_usage)
        else:
            sink = FoldSink(visit.exchange, trail)
        sink.attach(self.dispatcher.submit(call, sink))

    def _refuse_in_trouble(self) -> None:
        trouble = self.trouble() or self.journal.trouble
        if trouble:
            raise BadRequestError(not_serving(trouble))

    def _preview(self, visit: _Visit, key: KeyInfo) -> None:
        self._admit(visit, key)
        request = parse_chat(visit.request.body)
        call = Call(
            answer_id=visit.answer_id,
            request=request,
            kind=KIND_REQUEST,
            arrived_ns=visit.arrived_ns,
        )
        decisions = self.dispatcher.preview(call)
        self._respond(visit, views.preview(decisions, self.dispatcher.router.policy))

    def _models(self, visit: _Visit, key: KeyInfo) -> None:
        self._respond(visit, views.models(self.table, self.started_at_s))

    def _one_model(self, visit: _Visit, name: str) -> None:
        model = views.model(self.table, name, self.started_at_s)
        if model is None:
            raise BadRequestError(model_not_found(name[:256], sorted(self.table.models())))
        self._respond(visit, model)

    def _hosts(self, visit: _Visit, key: KeyInfo) -> None:
        self._respond(visit, views.hosts(self.table))

    def _generation(self, visit: _Visit, key: KeyInfo) -> None:
        name = parse_qs(visit.request.query).get("id", [""])[0].removeprefix("gen-")
        if not name:
            raise BadRequestError(
                invalid_request(
                    "Missing required parameter: 'id'.",
                    param="id",
                    code="missing_required_parameter",
                )
            )
        self.spawn(lambda: self._answer_generation(visit, name))

    async def _answer_generation(self, visit: _Visit, name: str) -> None:
        try:
            entry = await self.journal.find_usage(name)
            if entry is None:
                unknown = f"No generation '{name[:100]}' here."
                return self._respond_error(
                    visit, invalid_request(unknown, code="not_found", status=404)
                )
            proof = await self.journal.find_proof(bytes.fromhex(entry.request_id))
        except JournalError as error:
            return self._respond_error(visit, not_serving(str(error)))
        return self._respond(visit, views.generation(entry, proof))

    # -- the way out -----------------------------------------------------------------------------

    def _headers(self, visit: _Visit) -> dict[str, str]:
        headers = {
            "x-request-id": visit.answer_id,
            "openai-processing-ms": str((self.now() - visit.arrived_ns) // 1_000_000),
            "openai-version": "2020-10-01",
        }
        if visit.limits is not None:
            requests, tokens = visit.limits
            headers |= ratelimit.headers("requests", requests)
            headers |= ratelimit.headers("tokens", tokens)
        return headers

    def _respond(self, visit: _Visit, body: object) -> None:
        headers = {**self._headers(visit), "content-type": JSON_TYPE}
        visit.exchange.respond(200, headers, msgspec.json.encode(body))

    def _respond_error(self, visit: _Visit, error: ApiError) -> None:
        headers = {**self._headers(visit), **error.headers(), "content-type": JSON_TYPE}
        visit.exchange.respond(error.status, headers, error.body())


def _unknown_path(request: HttpRequest) -> ApiError:
    return invalid_request(
        f"Invalid URL ({request.method} {request.path[:200]})", code="unknown_url", status=404
    )
