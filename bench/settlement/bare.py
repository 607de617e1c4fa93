"""What the same machine does without HTTP: signatures alone, the ledger alone.

Each runs in this process, on one core, over the same kind of messages as the load.
"""

import base64
import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import process_time

import nacl.signing

from bench.settlement.world import NETWORK, Post, Shape, make_world
from p2p.clock import system_clock
from p2p.receipts.messages import VOUCHER, Voucher
from p2p.signing import Signed, signed_bytes, unseal
from p2p.wire import encode_value
from settlement.keys import DATABASE_NAME
from settlement.ledger import VoucherOutcome
from settlement.main import calm_garbage_collector
from settlement.operations import post_vouchers
from settlement.store import Machine
from settlement.store_sqlite import SqliteStore

REPEATS = 5
Batch = tuple[Post, list[Signed[Voucher]]]


def bare_limits(
    directory: Path, shape: Shape, *, requests: int, per_request: int
) -> dict[str, float]:
    """Return how many vouchers one CPU second is enough for, for each part alone; medians of 5."""
    world = make_world(directory / "bare", shape)
    calm_garbage_collector()  # as the server does
    posts = world.voucher_posts(requests * REPEATS, per_request)
    batches: list[Batch] = [(post, _checked(post)) for post in posts]
    vouchers = [each for _, part in batches[:requests] for each in part]
    signed = [_signed(each) for each in vouchers]
    runs = [batches[at : at + requests] for at in range(0, len(batches), requests)]

    def verify(_: int) -> None:
        for key, message, signature in signed:
            nacl.signing.VerifyKey(key).verify(message, signature)

    def read(_: int) -> None:
        for each in vouchers:
            unseal(VOUCHER, each.envelope, network_id=NETWORK)

    with contextlib.closing(SqliteStore(world.data_dir / DATABASE_NAME)) as store:
        return {
            "signatures": _rate(verify, len(vouchers)),
            "signed_messages": _rate(read, len(vouchers)),
            "ledger": _rate(lambda run: _post(store, runs[run]), len(vouchers)),
        }


def _rate(work: Callable[[int], None], count: int) -> float:
    """Return the median count per CPU second of several runs."""
    rates = []
    for run in range(REPEATS):
        before_s = process_time()
        work(run)
        rates.append(count / (process_time() - before_s))
    return median(rates)


def _post(store: SqliteStore, batches: list[Batch]) -> None:
    """Post checked vouchers: one durable transaction for each request."""
    for post, vouchers in batches:
        submitter = Machine(post.node.peer_id, "owner", "host", 1)
        with store.writing() as writing:
            results = post_vouchers(writing, submitter, vouchers, now_ns=system_clock())
        assert all(each.outcome is VoucherOutcome.POSTED for each in results)


def _checked(post: Post) -> list[Signed[Voucher]]:
    items: list[str] = json.loads(post.body)["items"]
    return [unseal(VOUCHER, base64.b64decode(item), network_id=NETWORK) for item in items]


def _signed(voucher: Signed[Voucher]) -> tuple[bytes, bytes, bytes]:
    """Return the key, what is signed, and the signature: the last 64 bytes of the envelope."""
    payload = encode_value(voucher.value, VOUCHER.message_type)
    message = signed_bytes(VOUCHER.domain, VOUCHER.payload_type, payload)
    return voucher.signer, message, voucher.envelope[-64:]
