"""More than settlement can take: refused at once, with Retry-After, and nothing is kept of it."""

import asyncio
import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from fastapi import FastAPI
from settlement_api_kit import NETWORK, START_NS, require_problem

from p2p.hardware.verdict import Speeds
from p2p.puzzle import ROOTS_BYTES
from p2p.receipts.messages import ENROLMENT, REQUEST_PROOF, Enrolment, RequestProof
from p2p.signing import SecretKey, seal, unseal
from p2p.testing.money import SETTLEMENT
from settlement.api.limits import BoundedRequests
from settlement.api.problems import install_problem_handlers
from settlement.hardware_store import Challenge
from settlement.issuer import Issuer
from settlement.operations import EnrolOutcome
from settlement.reconcile import LedgerCheck
from settlement.service import (
    SIGNATURES_OF_ONE_NODE_MAX,
    SIGNATURES_WAITING_MAX,
    Caller,
    Service,
)
from settlement.shared_check import REST_PARTS_COUNT, SharedCheck
from settlement.store import Machine
from settlement.store_memory import MemoryStore
from settlement.submissions import ReceiptTexts
from settlement.worker import OverloadedError, open_writer


def key(name: str) -> SecretKey:
    return SecretKey(hashlib.sha256(name.encode()).digest())


ISSUER = Issuer(NETWORK, SETTLEMENT, bytes(32), b"", 500)


class HeldApp:
    """An application that answers when it is told to."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.busy = asyncio.Semaphore(0)

    async def __call__(self, scope, receive, send) -> None:
        body = (await receive())["body"]
        self.busy.release()
        await self.go_on.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": str(len(body)).encode()})


def client_of(app) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://settlement")


def test_bodies_beyond_the_bound_of_all_are_answered_503_until_others_are_done():
    async def main():
        held = HeldApp()
        app = BoundedRequests(held, lambda: START_NS, bodies_bytes_max=1000)
        async with client_of(app) as http:
            first = [asyncio.create_task(http.post("/", content=b"x" * 400)) for _ in range(2)]
            for _ in first:
                await held.busy.acquire()
            refused = await http.post("/", content=b"x" * 400)
            require_problem(refused, 503, "overloaded")
            assert refused.headers["retry-after"] == "1"
            last = asyncio.create_task(http.post("/", content=b"x" * 200))  # it still fits
            await held.busy.acquire()
            held.go_on.set()
            assert [(await each).text for each in (*first, last)] == ["400", "400", "200"]
            assert (await http.post("/", content=b"x" * 1000)).text == "1000"

    asyncio.run(main())


def machine(name: str) -> Machine:
    return Machine(key(name).peer_id, f"account of {name}", "host", START_NS)


def caller(name: str) -> Caller:
    proof = RequestProof(
        network_id=NETWORK,
        method="POST",
        path="/",
        body_sha256=bytes(32),
        issued_at_ns=START_NS,
        nonce=bytes(16),
    )
    envelope = seal(key(name), REQUEST_PROOF, proof)
    return Caller(machine(name), unseal(REQUEST_PROOF, envelope, network_id=NETWORK))


def run_with_held_verifiers(main) -> None:
    """Run ``main(verifiers, go_on)``; nothing is verified before ``go_on`` is set."""
    go_on = threading.Event()
    with ThreadPoolExecutor(1) as verifiers:
        verifiers.submit(go_on.wait)
        try:
            asyncio.run(main(verifiers, go_on))
        finally:
            go_on.set()


def test_signatures_beyond_the_bound_are_refused_until_others_are_checked():
    async def main(verifiers, go_on):
        async with open_writer(MemoryStore()) as writer:
            service = Service(MemoryStore(), ISSUER, lambda: START_NS, writer, verifiers)
            half, ann, bob, eve = ["x"] * (SIGNATURES_WAITING_MAX // 2 - 5), *"abe"
            first = asyncio.create_task(service._verify(read_nothing, half, ann))
            second = asyncio.create_task(service._verify(read_nothing, half, bob))
            await asyncio.sleep(0)
            with pytest.raises(OverloadedError):
                await service._verify(read_nothing, ["x"] * 11, eve)
            with pytest.raises(OverloadedError):
                await service._verify(read_nothing, [ReceiptTexts(("r",) * 72, "b", None)], eve)
            small = asyncio.create_task(service._verify(read_nothing, ["x"] * 10, eve))
            await asyncio.sleep(0)
            go_on.set()
            done = await first, await second, await small
            assert [len(each) for each in done] == [len(half), len(half), 10]
            assert len(await service._verify(read_nothing, ["x"] * 11, eve)) == 11

    run_with_held_verifiers(main)


def test_one_node_leaves_the_others_half_of_the_verifiers_time():
    async def main(verifiers, go_on):
        async with open_writer(MemoryStore()) as writer:
            service = Service(MemoryStore(), ISSUER, lambda: START_NS, writer, verifiers)
            half, ann, bob = ["x"] * SIGNATURES_OF_ONE_NODE_MAX, "a", "b"
            first = asyncio.create_task(service._verify(read_nothing, half, ann))
            await asyncio.sleep(0)
            with pytest.raises(OverloadedError, match="of this node"):
                await service._verify(read_nothing, ["x"], ann)
            other = asyncio.create_task(service._verify(read_nothing, half, bob))
            await asyncio.sleep(0)
            go_on.set()
            assert (len(await first), len(await other)) == (len(half), len(half))
            assert len(await service._verify(read_nothing, ["x"], ann)) == 1

    run_with_held_verifiers(main)


def test_answers_to_one_challenge_are_checked_one_at_a_time():
    store = MemoryStore()
    challenge = Challenge(
        challenge_id="1" * 32,
        peer_id=machine("a").peer_id,
        device="cpu",
        seed=bytes(32),
        memory_bytes=2**24,
        issued_at_ns=START_NS,
        commit_by_ns=START_NS + 1,
        roots=bytes(ROOTS_BYTES),
        samples="[]",
        answer_by_ns=START_NS + 1,
    )
    with store.writing() as writing:
        writing.hardware.put_challenge(challenge)

    async def main(verifiers, go_on):
        async with open_writer(store) as writer:
            service = Service(store, ISSUER, lambda: START_NS, writer, verifiers)
            asked = (caller("a"), challenge.challenge_id, b"wrong", Speeds(0, 0))
            first = asyncio.create_task(service.answer_challenge(*asked))
            await asyncio.sleep(0)
            with pytest.raises(OverloadedError, match="already"):
                await service.answer_challenge(*asked)
            go_on.set()
            await first
            assert await service.answer_challenge(*asked) is not None  # the next one may come

    run_with_held_verifiers(main)


def test_crowd_that_asks_for_the_check_of_all_books_shares_two():
    checks, begun, go_on = [], asyncio.Event(), asyncio.Event()

    async def check() -> LedgerCheck:
        checks.append(LedgerCheck(0, {}, len(checks)))
        begun.set()
        await go_on.wait()
        return checks[-1]

    async def main():
        shared = SharedCheck(check)
        first = asyncio.create_task(shared.run())
        await begun.wait()
        crowd = [asyncio.create_task(shared.run()) for _ in range(50)]
        await asyncio.sleep(0)
        go_on.set()
        assert (await first).transactions == 0
        assert {(await each).transactions for each in crowd} == {1}  # the first began too early
        assert len(checks) == 2

    asyncio.run(main())


def test_check_of_all_books_that_takes_long_is_not_begun_again_at_once(monkeypatch):
    checks, now_s = [], [0.0]

    async def check() -> LedgerCheck:
        checks.append(LedgerCheck(0, {}, len(checks)))
        now_s[0] += 30.0
        return checks[-1]

    async def main():
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now_s[0])
        shared = SharedCheck(check)
        for _ in range(5):
            assert (await shared.run()).transactions == 0
        now_s[0] += 30.0 * REST_PARTS_COUNT
        assert (await shared.run()).transactions == 1

    asyncio.run(main())


def test_code_that_nobody_made_costs_no_transaction():
    class NoWriter:
        async def run(self, operation):
            raise AssertionError("a transaction for a code that nobody made")

    value = Enrolment(
        network_id=NETWORK, account_id="x", code="swe-x-y", role="host", issued_at_ns=START_NS
    )
    envelope = seal(key("a"), ENROLMENT, value)

    async def main():
        service = Service(MemoryStore(), ISSUER, lambda: START_NS, NoWriter(), None)
        assert await service.enrol(envelope) == (EnrolOutcome.BAD_CODE, None)

    asyncio.run(main())


def test_overload_is_answered_503_with_retry_after():
    app = FastAPI()
    install_problem_handlers(app)

    @app.get("/")
    async def get():
        raise OverloadedError("too many operations wait")

    async def main():
        async with client_of(app) as http:
            answer = await http.get("/")
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        assert answer.json()["error"]["code"] == "unavailable"

    asyncio.run(main())


def read_nothing(network_id, texts):
    return list(texts)
