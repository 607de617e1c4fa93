"""The host tells settlement what it is; and is challenged by the real one."""

import contextlib
from dataclasses import replace
from random import Random

import httpx
import pytest
import trio
from settlement_stub import NETWORK_ID, ROOT, FakeSettlement, key

from p2p.hardware.verdict import Level
from p2p.types import NetworkId
from peer.host.challenge.local import Claim
from peer.host.challenge.prover import ChallengeError, Runtime
from peer.host.challenge.remote import run_remote
from peer.host.hardware import GpuSearch, read_report
from peer.host.hardware import reporter as reporting
from peer.host.hardware.fake import FakeGpu, FakeNvml
from peer.host.hardware.nvml import read_gpus
from peer.host.hardware.reporter import HardwareReporter
from peer.settlement_client import (
    SettlementClient,
    SettlementRefusedError,
    SettlementUnreachableError,
)
from settlement.testing import running_settlement

NOW_NS = 1_800_000_000 * 10**9
MIB = 2**20
CLAIM = Claim("processor", 16 * MIB)


async def at_once(work):
    """Run work here: a thread does not stop the virtual clock."""
    await trio.lowlevel.checkpoint()
    return work()


def clock() -> int:
    return NOW_NS


@contextlib.asynccontextmanager
async def reporter_of(tmp_path, settlement):
    client = SettlementClient(
        "http://settlement",
        key("node"),
        NETWORK_ID,
        clock,
        root_key=ROOT.public,
        transport=settlement,
    )
    async with client:
        made = HardwareReporter(client, tmp_path, clock, run_work=at_once, rng=Random(1))
        await made.look()
        yield made


async def test_reporter_tells_settlement_every_five_minutes(tmp_path, autojump_clock):
    settlement = FakeSettlement(clock)
    async with reporter_of(tmp_path, settlement) as reporter:
        with trio.move_on_after(3 * reporting.REPORT_S_MAX):
            await reporter.run()
    assert 3 <= len(settlement.reports) <= 5
    assert settlement.reports[0]["cpu_cores_count"] >= 1
    assert (reporter.level, reporter.detail) == (Level.SELF_REPORTED, "")
    assert reporter.reported_at_ns == NOW_NS


async def test_reporter_goes_on_while_settlement_is_away(tmp_path, autojump_clock):
    settlement = FakeSettlement(clock, is_up=False)
    async with reporter_of(tmp_path, settlement) as reporter, trio.open_nursery() as nursery:
        nursery.start_soon(reporter.run)
        await trio.sleep(1)
        assert "has no report of this machine" in reporter.detail
        settlement.is_up = True
        await trio.sleep(reporting.RETRY_S)
        assert (reporter.detail, len(settlement.reports)) == ("", 1)
        nursery.cancel_scope.cancel()


class Refusing(FakeSettlement):
    """Says that a GPU is another's."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        taken = b'{"error": {"message": "GPU x belongs to host y", "code": "gpu_taken"}}'
        return httpx.Response(409, stream=httpx.ByteStream(taken), request=request)


async def test_gpu_of_another_host_is_told_to_the_owner(tmp_path, caplog):
    async with reporter_of(tmp_path, Refusing(clock)) as reporter:
        assert await reporter.tell() == reporting.REPORT_S_MAX
        assert await reporter.tell() == reporting.REPORT_S_MAX
    assert reporter.level is Level.NONE
    assert reporter.detail.endswith("GPU x belongs to host y")
    assert caplog.text.count("GPU x belongs to host y") == 1  # once, not every five minutes


async def test_gpu_that_is_lost_is_logged_and_announced(tmp_path, monkeypatch, caplog):
    gpus, _ = read_gpus(FakeNvml([FakeGpu()]))
    found = [GpuSearch(gpus, ""), GpuSearch((), "GPU 0 can't be read: GPU is lost")]
    monkeypatch.setattr(reporting, "find_gpus", lambda: found.pop(0))
    told = []
    async with reporter_of(tmp_path, FakeSettlement(clock)) as reporter:
        reporter.on_change = lambda: told.append(reporter.summary.kind)
        assert reporter.summary.kind == "gpu"
        await reporter.look()
    assert told == ["cpu"]
    assert f"GPUs are lost: {gpus[0].uuid}; GPU 0 can't be read" in caplog.text


# -- with the real settlement ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def settlement(tmp_path_factory):
    directory = tmp_path_factory.mktemp("settlement")
    with running_settlement(directory, NetworkId("test")) as running:
        yield running


@contextlib.asynccontextmanager
async def joined(settlement, name: str):
    """Open the client of a host that belongs to an account of its own."""
    account_id, _ = settlement.add_account(name)
    client = SettlementClient(
        settlement.url,
        key(name),
        NetworkId("test"),
        settlement.clock,
        root_key=settlement.root_key,
    )
    async with client:
        await client.enrol(settlement.code(account_id, "host"), "host")
        yield client


@pytest.mark.sockets
async def test_challenge_of_settlement_is_solved_and_seen_by_others(settlement, tmp_path):
    report = read_report(GpuSearch((), ""), tmp_path)
    async with joined(settlement, "honest") as client:
        result = await run_remote(client, report, CLAIM, Runtime(), on_progress=lambda share: None)
        assert (result.ended.outcome, result.ended.problems) == ("passed", [])
        assert 0.8 * CLAIM.memory_bytes < result.ended.proven_bytes <= 0.9 * CLAIM.memory_bytes
        known = await client.hardware_of(key("honest").peer_id)
        assert known.level is Level.CHALLENGED
        with pytest.raises(SettlementUnreachableError, match="less than five minutes ago"):
            await client.issue_challenge("cpu", CLAIM.memory_bytes)


@pytest.mark.sockets
async def test_one_gpu_on_two_hosts_is_refused_to_the_second(settlement, tmp_path):
    gpus, _ = read_gpus(FakeNvml([FakeGpu()]))
    report = replace(read_report(GpuSearch((), ""), tmp_path), gpus=gpus)
    async with joined(settlement, "first") as first, joined(settlement, "second") as second:
        assert (await first.report_hardware(report)).level is Level.SELF_REPORTED
        with pytest.raises(SettlementRefusedError, match=key("first").peer_id) as caught:
            await second.report_hardware(report)
        assert (caught.value.status, caught.value.code) == (409, "gpu_taken")
        assert (await second.hardware_of(key("second").peer_id)).level is Level.NONE


@pytest.mark.sockets
async def test_challenge_of_a_card_that_is_not_there_ends_before_its_answer(settlement, tmp_path):
    (gpu,), _ = read_gpus(FakeNvml([FakeGpu(uuid="GPU-00000000-6b14-3f7e-9d36-0c4f5a0d7c11")]))
    small = replace(gpu, memory_bytes=16 * MIB)  # so that the processor could fill it
    report = replace(read_report(GpuSearch((), ""), tmp_path), gpus=(small,))
    claim = Claim(small.name, small.memory_bytes, is_gpu=True)
    runtime = Runtime(gpu_uuid=small.uuid)
    async with joined(settlement, "liar") as client:
        with pytest.raises(ChallengeError, match="PyTorch found no GPU"):
            await run_remote(client, report, claim, runtime, on_progress=lambda share: None)
        known = await client.hardware_of(key("liar").peer_id)
        assert known.level is Level.SELF_REPORTED
