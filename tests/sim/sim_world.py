"""A whole market from one seed: hosts, gateways, settlement, weather, cheats and crashes.

``run_world(seed)`` runs it and returns what came of it; a law that breaks raises. What takes part
and what goes wrong is drawn from the seed, or fixed by ``Rules``.
"""

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import msgspec
import trio
from sim_cheats import GATEWAY_CHEATS, HOST_CHEATS, GatewayCheat, HostCheat
from sim_laws import Laws, require
from sim_nodes import GatewayKeys, GatewayProcess, Grounds, HostProcess, Process, Steps
from sim_settlement import CREDIT_MICROS, NETWORK_ID, SimSettlement
from sim_tap import Tap

from p2p import limits
from p2p.receipts.messages import Quote
from p2p.testing import MemoryNetwork, run_seeded
from p2p.types import AllowanceId, PeerId, QuoteId, sha256
from peer.gateway import failover
from peer.gateway.answer import AnswerReader
from peer.gateway.calls import KIND_REQUEST, Answer, Call, Route
from peer.gateway.dispatch import FIRST_TOKEN_NS_MAX, SILENCE_NS_MAX, WAIT_NS_MAX, Running
from peer.gateway.openai_api import parse_chat
from peer.gateway.openai_errors import ApiError
from peer.gateway.parts import monotonic_ns
from peer.gateway.routing import Policy
from peer.host.config import FakeSpec, Prices
from peer.host.engines.fake import _WORDS

TOKENS = 150
SPEC = FakeSpec(tokens=TOKENS, first_token_s=0.05, token_s=0.06)
MODEL = SPEC.model_id
EXPECTED = "".join(f"{_WORDS[index % len(_WORDS)]} " for index in range(TOKENS))
REQUEST_S_MAX = (
    WAIT_NS_MAX + failover.TRIES_COUNT_MAX * FIRST_TOKEN_NS_MAX + 2 * SILENCE_NS_MAX
) / limits.SECOND_NS
"""After which a request has ended: it waits for a host, each try for its first token, and an
answer may fall silent, once for a voucher and once for good."""
SUBMISSIONS_COUNT = 4
QUIET_S = 15.0  # links come back and all is paid: a backoff, a look-up, a round of books
ORDER_S = 1.0  # an order on an idle network
TWIN = "-twin"
TROUBLES = (
    "lose", "cut", "freeze", "partition", "slow", "jitter", "directory",
    "host-crash", "gateway-crash", "engine-crash", "engine-garbage",
    "settlement-away", "settlement-slow", "settlement-lossy", "settlement-restore",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a run is not to draw from its seed.

    Attributes:
        host_cheats: Of each host but the first, which is honest; None draws.
        gateway_cheats: Of each gateway but the first; None draws.
        troubles: What may go wrong; None draws.
        requests: How many each gateway's clients ask.
        before: Called with the world before anything runs: for tests that break a check.
    """

    host_cheats: tuple[str, ...] | None = None
    gateway_cheats: tuple[str, ...] | None = None
    troubles: tuple[str, ...] | None = None
    requests: int = 10
    before: Callable[["World"], None] = lambda world: None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a run.

    Attributes:
        trace: The digest of all that happened.
        gains: Cheat (empty for an honest party), gain, and its bound, for each pair.
        counts: Answers, errors, cheats, crashes, checks.
    """

    seed: int
    trace: str
    gains: tuple[tuple[str, int, int], ...]
    counts: Counter[str]


class SimulationFailedError(AssertionError):
    """Raised when a law broke: says the seed, the last events, and how to replay it."""


@dataclass
class Client:
    """A client of a gateway; a ``ResponseSink``."""

    asked_s: float
    folds: bool
    reads: bool = True
    text: str = ""
    answer: Answer | None = None
    error: ApiError | None = None
    hung_up: bool = False
    crashed: bool = False
    host: PeerId | None = None
    ticket: Running | None = None
    over: trio.Event = field(default_factory=trio.Event)

    def begin(self, route: Route, reader: AnswerReader) -> None:
        """Keep who answers."""
        self.host = PeerId(route.host)

    def write(self, data: bytes, credit_bytes: int) -> None:
        """Keep the text."""
        for part in data.split(b"\n\n"):
            if part.startswith(b"data: {"):
                choices = msgspec.json.decode(part[6:])["choices"]
                self.text += choices[0]["delta"].get("content") or ""
        if self.ticket is not None and self.reads:
            self.ticket.consumed(credit_bytes)

    def finish(self, answer: Answer) -> None:
        """Keep the answer."""
        self.answer = answer
        self.over.set()

    def fail(self, error: ApiError) -> None:
        """Keep the error."""
        self.error = error
        self.over.set()

    def hang_up(self) -> None:
        """Lose interest."""
        if not self.over.is_set() and self.ticket is not None:
            self.hung_up = True
            self.ticket.cancel()
            self.over.set()

    def gateway_died(self) -> None:
        """See the connection break: an explicit error."""
        if not self.over.is_set():
            self.crashed = True
            self.over.set()


@dataclass
class SimHost:
    """A host and its cheat, or none."""

    name: str
    process: HostProcess
    cheat: str = ""
    acts: HostCheat | None = None

    @property
    def peer_id(self) -> PeerId:
        """Its id."""
        return self.process.peer_id


@dataclass
class SimGateway:
    """A gateway and its cheat, or none.

    Attributes:
        payer: Whose wallet it uses; two have the same if one is the other's twin.
    """

    name: str
    process: GatewayProcess
    payer: str
    cheat: str = ""
    acts: GatewayCheat | None = None
    clients: list[Client] = field(default_factory=list)


class World:
    """Everything of one run."""

    def __init__(self, rng: Random, rules: Rules, grounds: Grounds, tap: Tap) -> None:
        self.rng = rng
        self.rules = rules
        self.grounds = grounds
        self.network = grounds.network
        self.settlement = grounds.settlement
        self.tap = tap
        self.hosts: list[SimHost] = []
        self.gateways: list[SimGateway] = []
        self.hosts_by_peer: dict[PeerId, SimHost] = {}
        self.gains: list[tuple[str, int, int]] = []
        self.counts: Counter[str] = Counter()
        self.broken: Exception | None = None
        self.laws = Laws(self)
        self.in_use: list[AllowanceId] = []
        drawn = [name for name in TROUBLES if rng.random() < 0.35]
        self.troubles = tuple(drawn) if rules.troubles is None else rules.troubles
        self._draw_hosts()
        self._draw_gateways()
        self.settlement.back_up()

    # -- who takes part --------------------------------------------------------------------------

    def _draw_hosts(self) -> None:
        names = self.rules.host_cheats
        if names is None:
            names = tuple(
                self.rng.choice(tuple(HOST_CHEATS)) if self.rng.random() < 0.5 else ""
                for _ in range(2)
            )
        for number, cheat in enumerate(("", *names)):
            name = f"host-{number}"
            prices = Prices(
                in_micros_per_mtok=self.rng.choice((2_000_000, 10_000_000)),
                cached_micros_per_mtok=1_000_000,
                out_micros_per_mtok=self.rng.choice((10_000_000, 20_000_000)),
                minimum_micros=self.rng.choice((0, 0, 200)),
            )
            rng = Random(self.rng.getrandbits(64))
            process = HostProcess(name, rng, self.grounds, prices=prices, spec=SPEC)
            host = SimHost(name, process, cheat)
            if cheat:
                host.acts = HOST_CHEATS[cheat](Random(self.rng.getrandbits(64)))
                process.corrupt = host.acts.corrupt
            process.died = lambda process=process: self.laws.host_died(process)
            self.hosts.append(host)
            self.hosts_by_peer[host.peer_id] = host
            self.settlement.enrol(name, host.peer_id, "host")

    def _draw_gateways(self) -> None:
        names = self.rules.gateway_cheats
        if names is None:
            names = (self.rng.choice(tuple(GATEWAY_CHEATS)) if self.rng.random() < 0.5 else "",)
        for number, cheat in enumerate(("", *names)):
            name = f"gateway-{number}"
            rng = Random(self.rng.getrandbits(64))
            keys = GatewayKeys(node=self.grounds.key(rng), seed=rng.randbytes(32))
            self._add_gateway(name, rng, keys, cheat)
            self.settlement.enrol(name, keys.node.peer_id, "gateway", CREDIT_MICROS)
            if cheat == "two-wallets":
                self._add_gateway(f"{name}{TWIN}", rng, keys, cheat)

    def _add_gateway(self, name: str, rng: Random, keys: GatewayKeys, cheat: str) -> None:
        policy = self.rng.choice((Policy.ROUND_ROBIN, Policy.LOWEST_LATENCY))
        process = GatewayProcess(name, rng, self.grounds, keys=keys, model=MODEL, policy=policy)
        gateway = SimGateway(name, process, name.removesuffix(TWIN), cheat)
        if cheat:
            gateway.acts = GATEWAY_CHEATS[cheat](Random(self.rng.getrandbits(64)))
            process.corrupt = gateway.acts.corrupt
        process.died = lambda: [client.gateway_died() for client in gateway.clients]
        self.gateways.append(gateway)

    def name_of(self, peer_id: PeerId) -> str:
        """Return what to call a peer."""
        if peer_id in self.hosts_by_peer:
            return self.hosts_by_peer[peer_id].name
        gateway = self.gateway_of(peer_id)
        return gateway.name if gateway else peer_id[-6:]

    def gateway_of(self, peer_id: PeerId) -> SimGateway | None:
        """Return the gateway that had a transport id in any of its lives."""
        return next((each for each in self.gateways if peer_id in each.process.peers), None)

    def payer_of(self, peer_id: PeerId) -> str:
        """Return whose wallet a transport id uses."""
        gateway = self.gateway_of(peer_id)
        return gateway.payer if gateway else ""

    def quote_of(self, process: HostProcess) -> Quote:
        """Return a host's prices as an honest quote has them."""
        prices = process.config.engines[0].prices
        return Quote(
            network_id=NETWORK_ID,
            quote_id=QuoteId(bytes(16)),
            host_peer_id=process.peer_id,
            model_id=MODEL,
            manifest_digest=sha256(b""),
            price_in_micros_per_mtok=prices.in_micros_per_mtok,
            price_cached_micros_per_mtok=prices.cached_micros_per_mtok,
            price_out_micros_per_mtok=prices.out_micros_per_mtok,
            minimum_micros=prices.minimum_micros,
            not_before_ns=1,
            expires_at_ns=limits.QUOTE_TTL_NS,
        )

    # -- the run ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Start all, let it happen, mend all, stop, and check the end."""
        tap, laws = self.tap, self.laws
        tap.stepped = self._guarded(laws.after_delivery)
        tap.voucher_signed = self._guarded(laws.voucher_signed)
        tap.request_sent = self._guarded(laws.request_sent)
        self.settlement.changed = self._guarded(self._transacted)
        self.network.tap = tap
        self.rules.before(self)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_gains)
            for host in self.hosts:
                await host.process.start(nursery)
            async with trio.open_nursery() as acts:
                for gateway in self.gateways:
                    acts.start_soon(self._ask_all, gateway, nursery)
                    nursery.start_soon(self._submit_often, gateway)
                acts.start_soon(self._make_trouble, nursery)
            await self._mend(nursery)
            await self._wait_clients()
            await trio.sleep(QUIET_S)
            await self._stop()
            nursery.cancel_scope.cancel()
        self._raise_broken()
        laws.at_end()
        self.counts["checks"] = laws.checks_count
        self.counts["resumes"] = tap.resumes_count
        self.counts["crashes"] = sum(each.crashes_count for each in self._processes())
        acts = [each.acts for each in (*self.hosts, *self.gateways) if each.acts]
        self.counts["cheats"] = sum(each.cheats_count for each in acts)

    async def _submit_often(self, gateway: SimGateway) -> None:
        """Tell settlement what a gateway signed in between, so that orders of it can differ."""
        rng = Random(self.rng.getrandbits(64))
        for _ in range(SUBMISSIONS_COUNT):
            await trio.sleep(1 + rng.random() * 5)
            if gateway.process.is_up:
                with gateway.process.errand():
                    await gateway.process.books.submit()

    async def _watch_gains(self) -> None:
        """Hold every cheat's gain against its bound all the while."""
        while True:
            await trio.sleep(1)
            self._guarded(self.laws.gains_are_bounded)()

    def _processes(self) -> list[Process]:
        return [each.process for each in (*self.hosts, *self.gateways)]

    def _guarded(self, check: Callable[..., None]) -> Callable[..., None]:
        """Let a law that breaks in somebody's callback end the run, not that somebody."""

        def checked(*what: object) -> None:
            if self.broken is None:
                try:
                    check(*what)
                except Exception as error:  # noqa: BLE001 - a task boundary: the run ends with it
                    self.broken = error

        return checked

    def _raise_broken(self) -> None:
        if self.broken is not None:
            raise self.broken

    def _transacted(self, kind: str) -> None:
        self.tap.note(f"settlement: {kind}")
        self.laws.after_transaction(kind)

    # -- clients ---------------------------------------------------------------------------------

    async def _ask_all(self, gateway: SimGateway, nursery: trio.Nursery) -> None:
        rng = Random(self.rng.getrandbits(64))
        if gateway.name.endswith(TWIN):
            await trio.sleep(3 + 2 * rng.random())
            original = next(each for each in self.gateways if each.name == gateway.payer)
            shutil.copytree(
                original.process.directory, gateway.process.directory, dirs_exist_ok=True
            )
        await gateway.process.start(nursery)
        await trio.sleep(1.5 + rng.random())
        for _ in range(self.rules.requests):
            self._raise_broken()
            await trio.sleep(rng.expovariate(1.5))
            if gateway.process.is_up:
                self._ask(gateway, rng, nursery)

    def _ask(self, gateway: SimGateway, rng: Random, nursery: trio.Nursery) -> None:
        client = Client(trio.current_time(), folds=rng.random() < 0.2)
        gateway.clients.append(client)
        text = "x" * rng.choice((rng.randrange(4, 300), rng.randrange(4, 300), 3_000))
        fields = {
            "model": MODEL,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": rng.choice((rng.randrange(1, 40), rng.randrange(40, TOKENS))),
        }
        if rng.random() < 0.3:
            fields["provider"] = {"only": [rng.choice(self.hosts).peer_id]}
        call = Call(
            answer_id=f"req_{rng.getrandbits(64):x}",
            request=parse_chat(msgspec.json.encode(fields)),
            kind=KIND_REQUEST,
            arrived_ns=monotonic_ns(),
        )
        client.ticket = gateway.process.core.dispatcher.submit(call, client)
        if gateway.acts is not None and gateway.acts.hangs_up:
            nursery.start_soon(self._hang_up_on_start, gateway, client)
        elif rng.random() < 0.15:
            nursery.start_soon(self._hang_up_later, client, rng.random() * 3)

    async def _hang_up_later(self, client: Client, wait_s: float) -> None:
        with trio.move_on_after(wait_s):
            await client.over.wait()
        client.hang_up()

    async def _hang_up_on_start(self, gateway: SimGateway, client: Client) -> None:
        """Give a request up as soon as its prompt is being computed."""
        while not client.over.is_set():
            attempt = client.ticket._attempt
            if attempt is not None and attempt.prompt_started:
                gateway.acts.cheats_count += 1
                if gateway.acts.hangs_up == "vanish":
                    link = gateway.process.core.table.get(attempt.route.host).link
                    link._is_leaving = True  # so that nothing of it is resumed
                    self.network.lose(gateway.process.peers[-1], attempt.route.host)
                client.hang_up()
                return
            await trio.sleep(0.03)

    async def _wait_clients(self) -> None:
        for gateway in self.gateways:
            for client in gateway.clients:
                # A cheat's own requests need no end; a hang-up or a crash is one.
                left_s = client.asked_s + REQUEST_S_MAX - trio.current_time()
                with trio.move_on_after(max(left_s, 0)):
                    await client.over.wait()
                self._raise_broken()
                if not gateway.cheat:
                    self._client_is_right(client)

    def _client_is_right(self, client: Client) -> None:
        require(client.over.is_set(), f"a request hangs for more than {REQUEST_S_MAX:.0f} s")
        kind = "answers" if client.answer else "errors" if client.error else "given up"
        self.counts[kind] += 1
        if client.host is None or self.hosts_by_peer[client.host].cheat or client.folds:
            return
        require(EXPECTED.startswith(client.text), "an honest host's answer lost or doubled a token")
        if client.answer is not None:
            require(
                len(client.text.split()) == client.answer.price.completion_tokens,
                "an answer has not the tokens that it costs",
            )

    # -- trouble ---------------------------------------------------------------------------------

    async def _make_trouble(self, nursery: trio.Nursery) -> None:
        rng = Random(self.rng.getrandbits(64))
        if not self.troubles:
            return
        for _ in range(rng.randrange(3, 9)):
            await trio.sleep(rng.random() * 2.5)
            if rng.random() < 0.3:
                self.settlement.back_up()
            name = rng.choice(self.troubles)
            self.tap.note(f"trouble: {name}")
            await self._trouble(name, rng, nursery)

    async def _trouble(self, name: str, rng: Random, nursery: trio.Nursery) -> None:
        match name.split("-"):
            case ["settlement", what]:
                await self._trouble_settlement(what, rng)
            case ["engine", what]:
                await self._trouble_engine(what, rng)
            case ["host" | "gateway" as who, "crash"]:
                those = self.hosts if who == "host" else self.gateways
                await self._crash(rng.choice(those).process, rng, nursery)
            case _:
                await self._trouble_network(name, rng)

    async def _crash(self, process: Process, rng: Random, nursery: trio.Nursery) -> None:
        """Let a process die at one of its next steps, and come back."""
        if not process.is_up:
            return
        process.steps_left = rng.randrange(1, 400)
        with trio.move_on_after(3):
            await process.wait_over()
        if process.is_up:
            process.crash()
            await process.wait_over()
        self.tap.note(f"{process.name} is dead")
        await trio.sleep(rng.random() * 2)
        await self._start_again(process, nursery)

    async def _start_again(self, process: Process, nursery: trio.Nursery) -> None:
        await process.start(nursery)
        if isinstance(process, HostProcess):
            self._guarded(self.laws.host_is_back)(process)

    async def _trouble_network(self, name: str, rng: Random) -> None:
        network = self.network
        host = rng.choice(self.hosts).peer_id
        started = [each.process for each in self.gateways if each.process.peers]
        gateway = rng.choice(started).peers[-1]
        wait_s = rng.random() * rng.choice((1, 5))
        match name:
            case "lose":
                network.lose(gateway, host)
            case "cut":
                network.cut(gateway, host)
                await trio.sleep(wait_s)
                network.mend(gateway, host)
            case "freeze":
                who = rng.choice((host, gateway))
                network.freeze(who)
                await trio.sleep(wait_s)
                network.thaw(who)
            case "partition":
                network.partition({host}, {gateway})
                await trio.sleep(wait_s)
                network.heal()
            case "slow":
                network.latency_s = rng.random() * 0.3
            case "jitter":
                network.jitter_s = rng.random() * 0.2
            case "directory":
                network.directory_available = False
                await trio.sleep(wait_s)
                network.directory_available = True

    async def _trouble_engine(self, what: str, rng: Random) -> None:
        faults = rng.choice(self.hosts).process.engine.faults
        if what == "crash":
            faults.crash_after_tokens = rng.randrange(TOKENS)
        else:
            faults.garbage = True
        await trio.sleep(rng.random() * 2)
        faults.crash_after_tokens, faults.garbage = None, False

    async def _trouble_settlement(self, what: str, rng: Random) -> None:
        settlement = self.settlement
        wait_s = rng.random() * 6
        match what:
            case "away":
                settlement.is_away = True
                await trio.sleep(wait_s)
                settlement.is_away = False
            case "slow":
                settlement.delay_s = rng.random() * 6
                await trio.sleep(wait_s)
                settlement.delay_s = 0.02
            case "lossy":
                settlement.loses_answers_ratio = 0.5
                await trio.sleep(wait_s)
                settlement.loses_answers_ratio = 0.0
            case "restore":
                settlement.restore()

    async def _mend(self, nursery: trio.Nursery) -> None:
        self.tap.note("all is mended")
        network = self.network
        network.latency_s, network.jitter_s = 0.01, 0.0
        for process in self._processes():
            process.steps_left = 0
            if not process.is_up:
                await self._start_again(process, nursery)

    async def _submit_all(self, *, looks_back: bool) -> None:
        """Let each gateway do at once what it does every 20 s, or every ten minutes."""
        for gateway in self.gateways:
            await gateway.process.books.submit(looks_back=looks_back)

    async def _stop(self) -> None:
        """Stop gateways, then hosts, which settle what they hold."""
        await self._submit_all(looks_back=True)
        await trio.sleep(ORDER_S)  # what a restored settlement has forgotten is ordered again
        await self._submit_all(looks_back=False)
        for host in self.hosts:
            host.process.stopping.set()
        self.in_use = [
            purse.allowance_id
            for gateway in self.gateways
            if not gateway.cheat
            for purse in gateway.process.core.wallet.purses()
            if purse.current is not None
        ]
        for host in self.hosts:
            with trio.fail_after(30):
                await host.process.wait_over()
        for gateway in self.gateways:
            gateway.process.crash()
            await gateway.process.wait_over()


def run_world(seed: int, rules: Rules | None = None) -> Outcome:
    """Run one seed.

    Raises:
        SimulationFailedError: If a law broke; it says how to replay.
    """
    rules = rules or Rules()
    memory = Path("/dev/shm")
    directory = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
    steps = Steps()
    kept: list[World] = []

    async def main(rng: Random) -> Outcome:
        network = MemoryNetwork(Random(rng.getrandbits(64)), latency_s=0.01, network_id=NETWORK_ID)
        settlement = SimSettlement(network.wall_clock, Random(rng.getrandbits(64)))
        tap = Tap(NETWORK_ID, lambda peer_id: kept[0].name_of(peer_id))
        world = World(rng, rules, Grounds(directory, network, settlement, steps), tap)
        kept.append(world)
        await world.run()
        return Outcome(seed, tap.trace, tuple(world.gains), world.counts)

    try:
        return run_seeded(main, seed, instruments=[steps])
    except Exception as error:
        events = "\n".join(kept[0].tap.events) if kept else ""
        raise SimulationFailedError(
            f"seed {seed}: {error!r}\nlast events:\n{events}\n"
            f"replay: python tests/sim/sim_soak.py --first {seed} --seeds 1"
        ) from error
    finally:
        shutil.rmtree(directory, ignore_errors=True)
