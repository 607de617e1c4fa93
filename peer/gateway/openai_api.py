"""OpenAI's chat request: read it, check it with the path of what is wrong, write it for a host.

A core: bytes in, values out. What a field may be is checked here; whether an engine knows the
field is the host's question, so unknown fields travel on as they came.
"""

import decimal
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

import msgspec

from p2p import limits
from p2p.types import Feature
from peer.gateway.openai_errors import ApiError, BadRequestError, invalid_request
from peer.gateway.preferences import NO_PREFERENCES, SORTS, MaxPrice, Preferences

CHOICES_COUNT_MAX = 128
FALLBACK_MODELS_COUNT_MAX = 8
LIST_COUNT_MAX = 64
MESSAGES_COUNT_MAX = 16_384
_MICROS_PER_USD = 1_000_000
_TokenCount = Annotated[int, msgspec.Meta(ge=1, le=limits.TOKENS_MAX)]
_Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]
_Text = Annotated[str, msgspec.Meta(max_length=limits.RECORD_TEXT_BYTES_MAX)]
_Names = Annotated[list[_Text], msgspec.Meta(max_length=LIST_COUNT_MAX)]
_Models = Annotated[list[_Text], msgspec.Meta(max_length=FALLBACK_MODELS_COUNT_MAX)]


class _Message(msgspec.Struct):
    role: str
    content: str | list[msgspec.Raw] | None = None


class _StreamOptions(msgspec.Struct):
    include_usage: bool = False


class _ResponseFormat(msgspec.Struct):
    type: Literal["text", "json_object", "json_schema"]


class _Sort(msgspec.Struct):
    by: str


class _MaxPrice(msgspec.Struct):
    prompt: decimal.Decimal | None = None
    completion: decimal.Decimal | None = None
    request: decimal.Decimal | None = None


class _Provider(msgspec.Struct):
    order: _Names | None = None
    only: _Names | None = None
    ignore: _Names | None = None
    allow_fallbacks: bool | None = None
    require_parameters: bool | None = None
    data_collection: Literal["allow", "deny"] | None = None
    quantizations: _Names | None = None
    sort: str | _Sort | None = None
    max_price: _MaxPrice | None = None


class _Chat(msgspec.Struct):
    model: Annotated[str, msgspec.Meta(min_length=1, max_length=limits.RECORD_TEXT_BYTES_MAX)]
    messages: Annotated[list[_Message], msgspec.Meta(min_length=1, max_length=MESSAGES_COUNT_MAX)]
    models: _Models | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: _TokenCount | None = None
    max_completion_tokens: _TokenCount | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=CHOICES_COUNT_MAX)] | None = None
    stop: str | Annotated[list[str], msgspec.Meta(max_length=4)] | None = None
    seed: int | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=20)] | None = None
    frequency_penalty: _Penalty | None = None
    presence_penalty: _Penalty | None = None
    logit_bias: dict[str, float] | None = None
    tools: list[msgspec.Raw] | None = None
    response_format: _ResponseFormat | None = None
    return_token_ids: bool | None = None
    user: str | None = None
    provider: _Provider | None = None


@dataclass(slots=True, kw_only=True)
class ChatRequest:
    """A checked chat request; never changed after it was made.

    Attributes:
        models: What to serve it with, the wished one first, without routing suffixes.
        include_usage: Whether a stream must end with a usage chunk.
        choices: ``n``.
        output_tokens_max: The client's own limit, or None.
        stop_bytes: Length of all stop texts; their tokens are generated but never delivered.
        features: What an engine must be able to do for it.
        fields: The top-level fields as they came, without those meant for the gateway.
    """

    models: tuple[str, ...]
    stream: bool
    include_usage: bool
    choices: int
    output_tokens_max: int | None
    stop_bytes: int
    features: frozenset[Feature]
    preferences: Preferences
    body_bytes: int
    fields: Mapping[str, msgspec.Raw] = field(repr=False)


_CHAT_DECODER = msgspec.json.Decoder(_Chat)
_FIELDS_DECODER = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ENCODER = msgspec.json.Encoder()
_NO_FEATURES: frozenset[Feature] = frozenset()
_TRUE = msgspec.Raw(b"true")
_STREAM_OPTIONS = msgspec.Raw(b'{"include_usage":true}')
_OURS = frozenset(
    ("model", "models", "provider", "stream", "stream_options", "max_completion_tokens", "route")
)


def parse_chat(body: bytes) -> ChatRequest:
    """Return the chat request that a body holds.

    Raises:
        BadRequestError: If it is no JSON object, or a field is missing, of the wrong type or
            outside its range; carries the answer with the field's path.
    """
    chat, fields = _decode(body)
    wished, sort = _split_suffix(chat.model)
    models = tuple(dict.fromkeys((wished, *(chat.models or ()))))
    for name in _OURS.intersection(fields):
        del fields[name]
    output_tokens_max = chat.max_completion_tokens or chat.max_tokens
    if output_tokens_max is not None:
        # Both names mean one thing; hosts and engines need to know the older one only.
        fields["max_tokens"] = msgspec.Raw(str(output_tokens_max).encode())
    return ChatRequest(
        models=models,
        stream=bool(chat.stream),
        include_usage=chat.stream_options is not None and chat.stream_options.include_usage,
        choices=chat.n or 1,
        output_tokens_max=output_tokens_max,
        stop_bytes=_stop_bytes(chat.stop),
        features=_features(chat),
        preferences=_preferences(chat.provider, sort),
        body_bytes=len(body),
        fields=fields,
    )


def upstream_body(request: ChatRequest, model_id: str) -> bytes:
    """Return the body for a host: always a stream with usage, for exactly one model."""
    fields: dict[str, object] = {"model": model_id}
    fields.update(request.fields)
    fields["stream"] = _TRUE
    fields["stream_options"] = _STREAM_OPTIONS
    return _ENCODER.encode(fields)


def _decode(body: bytes) -> tuple[_Chat, dict[str, msgspec.Raw]]:
    """Return the fields that we know, and all of them as they came."""
    try:
        body.decode()  # the decoders don't look at what they skip, but a host's would
        return _CHAT_DECODER.decode(body), _FIELDS_DECODER.decode(body)
    except msgspec.ValidationError as error:
        raise BadRequestError(_explain(str(error))) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequestError(
            invalid_request(f"The body is not valid JSON: {error}", code="invalid_json")
        ) from error
    except RecursionError as error:
        raise BadRequestError(
            invalid_request("The body is nested too deeply.", code="invalid_json")
        ) from error


_AT = re.compile(r" - at `\$\.?([^`]*)`$")
_MISSING = re.compile(r"^Object missing required field `([^`]+)`$")


def _explain(message: str) -> ApiError:
    """Turn msgspec's sentence into OpenAI's, with the path as ``param``."""
    at = _AT.search(message)
    path = at.group(1) if at else ""
    cause = message[: at.start()] if at else message
    missing = _MISSING.match(cause)
    if missing:
        param = f"{path}.{missing.group(1)}" if path else missing.group(1)
        return invalid_request(
            f"Missing required parameter: '{param}'.",
            param=param,
            code="missing_required_parameter",
        )
    shown = cause.replace("`", "")
    shown = shown[:1].lower() + shown[1:]
    if not path:
        return invalid_request(f"Invalid body: {shown}.", code="invalid_type")
    code = "invalid_type" if ", got " in shown else "invalid_value"
    return invalid_request(f"Invalid value for '{path}': {shown}.", param=path, code=code)


_SUFFIXES = {":nitro": "throughput", ":floor": "price"}


def _split_suffix(model: str) -> tuple[str, str | None]:
    """Split OpenRouter's routing suffix off a model name."""
    for suffix, sort in _SUFFIXES.items():
        if model.endswith(suffix) and len(model) > len(suffix):
            return model[: -len(suffix)], sort
    return model, None


def _stop_bytes(stop: str | list[str] | None) -> int:
    if stop is None:
        return 0
    return len("".join(stop).encode(errors="replace"))


def _features(chat: _Chat) -> frozenset[Feature]:
    is_begun = chat.messages[-1].role == "assistant"
    if not (
        chat.tools or chat.response_format or chat.logprobs or chat.return_token_ids or is_begun
    ):
        return _NO_FEATURES
    needed = set()
    if is_begun:
        needed.add(Feature.CONTINUE)
    if chat.return_token_ids:
        needed.add(Feature.TOKEN_IDS)
    if chat.tools:
        needed.add(Feature.TOOLS)
    if chat.response_format is not None and chat.response_format.type != "text":
        needed.add(Feature.JSON_SCHEMA)
    if chat.logprobs:
        needed.add(Feature.LOGPROBS)
    return frozenset(needed)


def _preferences(provider: _Provider | None, suffix_sort: str | None) -> Preferences:
    if provider is None:
        return NO_PREFERENCES if suffix_sort is None else Preferences(sort=suffix_sort)
    return Preferences(
        order=tuple(provider.order or ()),
        only=frozenset(provider.only or ()),
        ignore=frozenset(provider.ignore or ()),
        allow_fallbacks=provider.allow_fallbacks is not False,
        data_collection_denied=provider.data_collection == "deny",
        quantizations=frozenset(provider.quantizations or ()),
        sort=_sort(provider.sort) or suffix_sort,
        max_price=_max_price(provider.max_price),
    )


def _sort(sort: str | _Sort | None) -> str | None:
    name = sort.by if isinstance(sort, _Sort) else sort
    if name is not None and name not in SORTS:
        raise BadRequestError(
            invalid_request(
                f"Invalid value for 'provider.sort': {name!r}; use one of {', '.join(SORTS)}.",
                param="provider.sort",
                code="invalid_value",
            )
        )
    return name


def _max_price(price: _MaxPrice | None) -> MaxPrice | None:
    if price is None:
        return None
    return MaxPrice(
        prompt_micros_per_mtok=_micros(price.prompt, "prompt"),
        completion_micros_per_mtok=_micros(price.completion, "completion"),
        request_micros=_micros(price.request, "request"),
    )


def _micros(usd: decimal.Decimal | None, name: str) -> int | None:
    """Return dollars as whole micro-dollars, rounded down: a cap is never exceeded."""
    if usd is None:
        return None
    if not usd.is_finite() or not 0 <= usd <= limits.PRICE_MICROS_PER_MTOK_MAX // _MICROS_PER_USD:
        raise BadRequestError(
            invalid_request(
                f"Invalid value for 'provider.max_price.{name}': {usd} dollars.",
                param=f"provider.max_price.{name}",
                code="invalid_value",
            )
        )
    return int(usd * _MICROS_PER_USD)
