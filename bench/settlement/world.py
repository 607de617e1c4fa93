"""A network's money for the benchmark: accounts, nodes, allowances, and what nodes submit.

Everything is made by the product's own code and signed with real keys. Hosts submit as
``peer.host.settle`` does: the newest voucher of each of many allowances in one request, and
receipt batches with the gateway's cosignature; gateways submit the same receipt batches.
"""

import base64
import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from random import Random

from p2p import limits
from p2p.clock import system_clock
from p2p.receipts.chain import ReceiptChain, encode_receipt
from p2p.receipts.messages import (
    COSIGNATURE,
    RECEIPT_BATCH,
    VOUCHER,
    Cosignature,
    Receipt,
    Voucher,
)
from p2p.signing import SecretKey, seal
from p2p.types import (
    GENESIS_HEAD,
    AllowanceId,
    FinishReason,
    NetworkId,
    QuoteId,
    RequestId,
    sha256,
)
from settlement.issuer import Issuer
from settlement.keys import DATABASE_NAME, init_network
from settlement.ledger import Order
from settlement.operations import Credit, CreditOutcome, add_credit, place_order
from settlement.store import Account, Machine, Writing
from settlement.store_sqlite import SqliteStore

NETWORK = NetworkId("bench")
FEE_BPS = 500
CREDIT_MICROS = 10**12
ALLOWANCE_MICROS = 10**8
VOUCHER_MICROS_MAX = 500


@dataclass(frozen=True, slots=True)
class Shape:
    """How large the world is."""

    hosts: int = 20
    gateways: int = 20
    allowances_per_host: int = 1000


@dataclass(slots=True)
class Reserve:
    """An allowance as its host and gateway know it.

    Attributes:
        gateway: Signs its vouchers too: here a gateway's node key is its wallet key.
    """

    allowance_id: AllowanceId
    host: SecretKey
    gateway: SecretKey
    chain: ReceiptChain
    sequence: int = 0
    cum_micros: int = 0


@dataclass(frozen=True, slots=True)
class Post:
    """A request that a node is about to sign and send.

    Attributes:
        count: How many vouchers or receipts are in it.
    """

    path: str
    node: SecretKey
    body: bytes
    count: int


@dataclass
class World:
    """All that exists before the load begins."""

    data_dir: Path
    reserves: list[list[Reserve]]
    rng: Random

    def voucher_posts(self, requests: int, per_request: int) -> list[Post]:
        """Return requests of fresh vouchers, from one host after the other."""
        rings = [cycle(each) for each in self.reserves]
        posts = []
        for ring in islice(cycle(rings), requests):
            vouchers = [self.next_voucher(reserve) for reserve in islice(ring, per_request)]
            host = next(ring).host
            posts.append(Post("/v1/vouchers", host, _items(map(_text, vouchers)), per_request))
        return posts

    def next_voucher(self, reserve: Reserve) -> bytes:
        """Return the next voucher of an allowance."""
        reserve.sequence += 1
        reserve.cum_micros += self.rng.randint(1, VOUCHER_MICROS_MAX)
        value = Voucher(
            network_id=NETWORK,
            allowance_id=reserve.allowance_id,
            host_peer_id=reserve.host.peer_id,
            sequence=reserve.sequence,
            cum_micros=reserve.cum_micros,
            chain_head=reserve.chain.head,
        )
        return seal(reserve.gateway, VOUCHER, value)

    def receipt_posts(
        self, requests: int, batches_per_request: int, receipts_per_batch: int
    ) -> list[Post]:
        """Return submissions of receipts: each first by its host, then by its gateway.

        ``count`` is that of the receipts for the gateway's half and 0 for the host's, so that a
        receipt counts once both sides have submitted it.
        """
        posts = []
        pairs = [
            [each for each in reserves if each.gateway is reserves[number % len(reserves)].gateway]
            for number, reserves in enumerate(self.reserves)
        ]
        for reserves in islice(cycle(pairs), requests):
            batches = islice(cycle(reserves), batches_per_request)
            items = [self._receipt_item(each, receipts_per_batch) for each in batches]
            body = _items(items)
            count = batches_per_request * receipts_per_batch
            posts.append(Post("/v1/receipts", reserves[0].host, body, 0))
            posts.append(Post("/v1/receipts", reserves[0].gateway, body, count))
        return posts

    def _receipt_item(self, reserve: Reserve, receipts: int) -> dict[str, object]:
        encodings = [self._next_receipt(reserve) for _ in range(receipts)]
        batch = reserve.chain.take_batch(signed_at_ns=system_clock())
        assert batch is not None
        envelope = seal(reserve.host, RECEIPT_BATCH, batch)
        agreed = Cosignature(
            network_id=NETWORK,
            host_peer_id=reserve.host.peer_id,
            batch_digest=sha256(envelope),
        )
        cosignature = seal(reserve.gateway, COSIGNATURE, agreed)
        return {
            "receipts": list(map(_text, encodings)),
            "batch": _text(envelope),
            "cosignature": _text(cosignature),
        }

    def _next_receipt(self, reserve: Reserve) -> bytes:
        rng, now_ns = self.rng, system_clock()
        value = Receipt(
            network_id=NETWORK,
            host_peer_id=reserve.host.peer_id,
            allowance_id=reserve.allowance_id,
            request_id=RequestId(rng.randbytes(16)),
            quote_id=QuoteId(rng.randbytes(16)),
            manifest_digest=sha256(b"manifest"),
            prompt_tokens=rng.randint(1, 2000),
            cached_tokens=0,
            completion_tokens=rng.randint(1, 500),
            cost_micros=rng.randint(1, VOUCHER_MICROS_MAX),
            finish_reason=FinishReason.STOP,
            received_at_ns=now_ns - 2 * limits.SECOND_NS,
            started_at_ns=now_ns - limits.SECOND_NS,
            finished_at_ns=now_ns,
            request_hash=sha256(rng.randbytes(16)),
            answer_hash=sha256(rng.randbytes(16)),
            previous_hash=reserve.chain.head,
        )
        encoding = encode_receipt(value)
        reserve.chain.append(encoding)
        return encoding


def make_world(data_dir: Path, shape: Shape) -> World:
    """Make a network's data directory with accounts, nodes, credit and signed allowances."""
    data_dir.mkdir(mode=0o700)
    issuer = init_network(data_dir, NETWORK).issuer(FEE_BPS)
    rng = Random(1)
    gateways = [_key("gateway", number) for number in range(shape.gateways)]
    with (
        contextlib.closing(SqliteStore(data_dir / DATABASE_NAME)) as store,
        store.writing() as writing,
    ):
        for number, gateway in enumerate(gateways):
            _add_node(writing, f"client{number}", gateway, "gateway")
            credit = Credit(f"client{number}", CREDIT_MICROS, f"first{number}")
            assert add_credit(writing, credit, now_ns=system_clock()) is CreditOutcome.CREDITED
        hosts = [_key("host", number) for number in range(shape.hosts)]
        for number, host in enumerate(hosts):
            _add_node(writing, f"owner{number}", host, "host")
        reserves: list[list[Reserve]] = [[] for _ in hosts]
        # As in a real network: what one host has was issued among what all others have.
        for number in range(shape.allowances_per_host):
            payer = number % shape.gateways
            for host, own in zip(hosts, reserves, strict=True):
                own.append(_reserve(writing, issuer, rng, host, (payer, gateways[payer])))
    return World(data_dir, reserves, rng)


def _reserve(
    store: Writing, issuer: Issuer, rng: Random, host: SecretKey, payer: tuple[int, SecretKey]
) -> Reserve:
    number, gateway = payer
    allowance_id = AllowanceId(rng.randbytes(16))
    order = Order(
        allowance_id,
        f"client{number}",
        host.peer_id,
        gateway.public,
        ALLOWANCE_MICROS,
        limits.HOUR_NS,
    )
    assert isinstance(place_order(store, issuer, order, now_ns=system_clock()), bytes)
    chain = ReceiptChain(allowance_id, host.peer_id, NETWORK, head=GENESIS_HEAD)
    return Reserve(allowance_id, host, gateway, chain)


def _add_node(store: Writing, account_id: str, node: SecretKey, role: str) -> None:
    now_ns = system_clock()
    store.put_account(Account(account_id, account_id, now_ns))
    store.put_machine(Machine(node.peer_id, account_id, role, now_ns))


def _key(role: str, number: int) -> SecretKey:
    return SecretKey(hashlib.sha256(f"sparewatt bench {role} {number}".encode()).digest())


def _items(items: Iterator[object] | Sequence[object]) -> bytes:
    return json.dumps({"items": list(items)}, separators=(",", ":")).encode()


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
