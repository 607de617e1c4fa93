"""How much is known of a host's hardware, as its gateway shows it."""

from types import SimpleNamespace

import pytest
import trio
from gateway_kit import MODEL, key

from p2p.hardware.verdict import Level
from p2p.overlay import PeerAddress
from p2p.records import Hardware
from peer.gateway import health, views
from peer.gateway.hosts import Host, HostTable
from peer.gateway.levels import ASKED_AT_ONCE_COUNT_MAX, FRESH_S, LOOK_S, Levels
from peer.settlement_client import (
    HardwareKnown,
    SettlementRefusedError,
    SettlementUnreachableError,
)


class Knowing:
    """A settlement that knows of hardware what the test says."""

    def __init__(self) -> None:
        self.level = Level.CHALLENGED
        self.error: Exception | None = None
        self.asked: list[str] = []

    async def hardware_of(self, peer_id: str) -> HardwareKnown:
        await trio.lowlevel.checkpoint()
        self.asked.append(peer_id)
        if self.error is not None:
            raise self.error
        return HardwareKnown(self.level)


def table_of(count: int) -> HostTable:
    table = HostTable(SimpleNamespace())
    for number in range(count):
        assert table.add(PeerAddress(key(f"host {number}").peer_id, ()))
    return table


def shown(host: Host) -> dict | None:
    (found,) = views.hosts([host])["data"]
    return found["hardware"]


def with_record(host: Host) -> Host:
    hardware = Hardware(kind="gpu", name="Some GPU", count=2, memory_bytes=2**36)
    value = SimpleNamespace(
        hardware=hardware, offers=(), region="", draining=False, sequence=1, addresses=()
    )
    host.record = SimpleNamespace(value=value)
    return host


def test_host_without_a_record_has_no_hardware_to_show():
    (host,) = table_of(1)
    assert shown(host) is None


def test_level_rises_from_its_own_word_to_what_we_measured():
    (host,) = table_of(1)
    with_record(host)
    assert shown(host) == {
        "kind": "gpu",
        "name": "Some GPU",
        "count": 2,
        "memory_bytes": 2**36,
        "level": "self-reported",
        "challenged": False,
    }
    host.hardware_level = Level.CHALLENGED
    assert (shown(host)["level"], shown(host)["challenged"]) == ("challenged", True)
    measured = health.after_answer(health.UNKNOWN, ttft_ms=5, tokens_per_s=None)
    host.health[MODEL] = measured
    assert (shown(host)["level"], shown(host)["challenged"]) == ("client-measured", True)
    host.hardware_level = Level.SELF_REPORTED
    assert (shown(host)["level"], shown(host)["challenged"]) == ("client-measured", False)


async def test_settlement_is_asked_about_each_host_once_an_hour(autojump_clock):
    table, knowing = table_of(2), Knowing()
    with trio.move_on_after(FRESH_S - 1):
        await Levels(table, knowing).run()
    assert sorted(knowing.asked) == sorted(host.peer_id for host in table)
    assert {host.hardware_level for host in table} == {Level.CHALLENGED}


async def test_settlement_that_is_away_is_asked_again_soon(autojump_clock):
    table, knowing = table_of(3), Knowing()
    levels = Levels(table, knowing)
    knowing.error = SettlementUnreachableError("away")
    await levels.ask()
    assert len(knowing.asked) == 1  # the others would fare no better
    knowing.error = None
    await trio.sleep(LOOK_S)
    await levels.ask()
    assert {host.hardware_level for host in table} == {Level.CHALLENGED}


async def test_settlement_that_refuses_leaves_a_host_at_its_own_word(autojump_clock):
    table, knowing = table_of(1), Knowing()
    (host,) = table
    levels = Levels(table, knowing)
    await levels.ask()
    assert host.hardware_level is Level.CHALLENGED
    knowing.error = SettlementRefusedError(401, "not_enrolled", "no")
    await trio.sleep(FRESH_S)
    await levels.ask()
    assert host.hardware_level is Level.NONE


@pytest.mark.parametrize("count", [ASKED_AT_ONCE_COUNT_MAX + 5])
async def test_settlement_is_asked_about_some_hosts_at_a_time(autojump_clock, count):
    table, knowing = table_of(count), Knowing()
    levels = Levels(table, knowing)
    await levels.ask()
    assert len(knowing.asked) == ASKED_AT_ONCE_COUNT_MAX
    await levels.ask()
    assert len(set(knowing.asked)) == len(knowing.asked) == count
