"""A host's life on the virtual clock: faults in every hour, and requests all the while."""

import collections
import json
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from random import Random

import trio
from host_kit import MODEL, PRICES, TestGateway, World
from settlement_stub import key

from p2p import limits
from p2p.errors import PeerUnreachableError
from p2p.types import AllowanceId, ModelId, PeerId
from peer.host.config import FakeSpec, HostedEngine
from peer.host.config_values import hosted_values
from peer.host.engines.api import EngineState

HOUR_S = 3600
PATIENCE_S = 60  # longer than a host lets any request that fails go on
HEAL_S = 80  # the longest wait between two tries: settlement's, 72 s
CUSTOMERS_COUNT = 2
FAULTS_AN_HOUR = 7  # half of them
SPEC = FakeSpec(tokens=200, token_s=0.05)
TOKENS, MANY_TOKENS = 8, 150  # the latter are more than anybody gets unpaid for
SECOND_MODEL = ModelId("sparewatt/second")


class Day:
    """What happens to one host.

    Attributes:
        done: How requests ended: ``during`` a fault or ``after`` it, ``whole``, ``failed``, or
            ``late``, which is neither within the patience.
    """

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.rng = Random(seed)
        self.done: collections.Counter[str] = collections.Counter()
        self._gateways: dict[TestGateway, AllowanceId] = {}
        self.faults: tuple[Callable[[], Awaitable[None]], ...] = (
            self.engine_crashes,
            self.engine_hangs,
            self.engine_says_garbage,
            self.engine_is_gone,
            self.engine_is_added_and_taken_away,
            self.settlement_is_away,
            self.directory_is_away,
            self.disk_is_full,
            self.clock_is_set,
            self.machine_is_suspended,
            self.links_are_cut,
            self.gateways_freeze,
            self.gateways_do_not_pay,
            self.owner_looks,
        )

    async def live(self, hours: int) -> None:
        """Let hours go by: gateways come, faults happen, they go; then nobody is there."""
        for _ in range(hours):
            over_s = trio.current_time() + HOUR_S
            async with AsyncExitStack() as stack:
                for number in range(CUSTOMERS_COUNT):
                    await self._come(number, stack)
                for fault in self.rng.sample(self.faults, FAULTS_AN_HOUR):
                    await fault()
                    self._mend()
                    await trio.sleep(HEAL_S)
                    await self.ask_all("after")
            self._gateways.clear()
            self._forget_what_the_others_keep()
            await trio.sleep_until(over_s)

    # -- gateways ------------------------------------------------------------------------------

    async def _come(self, number: int, stack: AsyncExitStack) -> None:
        """Let a customer come with a gateway that was just started: only its wallet is old."""
        assert self.world.ready is not None
        network, host = self.world.network, PeerId(self.world.ready.peer_id)
        node = await stack.enter_async_context(network.open_node(key(f"{self.rng.random()}")))
        gateway = TestGateway(network, host, key(f"wallet {number}"))
        gateway.node = node
        await self._connect(gateway)
        self._gateways[gateway] = gateway.allow(f"{self.rng.random()}")

    async def _connect(self, gateway: TestGateway) -> None:
        """Begin a session; what this gateway's predecessors used is closed by now."""
        assert gateway.node is not None
        gateway.session_id = self.rng.randbytes(16)
        await gateway.open(gateway.node, tuple(self.world.network.nodes[gateway.host].addresses))
        with trio.fail_after(PATIENCE_S):
            await gateway.quoted.wait()
        if gateway.allowance_envelope:
            gateway.show(gateway.allowance_envelope)

    async def ask_all(self, when: str, *, tokens: int = TOKENS) -> None:
        """Have each gateway ask once, one after the other."""
        for gateway in self._gateways:
            outcome = "late"
            with trio.move_on_after(PATIENCE_S):
                outcome = "whole" if await self._ask(gateway, tokens) else "failed"
            self.done[f"{when} {outcome}"] += 1

    async def _ask(self, gateway: TestGateway, tokens: int) -> bool:
        """Return whether an answer came whole."""
        try:
            if gateway.lost.is_set():
                await self._connect(gateway)
        except PeerUnreachableError:
            return False
        gateway.show(gateway.allowance_envelope)  # it may have been refused by a wrong clock
        gateway.session.ask_quote(MODEL)
        gateway.flush()
        await trio.sleep(1)
        if gateway.lost.is_set():
            return False
        answer = gateway.ask(gateway.body("hi", max_tokens=tokens), self._gateways[gateway])
        await answer.over.wait()
        if gateway.pays:
            gateway.pay(idle=True)
        return answer.receipt is not None and answer.error is None

    # -- faults --------------------------------------------------------------------------------

    async def engine_crashes(self) -> None:
        self.world.engine.faults.crash_after_tokens = 3
        await self.ask_all("during")

    async def engine_hangs(self) -> None:
        self.world.engine.faults.hang_after_tokens = 3
        await self.ask_all("during")

    async def engine_says_garbage(self) -> None:
        self.world.engine.faults.garbage = True
        await self.ask_all("during")

    async def engine_is_gone(self) -> None:
        self.world.engine.detail = "killed by SIGKILL: out of memory"
        self.world.engine.set_state(EngineState.FAILED)
        await self.ask_all("during")

    async def engine_is_added_and_taken_away(self) -> None:
        spec = FakeSpec(model_id=SECOND_MODEL)
        hosted = hosted_values(HostedEngine(spec=spec, prices=PRICES, name="second"))
        assert (await self._control("POST", "/v1/engines", {"engine": hosted}))["ok"]
        await self.ask_all("during")
        await self._control("POST", "/v1/engines/unload", {"name": "second", "drain_s": 0})

    async def settlement_is_away(self) -> None:
        self.world.settlement.is_up = False
        await self.ask_all("during")

    async def directory_is_away(self) -> None:
        self.world.network.directory_available = False
        await self.ask_all("during")

    async def disk_is_full(self) -> None:
        self.world.disk.fail()
        await self.ask_all("during")

    async def clock_is_set(self) -> None:
        self.world.clock_set_ns = self.rng.choice((-1, 1)) * limits.HOUR_NS
        await trio.sleep(2)
        await self.ask_all("during")

    async def machine_is_suspended(self) -> None:
        self.world.suspend(600)
        await trio.sleep(2)
        await self.ask_all("during")

    async def links_are_cut(self) -> None:
        for gateway in self._gateways:
            assert gateway.link is not None
            with trio.move_on_after(1.3):
                await self._ask(gateway, TOKENS)
            gateway.link.reset()

    async def gateways_freeze(self) -> None:
        for gateway in self._gateways:
            assert gateway.node is not None
            with trio.move_on_after(1.3):
                await self._ask(gateway, TOKENS)
            self.world.network.freeze(gateway.node.peer_id)
            await trio.sleep(2 * limits.RESUME_NS_MAX / limits.SECOND_NS)
            self.world.network.thaw(gateway.node.peer_id)

    async def gateways_do_not_pay(self) -> None:
        for gateway in self._gateways:
            gateway.pays = False
        await self.ask_all("during", tokens=MANY_TOKENS)
        for gateway in self._gateways:
            gateway.pays = True
            gateway.pay(idle=True)

    async def owner_looks(self) -> None:
        """Two screens look, and one vanishes."""
        screens = [await self._open_screen() for _ in range(2)]
        await self.ask_all("during")
        assert (await self._control("GET", "/v1/status"))["state"] == "serving"
        await screens[0].aclose()
        assert b"data:" in await screens[1].receive_some()
        await screens[1].aclose()

    def _mend(self) -> None:
        world, faults = self.world, self.world.engine.faults
        faults.crash_after_tokens = faults.hang_after_tokens = None
        faults.garbage = False
        world.settlement.is_up = world.network.directory_available = True
        world.disk.open()
        world.clock_set_ns = 0
        world.engine.detail = "a fake engine"
        world.engine.set_state(EngineState.READY)

    def _forget_what_the_others_keep(self) -> None:
        """Clear the test's own lists: what grows must be the host's."""
        settlement = self.world.settlement
        for each in (settlement.vouchers, settlement.items, settlement.closes, settlement.quotes):
            each.clear()
        settlement.reports.clear()

    # -- the owner -----------------------------------------------------------------------------

    async def _open_screen(self) -> trio.SocketStream:
        stream = await trio.open_unix_socket(str(self.world.config.control_socket))
        await stream.send_all(b"GET /v1/events HTTP/1.1\r\nhost: host\r\n\r\n")
        return stream

    async def _control(self, method: str, path: str, value: object = None) -> dict[str, object]:
        body = json.dumps(value).encode() if value is not None else b""
        head = f"{method} {path} HTTP/1.1\r\nhost: host\r\nconnection: close\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        async with await trio.open_unix_socket(str(self.world.config.control_socket)) as stream:
            await stream.send_all(head.encode() + body)
            answer = b"".join([data async for data in stream])
        found = json.loads(answer.partition(b"\r\n\r\n")[2])
        assert isinstance(found, dict)
        return found
