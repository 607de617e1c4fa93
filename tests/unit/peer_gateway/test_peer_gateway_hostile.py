"""Hosts that lie about the end of an answer: the client hears of it, and no request stays open."""

from pathlib import Path

import pytest
import trio
from gateway_kit import MODEL, Script, World, chat, open_world
from msgspec import structs
from trio.testing import MockClock

from p2p.errors import ErrorCode
from p2p.session import Session
from p2p.session.events import ErrorInfo
from p2p.types import Digest

HEARD_S = 5.0


class Liar:
    """A host's session whose ends are followed, or replaced, by what must not be."""

    def __init__(self, session: Session, *, receipt: bytes | None, tail: bytes) -> None:
        self._session = session
        self._receipt = receipt
        self._tail = tail
        self._has_ended = False

    def __getattr__(self, name: str) -> object:
        return getattr(self._session, name)

    def end(self, channel: int, receipt: bytes) -> None:
        self._session.end(channel, receipt if self._receipt is None else self._receipt)
        self._has_ended = True

    def data_to_send(self, now_ns: int) -> bytes:
        return self._session.data_to_send(now_ns) + (self._tail if self._has_ended else b"")


async def ask_liar(world: World, *, folds: bool, **lie: bytes | None) -> tuple[str, str]:
    """Return what the client saw of the error, and the name of its host."""
    host = await world.add_host("liar")
    await world.wait_ready(host)
    host.links[-1].session = Liar(host.links[-1].session, **lie)  # type: ignore[assignment]
    client = world.ask(chat(stream=not folds), folds=folds)
    with trio.fail_after(HEARD_S):
        await client.wait()
    assert client.error is not None
    assert not world.parts.core.dispatcher.unsettled_count
    purse = world.parts.core.wallet.purse(host.peer_id)
    assert not purse.reserved
    assert not purse.account.open_count
    return client.error.message, host.peer_id


@pytest.mark.parametrize("folds", [False, True], ids=["stream", "fold"])
@pytest.mark.parametrize(
    "lie",
    [
        {"receipt": b"no receipt at all", "tail": b""},
        {"receipt": None, "tail": b"\xff no batch"},
    ],
    ids=["garbage-receipt", "garbage-behind-the-end"],
)
async def test_link_broken_by_the_end_of_an_answer_is_told_to_the_client_at_once(
    tmp_path: Path, autojump_clock: MockClock, *, lie: dict[str, bytes | None], folds: bool
) -> None:
    async with open_world(tmp_path) as world:
        message, _ = await ask_liar(world, folds=folds, **lie)
        assert "link" in message


async def test_receipt_of_another_answer_is_disputed_under_its_batch(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    def change(receipt):  # type: ignore[no-untyped-def]
        return structs.replace(receipt, answer_hash=Digest(bytes(32)))

    async with open_world(tmp_path) as world:
        host = await world.add_host("a", Script(receipt_change=change))
        await world.wait_ready(host)
        client = await world.ask(chat(stream=True)).wait()
        assert client.error is not None
        await world.wait_settled()
        assert host.cosignatures[0].value.different_request_ids == (host.requests[0].request_id,)


async def test_host_that_cancels_what_nobody_cancelled_is_passed_over(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    quitter = Script(fail=ErrorInfo(code=ErrorCode.CANCELLED, message="not today"))
    async with open_world(tmp_path) as world:
        hosts = [await world.add_host("a", quitter), await world.add_host("b")]
        await world.wait_ready(*hosts)
        order = [host.peer_id for host in hosts]
        client = await world.ask(chat(stream=True, provider={"order": order})).wait()
        assert client.error is None
        assert client.route is not None
        assert client.route.host == hosts[1].peer_id
        known = world.parts.core.table.get(hosts[0].peer_id)
        assert known is not None
        assert known.health_of(MODEL).failures_count == 1


async def test_host_that_cancels_alone_is_its_own_fault(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    quitter = Script(fail=ErrorInfo(code=ErrorCode.CANCELLED, message="not today"))
    async with open_world(tmp_path) as world:
        await world.wait_ready(await world.add_host("a", quitter))
        client = await world.ask(chat(stream=True)).wait()
        assert client.error is not None
        assert client.error.status == 502
        assert "not today" in client.error.message


async def test_host_that_ignores_max_tokens_is_banned_and_not_paid_for_the_rest(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path) as world:
        host = await world.add_host("a", Script(overcount=4))
        await world.wait_ready(host)
        client = await world.ask(chat(stream=True, max_tokens=8)).wait()
        assert client.error is not None
        await world.wait_settled()
        known = world.parts.core.table.get(host.peer_id)
        assert known is not None
        assert known.is_banned
        prompt_micros = len(host.requests[0].body) // 4
        assert host.cum_micros <= prompt_micros + 2 * (8 + 1)
