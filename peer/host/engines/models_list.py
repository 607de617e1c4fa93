"""What servers say of their models, version and context: each a little differently. A core."""

import msgspec

BODY_BYTES_MAX = 1024 * 1024
CONTEXT_TOKENS_MAX = 2**24
VERSION_CHARS_MAX = 40


class _Meta(msgspec.Struct):
    n_ctx: int | None = None


class _Model(msgspec.Struct):
    id: str
    owned_by: str = ""
    max_model_len: int | None = None
    context_length: int | None = None
    context_window: int | None = None
    max_context_length: int | None = None
    meta: _Meta | None = None


class _ModelList(msgspec.Struct):
    data: list[_Model]


class ListedModel(msgspec.Struct, frozen=True):
    """One model of a server.

    Attributes:
        owned_by: ``vllm``, ``llamacpp``, …; not to be relied on.
        context_tokens: What the server promises; 0 if it does not say.
    """

    id: str
    owned_by: str
    context_tokens: int


def parse_models(body: bytes) -> tuple[ListedModel, ...]:
    """Return what ``/v1/models`` lists; nothing if it can't be read."""
    if len(body) > BODY_BYTES_MAX:
        return ()
    try:
        listed = msgspec.json.decode(body, type=_ModelList)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ()
    return tuple(
        ListedModel(model.id, model.owned_by, _context(model)) for model in listed.data if model.id
    )


def _context(model: _Model) -> int:
    """Return the context by whichever name: vLLM's, OpenRouter's, Groq's, LM Studio's, ours."""
    said = (
        model.max_model_len,
        model.context_length,
        model.context_window,
        model.max_context_length,
        model.meta.n_ctx if model.meta is not None else None,
    )
    return next((min(each, CONTEXT_TOKENS_MAX) for each in said if each and each > 0), 0)


class _Version(msgspec.Struct):
    version: str = ""


class _Generation(msgspec.Struct):
    n_ctx: int = 0


class _Props(msgspec.Struct):
    build_info: str = ""
    default_generation_settings: _Generation | None = None


class _TgiInfo(msgspec.Struct):
    model_id: str
    version: str = ""
    max_total_tokens: int | None = None
    max_input_tokens: int | None = None
    docker_label: str | None = None


class TgiInfo(msgspec.Struct, frozen=True):
    """What TGI says of itself at ``/info``."""

    model_id: str
    version: str
    context_tokens: int


def parse_version(body: bytes) -> str:
    """Return what vLLM's ``/version`` or Ollama's ``/api/version`` says, or an empty text."""
    try:
        return msgspec.json.decode(body, type=_Version).version[:VERSION_CHARS_MAX]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""


def parse_props(body: bytes) -> tuple[str, int]:
    """Return the build and the context per request in llama-server's ``/props``; empty, 0."""
    try:
        props = msgspec.json.decode(body, type=_Props)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return "", 0
    settings = props.default_generation_settings
    context = settings.n_ctx if settings is not None else 0
    return props.build_info[:VERSION_CHARS_MAX], min(max(context, 0), CONTEXT_TOKENS_MAX)


def parse_tgi_info(body: bytes) -> TgiInfo | None:
    """Return what TGI's ``/info`` says, or None if it can't be read."""
    try:
        info = msgspec.json.decode(body, type=_TgiInfo)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    context = min(max(info.max_total_tokens or 0, 0), CONTEXT_TOKENS_MAX)
    return TgiInfo(info.model_id, info.version[:VERSION_CHARS_MAX], context)
