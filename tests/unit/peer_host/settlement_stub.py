"""A settlement for tests of the host: answers what a host asks, and keeps what it got."""

import base64
import email.utils
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx
import trio

from p2p import limits
from p2p.receipts.messages import CLOSE, KEY_LIST, VOUCHER, KeyList, Voucher
from p2p.signing import SecretKey, Signed, seal, unseal
from p2p.types import NetworkId, PublicKey

NETWORK_ID = NetworkId("test")


def key(name: str) -> SecretKey:
    return SecretKey(hashlib.sha256(name.encode()).digest())


ROOT, SETTLEMENT, WALLET, GATEWAY = key("root"), key("settlement"), key("wallet"), key("gateway")


_CODE_USED = json.dumps(
    {
        "error": {
            "message": "Another node used this enrolment code; make a new one.",
            "code": "code_used",
        }
    }
).encode()


@dataclass
class FakeSettlement(httpx.AsyncBaseTransport):
    """Answers what a host asks; keeps what it got.

    Attributes:
        delay_s: Before each answer.
        refuses_vouchers: Every voucher is refused for good.
        refuses_codes: Every one-time code was used by another node.
    """

    clock: Callable[[], int]
    offset_ns: int = 0
    is_up: bool = True
    vouchers: list[Signed[Voucher]] = field(default_factory=list)
    items: list[dict[str, object]] = field(default_factory=list)
    closes: list[bytes] = field(default_factory=list)
    quotes: list[str] = field(default_factory=list)
    index: list[dict[str, object]] = field(default_factory=list)
    keys: tuple[PublicKey, ...] = (SETTLEMENT.public,)
    enrolments: int = 0
    reports: list[dict[str, object]] = field(default_factory=list)
    calls: int = 0
    delay_s: float = 0.0
    refuses_vouchers: bool = False
    refuses_codes: bool = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await trio.lowlevel.checkpoint()
        self.calls += 1
        await trio.sleep(self.delay_s)
        if not self.is_up:
            raise httpx.ConnectError("down", request=request)
        if self.refuses_codes and request.url.path == "/v1/enrolments":
            return httpx.Response(409, stream=httpx.ByteStream(_CODE_USED), request=request)
        content = json.loads(await request.aread() or b"{}")
        answer = getattr(self, "_" + request.url.path.rpartition("/")[2])(content)
        now_s = (self.clock() + self.offset_ns) / limits.SECOND_NS
        date = email.utils.formatdate(now_s, usegmt=True)
        stream = httpx.ByteStream(json.dumps(answer).encode())
        return httpx.Response(200, stream=stream, headers={"date": date}, request=request)

    def _network(self, content: dict[str, object]) -> dict[str, object]:
        now_ns = self.clock()
        keys = KeyList(
            network_id=NETWORK_ID,
            sequence=1,
            issued_at_ns=now_ns,
            expires_at_ns=now_ns + limits.DAY_NS,
            keys=self.keys,
        )
        envelope = base64.b64encode(seal(ROOT, KEY_LIST, keys)).decode()
        return {"network_id": NETWORK_ID, "key_list": envelope, "fee_bps": 500}

    def _quotes(self, content: dict[str, list[str]]) -> dict[str, object]:
        self.quotes += content["items"]
        return {"results": [{"outcome": "kept", "reason": ""} for _ in content["items"]]}

    def _index(self, content: dict[str, object]) -> dict[str, object]:
        return {"models": self.index}

    def _enrolments(self, content: dict[str, object]) -> dict[str, object]:
        self.enrolments += 1
        return {"account_id": "acc1", "role": "host", "owner_tag": None}

    def _hardware(self, content: dict[str, object]) -> dict[str, object]:
        self.reports.append(content)
        return {"level": "self-reported", "renew_within_s": 300}

    def _vouchers(self, content: dict[str, list[str]]) -> dict[str, object]:
        results = []
        for item in content["items"]:
            voucher = unseal(VOUCHER, base64.b64decode(item), network_id=NETWORK_ID)
            self.vouchers.append(voucher)
            results.append(
                {
                    "allowance_id": voucher.value.allowance_id.hex(),
                    "outcome": "refused" if self.refuses_vouchers else "posted",
                    "posted_micros": 0 if self.refuses_vouchers else voucher.value.cum_micros,
                    "cum_micros": 0 if self.refuses_vouchers else voucher.value.cum_micros,
                    "reason": "",
                }
            )
        return {"results": results}

    def _receipts(self, content: dict[str, list[dict[str, object]]]) -> dict[str, object]:
        self.items += content["items"]
        return {"results": [{"outcome": "stored", "reason": ""} for _ in content["items"]]}

    def _closes(self, content: dict[str, list[str]]) -> dict[str, object]:
        results = []
        for item in content["items"]:
            close = unseal(CLOSE, base64.b64decode(item), network_id=NETWORK_ID)
            self.closes.append(base64.b64decode(item))
            allowance_id = close.value.allowance_id.hex()
            results.append(
                {
                    "allowance_id": allowance_id,
                    "outcome": "closed",
                    "voided_micros": 0,
                    "reason": "",
                }
            )
        return {"results": results}
