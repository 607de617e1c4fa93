"""The node API on the control socket: what this host is, an answer for its owner, its set-up.

``GET /info`` says it in one page, ``POST /generate`` asks an engine of this machine without money
and without the network, ``POST /setup`` changes engines and the pause in one call, whole or not
at all.
"""

import logging
from collections.abc import Awaitable, Callable

import msgspec

from p2p import limits
from p2p.errors import HTTP_STATUS
from p2p.receipts.cost import Usage
from p2p.session.events import ErrorInfo
from peer.host.config import ENGINES_COUNT_MAX, HostedEngine
from peer.host.config_values import ConfigValueError, hosted_engine
from peer.host.control_engines import keep_engines, refused_by_fleet
from peer.host.control_routes import ControlError, Later, Routes, Streamed, read_body
from peer.host.engine_keeper import EngineKeeper
from peer.host.engines.api import EngineCall, EngineFailure
from peer.host.engines.events import AnswerEvent, EngineGarbageError, EventSplitter
from peer.host.engines.fleet import DRAIN_S, Fleet, FleetRefusal
from peer.host.engines.parameters import EngineLimits, prepare_request
from peer.host.pricing import OfferedModel
from peer.host.request import ServedRequest
from peer.host.serve import HostMember, HostServer
from peer.host.status import EngineStatus, HostStatus, OfferStatus, SlotsStatus, StatusBoard
from peer.http.exchange import Exchange
from peer.http.messages import HttpRequest

_LOG = logging.getLogger(__name__)

PROMPT_BYTES_MAX = 1024 * 1024
ANSWER_BYTES_MAX = 4 * 1024 * 1024  # of an answer that is folded; a longer one must be streamed
BUFFER_BYTES_MAX = limits.WINDOW_BYTES  # beyond it the engine's bytes stay in its socket
_JSON = {"content-type": "application/json"}
_SSE = {"content-type": "text/event-stream", "cache-control": "no-store"}


class ModelInfo(msgspec.Struct):
    """One model that this host serves now.

    Attributes:
        features: What its engine can do, as the record says it.
    """

    offer: OfferStatus
    engine: str
    engine_version: str
    output_tokens_max: int
    features: list[str]


class NodeInfo(msgspec.Struct):
    """What ``GET /info`` answers: the host without its money and without who uses it."""

    version: str
    peer_id: str
    network_id: str
    state: str
    state_reason: str
    uptime_s: int
    addresses: list[str]
    slots: SlotsStatus
    engines: list[EngineStatus]
    models: list[ModelInfo]


class SetupBody(msgspec.Struct, forbid_unknown_fields=True):
    """What ``POST /setup`` takes.

    Attributes:
        engines: To be there afterwards: loaded, or swapped if one of that name is there.
        unload: Names of engines that leave.
        paused: True or false pauses or resumes; None leaves it.
    """

    engines: list[dict[str, object]] = []
    unload: list[str] = []
    paused: bool | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []


_decode_chunk = msgspec.json.Decoder(_Chunk).decode


class NodeControl:
    """Answers whoever runs programs beside a host."""

    def __init__(
        self,
        server: HostServer,
        board: StatusBoard,
        *,
        monotonic_s: Callable[[], float],
        set_paused: Callable[[bool], Awaitable[None]],
        keeper: EngineKeeper,
    ) -> None:
        self._server = server
        self._keeper = keeper
        self._board = board
        self._monotonic_s = monotonic_s
        self._set_paused = set_paused

    def routes(self) -> Routes:
        """Return what this module answers."""
        return {
            ("GET", "/info"): self._info,
            ("POST", "/generate"): self._generate,
            ("POST", "/setup"): self._setup,
        }

    # -- info ----------------------------------------------------------------------------------

    def _info(self, request: HttpRequest) -> object:
        status = self._board.read()
        return NodeInfo(
            version=status.version,
            peer_id=status.peer_id,
            network_id=status.network_id,
            state=status.state,
            state_reason=status.state_reason,
            uptime_s=status.uptime_s,
            addresses=status.addresses,
            slots=status.slots,
            engines=status.engines,
            models=self._models(status),
        )

    def _models(self, status: HostStatus) -> list[ModelInfo]:
        return [
            ModelInfo(
                offer=shown,
                engine=each.model.engine,
                engine_version=each.model.engine_version,
                output_tokens_max=each.offer.output_tokens_max,
                features=[feature.name.lower() for feature in each.model.features],
            )
            for each, shown in zip(self._server.offered, status.offers, strict=True)
        ]

    # -- generate ------------------------------------------------------------------------------

    def _generate(self, request: HttpRequest) -> object:
        """Answer a chat completion request; ``prompt`` is short for one message of the user."""
        fields = read_body(request, dict[str, object], bytes_max=PROMPT_BYTES_MAX)
        _spell_out(fields)
        member, offered = self._find(fields)
        is_stream = fields.get("stream") is True
        if not is_stream and fields.get("tools"):
            raise ControlError(400, "tools need stream: true here", param="tools")
        model = offered.model
        bounds = EngineLimits(model.name, offered.offer.output_tokens_max, model.missing)
        table = member.engine.parameter_table
        prepared = prepare_request(table, msgspec.json.encode(fields), bounds)
        if isinstance(prepared, ErrorInfo):
            raise ControlError(400, prepared.message, param=prepared.param)
        if not member.queue.take():
            raise ControlError(503, f"all {member.queue.slots} slots of this engine are busy")

        def begin(exchange: Exchange) -> None:
            sink = _OwnersAnswer(
                exchange,
                model_id=offered.offer.model_id,
                is_stream=is_stream,
                monotonic_s=self._monotonic_s,
                over=lambda: self._over(member, sink),
            )
            member.take_answer(sink.end)
            sink.call = member.engine.start(prepared.body, sink)

        return Streamed(begin)

    def _find(self, fields: dict[str, object]) -> tuple[HostMember, OfferedModel]:
        """Return the engine for a request; without a model, the first that is on offer."""
        offered = self._server.offered
        if not offered:
            raise ControlError(503, f"nothing can be served now: {self._server.fleet.detail}")
        model_id = fields.setdefault("model", offered[0].offer.model_id)
        found = self._server.fleet.find(model_id) if isinstance(model_id, str) else None
        if found is None:
            names = ", ".join(each.offer.model_id for each in offered)
            raise ControlError(404, f"this host serves {names}", param="model")
        return found

    def _over(self, member: HostMember, sink: "_OwnersAnswer") -> None:
        member.queue.give_back()
        member.answer_over(sink.end)
        self._server.pump()

    # -- setup ---------------------------------------------------------------------------------

    def _setup(self, request: HttpRequest) -> object:
        body = read_body(request, SetupBody)
        fleet = self._server.fleet
        wanted = [_read_engine(index, values) for index, values in enumerate(body.engines)]
        _check_setup(fleet, wanted, body.unload)
        paused = body.paused

        async def finish() -> object:
            _check_setup(fleet, wanted, body.unload)  # again, for it waited in a line
            for hosted in wanted:
                is_there = hosted.name in fleet.members
                _done(fleet.swap(hosted, drain_s=DRAIN_S) if is_there else fleet.load(hosted))
            for name in body.unload:
                _done(fleet.unload(name))
            gone = dict.fromkeys(body.unload)
            await keep_engines(self._keeper, {**gone, **{each.name: each for each in wanted}})
            if paused is not None:
                await self._set_paused(paused)
            return {"ok": True, "engines": self._board.read().engines}

        return Later(finish)


def _spell_out(fields: dict[str, object]) -> None:
    """Put a bare prompt into a message."""
    if "prompt" not in fields:
        return
    prompt = fields.pop("prompt")
    if not isinstance(prompt, str) or not prompt or "messages" in fields:
        message = "prompt must be a text, and stand alone: give either prompt or messages"
        raise ControlError(400, message, param="prompt")
    fields["messages"] = [{"role": "user", "content": prompt}]


def _read_engine(index: int, values: dict[str, object]) -> HostedEngine:
    try:
        return hosted_engine(values)
    except ConfigValueError as error:
        raise ControlError(400, str(error), param=f"engines[{index}]") from error


def _check_setup(
    fleet: Fleet[ServedRequest], wanted: list[HostedEngine], unload: list[str]
) -> None:
    """Raise before anything is changed."""
    names = [hosted.name for hosted in wanted]
    for name in unload:
        if name not in fleet.members:
            raise ControlError(404, f"unload: there is no engine {name!r}", param="unload")
    touched = [*names, *unload]
    if len(set(touched)) != len(touched):
        raise ControlError(400, "each engine may be named once", param="engines")
    for name in names:
        if name in fleet.members and fleet.members[name].is_leaving:
            raise refused_by_fleet(FleetRefusal.LEAVING)
    if len(set(fleet.members) | set(names)) > ENGINES_COUNT_MAX:
        raise refused_by_fleet(FleetRefusal.FULL)


def _done(outcome: HostMember | FleetRefusal) -> None:
    if isinstance(outcome, FleetRefusal):
        raise refused_by_fleet(outcome)


class _OwnersAnswer:
    """An engine's answer on its way to the control socket; an ``api.EngineSink``."""

    def __init__(
        self,
        exchange: Exchange,
        *,
        model_id: str,
        is_stream: bool,
        monotonic_s: Callable[[], float],
        over: Callable[[], None],
    ) -> None:
        self.call: EngineCall | None = None
        self._exchange = exchange
        self._model_id = model_id
        self._is_stream = is_stream
        self._monotonic_s = monotonic_s
        self._over: Callable[[], None] | None = over
        self._splitter = EventSplitter()
        self._began_s = monotonic_s()
        self._first_s: float | None = None
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._text_bytes = 0
        self._finish: str | None = None
        self._usage: Usage | None = None
        self._is_paused = False
        exchange.on_hang_up = self._hung_up
        exchange.on_sent = self._sent
        if is_stream:
            exchange.start_stream(200, _SSE)

    def received(self, data: bytes) -> None:
        """Pass the answer on, or keep it."""
        try:
            for event in self._splitter.feed(data):
                self._take(event)
        except (EngineGarbageError, msgspec.DecodeError):
            self._abort()
            self._fail("the engine's answer is not a chat completion")

    def ended(self) -> None:
        """End the answer, or give it whole."""
        if self._over is None:
            return
        if self._is_stream:
            self._exchange.finish()
        else:
            self._exchange.respond(200, _JSON, msgspec.json.encode(self._folded()))
        self._end()

    def failed(self, failure: EngineFailure) -> None:
        """Say why no more comes."""
        self._fail(failure.message, HTTP_STATUS[failure.code], failure.param)

    def end(self) -> None:
        """End it before its time: its engine leaves, and has waited for it long enough."""
        self._abort()
        self._fail("this engine is being unloaded", 503)

    # ------------------------------------------------------------------------------------------

    def _take(self, event: AnswerEvent) -> None:
        if self._over is None:
            return
        if self._first_s is None and event.tokens:
            self._first_s = self._monotonic_s()
        self._usage = event.usage or self._usage
        if self._is_stream:
            self._exchange.write(event.data)
            if self._exchange.buffered_bytes > BUFFER_BYTES_MAX and self.call is not None:
                self._is_paused = True
                self.call.pause()
        elif not event.done:
            self._keep(event)

    def _keep(self, event: AnswerEvent) -> None:
        if event.error:
            self._abort()
            self._fail("the engine reported an error in its answer")
            return
        self._text_bytes += len(event.data)
        if self._text_bytes > ANSWER_BYTES_MAX:
            self._abort()
            self._fail("the answer is too long to be given whole; ask with stream: true", 400)
            return
        for choice in _decode_chunk(event.data[len(b"data:") :]).choices:
            self._texts.append(choice.delta.content or "")
            self._thoughts.append(choice.delta.reasoning_content or "")
            self._finish = choice.finish_reason or self._finish

    def _folded(self) -> dict[str, object]:
        message: dict[str, object] = {"role": "assistant", "content": "".join(self._texts)}
        if thought := "".join(self._thoughts):
            message["reasoning_content"] = thought
        usage = self._usage or Usage(0, 0, 0)
        return {
            "object": "chat.completion",
            "model": self._model_id,
            "choices": [{"index": 0, "message": message, "finish_reason": self._finish}],
            "usage": {
                "prompt_tokens": usage.prompt_tokens,
                "completion_tokens": usage.completion_tokens,
                "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            },
            "timing": self._timing(usage.completion_tokens),
        }

    def _timing(self, tokens: int) -> dict[str, object]:
        """Return how long it took, and the speed after the first token."""
        now_s = self._monotonic_s()
        first_s = now_s if self._first_s is None else self._first_s
        rest_s = now_s - first_s
        return {
            "first_token_ms": round((first_s - self._began_s) * 1000),
            "total_ms": round((now_s - self._began_s) * 1000),
            "tokens_per_s": round((tokens - 1) / rest_s, 1) if rest_s > 0 and tokens > 1 else None,
        }

    def _sent(self, count: int) -> None:
        if self._is_paused and self._exchange.buffered_bytes <= BUFFER_BYTES_MAX // 2:
            self._is_paused = False
            if self.call is not None:
                self.call.resume()

    def _hung_up(self) -> None:
        self._abort()
        self._end()

    def _abort(self) -> None:
        if self.call is not None and self._over is not None:
            self.call.abort()

    def _fail(self, message: str, status: int = 502, param: str = "") -> None:
        if self._over is None:
            return
        body = {"error": {"message": message, "param": param or None}}
        if self._is_stream:
            self._exchange.write(b"data: %b\n\n" % msgspec.json.encode(body))
            self._exchange.finish()
        elif self._exchange.is_open:
            self._exchange.respond(status, _JSON, msgspec.json.encode(body))
        _LOG.info("an answer for the owner failed: %s", message)
        self._end()

    def _end(self) -> None:
        over, self._over = self._over, None
        if over is not None:
            over()
