"""The demo's report, for programs: what was asked, what it cost, and whether all of it held."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sparewatt.demo.run import FoundHost, Round
from sparewatt.problems import Problem

VERSION = 1


@dataclass(frozen=True, slots=True)
class Played:
    """What a run of the demo came to.

    Attributes:
        first_token_s: From the start of the command to the first piece of the first answer.
    """

    model: str
    first_token_s: float | None
    hosts: tuple[FoundHost, ...]
    rounds: tuple[Round, ...]


def write_report(path: Path, played: Played) -> None:
    """Write the report of a run; the first round's fields stand at the top.

    Raises:
        Problem: If the file can't be written.
    """
    hosts, rounds = played.hosts, played.rounds
    first = _round(rounds[0]) if rounds else {}
    report = {
        "version": VERSION,
        **first,
        "ok": is_right(hosts, rounds),
        "model": played.model,
        "first_token_s": played.first_token_s,
        "hosts_found": len(hosts),
        "hosts": [_host(host) for host in hosts],
        "rounds": [_round(each) for each in rounds],
    }
    try:
        path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise Problem(f"can't write the report {path}: {error}") from error


def is_right(hosts: Sequence[FoundHost], rounds: Sequence[Round]) -> bool:
    """Return whether every host answered, and every bill was right."""
    answered = {each.host.peer_id for each in rounds}
    return (
        bool(hosts)
        and answered == {host.peer_id for host in hosts}
        and all(each.is_right for each in rounds)
    )


def _host(host: FoundHost) -> dict[str, object]:
    return {
        "name": host.name,
        "peer_id": host.peer_id,
        "ttft_ms": round(host.ttft_ms, 1),
        "tokens_per_s": round(host.tokens_per_s, 1),
        "price_in_micros_per_mtok": host.prices.in_micros_per_mtok,
        "price_out_micros_per_mtok": host.prices.out_micros_per_mtok,
    }


def _round(each: Round) -> dict[str, object]:
    receipt, voucher, moved = each.bill.receipt, each.bill.voucher, each.ledger
    return {
        "ok": each.is_right,
        "answer": each.answer.text,
        "chosen": each.host.peer_id,
        "reason": each.reason,
        "ttft_ms": round(each.answer.ttft_ms, 1),
        "tokens_per_s": round(each.answer.tokens_per_s, 1),
        "usage": each.answer.usage,
        "cost_micros": receipt.cost_micros,
        "expected_cost_micros": each.bill.expected_micros,
        "receipt": {
            "id": receipt.request_id.hex(),
            "verified_host": each.bill.host_signed,
            "verified_gateway": each.bill.gateway_signed,
        },
        "voucher": {
            "allowance_id": voucher.allowance_id.hex(),
            "cum_micros": voucher.cum_micros,
        },
        "ledger": {
            "before": dict(moved.before),
            "after": dict(moved.after),
            "sum_micros": moved.sum_micros,
            "client_debit_micros": moved.debit_micros,
            "host_credit_micros": moved.host_micros,
            "fee_micros": moved.fee_micros,
        },
    }
