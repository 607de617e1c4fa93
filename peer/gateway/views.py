"""What the gateway shows of itself in JSON: models, hosts, choices, generations.

A core: values in, JSON-ready values out.
"""

import base64
from collections.abc import Mapping
from decimal import Decimal

import msgspec

from p2p.hardware.verdict import Level
from p2p.records import Offer
from p2p.types import model_key
from peer.gateway.answer import dollars
from peer.gateway.hosts import Host, HostTable
from peer.gateway.journal import Proof, UsageEntry
from peer.gateway.levels import level_of
from peer.gateway.routing import Decision, Policy

JsonObject = dict[str, object]
OWNED_BY = "sparewatt"
_MICRO_PER_MTOK_EXPONENT = -12  # micro-dollars per million tokens, as dollars per token


def health(table: HostTable, trouble: str) -> JsonObject:
    """Return whether requests can be served at all; shown to anybody."""
    usable = sum(host.link is not None and host.link.is_usable for host in table)
    body: JsonObject = {
        "status": "ok" if usable else "no_hosts",
        "hosts": usable,
        "models": len(table.models()),
    }
    if trouble:
        body["status"] = "failing"
        body["detail"] = trouble
    return body


def models(table: HostTable, created_s: int) -> JsonObject:
    """Return OpenAI's list of models."""
    data = [_model(name, offers, created_s) for name, offers in sorted(table.models().items())]
    return {"object": "list", "data": data}


def model(table: HostTable, name: str, created_s: int) -> JsonObject | None:
    """Return one model, or None if nobody offers it."""
    wanted = model_key(name)
    for each, offers in table.models().items():
        if model_key(each) == wanted:
            return _model(each, offers, created_s)
    return None


def _model(name: str, offers: list[tuple[Host, Offer]], created_s: int) -> JsonObject:
    cheapest = min((offer for _, offer in offers), key=_total_price)
    return {
        "id": name,
        "object": "model",
        "created": created_s,
        "owned_by": OWNED_BY,
        "context_length": max(offer.context_tokens for _, offer in offers),
        "max_completion_tokens": max(offer.output_tokens_max for _, offer in offers),
        "quantization": cheapest.quantization,
        "licence": cheapest.licence,
        "pricing": {
            "prompt": _usd_per_token(cheapest.price_in_micros_per_mtok),
            "completion": _usd_per_token(cheapest.price_out_micros_per_mtok),
            "input_cache_read": _usd_per_token(cheapest.price_cached_micros_per_mtok),
            "request": dollars(cheapest.minimum_micros),
        },
        "providers": [host.peer_id for host, _ in offers],
    }


def _total_price(offer: Offer) -> int:
    return offer.price_in_micros_per_mtok + offer.price_out_micros_per_mtok


def _usd_per_token(micros_per_mtok: int) -> str:
    return f"{Decimal(micros_per_mtok).scaleb(_MICRO_PER_MTOK_EXPONENT).normalize():f}"


def hosts(table: HostTable) -> JsonObject:
    """Return all known hosts as we measured them."""
    return {"object": "list", "data": [_host(host) for host in table]}


def _host(host: Host) -> JsonObject:
    record, link = host.record.value if host.record else None, host.link
    return {
        "peer_id": host.peer_id,
        "state": _state(host),
        "last_error": host.trouble or _last_error(host),
        "region": record.region if record else "",
        "draining": record.draining if record else False,
        "record_sequence": record.sequence if record else 0,
        "addresses": list(record.addresses) if record else [],
        "rtt_ms": None if link is None or link.round_trip_ns is None else link.round_trip_ns / 1e6,
        "slots_free": link.slots_free if link is not None else None,
        "open_requests": link.open_requests if link is not None else 0,
        "traffic": link.traffic if link is not None else None,
        "hardware": _hardware(host),
        "models": [_host_model(host, offer) for offer in host.offers],
    }


def _hardware(host: Host) -> JsonObject | None:
    """Return what a host says it runs on, and how much is known of that."""
    if host.record is None:
        return None
    said = host.record.value.hardware
    return {
        "kind": said.kind,
        "name": said.name,
        "count": said.count,
        "memory_bytes": said.memory_bytes,
        "level": level_of(host).value,
        "challenged": host.hardware_level is Level.CHALLENGED,
    }


def _state(host: Host) -> str:
    if host.is_banned:
        return "banned"
    if host.link is not None:
        return "suspected" if host.link.is_suspected else "linked"
    return "connecting" if host.connecting else "unreachable"


def _last_error(host: Host) -> str:
    return next((each.last_error for each in host.health.values() if each.last_error), "")


def _host_model(host: Host, offer: Offer) -> JsonObject:
    known = host.health_of(offer.model_id)
    return {
        "model_id": offer.model_id,
        "manifest_digest": offer.manifest_digest.hex(),
        "context_tokens": offer.context_tokens,
        "quantization": offer.quantization,
        "licence": offer.licence,
        "price_in_micros_per_mtok": offer.price_in_micros_per_mtok,
        "price_cached_micros_per_mtok": offer.price_cached_micros_per_mtok,
        "price_out_micros_per_mtok": offer.price_out_micros_per_mtok,
        "minimum_micros": offer.minimum_micros,
        "measured": known.is_measured,
        "ttft_ms": known.ttft_ms,
        "tokens_per_s": known.tokens_per_s,
        "error_ratio": known.error_ratio,
        "requests": known.requests_count,
        "last_error": known.last_error,
    }


def preview(decisions: Mapping[str, Decision], policy: Policy) -> JsonObject:
    """Return how a request would be routed, with every reason."""
    return {"policy": policy.value, "models": [_decision(*each) for each in decisions.items()]}


def _decision(name: str, decision: Decision) -> JsonObject:
    return {
        "model": name,
        "chosen": decision.chosen.candidate.peer_id if decision.chosen else None,
        "why": decision.why,
        "ranked": [
            {
                "host": each.candidate.peer_id,
                "expected_ms": each.expected_ms,
                "explanation": each.explanation,
            }
            for each in decision.ranked
        ],
        "excluded": [{"host": each.peer_id, "reason": each.reason} for each in decision.excluded],
    }


def generation(entry: UsageEntry, proof: Proof | None) -> JsonObject:
    """Return what one request came to, with its proofs once they are in.

    Names follow OpenRouter's generation record; receipt, batch, cosignature and voucher are the
    signed bytes in base64, for anybody to verify.
    """
    data: JsonObject = {
        "id": entry.answer_id,
        "upstream_id": entry.upstream_id,
        "request_id": entry.request_id,
        "kind": entry.kind,
        "model": entry.model,
        "provider_name": entry.host,
        "total_cost": msgspec.Raw(dollars(entry.cost_micros).encode()),
        "cost_micros": entry.cost_micros,
        "tokens_prompt": entry.prompt_tokens,
        "tokens_completion": entry.completion_tokens,
        "native_tokens_prompt": entry.prompt_tokens,
        "native_tokens_completion": entry.completion_tokens,
        "native_tokens_cached": entry.cached_tokens,
        "latency": entry.ttft_ms,
        "generation_time": entry.duration_ms,
        "tokens_per_s": entry.tokens_per_s,
        "finish_reason": entry.finish_reason,
        "cancelled": entry.cancelled,
        "streamed": entry.streamed,
        "created_at_ns": entry.created_at_ns,
        "route": entry.route,
        "tries": entry.tries,
        "different": entry.different,
    }
    data["receipt"] = _text(proof.receipt) if proof else None
    data["batch"] = _text(proof.batch) if proof else None
    data["cosignature"] = _text(proof.cosignature) if proof else None
    data["voucher"] = _text(proof.voucher) if proof and proof.voucher else None
    return {"data": data}


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
