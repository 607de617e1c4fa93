"""What a load is told to do, and the one request that all of its clients send. Pure."""

import re

import msgspec

TOKEN = re.compile(rb"~(\d{6,20})~")
PROMPT_BYTES = 200


class Order(msgspec.Struct, kw_only=True):
    """What to do.

    Attributes:
        base_url: OpenAI's, with ``/v1``.
        with_cost: Whether every usage must hold a price.
        watched: Groups of processes whose CPU and memory count.
    """

    base_url: str
    api_key: str
    model: str
    is_stream: bool
    tokens_count: int
    gap_ms: float
    window_s: float
    warmup_s: float
    concurrency: int
    with_cost: bool
    watched: dict[str, list[int]]
    core: int | None = None


def chat_body(order: Order) -> bytes:
    """Return the request as OpenAI's JSON."""
    prompt = f"@@bench n={order.tokens_count} gap_ms={order.gap_ms:g}@@ "
    prompt += "lorem ipsum " * ((PROMPT_BYTES - len(prompt)) // 12)
    asked: dict[str, object] = {
        "model": order.model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": order.tokens_count,
    }
    if order.is_stream:
        asked |= {"stream": True, "stream_options": {"include_usage": True}}
    return msgspec.json.encode(asked)
