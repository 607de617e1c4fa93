"""A host in a network in memory: who asks for answers at zero price, and for how many."""

import contextlib

import pytest
import trio
from host_kit import FREE, TestGateway, body, open_world
from settlement_stub import NETWORK_ID, WALLET

from p2p.errors import ErrorCode
from p2p.receipts.messages import COSIGNATURE
from p2p.signing import SecretKey, unseal
from p2p.types import PeerId
from peer.group_commit import run_inline
from peer.host.config import FakeSpec
from peer.host.journal import open_journal

LONG = FakeSpec(tokens=400, token_s=0.02)


async def test_receipts_at_zero_price_are_cosigned_by_the_wallet_that_the_hello_proved(
    autojump_clock, tmp_path
) -> None:
    async with open_world(tmp_path, prices=FREE) as world:
        await world.gateway.ask(body()).over.wait()
        await world.gateway.wait(lambda: world.gateway.batches)
        await trio.sleep(1)
        async with open_journal(
            tmp_path / "host" / "journal.sqlite", run_work=run_inline
        ) as journal:
            (stored,) = await journal.latest_batches(5)
        signed = unseal(COSIGNATURE, stored.cosignature, network_id=NETWORK_ID)
        assert signed.signer == WALLET.public
        assert signed.value.batch_digest == stored.digest


async def test_request_third_of_a_peer_at_zero_price_is_rate_limited_on_another_link_too(
    autojump_clock, tmp_path
) -> None:
    async with open_world(tmp_path, prices=FREE, spec=LONG) as world:
        for _ in range(2):
            world.gateway.ask(body())
        other = await world.connect(
            TestGateway(world.network, world.gateway.host, SecretKey(bytes(32)))
        )
        answer = other.ask(body())
        await answer.over.wait()
        assert answer.error.code is ErrorCode.RATE_LIMITED


@pytest.mark.parametrize("address", ["192.0.2.77", ""], ids=["one address", "over relays"])
async def test_request_fifth_of_an_address_at_zero_price_is_rate_limited(
    autojump_clock, tmp_path, address: str
) -> None:
    async with open_world(tmp_path, prices=FREE, spec=LONG, slots=8, connect=False) as world:
        answers = []
        async with contextlib.AsyncExitStack() as stack:
            for count in range(5):
                key = SecretKey(bytes((count,)) * 32)
                world.node = await stack.enter_async_context(world.network.open_node(key))
                world.node.ip_address = address
                gateway = TestGateway(world.network, PeerId(world.ready.peer_id), key)
                answers.append((await world.connect(gateway)).ask(body()))
            await answers[4].over.wait()
            assert answers[4].error.code is ErrorCode.RATE_LIMITED
            assert not any(answer.error for answer in answers[:4])
