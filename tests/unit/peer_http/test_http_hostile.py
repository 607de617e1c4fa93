"""Slow and hostile clients against the running server: what they hold, and who gives way."""

import contextlib
import os
import socket
import struct

import pytest
import trio
from peer_http_tools import Site, Wire
from trio.testing import MockClock

from peer.http import Exchange, HttpLimits, HttpRequest
from peer.http.brake import Brake, UploadPace
from peer.http.limits import (
    BRAKE_BURST_COUNT,
    BRAKE_PER_S,
    BRAKE_S_MAX,
    SEND_BUFFER_BYTES,
    UPLOAD_BURST_BYTES,
    UPLOAD_BYTES_PER_S,
)

pytestmark = pytest.mark.sockets

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
HALF_HEAD = b"GET / HTTP/1.1\r\nHost: a\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\n"


def answer_at_once(request: HttpRequest, exchange: Exchange) -> None:
    exchange.respond(200, {}, b"honest")


async def is_served(site: Site) -> bool:
    """Whether a client that comes now is answered."""
    wire = await site.wire()
    await wire.send(GET)
    return (await wire.answer()).body == b"honest"


async def wires(site: Site, count: int, sent: bytes = b"") -> list[Wire]:
    """Return so many connections, all of them accepted, which sent the same."""
    made = []
    for _ in range(count):
        wire = await site.wire()
        if sent:
            await wire.send(sent)
        made.append(wire)
    return made


# -- who gives way -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent", [b"", b"\r\n", HALF_HEAD, POST + b"Content-Length: 9\r\n\r\nabc", GET]
)
async def test_hostile_connections_that_only_wait_give_way_to_a_client(
    site: Site, sent: bytes
) -> None:
    site.open(HttpLimits(connections_max=20))
    site.desk.immediately = answer_at_once
    held = await wires(site, 20, sent)
    await site.until(lambda: site.server.connection_count == 20)
    for _ in range(30):  # more clients than there are places
        assert await is_served(site)
    assert site.server.connection_count <= 20
    assert len(held) == 20


async def test_hostile_connections_beyond_the_bound_push_out_each_other_and_no_work(
    site: Site,
) -> None:
    site.open(HttpLimits(connections_max=20))
    working = await site.wire()
    await working.send(GET)
    _, exchange = await site.desk.next()
    await wires(site, 60, HALF_HEAD)
    exchange.respond(200, {}, b"done")
    assert (await working.answer()).body == b"done"
    assert site.server.connection_count <= 20


async def test_hostile_thousand_idle_connections_cost_their_places_only(site: Site) -> None:
    site.open(HttpLimits())
    site.desk.immediately = answer_at_once
    idle = await wires(site, 1000)
    await site.until(lambda: site.server.connection_count == 1000)
    for _ in range(5):
        assert await is_served(site)
    assert site.server.connection_count == 1000
    assert await idle[0].is_at_end()  # the oldest went, the youngest stayed
    await idle[-1].send(GET)
    assert (await idle[-1].answer()).body == b"honest"


async def test_hostile_refused_client_that_lingers_gives_way(site: Site) -> None:
    site.open(HttpLimits(connections_max=10))
    site.desk.immediately = answer_at_once
    refused = await wires(site, 10, b"BREW\r\n\r\n")
    for wire in refused:
        assert (await wire.answer()).status == 400
    for _ in range(10):
        assert await is_served(site)


# -- what is held --------------------------------------------------------------------------------


async def test_hostile_bodies_that_never_end_are_bounded_together(site: Site) -> None:
    bound = 1 << 20
    site.open(HttpLimits(bodies_bytes_max=bound))
    site.desk.immediately = answer_at_once
    part = POST + b"Content-Length: 400000\r\n\r\n" + bytes(200_000)
    slow = await wires(site, 20, part)
    for wire in slow[:10]:  # the oldest made room, and know why
        assert (await wire.answer()).status == 503
    await site.until(lambda: site.server._bodies_bytes <= bound)
    upload = await site.wire()
    await upload.send(POST + b"Content-Length: 400000\r\n\r\n" + bytes(400_000))
    assert (await upload.answer()).body == b"honest"
    for wire in slow:
        await wire.vanish()
    await site.until(lambda: site.server._bodies_bytes == 0)


async def test_hostile_body_of_tiny_chunks_is_one_body(site: Site) -> None:
    site.open(HttpLimits())
    site.desk.immediately = lambda request, exchange: exchange.respond(200, {}, request.body)
    wire = await site.wire()
    chunks = b"".join(b"2\r\n%02d\r\n" % (number % 100) for number in range(5000))
    await wire.send(POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")
    assert (await wire.answer()).body == b"".join(b"%02d" % (each % 100) for each in range(5000))


@pytest.mark.parametrize(
    "endless",
    [b"1;" + b"a" * 1000 + b"\r\na\r\n", b"1\r\na\r\n" * 100, b"0\r\n" + b"a: b\r\n" * 200],
)
async def test_hostile_chunk_framing_without_end_is_refused_early(
    site: Site, endless: bytes
) -> None:
    limits = HttpLimits()
    site.open(limits)
    wire = await site.wire()
    await wire.send(POST + b"Transfer-Encoding: chunked\r\n\r\n")
    sent_bytes = 0
    refused = trio.Event()

    async def read() -> None:
        assert (await wire.answer()).status in (413, 431)
        refused.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        with trio.fail_after(5):
            while not refused.is_set():
                await wire.stream.send_all(endless)
                sent_bytes += len(endless)
                await trio.lowlevel.checkpoint()
    # What lay in the kernel's buffers when it was refused is no part of what was read.
    assert site.server._bodies_bytes == 0
    assert site.desk.is_empty()


async def test_hostile_ten_megabytes_of_fields_are_refused_at_the_bound(site: Site) -> None:
    site.open(HttpLimits(linger_s=0.2))
    wire = await site.wire()

    async def flood() -> None:
        with contextlib.suppress(trio.BrokenResourceError):  # it lingers for a while, then closes
            await wire.stream.send_all(HALF_HEAD + b"x: " + b"a" * 10_000_000 + b"\r\n\r\n")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(flood)
        assert (await wire.answer()).status == 431
    assert site.desk.is_empty()


async def test_hostile_reader_that_takes_nothing_fills_one_small_buffer(site: Site) -> None:
    site.open()
    wire = await site.wire()
    await wire.send(GET)
    _, exchange = await site.desk.next()
    exchange.start_stream(200)
    taken_bytes = 0

    def taken(count_bytes: int) -> None:
        nonlocal taken_bytes
        taken_bytes += count_bytes

    exchange.on_sent = taken
    written_bytes = 0
    with trio.move_on_after(5):
        while exchange.buffered_bytes < 256 * 1024:  # one window, as the gateway grants it
            with site.loop.turn():
                exchange.write(bytes(16 * 1024))
            written_bytes += 16 * 1024
            await trio.lowlevel.checkpoint()
    kernel_bytes = written_bytes - exchange.buffered_bytes
    receive_bytes = wire.stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    assert kernel_bytes < 4 * SEND_BUFFER_BYTES + receive_bytes
    assert taken_bytes <= kernel_bytes + 16 * 1024


async def test_hostile_pipelined_requests_beyond_the_bound_are_not_even_read(site: Site) -> None:
    site.open(HttpLimits(pipelined_max=4))
    wire = await site.wire()
    await wire.send(GET * 1000)
    _, exchange = await site.desk.next()
    (connection,) = site.server._connections
    assert len(connection._waiting) == 3
    assert connection._parser.feed(GET) == []
    exchange.respond(200)
    for _ in range(3):
        (await site.desk.next())[1].respond(200)
    answers = [await wire.answer() for _ in range(4)]
    assert answers[-1].headers["connection"] == "close"
    assert site.desk.is_empty()


async def test_hostile_pipelined_requests_take_turns_with_others(site: Site) -> None:
    site.open()
    order: list[str] = []

    def note(request: HttpRequest, exchange: Exchange) -> None:
        order.append(request.path)
        exchange.respond(200)

    site.desk.immediately = note
    greedy, modest = await site.wire(), await site.wire()
    await site.until(lambda: site.server.connection_count == 2)
    # Without a checkpoint in between, so that the server finds both at once.
    os.write(greedy.stream.socket.fileno(), GET.replace(b"/ ", b"/greedy ") * 16)
    os.write(modest.stream.socket.fileno(), GET.replace(b"/ ", b"/modest "))
    await site.until(lambda: len(order) == 17)
    assert order.index("/modest") < 12


async def test_hostile_half_closed_and_reset_sockets_leave_nothing(site: Site) -> None:
    site.open()
    for sent in (b"", HALF_HEAD, POST + b"Content-Length: 9\r\n\r\nabc"):
        for wire in await wires(site, 20, sent):
            wire.stream.socket.shutdown(socket.SHUT_WR)
        for wire in await wires(site, 20, sent):
            linger = struct.pack("ii", 1, 0)
            wire.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            wire.stream.socket.close()
    await site.until(lambda: site.server.connection_count == 0)
    assert site.server._bodies_bytes == 0
    assert not any(site.server._by_phase.values())


# -- strangers -----------------------------------------------------------------------------------


def test_brake_lets_a_few_through_and_spaces_the_rest() -> None:
    brake = Brake()
    waits = [brake.wait_s(1000.0) for _ in range(1000)]
    assert waits[:BRAKE_BURST_COUNT] == [0.0] * BRAKE_BURST_COUNT
    held = [wait for wait in waits if wait]
    assert held == sorted(held)
    assert max(held) <= BRAKE_S_MAX
    assert len(held) <= BRAKE_S_MAX * BRAKE_PER_S + 1
    assert waits[-1] is None
    assert brake.wait_s(1000.0 + BRAKE_S_MAX + 2) == 0.0


def test_brake_gives_no_more_than_its_rate_however_asked() -> None:
    brake = Brake()
    given = sum(
        wait is not None and tick / 1000 + wait <= 10
        for tick in range(10_000)
        if (wait := brake.wait_s(tick / 1000)) is not None
    )
    assert given <= BRAKE_BURST_COUNT + 10 * BRAKE_PER_S + 1


async def test_hostile_flood_of_refusals_is_held_back_and_clients_are_not(
    site: Site, patient_clock: MockClock
) -> None:
    site.open()

    def by_key(request: HttpRequest, exchange: Exchange) -> None:
        exchange.is_strangers = "authorization" not in request.headers
        exchange.respond(401 if exchange.is_strangers else 200)

    site.desk.immediately = by_key
    for _ in range(BRAKE_BURST_COUNT):  # strangers use up what comes at once
        site.server.brake.wait_s(trio.current_time())
    flood = await wires(site, 20, GET)
    began = trio.current_time()
    keyed = await site.wire()
    await keyed.send(GET.replace(b"\r\n\r\n", b"\r\nAuthorization: Bearer x\r\n\r\n"))
    assert (await keyed.answer()).status == 200
    assert trio.current_time() == began  # no virtual time went by
    for wire in flood:
        assert (await wire.answer()).status == 401
    assert trio.current_time() - began >= 20 / BRAKE_PER_S


async def test_hostile_refusals_too_many_to_hold_are_closed_unanswered(site: Site) -> None:
    site.open()
    much_later_s = trio.current_time() + 3600  # a busy machine must not make room meanwhile
    while site.server.brake.wait_s(much_later_s) is not None:
        pass
    wire = await site.wire()
    await wire.send(b"BREW\r\n\r\n")
    assert await wire.is_at_end()


async def test_hostile_client_that_leaves_while_held_back_frees_its_place(site: Site) -> None:
    site.open()
    for _ in range(BRAKE_BURST_COUNT + 50):
        site.server.brake.wait_s(trio.current_time())
    for wire in await wires(site, 20, b"BREW\r\n\r\n"):
        await wire.vanish()
    await site.until(lambda: site.server.connection_count == 0)


def test_uploads_come_at_their_rate_after_a_burst_however_asked() -> None:
    pace, now_s, read_bytes = UploadPace(), 1000.0, 0
    piece = UPLOAD_BURST_BYTES // 16
    assert [pace.wait_s(piece, now_s) for _ in range(16)] == [0.0] * 16
    while now_s < 1010.0:
        now_s += pace.wait_s(piece, now_s)
        read_bytes += piece
    assert read_bytes == pytest.approx(10 * UPLOAD_BYTES_PER_S, rel=0.05)
    assert pace.wait_s(piece, now_s + 3600) == 0.0


async def test_hostile_uploads_wait_for_each_other_while_short_requests_are_served(
    site: Site, patient_clock: MockClock
) -> None:
    site.open()
    site.desk.immediately = lambda request, exchange: exchange.respond(200, {}, b"")
    began_s = trio.current_time()
    site.server.uploads.wait_s(UPLOAD_BURST_BYTES + UPLOAD_BYTES_PER_S, began_s)  # a crowd's
    head = b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 300000\r\n\r\n"
    uploads = await wires(site, 3, head + bytes(100_000))
    short = await site.wire()
    await short.send(GET)
    assert (await short.answer()).status == 200
    assert trio.current_time() == began_s  # no virtual time went by
    for wire in uploads:
        await wire.send(bytes(200_000))
        assert (await wire.answer("POST")).status == 200
    assert trio.current_time() - began_s >= 1.0


async def test_hostile_upload_that_leaves_while_it_waits_is_forgotten(
    site: Site, patient_clock: MockClock
) -> None:
    site.open()
    site.server.uploads.wait_s(100 * UPLOAD_BYTES_PER_S, trio.current_time())
    (wire,) = await wires(site, 1, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9999\r\n\r\na")
    await trio.sleep(1)
    assert site.server.connection_count == 1
    await wire.vanish()
    await trio.sleep(1)
    assert site.server.connection_count == 0
