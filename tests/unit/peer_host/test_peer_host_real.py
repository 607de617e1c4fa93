"""A host on real libp2p with the real llama.cpp child, seen from a gateway."""

import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import psutil
import pytest
import trio
from engine_kit import SMOLLM2, model_file
from host_kit import PRICES, TestGateway
from settlement_stub import GATEWAY, NETWORK_ID, ROOT, FakeSettlement

from p2p.clock import system_clock
from p2p.errors import ErrorCode
from p2p.net import NodeConfig, open_node
from p2p.network import NetworkInfo
from p2p.types import FinishReason, ModelId, PeerId
from peer.host.config import HostConfig, HostedEngine, LlamacppSpec, Ready
from peer.host.config_values import hosted_values
from peer.host.main import EngineStartError, HostTools, run_host
from peer.host.sandbox.settings import SandboxKind

pytestmark = [pytest.mark.engine, pytest.mark.sockets]


class RealTime:
    """What a gateway of the kit needs of a network."""

    wall_clock = staticmethod(system_clock)


SANDBOXES = [
    SandboxKind.NATIVE,
    pytest.param(SandboxKind.PODMAN, marks=pytest.mark.apt),
    pytest.param(SandboxKind.BUBBLEWRAP, marks=pytest.mark.apt),
]


def host_config(tmp_path: Path, model: Path, kind: SandboxKind = SandboxKind.NATIVE) -> HostConfig:
    return HostConfig(
        sandbox=kind,
        data_dir=tmp_path / "host",
        network=NetworkInfo(NETWORK_ID, ROOT.public, "http://settlement", ()),
        listen=("/ip4/127.0.0.1/tcp/0",),
        engines=(
            HostedEngine(
                spec=LlamacppSpec(model=model, model_id=SMOLLM2, context_tokens=1024),
                prices=PRICES,
                slots=2,
                licence="Apache-2.0",
            ),
        ),
        control_socket=tmp_path / "control.sock",
    )


@asynccontextmanager
async def open_real_world(
    tmp_path: Path, kind: SandboxKind = SandboxKind.NATIVE
) -> AsyncIterator[TestGateway]:
    settlement = FakeSettlement(system_clock)
    is_ready = trio.Event()
    addresses: list[str] = []
    found: list[Ready] = []

    @asynccontextmanager
    async def open_host_node(config: NodeConfig):
        async with open_node(config) as node:
            addresses.extend(node.addresses)
            yield node

    def ready(value: Ready) -> None:
        found.append(value)
        is_ready.set()

    async def run() -> None:
        await run_host(
            host_config(tmp_path, model_file(), kind),
            clock=system_clock,
            open_node=open_host_node,
            ready=ready,
            tools=HostTools(settlement_transport=settlement),
        )

    with trio.fail_after(90):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await is_ready.wait()
            async with open_node(NodeConfig(network_id=NETWORK_ID, key=GATEWAY)) as node:
                gateway = TestGateway(RealTime(), PeerId(found[0].peer_id))
                gateway.model_id = SMOLLM2
                nursery.start_soon(gateway.pay_when_idle)
                await gateway.open(node, tuple(addresses))
                await gateway.quoted.wait()
                gateway.engine_pid = found[0].engine_pid
                yield gateway
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("kind", SANDBOXES)
async def test_question_is_answered_paid_and_cosigned(tmp_path, kind) -> None:
    async with open_real_world(tmp_path, kind) as gateway:
        question = "What is the capital of France, and what is it famous for?"
        answer = gateway.ask(gateway.body(question, temperature=0), gateway.allow())
        await answer.over.wait()
        assert answer.error is None
        assert answer.refusal is None
        assert "Paris" in answer.text
        usage = answer.receipt
        fresh = usage.prompt_tokens - usage.cached_tokens
        doubled = fresh * 2 + usage.cached_tokens + usage.completion_tokens * 4
        assert usage.cost_micros == -(-doubled // 2)
        await gateway.wait(lambda: gateway.batches)


async def test_cancel_stops_the_child_within_a_second(tmp_path) -> None:
    async with open_real_world(tmp_path) as gateway:
        answer = gateway.ask(gateway.body("Count to ten thousand."), gateway.allow())
        await answer.first.wait()
        gateway.cancel(answer)
        await answer.over.wait()
        assert answer.receipt.finish_reason is FinishReason.CANCELLED
        assert answer.refusal is None
        child = psutil.Process(gateway.engine_pid)
        await trio.sleep(0.7)  # what may pass until it must be idle
        before = sum(child.cpu_times()[:2])
        await trio.sleep(0.3)
        assert sum(child.cpu_times()[:2]) - before < 0.1


@pytest.mark.parametrize("kind", SANDBOXES[:2])
async def test_child_killed_in_mid_answer_is_said_and_the_next_question_answered(
    tmp_path, kind
) -> None:
    async with open_real_world(tmp_path, kind) as gateway:
        allowance_id = gateway.allow()
        answer = gateway.ask(gateway.body("Count to ten thousand."), allowance_id)
        await answer.first.wait()
        os.kill(gateway.engine_pid, signal.SIGKILL)
        await answer.over.wait()
        assert answer.error.code is ErrorCode.ENGINE_FAILED
        assert answer.receipt.completion_tokens == answer.tokens
        while True:
            again = gateway.ask(gateway.body("Say hello.", max_tokens=5), allowance_id)
            await again.over.wait()
            if again.error is None:
                break
            assert again.error.code is ErrorCode.ENGINE_FAILED
            await trio.sleep(again.error.retry_after_ms / 1000)
        assert again.refusal is None


async def test_engine_that_never_starts_ends_the_host_with_a_reason(tmp_path) -> None:
    config = host_config(tmp_path, tmp_path / "none.gguf")
    with pytest.RaisesGroup(
        pytest.RaisesExc(EngineStartError, match="does not exist"), flatten_subgroups=True
    ):
        with trio.fail_after(30):
            await run_host(
                config,
                clock=system_clock,
                open_node=open_node,
                ready=lambda ready: None,
                tools=HostTools(settlement_transport=FakeSettlement(system_clock)),
            )


async def test_real_engines_are_loaded_swapped_and_unloaded_while_the_host_serves(tmp_path) -> None:
    second, third = ModelId("me/second"), ModelId("me/third")

    def hosted(name: str, model_id: ModelId) -> HostedEngine:
        spec = LlamacppSpec(model=model_file(), model_id=model_id, context_tokens=512)
        return HostedEngine(name=name, spec=spec, prices=PRICES, slots=1, licence="Apache-2.0")

    async def ask(gateway: TestGateway, model_id: ModelId, **fields: object):
        await gateway.wait(lambda: model_id in gateway.quotes)
        gateway.model_id = model_id
        question = "What is the capital of France, and what is it famous for?"
        return gateway.ask(gateway.body(question, temperature=0, **fields), gateway.allow())

    transport = httpx.AsyncHTTPTransport(uds=str(tmp_path / "control.sock"))
    async with (
        open_real_world(tmp_path) as gateway,
        httpx.AsyncClient(transport=transport, base_url="http://host", timeout=30) as control,
    ):

        async def change(path: str, **values: object) -> None:
            (await control.post(f"/v1/engines{path}", json=values)).raise_for_status()

        async def engines() -> dict[str, dict[str, object]]:
            found = (await control.get("/v1/status")).json()["engines"]
            return {each["name"]: each for each in found}

        await change("", engine=hosted_values(hosted("second", second)))
        answers = [
            await ask(gateway, second, max_tokens=16),
            await ask(gateway, SMOLLM2, max_tokens=16),
        ]
        for answer in answers:
            await answer.over.wait()
            assert answer.error is None
            assert "Paris" in answer.text
        pids = {name: each["pid"] for name, each in (await engines()).items()}
        assert len(set(pids.values())) == 2

        long = await ask(gateway, SMOLLM2, max_tokens=200)
        await long.first.wait()
        await change("/swap", engine=hosted_values(hosted("main", third)))
        answer = await ask(gateway, third, max_tokens=16)  # quoted once the long one is over
        assert long.over.is_set()
        assert long.error is None
        await answer.over.wait()
        assert "Paris" in answer.text
        await change("/unload", name="second", drain_s=0)
        for _ in range(200):
            if "second" not in await engines():
                break
            await trio.sleep(0.05)
        assert [not psutil.pid_exists(pid) for pid in pids.values()] == [True, True]
        weights = json.loads((tmp_path / "host" / "digests.json").read_text())
        assert [each["sha256"][:8] for each in weights.values()] == ["b179c952"]
