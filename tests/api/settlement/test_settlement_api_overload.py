"""More than settlement can take: refused at once, with Retry-After, and nothing is kept of it."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from fastapi import FastAPI
from settlement_api_kit import NETWORK, START_NS, require_problem

from p2p.testing.money import SETTLEMENT
from settlement.api.limits import BoundedRequests
from settlement.api.problems import install_problem_handlers
from settlement.issuer import Issuer
from settlement.service import SIGNATURES_WAITING_MAX, Service
from settlement.store_memory import MemoryStore
from settlement.submissions import ReceiptTexts
from settlement.worker import OverloadedError, open_writer

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


def test_signatures_beyond_the_bound_are_refused_until_others_are_checked():
    async def main(verifiers, go_on):
        async with open_writer(MemoryStore()) as writer:
            service = Service(MemoryStore(), ISSUER, lambda: START_NS, writer, verifiers)
            many = ["x"] * (SIGNATURES_WAITING_MAX - 10)
            first = asyncio.create_task(service._verify(read_nothing, many))
            await asyncio.sleep(0)
            with pytest.raises(OverloadedError):
                await service._verify(read_nothing, ["x"] * 11)
            with pytest.raises(OverloadedError):
                await service._verify(read_nothing, [ReceiptTexts(("r",) * 72, "b", None)])
            small = asyncio.create_task(service._verify(read_nothing, ["x"] * 10))
            await asyncio.sleep(0)
            go_on.set()
            assert (len(await first), len(await small)) == (len(many), 10)
            assert len(await service._verify(read_nothing, ["x"] * 11)) == 11

    go_on = threading.Event()
    with ThreadPoolExecutor(1) as verifiers:
        verifiers.submit(go_on.wait)
        try:
            asyncio.run(main(verifiers, go_on))
        finally:
            go_on.set()


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
