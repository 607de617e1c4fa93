"""Settlement without HTTP: who asks, may they, do it durably, answer.

Signatures are checked off the event loop, before the transaction; the books are changed by
``operations`` inside it. Refusals come back as values of an enum per operation.
"""

import asyncio
import contextlib
import enum
import logging
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from multiprocessing import get_context
from typing import TypeVar

import models
from p2p import limits
from p2p.clock import WallClock
from p2p.errors import RemoteProtocolError
from p2p.hardware.report import HardwareReport
from p2p.hardware.verdict import Speeds, read_cards
from p2p.puzzle import SEED_BYTES, PuzzleError, check_answer
from p2p.receipts.messages import ENROLMENT, REQUEST_PROOF, Enrolment, RequestProof
from p2p.signing import Signed, unseal
from p2p.types import NetworkId, PeerId, sha256
from settlement import hardware_operations as hardware
from settlement import operations, queries
from settlement.hardware_operations import ChallengeRefusal, GpuTaken, HardwareView, Wish
from settlement.hardware_store import Challenge, MemoryProof
from settlement.issuer import Issuer, proof_nonce
from settlement.ledger import Order
from settlement.operations import (
    AllowanceRefusal,
    CloseResult,
    EnrolOutcome,
    VoucherResult,
)
from settlement.price_operations import QuoteResult, keep_quotes, price_index
from settlement.pricing import ModelIndex
from settlement.queries import EarningsView
from settlement.receipt_operations import ReceiptResult, submit_receipts
from settlement.reconcile import LedgerCheck
from settlement.shared_check import SharedCheck
from settlement.store import Account, Code, Machine, Reading, Store, Writing
from settlement.submissions import (
    ReceiptTexts,
    read_closes,
    read_quotes,
    read_receipts,
    read_vouchers,
)
from settlement.worker import OverloadedError, Writer, open_writer

SWEEP_WAIT_S = 30
SIGNATURES_WAITING_MAX = 20_000  # two seconds of one core; clients wait ten for their answer
ITEMS_PER_TURN = 128  # some 10 ms; then it is the next request's turn to be checked
INDEX_TTL_NS = limits.MINUTE_NS  # it reads a day's use
SIGNATURES_OF_ONE_NODE_MAX = SIGNATURES_WAITING_MAX // 2  # the others must get their turn
CODE_TTL_NS = limits.DAY_NS
TOKEN_BYTES_MAX = 256

_log = logging.getLogger(__name__)
ResultT = TypeVar("ResultT")
TextT = TypeVar("TextT")


class AuthRefusal(enum.Enum):
    """Why a caller is not who it says, or may not ask this."""

    MISSING = "missing"
    INVALID = "invalid"
    REVOKED = "revoked"
    NOT_ENROLLED = "not_enrolled"
    CLOCK_SKEW = "clock_skew"
    REPLAYED = "replayed"
    WRONG_ROLE = "wrong_role"


@dataclass(frozen=True, slots=True)
class Caller:
    """An enrolled node whose request proof was checked, but for its nonce."""

    machine: Machine
    proof: Signed[RequestProof]


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """What a request proof speaks of.

    Attributes:
        path: As it stands in the request line, with its query.
    """

    method: str
    path: str
    body: bytes


class Operator(enum.Enum):
    """The one who runs settlement."""

    OPERATOR = "operator"


class Service:
    """All of settlement's operations. Use as ``async with open_service(...) as service``."""

    def __init__(
        self,
        store: Store,
        issuer: Issuer,
        clock: WallClock,
        writer: Writer,
        verifiers: Executor,
    ) -> None:
        self.issuer = issuer
        self.clock = clock
        self._store = store
        self._writer = writer
        self._verifiers = verifiers
        self._signatures_waiting = 0
        self._signatures_of: Counter[PeerId] = Counter()
        self._cards = read_cards((files(models) / "gpus.toml").read_text("utf-8"))
        self._index_alone = asyncio.Lock()  # who asks meanwhile gets the same answer
        self._index: tuple[int, tuple[ModelIndex, ...]] = (-INDEX_TTL_NS, ())
        self._check = SharedCheck(lambda: self.read(queries.check_ledger))
        self._answered: set[str] = set()  # challenges whose answers are being checked

    # -- who ------------------------------------------------------------------------------------

    async def who_bears(self, token: str) -> Account | Operator | AuthRefusal:
        """Return whose a bearer token is; a revoked one is refused from then on, at once."""
        if not token or len(token) > TOKEN_BYTES_MAX:
            return AuthRefusal.INVALID
        name = self.issuer.hash_of(token)

        def look_up(store: Reading) -> Account | Operator | AuthRefusal:
            found = store.token(name)
            if found is None:
                return AuthRefusal.INVALID
            if found.revoked_at_ns:
                return AuthRefusal.REVOKED
            if not found.account_id:
                return Operator.OPERATOR
            return store.account(found.account_id) or AuthRefusal.INVALID

        return await self.read(look_up)

    async def who_signed(self, envelope: bytes, request: HttpRequest) -> Caller | AuthRefusal:
        """Return which node signed a request; its nonce is used up by the operation itself."""
        try:
            proof = unseal(REQUEST_PROOF, envelope, network_id=self.issuer.network_id)
        except RemoteProtocolError:
            return AuthRefusal.INVALID
        value = proof.value
        if (value.method, value.path) != (request.method, request.path):
            return AuthRefusal.INVALID
        if value.body_sha256 != sha256(request.body):
            return AuthRefusal.INVALID
        if not self.is_in_time(value.issued_at_ns):
            return AuthRefusal.CLOCK_SKEW
        machine = await self.read(lambda store: store.machine(proof.signer_id))
        if machine is None:
            return AuthRefusal.NOT_ENROLLED
        return AuthRefusal.REVOKED if machine.revoked_at_ns else Caller(machine, proof)

    def is_in_time(self, at_ns: int) -> bool:
        """Whether a signed time is within the tolerance of our clock."""
        return abs(self.clock() - at_ns) <= limits.CLOCK_SKEW_NS_MAX

    # -- nodes ----------------------------------------------------------------------------------

    async def make_code(self, account: Account, role: str, code: str) -> Code:
        """Store a one-time enrolment code, by its hash."""
        expires_at_ns = self.clock() + CODE_TTL_NS
        made = Code(self.issuer.hash_of(code), account.account_id, role, expires_at_ns)
        await self._writer.run(lambda store: store.put_code(made))
        return made

    async def enrol(
        self, envelope: bytes
    ) -> tuple[EnrolOutcome, Machine | None] | AuthRefusal | RemoteProtocolError:
        """Let a node key join an account by a one-time code."""
        try:
            enrolment: Signed[Enrolment] = unseal(
                ENROLMENT, envelope, network_id=self.issuer.network_id
            )
        except RemoteProtocolError as error:
            return error
        if not self.is_in_time(enrolment.value.issued_at_ns):
            return AuthRefusal.CLOCK_SKEW
        name = self.issuer.hash_of(enrolment.value.code)
        if await self.read(lambda store: store.code(name)) is None:
            return EnrolOutcome.BAD_CODE, None  # anybody may try: it costs no transaction
        return await self._writer.run(
            lambda store: operations.enrol(store, enrolment, name, now_ns=self.clock())
        )

    def owner_tag(self, machine: Machine) -> bytes:
        """Return a host's owner tag."""
        return self.issuer.owner_tag(machine.account_id, machine.peer_id, now_ns=self.clock())

    # -- money ----------------------------------------------------------------------------------

    async def allowance(
        self, caller: Caller, asked: Order
    ) -> bytes | AllowanceRefusal | AuthRefusal:
        """Issue, raise or prolong an allowance."""
        if caller.machine.role != "gateway":
            return AuthRefusal.WRONG_ROLE
        return await self._write_as(
            caller,
            lambda store: operations.place_order(store, self.issuer, asked, now_ns=self.clock()),
        )

    async def vouchers(
        self, caller: Caller, texts: Sequence[str]
    ) -> list[VoucherResult] | AuthRefusal:
        """Post what a batch of vouchers raises."""
        items = await self._verify(read_vouchers, texts, caller.machine.peer_id)
        return await self._write_as(
            caller,
            lambda store: operations.post_vouchers(
                store, caller.machine, items, now_ns=self.clock()
            ),
        )

    async def closes(self, caller: Caller, texts: Sequence[str]) -> list[CloseResult] | AuthRefusal:
        """Give back what hosts say they will not claim."""
        items = await self._verify(read_closes, texts, caller.machine.peer_id)
        return await self._write_as(
            caller,
            lambda store: operations.post_closes(store, caller.machine, items, now_ns=self.clock()),
        )

    async def receipts(
        self, caller: Caller, texts: Sequence[ReceiptTexts]
    ) -> list[ReceiptResult] | AuthRefusal:
        """Store batches of receipts and match both sides."""
        items = await self._verify(read_receipts, texts, caller.machine.peer_id)
        return await self._write_as(
            caller,
            lambda store: submit_receipts(store, caller.machine, items, now_ns=self.clock()),
        )

    async def quotes(self, caller: Caller, texts: Sequence[str]) -> list[QuoteResult] | AuthRefusal:
        """Keep the quotes that a host gave, for the price index."""
        if caller.machine.role != "host":
            return AuthRefusal.WRONG_ROLE
        items = await self._verify(read_quotes, texts, caller.machine.peer_id)
        return await self._write_as(
            caller, lambda store: keep_quotes(store, caller.machine, items, now_ns=self.clock())
        )

    async def price_index(self) -> tuple[int, tuple[ModelIndex, ...]]:
        """Return when the price index was computed, and the index; at most a minute old."""
        async with self._index_alone:
            now_ns = self.clock()
            made_at_ns, index = self._index
            if not made_at_ns <= now_ns < made_at_ns + INDEX_TTL_NS:
                index = await self.read(lambda store: price_index(store, now_ns=now_ns))
                self._index = made_at_ns, index = now_ns, index
            return made_at_ns, index

    async def host_earnings(self, caller: Caller) -> EarningsView | AuthRefusal:
        """Return what the calling host earned."""
        return await self._write_as(
            caller,
            lambda store: queries.earnings(store, (caller.machine.peer_id,), now_ns=self.clock()),
        )

    # -- hardware -------------------------------------------------------------------------------

    async def report_hardware(
        self, caller: Caller, report: HardwareReport, body: bytes
    ) -> GpuTaken | AuthRefusal | None:
        """Take what a host says of its machine; or say which of its GPUs is another's."""
        if caller.machine.role != "host":
            return AuthRefusal.WRONG_ROLE
        request = hardware.Request(body, caller.proof.envelope)
        return await self._write_as(
            caller,
            lambda store: hardware.take_report(
                store, caller.machine, report, request, now_ns=self.clock()
            ),
        )

    async def issue_challenge(
        self, caller: Caller, wish: Wish
    ) -> Challenge | ChallengeRefusal | AuthRefusal:
        """Give a host a seed."""
        fresh = (secrets.token_hex(16), secrets.token_bytes(SEED_BYTES))
        return await self._write_as(
            caller,
            lambda store: hardware.issue_challenge(
                store, caller.machine, wish, fresh, now_ns=self.clock()
            ),
        )

    async def commit_challenge(
        self, caller: Caller, challenge_id: str, roots: bytes
    ) -> Challenge | ChallengeRefusal | AuthRefusal:
        """Take what a host commits to, and choose what it must show."""
        return await self._write_as(
            caller,
            lambda store: hardware.commit(
                store, caller.machine, challenge_id, roots, secrets.randbelow, now_ns=self.clock()
            ),
        )

    async def answer_challenge(
        self, caller: Caller, challenge_id: str, answer: bytes, speeds: Speeds
    ) -> MemoryProof | ChallengeRefusal | AuthRefusal:
        """Check what a host shows, off the event loop, and write how it ended.

        Raises:
            OverloadedError: If another answer to the challenge is being checked: only one counts,
                and each costs 50 ms.
        """
        if challenge_id in self._answered:
            raise OverloadedError("an answer to this challenge is being checked already")
        self._answered.add(challenge_id)
        try:
            return await self._check_answer(caller, challenge_id, answer, speeds)
        finally:
            self._answered.discard(challenge_id)

    async def _check_answer(
        self, caller: Caller, challenge_id: str, answer: bytes, speeds: Speeds
    ) -> MemoryProof | ChallengeRefusal | AuthRefusal:
        now_ns = self.clock()
        challenge = await self.read(
            lambda store: hardware.answerable(store, caller.machine, challenge_id, now_ns=now_ns)
        )
        if isinstance(challenge, ChallengeRefusal):
            return challenge
        (fault,) = await self._verify(partial(_faults, challenge), [answer], caller.machine.peer_id)
        checked = hardware.Answer(fault, speeds, caller.proof.envelope)
        return await self._write_as(
            caller,
            lambda store: hardware.finish_challenge(
                store, challenge, checked, self._cards, now_ns=now_ns
            ),
        )

    async def hardware_of(self, peer_id: str) -> HardwareView:
        """Return what is known of a host's hardware."""
        now_ns = self.clock()
        return await self.read(lambda store: hardware.hardware_view(store, peer_id, now_ns=now_ns))

    # -- running --------------------------------------------------------------------------------

    async def read(self, query: Callable[[Reading], ResultT]) -> ResultT:
        """Run a query on one consistent view, off the event loop."""

        def run() -> ResultT:
            with self._store.reading() as store:
                return query(store)

        return await asyncio.to_thread(run)

    async def check_ledger(self) -> LedgerCheck:
        """Rebuild all balances and check every rule of the books; see ``SharedCheck``."""
        return await self._check.run()

    async def sweep(self) -> None:
        """Void and release all that is due now."""
        while True:
            done = await self._writer.run(
                lambda store: operations.sweep(store, now_ns=self.clock())
            )
            if done < operations.SWEEP_ROWS_MAX:
                return

    async def _write_as(
        self, caller: Caller, operation: Callable[[Writing], ResultT]
    ) -> ResultT | AuthRefusal:
        """Run an operation in the transaction that uses up the caller's nonce."""
        value = caller.proof.value
        nonce = proof_nonce(caller.machine.peer_id, value.nonce)
        expires_at_ns = value.issued_at_ns + limits.CLOCK_SKEW_NS_MAX

        def run(store: Writing) -> ResultT | AuthRefusal:
            if not store.use_nonce(nonce, expires_at_ns=expires_at_ns):
                return AuthRefusal.REPLAYED
            return operation(store)

        return await self._writer.run(run)

    async def _verify(
        self,
        read: Callable[[NetworkId, Sequence[TextT]], list[ResultT]],
        texts: Sequence[TextT],
        whose: PeerId,
    ) -> list[ResultT]:
        signatures = sum(map(_signatures_of, texts))
        own = self._signatures_of[whose]
        if own and own + signatures > SIGNATURES_OF_ONE_NODE_MAX:
            raise OverloadedError("too many signatures of this node wait to be checked")
        if self._signatures_waiting and (
            self._signatures_waiting + signatures > SIGNATURES_WAITING_MAX
        ):
            raise OverloadedError("too many signatures wait to be checked")
        loop, network_id = asyncio.get_running_loop(), self.issuer.network_id
        self._signatures_waiting += signatures
        self._signatures_of[whose] += signatures
        results: list[ResultT] = []
        try:
            for at in range(0, len(texts), ITEMS_PER_TURN):
                turn = texts[at : at + ITEMS_PER_TURN]
                results += await loop.run_in_executor(self._verifiers, read, network_id, turn)
        finally:
            self._signatures_waiting -= signatures
            self._signatures_of[whose] -= signatures
            if not self._signatures_of[whose]:
                del self._signatures_of[whose]
        return results


def _signatures_of(item: object) -> int:
    """Return how many signatures, or what costs as much, an item of a batch holds."""
    if isinstance(item, bytes):
        return 1000  # the answer to a challenge: 50 ms
    return len(item.receipts) // 8 + 2 if isinstance(item, ReceiptTexts) else 1


def _faults(challenge: Challenge, _: NetworkId, answers: Sequence[bytes]) -> list[str]:
    """Return what is wrong with each answer to a challenge; empty if nothing is."""
    puzzle, samples = hardware.puzzle_for(challenge), hardware.samples_for(challenge)
    faults = []
    for answer in answers:
        try:
            check_answer(puzzle, challenge.roots, samples, answer)
            faults.append("")
        except PuzzleError as error:
            faults.append(str(error))
    return faults


@contextlib.asynccontextmanager
async def open_service(
    store: Store, issuer: Issuer, clock: WallClock, *, verify_processes: int = 0
) -> AsyncIterator[Service]:
    """Start the service over a store.

    Args:
        store: Stays the caller's to close.
        issuer: Settlement's keys.
        clock: Wall clock.
        verify_processes: How many processes check signatures; 0 for a thread of this one, which
            is enough for a core's worth since Ed25519 libraries hold the interpreter's lock.
    """
    async with contextlib.AsyncExitStack() as stack:
        verifiers = stack.enter_context(_verifiers(verify_processes))
        writer = await stack.enter_async_context(open_writer(store))
        service = Service(store, issuer, clock, writer, verifiers)
        sweeper = asyncio.create_task(_sweep_often(service))
        stack.push_async_callback(_cancelled, sweeper)
        yield service


def _verifiers(processes: int) -> Executor:
    if processes:
        return ProcessPoolExecutor(processes, mp_context=get_context("spawn"))
    # Its own, so that a look-up never stands behind a batch of a thousand signatures.
    return ThreadPoolExecutor(1, thread_name_prefix="verify")


async def _sweep_often(service: Service) -> None:
    while True:
        try:
            await service.sweep()
        except Exception:  # noqa: BLE001 - one task boundary: it is due again in 30 s
            _log.exception("the sweep of allowances failed")
        await asyncio.sleep(SWEEP_WAIT_S)


async def _cancelled(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
