"""What the usage log keeps of an attempt that is over."""

from p2p.types import FinishReason
from peer.gateway.attempt import Attempt
from peer.gateway.calls import Call, Ended
from peer.gateway.journal import UsageEntry

_FINISH_NAMES = {reason: reason.name.lower() for reason in FinishReason}


def usage_entry(
    call: Call, attempt: Attempt, end: Ended | None, now: tuple[int, int], *, cancelled: bool
) -> UsageEntry:
    """Return the usage log's entry.

    Args:
        call: What the client asked.
        attempt: The try that is over.
        end: How, if it has a receipt.
        now: Monotonic time and wall clock, ns.
        cancelled: Whether the client gave it up.
    """
    receipt = end.receipt if end is not None else None
    completion_tokens = receipt.completion_tokens if receipt else 0
    mono_ns, wall_ns = now
    duration_ns = mono_ns - attempt.opened_ns
    ttft_ms = attempt.ttft_ms
    return UsageEntry(
        answer_id=call.answer_id,
        upstream_id=attempt.reader.head.id,
        request_id=attempt.request_id.hex(),
        kind=call.kind,
        model=attempt.route.model,
        host=attempt.route.host,
        created_at_ns=wall_ns - duration_ns,
        streamed=call.request.stream,
        cancelled=cancelled,
        finish_reason=_FINISH_NAMES[receipt.finish_reason] if receipt else "lost",
        prompt_tokens=receipt.prompt_tokens if receipt else 0,
        cached_tokens=receipt.cached_tokens if receipt else 0,
        completion_tokens=completion_tokens,
        cost_micros=receipt.cost_micros if receipt else 0,
        ttft_ms=None if ttft_ms is None else round(ttft_ms),
        duration_ms=duration_ns // 1_000_000,
        tokens_per_s=attempt.tokens_per_s(completion_tokens),
        route=attempt.route.why,
        tries=attempt.route.tries,
        different=end.different if end else "",
    )
