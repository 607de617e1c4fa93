"""An OpenAI-compatible server that somebody else runs, as an engine: vLLM, TGI, or any other."""

from collections.abc import Callable
from dataclasses import replace
from http import HTTPStatus
from urllib.parse import urlsplit

import httpx
import trio

from p2p.types import Feature, ModelId
from peer.host.config import EngineTimeouts, OpenAiSpec, TgiSpec, VllmUrlSpec
from peer.host.engines.api import (
    EngineCall,
    EngineLoad,
    EngineModel,
    EngineSink,
    EngineState,
    NeverStarted,
    PromptCounted,
)
from peer.host.engines.client import HttpEngineClient, parse_count
from peer.host.engines.metrics import LLAMACPP_METRICS, TGI_METRICS, VLLM_METRICS, read_metrics
from peer.host.engines.models_list import (
    BODY_BYTES_MAX,
    ListedModel,
    parse_models,
    parse_props,
    parse_tgi_info,
    parse_version,
)
from peer.http.loop import Loop
from peer.http.target import EngineTarget, resolve

CHECK_S = 10.0
MISSING_S = 1.0
CHECK_TIMEOUT_S = 5.0
MODELS_COUNT_MAX = 8
_FEATURES = (Feature.STREAM, Feature.USAGE)
_COUNT_PROBE = b'{"model":"","messages":[{"role":"user","content":"a"}]}'
_COUNT_PATHS = ("/chat/completions/input_tokens",)  # below the base: llama.cpp's
_COUNT_ROOT_PATHS = ("/tokenize", "/chat_tokenize")  # vLLM's, TGI's
_METRICS = (VLLM_METRICS, LLAMACPP_METRICS, TGI_METRICS)
_HTTP_TROUBLES = (httpx.HTTPError, UnicodeDecodeError, OSError, trio.TooSlowError)


class OpenAiEngine:
    """A server at a URL. Run ``run`` in a nursery; it asks now and then whether it is there.

    What a server does not say of itself is left open: its version, its load, how many tokens a
    prompt has (then the host estimates), how long its context is (then the owner's word counts).
    """

    pid: int | None = None
    restarts = 0

    def __init__(self, spec: OpenAiSpec, loop: Loop, *, timeouts: EngineTimeouts) -> None:
        self._spec = spec
        self._loop = loop
        self._timeouts = timeouts
        parts = urlsplit(spec.url)
        self._base_path = parts.path.rstrip("/")
        self._origin = f"{parts.scheme}://{parts.netloc}"
        if isinstance(spec, VllmUrlSpec | TgiSpec) and not self._base_path:
            self._base_path = "/v1"  # theirs is always there; without it is what people write
        self._target = replace(EngineTarget.from_url(spec.url), base_path="")
        self._client: HttpEngineClient | None = None
        self._version = ""
        self._context_tokens = 0
        self._changed: Callable[[], None] = lambda: None
        self.parameter_table = _table_of(spec)
        self.state = EngineState.STARTING
        self.detail = f"asking {spec.url}"
        self.load: EngineLoad | None = None
        self.models: tuple[EngineModel, ...] = ()

    @property
    def loaded_percent(self) -> int:
        """All or nothing: how far it is is not for us to see."""
        return 100 if self.state is EngineState.READY else 0

    def on_change(self, changed: Callable[[], None]) -> None:
        """Call ``changed`` whenever state or models changed."""
        self._changed = changed

    def count_prompt(self, body: bytes, counted: PromptCounted) -> None:
        """Ask the server, if it counts at all."""
        if self._client is None:
            counted(None)
        else:
            self._client.count_prompt(body, counted)

    def start(self, body: bytes, sink: EngineSink) -> EngineCall:
        """Pass a request on; if the server was never there, it fails in the loop's next turn."""
        if self._client is not None:
            return self._client.start(body, sink)
        call = NeverStarted(sink)
        self._loop.call_later(0, call.fail)
        return call

    async def run(self) -> None:
        """Look whether the server is there and what it serves, until cancelled."""
        headers = {"authorization": f"Bearer {self._spec.api_key}"} if self._spec.api_key else {}
        async with httpx.AsyncClient(
            timeout=CHECK_TIMEOUT_S, headers=headers, trust_env=False
        ) as http:
            try:
                while True:
                    await self._check(http)
                    await trio.sleep(CHECK_S if self.state is EngineState.READY else MISSING_S)
            finally:
                if self._client is not None:
                    self._client.close()

    async def _check(self, http: httpx.AsyncClient) -> None:
        url = f"{self._origin}{self._base_path}/models"
        try:
            listed = await self._list_models(http, url)
            if not listed:
                raise httpx.DecodingError("no list of models in its answer")
        except _HTTP_TROUBLES as error:
            self.load = None
            self._set(EngineState.FAILED, f"{url} gave no list of models: {error!r}"[:300], ())
            return
        chosen = _choose_models(listed, self._spec)
        if not chosen:
            names = ", ".join(model.id for model in listed[:MODELS_COUNT_MAX])
            detail = f"the server at {self._spec.url} does not serve {self._spec.model_id}: {names}"
            self._set(EngineState.FAILED, detail, ())
            return
        if self.state is not EngineState.READY:  # another may be there since
            await self._ask_about(http)
        if self._client is None:
            self._client = await self._open_client(http)
        self.load = await self._read_load(http)
        models = tuple(self._engine_model(model_id, model) for model_id, model in chosen)
        about = " ".join(part for part in (models[0].engine, self._version) if part)
        self._set(EngineState.READY, f"{self._spec.url} answers ({about})", models)

    async def _list_models(self, http: httpx.AsyncClient, url: str) -> tuple[ListedModel, ...]:
        """Return what the server serves; TGI before version 3 says it at ``/info`` only.

        Raises:
            httpx.HTTPError: When it does not answer, or with an error, or too long a body.
            trio.TooSlowError: When its answer does not end.
        """
        if isinstance(self._spec, TgiSpec):
            info = parse_tgi_info(await _get(http, f"{self._origin}/info"))
            return (ListedModel(info.model_id, "tgi", info.context_tokens),) if info else ()
        return parse_models(await _ask(http, url))

    async def _ask_about(self, http: httpx.AsyncClient) -> None:
        """Learn version and context, of those servers that say them somewhere of their own."""
        if isinstance(self._spec, TgiSpec):
            info = parse_tgi_info(await _get(http, f"{self._origin}/info"))
            self._version = info.version if info is not None else ""
            return
        self._version = parse_version(await _get(http, f"{self._origin}/version"))
        build, self._context_tokens = parse_props(await _get(http, f"{self._origin}/props"))
        if not self._version:
            ollama = parse_version(await _get(http, f"{self._origin}/api/version"))
            self._version = build or ollama

    async def _read_load(self, http: httpx.AsyncClient) -> EngineLoad | None:
        body = await _get(http, f"{self._origin}/metrics")
        loads = (read_metrics(body, names) for names in _METRICS)
        return next((load for load in loads if load is not None), None)

    async def _find_count_path(self, http: httpx.AsyncClient) -> str:
        """Return where the server counts prompt tokens, or an empty text."""
        for path in (*(f"{self._base_path}{each}" for each in _COUNT_PATHS), *_COUNT_ROOT_PATHS):
            try:
                counted = await _ask(http, f"{self._origin}{path}", _COUNT_PROBE)
            except _HTTP_TROUBLES:
                continue
            if parse_count(counted):
                return path
        return ""

    async def _open_client(self, http: httpx.AsyncClient) -> HttpEngineClient:
        return HttpEngineClient(
            self._loop,
            await resolve(self._target),
            self._timeouts,
            api_key=self._spec.api_key,
            chat_path=f"{self._base_path}/chat/completions",
            count_path=await self._find_count_path(http),
        )

    def _engine_model(self, model_id: ModelId, model: ListedModel) -> EngineModel:
        context = model.context_tokens or self._context_tokens or self._spec.context_tokens
        return EngineModel(
            model_id=model_id,
            name=model.id,
            context_tokens=context,
            output_tokens_max=context,
            features=_FEATURES,
            engine=_ENGINES.get(model.owned_by, "openai"),
            engine_version=self._version,
        )

    def _set(self, state: EngineState, detail: str, models: tuple[EngineModel, ...]) -> None:
        is_new = (state, models) != (self.state, self.models)
        self.state, self.detail, self.models = state, detail, models
        if is_new:
            self._changed()


_ENGINES = {"vllm": "vllm", "tgi": "tgi", "llamacpp": "llama.cpp"}


def _table_of(spec: OpenAiSpec) -> str:
    if isinstance(spec, VllmUrlSpec):
        return "vllm"
    return "tgi" if isinstance(spec, TgiSpec) else "openai"


async def _get(http: httpx.AsyncClient, url: str) -> bytes:
    """Return what a server has at an address, or nothing."""
    try:
        return await _ask(http, url)
    except _HTTP_TROUBLES:
        return b""


async def _ask(http: httpx.AsyncClient, url: str, content: bytes | None = None) -> bytes:
    """Return the body of an answer; a server that sends without end costs a buffer and 5 s.

    Args:
        http: Whose own timeout is between two pieces, so it bounds no answer.
        url: What to ask.
        content: JSON to post; None to get.

    Raises:
        httpx.HTTPError: When there is no answer, it is not 200, or longer than the bound.
        trio.TooSlowError: When it does not end in time.
    """
    headers = {"accept-encoding": "identity"}  # nothing that grows when it is unpacked
    if content is not None:
        headers["content-type"] = "application/json"
    request = http.build_request(
        "GET" if content is None else "POST", url, content=content, headers=headers
    )
    with trio.fail_after(CHECK_TIMEOUT_S):
        response = await http.send(request, stream=True)
        try:
            if response.status_code != HTTPStatus.OK:
                raise httpx.DecodingError(f"status {response.status_code}")
            return await _read(response)
        finally:
            await response.aclose()


async def _read(response: httpx.Response) -> bytes:
    """Return a body, within its bound.

    A loop that is left early would leave httpx's inner generators to the garbage collector, of
    which trio complains; a cancel ends them all.
    """
    data = bytearray()
    with trio.CancelScope() as scope:
        async for part in response.aiter_raw():
            data += part
            if len(data) > BODY_BYTES_MAX:
                scope.cancel()
    if len(data) > BODY_BYTES_MAX:
        raise httpx.DecodingError(f"a body of more than {BODY_BYTES_MAX} bytes")
    return bytes(data)


def _choose_models(
    listed: tuple[ListedModel, ...], spec: OpenAiSpec
) -> list[tuple[ModelId, ListedModel]]:
    """Return the models to offer: the one asked for, by its name or as the only one, or all.

    A server often knows its one model under a name of its own, e.g. a path; with a single model
    listed, the owner's word decides what it is.
    """
    if spec.model_id is None:
        return [(ModelId(model.id), model) for model in listed[:MODELS_COUNT_MAX]]
    same = [model for model in listed if model.id.casefold() == spec.model_id.casefold()]
    only = same or (listed if len(listed) == 1 else ())
    return [(spec.model_id, model) for model in only[:1]]
