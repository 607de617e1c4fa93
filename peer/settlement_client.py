"""How a host or a gateway speaks to settlement: HTTP, each request signed by the node key.

Every answer is checked: allowances against the signing keys that the network's root key vouches
for, everything else for its shape. Every operation may be repeated; settlement gives the same
answer.
"""

import email.utils
import re
import secrets
from collections.abc import Sequence
from types import TracebackType
from typing import Self, TypeVar

import httpx
import msgspec

from p2p import limits
from p2p.clock import WallClock
from p2p.errors import RemoteProtocolError
from p2p.hardware.report import HardwareReport
from p2p.hardware.verdict import Speeds
from p2p.receipts.messages import (
    ALLOWANCE,
    ENROLMENT,
    KEY_LIST,
    REQUEST_PROOF,
    Allowance,
    Enrolment,
    RequestProof,
)
from p2p.signing import SecretKey, Signed, seal, unseal
from p2p.types import ID_BYTES, AllowanceId, NetworkId, PeerId, PublicKey, sha256
from peer.settlement_bodies import (
    Body,
    as_many,
    from_text,
    in_parts,
    read_body,
    receipt_bytes,
    receipt_item,
    to_text,
)
from peer.settlement_replies import (
    AllowanceReply,
    ChallengeEnded,
    ChallengeIssued,
    CloseOutcome,
    CloseReply,
    CloseResult,
    CommitmentTaken,
    Earnings,
    Enrolled,
    EnrolmentReply,
    ErrorBody,
    ErrorReply,
    HardwareKnown,
    IndexItem,
    IndexReply,
    NetworkReply,
    NetworkStatus,
    QuoteKept,
    QuotesReply,
    ReceiptItem,
    ReceiptOutcome,
    ReceiptReply,
    ReceiptResult,
    ReportTaken,
    SettlementError,
    SettlementRefusedError,
    SettlementUnreachableError,
    VoucherOutcome,
    VoucherReply,
    VoucherResult,
)

__all__ = [
    "ChallengeEnded",
    "ChallengeIssued",
    "CloseOutcome",
    "CloseResult",
    "CommitmentTaken",
    "Earnings",
    "Enrolled",
    "HardwareKnown",
    "NetworkStatus",
    "ReceiptItem",
    "ReceiptOutcome",
    "ReceiptResult",
    "ReportTaken",
    "SettlementClient",
    "SettlementError",
    "SettlementRefusedError",
    "SettlementUnreachableError",
    "VoucherOutcome",
    "VoucherResult",
    "account_of_code",
]

VOUCHERS_PER_REQUEST_MAX = 1000
RECEIPT_BATCHES_PER_REQUEST_MAX = 100
TIMEOUT_S = 10.0
_DATE_HALF_STEP_NS = limits.SECOND_NS // 2  # a Date header is cut to whole seconds
_CHALLENGES = "/v1/hosts/challenges"
_CHALLENGE_ID = re.compile("[0-9a-f]{32}")
_SEED = re.compile("[0-9a-f]{64}")
_LOOPBACK_HOSTS = frozenset({"127.0.0.1", "::1", "localhost"})

ReplyT = TypeVar("ReplyT")


class SettlementClient:
    """Settlement as a node sees it. Use as ``async with SettlementClient(...) as client``.

    Every method raises ``SettlementUnreachableError`` when no usable answer came within 10 s,
    and ``SettlementRefusedError`` when settlement said no. Cancellation: safe, as every operation
    may be repeated.
    """

    def __init__(
        self,
        url: str,
        key: SecretKey,
        network_id: NetworkId,
        clock: WallClock,
        *,
        root_key: PublicKey,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Make a client; nothing is sent yet.

        Args:
            url: As in the network file, without a slash at the end.
            key: The node key that signs the requests.
            network_id: The network.
            clock: Wall clock in ns.
            root_key: The network's root key.
            transport: Instead of TCP, for tests.
        """
        self._key = key
        self._network_id = network_id
        self._clock = clock
        self._root_key = root_key
        self._keys: frozenset[PublicKey] = frozenset()
        self._keys_sequence = 0
        self._clock_offset_ns: int | None = None
        parsed = httpx.URL(url)
        self._http = httpx.AsyncClient(
            base_url=url,
            timeout=TIMEOUT_S,
            transport=transport,
            # A proxy of the environment must not come between two processes of one machine.
            trust_env=parsed.host not in _LOOPBACK_HOSTS,
        )

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self._http.__aexit__(exc_type, exc_value, traceback)

    @property
    def clock_offset_ns(self) -> int | None:
        """Settlement's clock minus ours as of the last answer; None before the first."""
        return self._clock_offset_ns

    async def network(self) -> NetworkStatus:
        """Ask for the network's signing keys, fee and time; needs no enrolment."""
        reply = await self._call("GET", "/v1/network", None, NetworkReply, signed=False)
        self._take_keys(reply.key_list)
        if self._clock_offset_ns is None:
            raise SettlementUnreachableError("settlement's answer has no Date header")
        return NetworkStatus(self._network_id, self._keys, reply.fee_bps, self._clock_offset_ns)

    async def signing_keys(self) -> frozenset[PublicKey]:
        """Return the keys that may sign allowances; asks settlement only the first time."""
        if not self._keys:
            await self.network()
        return self._keys

    async def enrol(self, code: str, role: str) -> Enrolled:
        """Join the account that made a one-time code, as ``host`` or ``gateway``.

        Raises:
            SettlementRefusedError: If the code is unknown, used by another key, expired or of
                another role, or the key belongs to another account.
        """
        enrolment = Enrolment(
            network_id=self._network_id,
            account_id=account_of_code(code),
            code=code,
            role=role,
            issued_at_ns=self._clock(),
        )
        body = {"enrolment": to_text(seal(self._key, ENROLMENT, enrolment))}
        reply = await self._call("POST", "/v1/enrolments", body, EnrolmentReply, signed=False)
        return Enrolled(reply.account_id, reply.role, from_text(reply.owner_tag or ""))

    async def allowance(
        self,
        *,
        allowance_id: AllowanceId,
        host_peer_id: PeerId,
        wallet_key: PublicKey,
        max_micros: int,
        duration_s: int,
    ) -> Signed[Allowance]:
        """Reserve credit for one host; the same id with more raises or prolongs it.

        Args:
            allowance_id: Made and stored by the caller before it asks.
            host_peer_id: Must be enrolled.
            wallet_key: The only key whose vouchers will count.
            max_micros: At least 1.
            duration_s: 1 to 86,400.

        Raises:
            SettlementRefusedError: 402 ``no_credit``; 404 ``host_not_enrolled``; 409 if the id
                stands for another host or key (``conflict``) or is closed or expired (``ended``).
        """
        body: dict[str, object] = {
            "allowance_id": allowance_id.hex(),
            "host_peer_id": host_peer_id,
            "wallet_key": wallet_key.hex(),
            "max_micros": max_micros,
            "duration_s": duration_s,
        }
        reply = await self._call("POST", "/v1/allowances", body, AllowanceReply)
        return await self._checked_allowance(from_text(reply.allowance), allowance_id)

    async def vouchers(self, envelopes: Sequence[bytes]) -> tuple[VoucherResult, ...]:
        """Submit vouchers, in any order, however often; one result each."""
        results: list[VoucherResult] = []
        for part in in_parts(envelopes, len, VOUCHERS_PER_REQUEST_MAX):
            body = {"items": [to_text(envelope) for envelope in part]}
            reply = await self._call("POST", "/v1/vouchers", body, VoucherReply)
            results += as_many(reply.results, part)
        return tuple(results)

    async def closes(self, envelopes: Sequence[bytes]) -> tuple[CloseResult, ...]:
        """Submit the host's closes; one result each."""
        results: list[CloseResult] = []
        for part in in_parts(envelopes, len, VOUCHERS_PER_REQUEST_MAX):
            body = {"items": [to_text(envelope) for envelope in part]}
            reply = await self._call("POST", "/v1/closes", body, CloseReply)
            results += as_many(reply.results, part)
        return tuple(results)

    async def receipts(self, items: Sequence[ReceiptItem]) -> tuple[ReceiptResult, ...]:
        """Submit batches of receipts; one result each."""
        results: list[ReceiptResult] = []
        for part in in_parts(items, receipt_bytes, RECEIPT_BATCHES_PER_REQUEST_MAX):
            body = {"items": [receipt_item(item) for item in part]}
            reply = await self._call("POST", "/v1/receipts", body, ReceiptReply)
            results += as_many(reply.results, part)
        return tuple(results)

    async def earnings(self) -> Earnings:
        """Ask what this host earned."""
        return await self._call("GET", "/v1/earnings", None, Earnings)

    async def quotes(self, envelopes: Sequence[bytes]) -> tuple[QuoteKept, ...]:
        """Show quotes that this host gave and that receipts name; one result each."""
        results: list[QuoteKept] = []
        for part in in_parts(envelopes, len, VOUCHERS_PER_REQUEST_MAX):
            body = {"items": [to_text(envelope) for envelope in part]}
            reply = await self._call("POST", "/v1/quotes", body, QuotesReply)
            results += as_many(reply.results, part)
        return tuple(results)

    async def price_index(self) -> tuple[IndexItem, ...]:
        """Ask what models cost lately; a model that is not told has no index."""
        reply = await self._call("GET", "/v1/prices/index", None, IndexReply)
        return tuple(reply.models)

    async def report_hardware(self, report: HardwareReport) -> ReportTaken:
        """Say what this host's machine is.

        Raises:
            SettlementRefusedError: 409 ``gpu_taken`` if a GPU of it is another live host's.
        """
        return await self._call("POST", "/v1/hosts/hardware", report, ReportTaken)

    async def issue_challenge(self, device: str, memory_bytes: int) -> ChallengeIssued:
        """Ask for a seed with which to fill memory.

        Args:
            device: A reported GPU's uuid, or ``cpu``.
            memory_bytes: All of the GPU's, or some of the processor's.

        Raises:
            SettlementRefusedError: 404 without a report; 400 for other memory; 429 too soon.
        """
        body = {"device": device, "memory_bytes": memory_bytes}
        issued = await self._call("POST", _CHALLENGES, body, ChallengeIssued)
        if not _CHALLENGE_ID.fullmatch(issued.challenge_id) or not _SEED.fullmatch(issued.seed):
            raise SettlementUnreachableError("settlement's challenge has a bad id or seed")
        if issued.memory_bytes != memory_bytes:
            raise SettlementUnreachableError("settlement's challenge is about other memory")
        return issued

    async def commit_challenge(self, challenge_id: str, roots: bytes) -> CommitmentTaken:
        """Commit to what the memory was filled with."""
        path = f"{_CHALLENGES}/{challenge_id}/commitment"
        return await self._call("POST", path, {"roots": to_text(roots)}, CommitmentTaken)

    async def answer_challenge(
        self, challenge_id: str, answer: bytes, speeds: Speeds
    ) -> ChallengeEnded:
        """Show what was asked for, and what was measured."""
        path = f"{_CHALLENGES}/{challenge_id}/answer"
        body = {
            "answer": to_text(answer),
            "copy_gb_per_s": speeds.copy_gb_per_s,
            "matmul_tflops": speeds.matmul_tflops,
        }
        return await self._call("POST", path, body, ChallengeEnded)

    async def hardware_of(self, peer_id: PeerId) -> HardwareKnown:
        """Ask what is known of a host's hardware."""
        return await self._call("GET", f"/v1/hosts/{peer_id}/hardware", None, HardwareKnown)

    async def _checked_allowance(
        self, envelope: bytes, allowance_id: AllowanceId
    ) -> Signed[Allowance]:
        try:
            allowance = unseal(ALLOWANCE, envelope, network_id=self._network_id)
        except RemoteProtocolError as error:
            raise SettlementUnreachableError(f"settlement's allowance is bad: {error}") from error
        if allowance.signer not in await self.signing_keys():
            await self.network()  # the keys may have been renewed since
        if allowance.signer not in self._keys or allowance.value.allowance_id != allowance_id:
            raise SettlementUnreachableError("settlement's allowance is not signed as it must be")
        return allowance

    def _take_keys(self, key_list: str) -> None:
        """Learn the signing keys, if the root key signed the list and it is not an older one."""
        try:
            keys = unseal(KEY_LIST, from_text(key_list), network_id=self._network_id)
        except RemoteProtocolError as error:
            raise SettlementUnreachableError(f"settlement's key list is bad: {error}") from error
        if keys.signer != self._root_key:
            raise SettlementUnreachableError(
                "settlement's key list is not signed by the root key in the network file"
            )
        if keys.value.sequence < self._keys_sequence:
            raise SettlementUnreachableError("settlement's key list is older than one seen before")
        self._keys_sequence = keys.value.sequence
        self._keys = frozenset(keys.value.keys)

    async def _call(
        self,
        method: str,
        path: str,
        body: object,
        reply_type: type[ReplyT],
        *,
        signed: bool = True,
    ) -> ReplyT:
        content = b"" if body is None else msgspec.json.encode(body)
        headers = {"accept-encoding": "identity"}  # nothing that grows when it is unpacked
        if content:
            headers["content-type"] = "application/json"
        request = self._http.build_request(method, path, content=content, headers=headers)
        request.stream = Body(content)
        if signed:
            request.headers["authorization"] = self._proof(request, content)
        sent_at_ns = self._clock()
        try:
            response = await self._http.send(request, stream=True)
            try:
                data = await read_body(response)
            finally:
                await response.aclose()
        except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL) as error:
            raise SettlementUnreachableError(
                f"settlement at {self._http.base_url} gave no answer: {error!r}"
            ) from error
        self._learn_clock(response, (sent_at_ns + self._clock()) // 2)
        if response.status_code != httpx.codes.OK:
            raise _refusal(response.status_code, data)
        try:
            return msgspec.json.decode(data, type=reply_type)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise SettlementUnreachableError(f"settlement's answer is bad: {error}") from error

    def _proof(self, request: httpx.Request, content: bytes) -> str:
        proof = RequestProof(
            network_id=self._network_id,
            method=request.method,
            path=request.url.raw_path.decode("ascii"),
            body_sha256=sha256(content),
            issued_at_ns=self._clock(),
            nonce=secrets.token_bytes(ID_BYTES),
        )
        return f"Sparewatt {to_text(seal(self._key, REQUEST_PROOF, proof))}"

    def _learn_clock(self, response: httpx.Response, now_ns: int) -> None:
        date = response.headers.get("date", "")
        try:
            said_s = int(email.utils.parsedate_to_datetime(date).timestamp())
        except ValueError:
            return
        self._clock_offset_ns = said_s * limits.SECOND_NS + _DATE_HALF_STEP_NS - now_ns


def account_of_code(code: str) -> str:
    """Return the account id inside an enrolment code ``swe-<account id>-<random>``.

    Raises:
        SettlementRefusedError: If the text is no enrolment code.
    """
    head, _, rest = code.partition("-")
    account_id, _, chance = rest.rpartition("-")
    if head != "swe" or not account_id or not chance:
        raise SettlementRefusedError(
            400, "bad_code", "an enrolment code looks like swe-ACCOUNT-RANDOM"
        )
    return account_id


_RETRYABLE_STATUS_MIN = 500
_RETRYABLE = frozenset({408, 425, 429})


def _refusal(status: int, data: bytes) -> SettlementError:
    try:
        body = msgspec.json.decode(data, type=ErrorReply).error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        body = ErrorBody(f"settlement answered {status}")
    if status >= _RETRYABLE_STATUS_MIN or status in _RETRYABLE:
        return SettlementUnreachableError(f"settlement answered {status}: {body.message}")
    return SettlementRefusedError(status, body.code or "", body.message)
