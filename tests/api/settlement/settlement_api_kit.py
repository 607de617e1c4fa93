"""A real settlement over HTTP with an account on each side, for the API tests."""

import base64
import json
import secrets
from dataclasses import dataclass, field

import httpx

from p2p import limits
from p2p.receipts.messages import (
    CLOSE,
    ENROLMENT,
    REQUEST_PROOF,
    VOUCHER,
    Close,
    Enrolment,
    RequestProof,
    Voucher,
)
from p2p.signing import SecretKey, seal
from p2p.types import GENESIS_HEAD, AllowanceId, NetworkId, sha256
from settlement.testing import RunningSettlement

NETWORK = NetworkId("test")
START_NS = 1_800_000_000 * limits.SECOND_NS


@dataclass
class SetClock:
    """A wall clock that stands until it is set."""

    now_ns: int = START_NS

    def __call__(self) -> int:
        return self.now_ns


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def new_key() -> SecretKey:
    return SecretKey(secrets.token_bytes(32))


@dataclass
class Party:
    """An account with one node."""

    account_id: str
    token: str
    node: SecretKey


@dataclass
class World:
    """Alice pays with a gateway, Bob earns with a host."""

    settlement: RunningSettlement
    clock: SetClock
    http: httpx.Client
    alice: Party = field(init=False)
    bob: Party = field(init=False)
    wallet: SecretKey = field(default_factory=new_key)

    def __post_init__(self) -> None:
        self.alice = self.party("gateway", micros=100_000)
        self.bob = self.party("host")

    def party(self, role: str, *, micros: int = 0) -> Party:
        account_id, token = self.settlement.add_account("somebody", micros=micros)
        party = Party(account_id, token, new_key())
        code = self.settlement.code(account_id, role)
        assert self.enrol(party.node, code, role).status_code == 200
        return party

    # -- requests -------------------------------------------------------------------------------

    def bearer(self, token: str, method: str, path: str, **options: object) -> httpx.Response:
        headers = {"authorization": f"Bearer {token}"}
        return self.http.request(method, path, headers=headers, **options)

    def proof(
        self,
        node: SecretKey,
        method: str,
        path: str,
        body: bytes,
        *,
        nonce: bytes | None = None,
        at_ns: int | None = None,
        network_id: NetworkId = NETWORK,
    ) -> str:
        value = RequestProof(
            network_id=network_id,
            method=method,
            path=path,
            body_sha256=sha256(body),
            issued_at_ns=self.clock.now_ns if at_ns is None else at_ns,
            nonce=nonce or secrets.token_bytes(16),
        )
        return f"Sparewatt {text(seal(node, REQUEST_PROOF, value))}"

    def signed(
        self, node: SecretKey, method: str, path: str, body: object = None
    ) -> httpx.Response:
        content = b"" if body is None else json.dumps(body).encode()
        headers = {
            "authorization": self.proof(node, method, path, content),
            "content-type": "application/json",
        }
        return self.http.request(method, path, content=content, headers=headers)

    def enrol(
        self, node: SecretKey, code: str, role: str, *, at_ns: int | None = None
    ) -> httpx.Response:
        value = Enrolment(
            network_id=NETWORK,
            account_id=code.split("-")[1],
            code=code,
            role=role,
            issued_at_ns=self.clock.now_ns if at_ns is None else at_ns,
        )
        body = {"enrolment": text(seal(node, ENROLMENT, value))}
        return self.http.post("/v1/enrolments", json=body)

    # -- money ----------------------------------------------------------------------------------

    def order(self, allowance: bytes, **overrides: object) -> dict[str, object]:
        return {
            "allowance_id": allowance.hex(),
            "host_peer_id": self.bob.node.peer_id,
            "wallet_key": self.wallet.public.hex(),
            "max_micros": 20_000,
            "duration_s": 3600,
            **overrides,
        }

    def allowance(self, max_micros: int = 20_000) -> AllowanceId:
        allowance_id = AllowanceId(secrets.token_bytes(16))
        body = self.order(allowance_id, max_micros=max_micros)
        answer = self.signed(self.alice.node, "POST", "/v1/allowances", body)
        assert answer.status_code == 200, answer.text
        return allowance_id

    def voucher(self, allowance_id: AllowanceId, sequence: int, cum_micros: int) -> str:
        value = Voucher(
            network_id=NETWORK,
            allowance_id=allowance_id,
            host_peer_id=self.bob.node.peer_id,
            sequence=sequence,
            cum_micros=cum_micros,
            chain_head=GENESIS_HEAD,
        )
        return text(seal(self.wallet, VOUCHER, value))

    def close(self, allowance_id: AllowanceId, final_cum_micros: int) -> str:
        value = Close(
            network_id=NETWORK,
            allowance_id=allowance_id,
            host_peer_id=self.bob.node.peer_id,
            final_cum_micros=final_cum_micros,
        )
        return text(seal(self.bob.node, CLOSE, value))

    def post_vouchers(self, *vouchers: str, node: SecretKey | None = None) -> list[dict]:
        body = {"items": list(vouchers)}
        answer = self.signed(node or self.bob.node, "POST", "/v1/vouchers", body)
        assert answer.status_code == 200, answer.text
        return answer.json()["results"]

    def account(self, party: Party) -> dict:
        answer = self.bearer(party.token, "GET", "/v1/account")
        assert answer.status_code == 200
        return answer.json()

    def require_right_books(self) -> dict:
        check = self.http.get("/v1/ledger/check").json()
        assert check["ok"], check
        assert check["sum_micros"] == 0
        assert sum(check["accounts"].values()) == 0
        return check


def require_problem(answer: httpx.Response, status: int, code: str) -> dict:
    """Fail unless an answer is an error in the one shape; return its body."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "code", "param"}
    assert body["error"]["code"] == code
    assert body["error"]["message"]
    assert "date" in answer.headers
    return body["error"]
