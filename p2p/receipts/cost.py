"""What a request costs, and how much trust one increment is worth. Integers only."""

import msgspec

from p2p import limits
from p2p.receipts.messages import Quote

TOKENS_PER_MTOK = 1_000_000


class Usage(msgspec.Struct, frozen=True):
    """Tokens of one request, as counted so far.

    Attributes:
        cached_tokens: Part of ``prompt_tokens``.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


def cost_micros(quote: Quote, usage: Usage, *, delivered: bool) -> int:
    """Return what a request costs, in micro-dollars: one rounding, up.

    ``0 if nothing was delivered, else max(minimum, ceil(((in - cached) * p_in + cached * p_cached
    + out * p_out) / 10^6))`` (DESIGN, Money). "Delivered" includes a prompt that was computed
    (``started``) and then cancelled by the client.

    Args:
        quote: The quote that the request names.
        usage: The counts.
        delivered: Whether anything is owed at all.

    Raises:
        ValueError: If a count is negative or more tokens are cached than prompted.
    """
    if not 0 <= usage.cached_tokens <= usage.prompt_tokens or usage.completion_tokens < 0:
        raise ValueError(f"impossible counts: {usage}")
    if not delivered:
        return 0
    prompt_product = prompt_product_of(quote, usage.prompt_tokens, usage.cached_tokens)
    return running_cost_micros(quote, prompt_product, usage.completion_tokens)


def increment_micros(quote: Quote, increment_tokens: int) -> int:
    """Return how much may stand unpaid for one request slot, in micro-dollars, at least 1.

    Args:
        quote: Its output price counts.
        increment_tokens: ``INCREMENT_TOKENS_MIN`` to ``INCREMENT_TOKENS_MAX``.
    """
    tokens_micros = -(-increment_tokens * quote.price_out_micros_per_mtok // TOKENS_PER_MTOK)
    return max(1, quote.minimum_micros, tokens_micros)


def fee_micros(cum_micros: int, fee_bps: int) -> int:
    """Return settlement's cumulative share of a cumulative payment, rounded down."""
    return cum_micros * fee_bps // limits.FEE_BPS_MAX


def prompt_tokens_max(body_bytes: int) -> int:
    """Return the most prompt tokens that a request body of this size can honestly hold.

    A token stands for at least one byte of the request, but for what the chat template adds.
    """
    return body_bytes + limits.TEMPLATE_TOKENS_MAX


def completion_tokens_max(delivered_bytes: int, choices: int) -> int:
    """Return the most completion tokens that so many delivered bytes can honestly hold.

    Args:
        delivered_bytes: Bytes of chunks received so far.
        choices: How many answers were asked for; each has one end token without bytes.
    """
    return delivered_bytes + choices


def increment_tokens_after(quote: Quote, settled_micros: int, *, base_tokens: int) -> int:
    """Return how many output tokens one increment is worth to one who settled so much.

    It doubles with each increment settled: the second needs one of ``base_tokens`` paid, the
    third also one of twice that, and so on up to ``INCREMENT_TOKENS_MAX``. As it is a function of
    what was paid and of the price at hand, trust earned on a cheap model does not buy trust on a
    dear one, and both sides reach the same figure without telling each other.

    Args:
        quote: Its price counts.
        settled_micros: What the vouchers since the last default (or the start) came to.
        base_tokens: The first increment.
    """
    tokens = base_tokens
    left_micros = settled_micros - increment_micros(quote, tokens)
    while tokens < limits.INCREMENT_TOKENS_MAX and left_micros >= 0:
        tokens = min(2 * tokens, limits.INCREMENT_TOKENS_MAX)
        left_micros -= increment_micros(quote, tokens)
    return tokens


def running_cost_micros(quote: Quote, prompt_product: int, completion_tokens: int) -> int:
    """Return ``cost_micros`` of a request that runs, given its prompt's part of the product.

    Once per chunk, so without the checks; ``prompt_product`` is from ``prompt_product_of``.
    """
    product = prompt_product + completion_tokens * quote.price_out_micros_per_mtok
    return max(quote.minimum_micros, -(-product // TOKENS_PER_MTOK))


def prompt_product_of(quote: Quote, prompt_tokens: int, cached_tokens: int = 0) -> int:
    """Return a prompt's tokens times their prices, in millionths of a micro-dollar."""
    return (
        prompt_tokens - cached_tokens
    ) * quote.price_in_micros_per_mtok + cached_tokens * quote.price_cached_micros_per_mtok


def completion_tokens_within(quote: Quote, usage: Usage, cost_max_micros: int) -> int:
    """Return the most completion tokens, up to ``usage``'s, with which it costs at most so much.

    0 if even the prompt (or the minimum) costs more.
    """
    prompt_product = prompt_product_of(quote, usage.prompt_tokens, usage.cached_tokens)
    if running_cost_micros(quote, prompt_product, 0) > cost_max_micros:
        return 0
    if not quote.price_out_micros_per_mtok:
        return usage.completion_tokens
    room = cost_max_micros * TOKENS_PER_MTOK - prompt_product
    return min(usage.completion_tokens, room // quote.price_out_micros_per_mtok)
