"""Which batches a host waits to have cosigned."""

import trio
from host_kit import body, open_world

from p2p.types import Digest, PublicKey
from peer.host import books
from peer.host.cosigners import BATCHES_AWAITING_COSIGN_MAX, Cosigners

ALICE, BOB = PublicKey(b"a" * 32), PublicKey(b"b" * 32)


def digest(number: int) -> Digest:
    return Digest(number.to_bytes(32, "big"))


def test_batch_is_cosigned_once_and_by_its_gateway() -> None:
    cosigners = Cosigners()
    cosigners.wait(digest(1), ALICE, 1)
    assert not cosigners.take(digest(1), BOB)
    assert not cosigners.take(digest(2), ALICE)
    assert cosigners.take(digest(1), ALICE)
    assert not cosigners.take(digest(1), ALICE)
    assert len(cosigners) == 0


def test_batches_of_a_session_that_ends_wait_no_more() -> None:
    cosigners = Cosigners()
    cosigners.wait(digest(1), ALICE, 1)
    cosigners.wait(digest(2), BOB, 2)
    cosigners.session_over(1)
    cosigners.session_over(1)
    assert not cosigners.take(digest(1), ALICE)
    assert cosigners.take(digest(2), BOB)


def test_oldest_batch_makes_room() -> None:
    cosigners = Cosigners()
    for number in range(BATCHES_AWAITING_COSIGN_MAX + 1):
        cosigners.wait(digest(number), ALICE, number % 3)
    assert len(cosigners) == BATCHES_AWAITING_COSIGN_MAX
    assert not cosigners.take(digest(0), ALICE)
    assert cosigners.take(digest(1), ALICE)


async def test_host_waits_for_no_gateway_that_was_cut_off(
    autojump_clock, tmp_path, monkeypatch
) -> None:
    cosigners = Cosigners()
    monkeypatch.setattr(books, "Cosigners", lambda: cosigners)
    async with open_world(tmp_path) as world:
        gateway = world.gateway
        allowance_id = gateway.allow()
        for _ in range(3):
            await gateway.ask(body(), allowance_id).first.wait()
            gateway.link.reset()
            await trio.sleep(15)  # longer than a session without a link is kept
            await world.connect(gateway)
            gateway.show(gateway.allowance_envelope)
        assert len(cosigners) == 0
