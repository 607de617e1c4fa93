"""An OpenAI-compatible server that somebody else runs, as an engine."""

from collections.abc import Callable
from dataclasses import replace
from http import HTTPStatus
from urllib.parse import urlsplit

import httpx
import msgspec
import trio

from p2p.types import Feature, ModelId
from peer.host.config import EngineTimeouts, OpenAiSpec
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
from peer.http.loop import Loop
from peer.http.target import EngineTarget, resolve

CHECK_S = 10.0
MISSING_S = 1.0
CHECK_TIMEOUT_S = 5.0
MODELS_COUNT_MAX = 8
MODELS_BYTES_MAX = 1024 * 1024
_FEATURES = (Feature.STREAM, Feature.USAGE)
_COUNT_PROBE = b'{"model":"","messages":[{"role":"user","content":"a"}]}'


class _Model(msgspec.Struct):
    id: str
    owned_by: str = ""
    max_model_len: int | None = None
    context_length: int | None = None


class _ModelList(msgspec.Struct):
    data: list[_Model]


class OpenAiEngine:
    """A server at a URL. Run ``run`` in a nursery; it asks now and then whether it is there.

    A server may count a request's prompt tokens before it computes them (llama.cpp at
    ``chat/completions/input_tokens``, vLLM at ``/tokenize``); others can't, and the host
    estimates.
    """

    parameter_table = "openai"
    pid: int | None = None
    restarts = 0
    load: EngineLoad | None = None

    def __init__(self, spec: OpenAiSpec, loop: Loop, *, timeouts: EngineTimeouts) -> None:
        self._spec = spec
        self._loop = loop
        self._timeouts = timeouts
        parts = urlsplit(spec.url)
        self._base_path = parts.path.rstrip("/")
        self._origin = f"{parts.scheme}://{parts.netloc}"
        self._target = replace(EngineTarget.from_url(spec.url), base_path="")
        self._client: HttpEngineClient | None = None
        self._changed: Callable[[], None] = lambda: None
        self.state = EngineState.STARTING
        self.detail = f"asking {spec.url}"
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
            response = await http.get(url)
            listed = _parse_models(response)
        except (
            httpx.HTTPError,
            msgspec.DecodeError,
            UnicodeDecodeError,
            RecursionError,
            OSError,
        ) as error:
            self._set(EngineState.FAILED, f"{url} gave no list of models: {error!r}"[:300], ())
            return
        models = _choose_models(listed, self._spec)
        if not models:
            names = ", ".join(model.id for model in listed.data[:MODELS_COUNT_MAX]) or "none"
            detail = f"the server at {self._spec.url} does not serve {self._spec.model_id}: {names}"
            self._set(EngineState.FAILED, detail, ())
            return
        if self._client is None:
            self._client = await self._open_client(http)
        self._set(EngineState.READY, f"{self._spec.url} answers", models)

    async def _find_count_path(self, http: httpx.AsyncClient) -> str:
        """Return where the server counts prompt tokens, or an empty text."""
        for path in (f"{self._base_path}/chat/completions/input_tokens", "/tokenize"):
            try:
                response = await http.post(
                    f"{self._origin}{path}",
                    content=_COUNT_PROBE,
                    headers={"content-type": "application/json"},
                )
            except httpx.HTTPError:
                continue
            if response.status_code == HTTPStatus.OK and parse_count(response.content):
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

    def _set(self, state: EngineState, detail: str, models: tuple[EngineModel, ...]) -> None:
        is_new = (state, models) != (self.state, self.models)
        self.state, self.detail, self.models = state, detail, models
        if is_new:
            self._changed()


def _parse_models(response: httpx.Response) -> _ModelList:
    response.raise_for_status()
    if len(response.content) > MODELS_BYTES_MAX:
        raise msgspec.DecodeError("the list of models is too long")
    return msgspec.json.decode(response.content, type=_ModelList)


def _choose_models(listed: _ModelList, spec: OpenAiSpec) -> tuple[EngineModel, ...]:
    """Return the models to offer: the one asked for, by its name or as the only one, or all.

    A server often knows its one model under a name of its own, e.g. a path; with a single model
    listed, the owner's word decides what it is.
    """
    if spec.model_id is None:
        chosen = [(ModelId(model.id), model) for model in listed.data[:MODELS_COUNT_MAX]]
    else:
        same = [model for model in listed.data if model.id.casefold() == spec.model_id.casefold()]
        only = same or (listed.data if len(listed.data) == 1 else [])
        chosen = [(spec.model_id, model) for model in only[:1]]
    return tuple(_engine_model(model_id, model, spec) for model_id, model in chosen)


def _engine_model(model_id: ModelId, model: _Model, spec: OpenAiSpec) -> EngineModel:
    context = model.max_model_len or model.context_length or spec.context_tokens
    return EngineModel(
        model_id=model_id,
        name=model.id,
        context_tokens=context,
        output_tokens_max=context,
        features=_FEATURES,
        engine="vllm" if model.owned_by == "vllm" else "openai",
    )
