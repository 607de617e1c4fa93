"""Settlement for simulations: its real core and its store in memory, behind what a node speaks.

The shell that it lacks is the product's FastAPI service, which lives on asyncio and threads. Here
every call is one transaction, with the faults that a seed asks for: away, slow, an answer lost
after the work was done, a restore of an old backup.
"""

import base64
import email.utils
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

import httpx
import trio

from p2p import limits
from p2p.receipts.messages import KEY_LIST, REQUEST_PROOF, KeyList, RequestProof
from p2p.signing import SecretKey, Signed, seal, unseal
from p2p.types import AllowanceId, NetworkId, PeerId, PublicKey, sha256
from settlement.issuer import Issuer, proof_nonce
from settlement.ledger import AllowanceState, Order
from settlement.operations import (
    AllowanceRefusal,
    Credit,
    CreditOutcome,
    add_credit,
    place_order,
    post_closes,
    post_vouchers,
)
from settlement.queries import check_ledger
from settlement.receipt_operations import submit_receipts
from settlement.store import Account, Machine
from settlement.store_memory import MemoryStore, MemoryWriting
from settlement.submissions import ReceiptTexts, read_closes, read_receipts, read_vouchers

NETWORK_ID = NetworkId("test")
URL = "http://settlement"
FEE_BPS = 500
CREDIT_MICROS = 1_000_000_000
_REFUSALS = {
    AllowanceRefusal.NO_CREDIT: (402, "no_credit"),
    AllowanceRefusal.CONFLICT: (409, "conflict"),
    AllowanceRefusal.ENDED: (409, "ended"),
    AllowanceRefusal.HOST_NOT_ENROLLED: (404, "host_not_enrolled"),
}
Json = dict[str, object]


class Said(NamedTuple):
    """One thing that changed, or could have changed, the books."""

    kind: str
    who: Machine | None
    what: object
    now_ns: int


@dataclass
class SimSettlement(httpx.AsyncBaseTransport):
    """Both the service and its weather.

    Attributes:
        changed: Called after each transaction.
        delay_s: How long a call takes at most; each draws its own.
        is_away: Nobody answers.
        loses_answers_ratio: How often the answer is lost although the work was done.
        restores_count: How often an old backup was restored.
        lost_micros: What the restores took back from each host, at most.
    """

    clock: Callable[[], int]
    rng: Random
    changed: Callable[[str], None] = lambda name: None
    delay_s: float = 0.02
    is_away: bool = False
    loses_answers_ratio: float = 0.0
    restores_count: int = 0
    lost_micros: dict[PeerId, int] = field(default_factory=dict)
    store: MemoryStore = field(default_factory=MemoryStore)
    said: list[Said] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.root = SecretKey(sha256(b"root"))
        self.key = SecretKey(sha256(b"settlement"))
        keys = KeyList(
            network_id=NETWORK_ID,
            sequence=1,
            issued_at_ns=self.clock(),
            expires_at_ns=self.clock() + limits.DAY_NS,
            keys=(self.key.public,),
        )
        key_list = seal(self.root, KEY_LIST, keys)
        self.issuer = Issuer(NETWORK_ID, self.key, sha256(b"secret"), key_list, FEE_BPS)
        self.machines: list[Machine] = []
        self._backup = (self.store._tables.copied(), 0)

    # -- the operator ----------------------------------------------------------------------------

    def enrol(self, name: str, peer_id: PeerId, role: str, micros: int = 0) -> None:
        """Let a node have an account of its own, with credit if it is a client."""
        now_ns = self.clock()
        machine = Machine(peer_id, name, role, now_ns)
        self.machines.append(machine)
        with self.store.writing() as writing:
            writing.put_account(Account(name, name, now_ns))
            writing.put_machine(machine)
        if micros:
            credit = Credit(name, micros, f"first {name}")
            self._note("credit", None, credit, lambda w, n: add_credit(w, credit, now_ns=n))

    def back_up(self) -> None:
        """Keep a copy of the books as they stand."""
        self._backup = (self.store._tables.copied(), len(self.said))

    def restore(self) -> None:
        """Go back to the copy: what was said since is forgotten."""
        before = self.posted_by_host()
        tables, count = self._backup
        self.store._tables = tables.copied()
        del self.said[count:]
        self.restores_count += 1
        after = self.posted_by_host()
        for host, micros in before.items():
            fallen = micros - after.get(host, 0)
            self.lost_micros[host] = self.lost_micros.get(host, 0) + fallen
        self.changed("restore")

    # -- the books -------------------------------------------------------------------------------

    def allowances(self) -> list[AllowanceState]:
        """Return how all allowances stand."""
        with self.store.reading() as reading:
            return list(reading.all_allowances())

    def posted_by_host(self) -> dict[PeerId, int]:
        """Return what was posted for each host, the fee included."""
        posted: dict[PeerId, int] = {}
        for state in self.allowances():
            posted[state.host_peer_id] = posted.get(state.host_peer_id, 0) + state.posted_micros
        return posted

    def replayed(self, said: Sequence[Said]) -> tuple[dict[str, int], list[AllowanceState]]:
        """Say something to a settlement that knows nothing; return its balances and allowances."""
        fresh = MemoryStore()
        with fresh.writing() as writing:
            for machine in self.machines:
                writing.put_account(Account(machine.account_id, machine.account_id, 0))
                writing.put_machine(machine)
            for each in said:
                self._apply(writing, each)
        with fresh.reading() as reading:
            assert check_ledger(reading).is_ok
            states = sorted(reading.all_allowances(), key=lambda state: state.allowance_id)
            return reading.all_balances(), states

    def _apply(self, writing: MemoryWriting, said: Said) -> None:
        match said.kind:
            case "credit":
                add_credit(writing, said.what, now_ns=said.now_ns)
            case "order":
                place_order(writing, self.issuer, said.what, now_ns=said.now_ns)
            case "voucher":
                post_vouchers(writing, said.who, [said.what], now_ns=said.now_ns)
            case "close":
                post_closes(writing, said.who, [said.what], now_ns=said.now_ns)

    # -- HTTP ------------------------------------------------------------------------------------

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answer as the service would, unless the weather is against it."""
        await trio.sleep(self.rng.random() * self.delay_s)
        if self.is_away:
            raise httpx.ConnectError("settlement is away", request=request)
        body = await request.aread()
        status, answer = self._answer(request, body)
        is_lost = self.rng.random() < self.loses_answers_ratio
        await trio.sleep(self.rng.random() * self.delay_s)
        if is_lost or self.is_away:
            raise httpx.ReadError("the answer was lost", request=request)
        date = email.utils.formatdate(self.clock() / limits.SECOND_NS, usegmt=True)
        content = httpx.ByteStream(json.dumps(answer).encode())
        return httpx.Response(status, stream=content, headers={"date": date}, request=request)

    def _answer(self, request: httpx.Request, body: bytes) -> tuple[int, Json]:
        path = request.url.path
        if path == "/v1/network":
            key_list = base64.b64encode(self.issuer.key_list).decode()
            return 200, {"network_id": NETWORK_ID, "key_list": key_list, "fee_bps": FEE_BPS}
        proof = self._proof(request, body)
        with self.store.reading() as reading:
            machine = reading.machine(proof.signer_id)
        if machine is None:
            return 401, _error("not_enrolled")
        if not self._use_nonce(proof):
            return 401, _error("replayed")
        fields = json.loads(body or b"{}")
        answers = {
            "/v1/allowances": self._allowance,
            "/v1/vouchers": self._vouchers,
            "/v1/closes": self._closes,
            "/v1/receipts": self._receipts,
            "/v1/quotes": self._quotes,
            "/v1/hosts/hardware": self._hardware,
        }
        return answers[path](machine, fields)

    def _proof(self, request: httpx.Request, body: bytes) -> Signed[RequestProof]:
        envelope = base64.b64decode(request.headers["authorization"].removeprefix("Sparewatt "))
        proof = unseal(REQUEST_PROOF, envelope, network_id=NETWORK_ID)
        told = (proof.value.method, proof.value.path, proof.value.body_sha256)
        assert told == (request.method, request.url.path, sha256(body))
        assert abs(proof.value.issued_at_ns - self.clock()) < limits.CLOCK_SKEW_NS_MAX
        return proof

    def _use_nonce(self, proof: Signed[RequestProof]) -> bool:
        nonce = proof_nonce(proof.signer_id, proof.value.nonce)
        return self.store._tables.nonces.setdefault(nonce, id(proof)) == id(proof)

    def _allowance(self, machine: Machine, fields: Json) -> tuple[int, Json]:
        asked = Order(
            AllowanceId(bytes.fromhex(fields["allowance_id"])),
            machine.account_id,
            PeerId(fields["host_peer_id"]),
            PublicKey(bytes.fromhex(fields["wallet_key"])),
            fields["max_micros"],
            fields["duration_s"] * limits.SECOND_NS,
        )
        got = self._note(
            "order", machine, asked, lambda w, n: place_order(w, self.issuer, asked, now_ns=n)
        )
        if isinstance(got, AllowanceRefusal):
            status, code = _REFUSALS[got]
            return status, _error(code)
        return 200, {"allowance": base64.b64encode(got).decode()}

    def _vouchers(self, machine: Machine, fields: Json) -> tuple[int, Json]:
        results = []
        for item in read_vouchers(NETWORK_ID, fields["items"]):
            (result,) = self._note(
                "voucher",
                machine,
                item,
                lambda w, n, item=item: post_vouchers(w, machine, [item], now_ns=n),
            )
            results.append(
                {
                    "allowance_id": result.allowance_id,
                    "outcome": result.outcome.value,
                    "posted_micros": result.posted_micros,
                    "cum_micros": result.cum_micros,
                    "reason": result.reason,
                }
            )
        return 200, {"results": results}

    def _closes(self, machine: Machine, fields: Json) -> tuple[int, Json]:
        results = []
        for item in read_closes(NETWORK_ID, fields["items"]):
            (result,) = self._note(
                "close",
                machine,
                item,
                lambda w, n, item=item: post_closes(w, machine, [item], now_ns=n),
            )
            results.append(
                {
                    "allowance_id": result.allowance_id,
                    "outcome": result.outcome.value,
                    "voided_micros": result.voided_micros,
                    "reason": result.reason,
                }
            )
        return 200, {"results": results}

    def _hardware(self, machine: Machine, fields: Json) -> tuple[int, Json]:
        return 403, _error("wrong_role")  # these machines are invented; nobody believes them

    def _quotes(self, machine: Machine, fields: Json) -> tuple[int, Json]:
        return 200, {"results": [{"outcome": "kept", "reason": ""} for _ in fields["items"]]}

    def _receipts(self, machine: Machine, fields: Json) -> tuple[int, Json]:
        texts = [
            ReceiptTexts(tuple(each["receipts"]), each["batch"], each["cosignature"])
            for each in fields["items"]
        ]
        items = read_receipts(NETWORK_ID, texts)
        with self.store.writing() as writing:
            results = submit_receipts(writing, machine, items, now_ns=self.clock())
        return 200, {
            "results": [{"outcome": each.outcome.value, "reason": each.reason} for each in results]
        }

    def _note(
        self, kind: str, who: Machine | None, what: object, act: Callable[..., object]
    ) -> object:
        """Do one thing in a transaction, and remember that it was said."""
        now_ns = self.clock()
        with self.store.writing() as writing:
            result = act(writing, now_ns)
        assert result is not CreditOutcome.CONFLICT
        self.said.append(Said(kind, who, what, now_ns))
        self.changed(kind)
        return result


def _error(code: str) -> Json:
    return {"error": {"message": code.replace("_", " "), "code": code}}
