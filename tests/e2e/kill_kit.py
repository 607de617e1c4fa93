"""A network under load whose processes are killed at random moments, and what must hold after it.

What was acknowledged is read from outside: from the clients' answers, and from the databases of all
parties, which must never contradict each other. Each rule below compares a row that one party could
only have written after another had acknowledged something with that other's own rows, reading the
claim first and its ground afterwards, so that it holds at any moment, under load too.
"""

import contextlib
import http.client
import itertools
import json
import random
import signal
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
from e2e_kit import POLL_SECONDS, network

from settlement.verify import verify

MODEL = "sparewatt/fake"
HEAL_SECONDS_MAX = 15.0
BUSY_HEAL_SECONDS_MAX = 60.0  # where others use the machine, starting a process alone takes 10 s
OTHER_CORES_MAX = 0.3
# A receipt is signed 50 ms after the answer ended, and its batch and the usage row are committed
# within 100 ms. Only what was answered so shortly before a kill may be without receipt, or so
# shortly after one, as the last of it was still under way to the client. On a machine that is busy
# with all of this a party may stand still for longer, so what counts is what it did meanwhile: an
# answer is excused for longer only while no later one of its host got a receipt before the kill.
RECEIPT_SECONDS_MAX = 1.0
STALL_SECONDS_MAX = 10.0
ANSWER_COST_MICROS_MAX = 1_000  # 16 tokens at $15 and a prompt of some 30 at $3 per million: 330
BEGUN = frozenset({200, 502, 504})  # the others say that no host took the request
CLIENTS_COUNT = 4
RETRY_SECONDS = 0.25  # those who ask must not take the CPU from those who start again
HOSTS = ("host-1", "host-2")
KILLS_PER_ROUND_MAX = 4
ROLES = ("gateway", *HOSTS, "settlement", "relay-1", "relay-2")


class BrokenPromiseError(AssertionError):
    """Raised when something acknowledged was lost or doubled, or the network did not heal."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A complete answer as a client got it."""

    answer_id: str
    host: str
    cost_micros: int
    at_s: float


@dataclass(frozen=True, slots=True)
class Kill:
    """One kill, and how long it took until all roles served again."""

    name: str
    at_s: float
    healed_s: float = 0.0


@dataclass
class Clients:
    """Threads that ask without pause, streaming and not, and remember what they were told.

    Attributes:
        failures_count: Requests without a complete answer.
        cuts_count: Those of them of which a host may have begun to answer, which costs.
    """

    url: str
    api_key: str
    answers: list[Answered] = field(default_factory=list)
    failures_count: int = 0
    cuts_count: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def asking(self) -> Iterator[None]:
        """Ask while the block lasts."""
        threads = [
            threading.Thread(target=self._ask_on, kwargs={"streams": index % 2 == 0}, daemon=True)
            for index in range(CLIENTS_COUNT)
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(30)

    def _ask_on(self, *, streams: bool) -> None:
        with self.client() as client:
            while not self._stop.is_set():
                if self.ask(client, streams=streams) is None:
                    self._stop.wait(RETRY_SECONDS)

    def client(self) -> httpx.Client:
        return httpx.Client(
            base_url=f"{self.url}/v1",
            headers={"authorization": f"Bearer {self.api_key}"},
            trust_env=False,
            verify=False,  # it is no TLS, and loading certificates costs 50 ms
            timeout=10,
        )

    def ask(self, client: httpx.Client, *, streams: bool, host: str = "") -> Answered | None:
        """Ask once; return None if there was no complete answer."""
        body: dict[str, object] = {
            "model": MODEL,
            "messages": [{"role": "user", "content": "Say something while you can."}],
            "stream": streams,
        }
        if streams:
            body["stream_options"] = {"include_usage": True}
        if host:
            body["provider"] = {"only": [host], "allow_fallbacks": False}
        try:
            with client.stream("POST", "/chat/completions", json=body) as response:
                usage = _usage_of(response, response.read().decode(), streams=streams)
                is_cut = response.status_code in BEGUN
        except httpx.HTTPError as error:
            usage, is_cut = None, not isinstance(error, httpx.ConnectError)
        if usage is None:
            self.failures_count += 1
            self.cuts_count += is_cut
            return None
        answered = Answered(
            response.headers["x-request-id"],
            response.headers["x-sparewatt-host"],
            usage["cost_micros"],
            time.monotonic(),
        )
        self.answers.append(answered)
        return answered


def _usage_of(response: httpx.Response, text: str, *, streams: bool) -> dict | None:
    if response.status_code != 200:
        return None
    if not streams:
        return json.loads(text)["usage"]
    lines = text.splitlines()  # comments among them
    events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    if not events or events[-1] != "[DONE]":
        return None
    return next((usage for each in events[:-1] if (usage := json.loads(each).get("usage"))), None)


# -- what the parties have on disk -----------------------------------------------------------------


def read_rows(path: Path, sql: str) -> list[tuple]:
    """Read committed rows, whether a process has the file open, was killed, or has ended."""
    with contextlib.closing(
        sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=10)
    ) as connection:
        return connection.execute(sql).fetchall()


@dataclass(frozen=True, slots=True)
class Node:
    """A host's or the gateway's journal at one moment, by allowance or digest in hex."""

    vouchers: dict[str, int]
    posted: dict[str, int]
    allowances: dict[str, bytes]
    batches: set[str]
    cosigned: set[str]
    submitted: set[str]
    closed: set[str]


@dataclass(frozen=True, slots=True)
class Ledger:
    """Settlement's database at one moment."""

    posted: dict[str, int]
    cum: dict[str, int]
    closed: set[str]
    batches: set[str]


def read_host(path: Path) -> Node:
    read = _reader(path / "journal.sqlite")
    return Node(
        vouchers=dict(read("SELECT lower(hex(allowance_id)), cum_micros FROM vouchers")),
        posted=dict(read("SELECT lower(hex(allowance_id)), posted_micros FROM allowances")),
        allowances=dict(read("SELECT lower(hex(allowance_id)), envelope FROM allowances")),
        batches=_set(read("SELECT lower(hex(digest)) FROM batches")),
        cosigned=_set(read("SELECT lower(hex(digest)) FROM batches WHERE cosignature IS NOT NULL")),
        submitted=_set(read("SELECT lower(hex(digest)) FROM batches WHERE submitted > 0")),
        closed=_set(read("SELECT lower(hex(allowance_id)) FROM allowances WHERE closed = 2")),
    )


def read_gateway(path: Path) -> Node:
    read = _reader(path / "gateway.sqlite3")
    return Node(
        vouchers=dict(read("SELECT lower(hex(allowance_id)), cum_micros FROM vouchers")),
        posted=dict(read("SELECT lower(hex(allowance_id)), posted_micros FROM vouchers")),
        allowances=dict(
            read(
                "SELECT lower(hex(allowance_id)), envelope FROM allowances"
                " WHERE envelope IS NOT NULL"
            )
        ),
        batches=_set(read("SELECT lower(hex(digest)) FROM batches")),
        cosigned=_set(read("SELECT lower(hex(digest)) FROM batches")),
        submitted=_set(read("SELECT lower(hex(digest)) FROM batches WHERE submitted = 1")),
        closed=set(),
    )


def read_ledger(path: Path) -> Ledger:
    read = _reader(path / "settlement.db")
    return Ledger(
        posted=dict(read("SELECT allowance_id, posted_micros FROM allowances")),
        cum=dict(read("SELECT allowance_id, cum_micros FROM allowances")),
        closed=_set(read("SELECT allowance_id FROM allowances WHERE closed")),
        batches=_set(read("SELECT digest FROM batches")),
    )


def _reader(path: Path) -> Callable[[str], list[tuple]]:
    return lambda sql: read_rows(path, sql)


def _set(rows: list[tuple]) -> set[str]:
    return {name for (name,) in rows}


def broken_rules(directory: Path, before: dict[str, Node | Ledger]) -> list[str]:
    """Compare what the parties hold; return what contradicts, and update ``before``.

    Args:
        directory: The network's.
        before: What they held the last time, by name; nothing of it may have gone.
    """
    first = read_ledger(directory / "settlement")
    hosts = {name: read_host(directory / name) for name in HOSTS}
    gateway = read_gateway(directory / "gateway")
    ledger = read_ledger(directory / "settlement")
    later = {name: read_host(directory / name) for name in HOSTS}
    broken = []
    best = dict(gateway.vouchers)
    for name, host in hosts.items():
        broken += _less(f"{name} has vouchers that the gateway", host.vouchers, gateway.vouchers)
        broken += _less(f"{name} heard of postings that settlement", host.posted, ledger.posted)
        broken += _gone(f"{name} has allowances that settlement", host.allowances, ledger.posted)
        broken += _gone(f"{name} heard of batches that settlement", host.submitted, ledger.batches)
        broken += _gone(f"{name} heard of closes that settlement", host.closed, ledger.closed)
        broken += _gone(f"{name} has cosignatures that the gateway", host.cosigned, gateway.batches)
        for allowance_id, cum_micros in host.vouchers.items():
            best[allowance_id] = max(cum_micros, best.get(allowance_id, 0))
    signed = set().union(*(host.batches for host in later.values()))
    broken += _less("settlement posted what nobody", first.cum, best, missing=0)
    broken += _less("the gateway heard of postings that settlement", gateway.posted, ledger.cum)
    broken += _gone("the gateway has allowances that settlement", gateway.allowances, ledger.posted)
    broken += _gone(
        "the gateway heard of batches that settlement", gateway.submitted, ledger.batches
    )
    broken += _gone("the gateway has batches that the hosts", gateway.batches, signed)
    now: dict[str, Node | Ledger] = {**later, "gateway": gateway, "settlement": ledger}
    for name, held in now.items():
        if name in before:
            broken += _forgotten(name, before[name], held)
    before.update(now)
    return broken


def _less(
    what: str, claims: dict[str, int], grounds: dict[str, int], *, missing: int = -1
) -> list[str]:
    return [
        f"{what} does not have: {key} at {claim}, not {grounds.get(key)}"
        for key, claim in claims.items()
        if claim > grounds.get(key, missing)
    ]


def _gone(what: str, claims, grounds) -> list[str]:
    return [f"{what} does not have: {key}" for key in claims if key not in grounds]


def _forgotten(name: str, before: Node | Ledger, now: Node | Ledger) -> list[str]:
    broken = []
    for column in before.__slots__:
        had, has = getattr(before, column), getattr(now, column)
        broken += _gone(f"{name} had {column} that it", had, has)
        if isinstance(had, dict) and column != "allowances":
            broken += _less(f"{name} had {column} that it", had, has)
    return broken


# -- the network -----------------------------------------------------------------------------------


@dataclass
class Rig:
    """A running network whose processes can be killed and started again."""

    directory: Path
    state: dict
    commands: dict[str, list[str]] = field(default_factory=dict)
    pids: dict[str, int] = field(default_factory=dict)
    _children: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    @property
    def host_ids(self) -> dict[str, str]:
        return {host["name"]: host["peer_id"] for host in self.state["hosts"]}

    def learn(self) -> None:
        """Note how each process was started; its code is used up."""
        layout = json.loads((self.directory / "layout.json").read_text())
        for record in layout["processes"]:
            name, pid = record["name"], record["pid"]
            words = psutil.Process(pid).cmdline()
            if "--enrol-code-file" in words:
                at = words.index("--enrol-code-file")
                del words[at : at + 2]
            self.commands[name], self.pids[name] = words, pid
        self.commands["host-2"].append("--relayed")

    def kill(self, name: str) -> None:
        process = psutil.Process(self.pids[name])
        process.send_signal(signal.SIGKILL)
        with contextlib.suppress(psutil.NoSuchProcess):
            process.wait(10)
        for child in self._children:
            child.poll()

    def start(self, name: str) -> None:
        """Start a process again as its operator would: the same command."""
        (self.directory / name / "ready.json").unlink(missing_ok=True)
        with (self.directory / "logs" / f"{name}.log").open("ab") as log:
            child = subprocess.Popen(
                self.commands[name], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self._children.append(child)
        self.pids[name] = child.pid

    def end(self) -> None:
        """Kill what still runs of our children."""
        for child in self._children:
            if child.poll() is None:
                child.kill()
            child.wait(10)

    def is_ready(self, name: str) -> bool:
        try:
            said = json.loads((self.directory / name / "ready.json").read_text())
        except (OSError, ValueError):
            return False
        return said["pid"] == self.pids[name]

    def host_says(self, name: str, method: str, url: str) -> dict:
        """Ask a host's control socket; an empty answer if there is none."""
        path = next(h["control_socket"] for h in self.state["hosts"] if h["name"] == name)
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(20)
            try:
                control.connect(path)
                connection = http.client.HTTPConnection("host")
                connection.sock = control
                connection.request(method, url)
                return json.loads(connection.getresponse().read())
            except (OSError, ValueError, http.client.HTTPException):
                return {}

    def log_tails(self) -> str:
        """Return the end of every log, for a failure's message."""
        tails = []
        for path in sorted((self.directory / "logs").glob("*.log")):
            lines = path.read_text(errors="replace").splitlines()[-15:]
            tails.append("\n".join([f"== {path.name}", *lines]))
        return "\n".join(tails)


@contextlib.contextmanager
def rig(directory: Path) -> Iterator[Rig]:
    """Run a network of two hosts (one reachable through the relays too) and a gateway."""
    options = ("--hosts", "2", "--engine", "fake", "--price", "$3/$15")
    with network(directory, *options) as state:
        made = Rig(directory, state)
        made.learn()
        try:
            yield made
        finally:
            made.end()


class Load:
    """How many cores others use, from its making on: a busy machine heals late by no fault."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._began = time.monotonic(), self._all_s(), self._ours_s()

    def other_cores(self) -> float:
        since_s, all_s, ours_s = self._began
        took_s = max(0.1, time.monotonic() - since_s)
        return (self._all_s() - all_s - (self._ours_s() - ours_s)) / took_s

    def _all_s(self) -> float:
        times = psutil.cpu_times()
        return sum(times) - times.idle - times.iowait

    def _ours_s(self) -> float:
        own = psutil.Process().cpu_times()
        total_s = own.user + own.system
        for pid in self._rig.pids.values():
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                for each in {process, *process.children(recursive=True)}:
                    used = each.cpu_times()
                    total_s += used.user + used.system
        return total_s


# -- one life --------------------------------------------------------------------------------------


@dataclass
class Life:
    """One network, from its first request to its last audit."""

    rig: Rig
    rng: random.Random
    say: Callable[[str], None] = print
    kills: list[Kill] = field(default_factory=list)
    _held: dict[str, Node | Ledger] = field(default_factory=dict)

    def run(self, kills_count: int) -> "Report":
        """Kill so many processes under load; raise if a promise is broken."""
        net = self.rig.state
        clients = Clients(net["gateway"]["url"], net["gateway"]["api_key"])
        with clients.asking():
            while len(self.kills) < kills_count:
                self._round(clients, min(KILLS_PER_ROUND_MAX, kills_count - len(self.kills)))
            healed_s = time.monotonic()
        return self._finish(clients, healed_s)

    def _round(self, clients: Clients, most: int) -> None:
        """Kill some processes, start them again, and wait until all roles serve."""
        time.sleep(self.rng.uniform(0.0, 0.5))
        names = self.rng.sample(ROLES, self.rng.randint(1, most))
        began = []
        for name in names:
            time.sleep(self.rng.choice((0.0, self.rng.uniform(0.0, 0.3))))
            self.rig.kill(name)
            began.append(Kill(name, time.monotonic()))
        for name in names:
            self.rig.start(name)
        self._require_rules(f"after killing {', '.join(names)}")
        healed_s = self._wait_healed(clients, began)
        for kill in began:
            took = Kill(kill.name, kill.at_s, healed_s - kill.at_s)
            self.kills.append(took)
        took_s = max(kill.healed_s for kill in self.kills[-len(names) :])
        self.say(
            f"{len(self.kills):5} kills  {' + '.join(names):<24} healed in {took_s:4.1f} s  "
            f"{len(clients.answers)} answers, {clients.failures_count} failures"
        )
        self._require_rules(f"after {', '.join(names)} came back")

    def _wait_healed(self, clients: Clients, kills: list[Kill]) -> float:
        """Wait until every role does its work again; return when."""
        load = Load(self.rig)
        with clients.client() as client:
            return self._wait_signs(dict(self._signs_of_life(clients, client)), kills, load)

    def _wait_signs(
        self, waiting: dict[str, Callable[[], object]], kills: list[Kill], load: "Load"
    ) -> float:
        while waiting:
            waiting = {name: holds for name, holds in waiting.items() if not holds()}
            took_s = time.monotonic() - kills[0].at_s
            if took_s > HEAL_SECONDS_MAX:
                is_busy = load.other_cores() > OTHER_CORES_MAX
                if not is_busy or (waiting and took_s > BUSY_HEAL_SECONDS_MAX):
                    raise BrokenPromiseError(
                        f"{took_s:.0f} s after {', '.join(kill.name for kill in kills)} were "
                        f"killed: {', '.join(waiting) or 'healed only now'}, while others used "
                        f"{load.other_cores():.1f} cores\n{self.rig.log_tails()}"
                    )
            time.sleep(RETRY_SECONDS if waiting else 0)
        return time.monotonic()

    def _signs_of_life(
        self, clients: Clients, client: httpx.Client
    ) -> Iterator[tuple[str, Callable[[], object]]]:
        """Yield what each role must do again, once."""
        for name, peer_id in self.rig.host_ids.items():
            yield (
                f"an answer by {name}",
                lambda peer_id=peer_id: clients.ask(client, streams=False, host=peer_id),
            )
            yield (
                f"{name} settling",
                lambda name=name: self.rig.host_says(name, "POST", "/v1/settle").get("ok"),
            )
        for index, name in enumerate(("relay-1", "relay-2")):
            yield name, lambda name=name: self.rig.is_ready(name)
            peer_id = self.rig.state["relays"][index]["multiaddr"].rpartition("/")[2]
            yield (
                f"host-2 reachable through {name}",
                lambda peer_id=peer_id: self._is_relayed(peer_id),
            )

    def _is_relayed(self, relay: str) -> bool:
        if "--relayed" not in psutil.Process(self.rig.pids["host-2"]).cmdline():
            return True  # it was not killed yet, so it runs as `up` started it
        addresses = self.rig.host_says("host-2", "GET", "/v1/status").get("addresses", ())
        return any(f"/p2p/{relay}/p2p-circuit" in address for address in addresses)

    def _require_rules(self, when: str) -> None:
        broken = broken_rules(self.rig.directory, self._held)
        report = verify(self.rig.directory / "settlement")
        broken += [f"{each.check}: {each.rows}: {each.text}" for each in report.findings]
        if broken:
            raise BrokenPromiseError(f"{when}:\n" + "\n".join(broken[:20]))

    # -- the end -------------------------------------------------------------------------------

    def _finish(self, clients: Clients, healed_s: float) -> "Report":
        """Let all of it settle, and hold the clients' answers against receipts and ledger."""
        gateway = psutil.Process(self.rig.pids["gateway"])
        self._until(self._is_settled, "the hosts were not paid all that was vouched for")
        gateway.send_signal(signal.SIGTERM)  # it hands in what it has before it ends
        with contextlib.suppress(psutil.NoSuchProcess):
            gateway.wait(10)
        self._until(self._is_settled, "the hosts were not paid after the gateway's end")
        self._require_rules("at the end")
        report = Report.of(self.rig, self.kills, clients)
        self.rig.kill("settlement")
        self._require_rules("with settlement killed for good")
        if report.broken:
            raise BrokenPromiseError("\n".join(report.broken[:20]))
        return report

    def _until(self, holds: Callable[[], object], otherwise: str) -> None:
        deadline = time.monotonic() + HEAL_SECONDS_MAX
        while not holds():
            if time.monotonic() > deadline:
                raise BrokenPromiseError(f"{otherwise}\n{self.rig.log_tails()}")
            time.sleep(POLL_SECONDS)

    def _is_settled(self) -> bool:
        said = [self.rig.host_says(name, "POST", "/v1/settle") for name in HOSTS]
        ledger = read_ledger(self.rig.directory / "settlement")
        gateway = read_gateway(self.rig.directory / "gateway")
        return all(each.get("ok") and each["unsettled_micros"] == 0 for each in said) and all(
            ledger.posted.get(key) == cum for key, cum in gateway.vouchers.items()
        )


@dataclass(frozen=True, slots=True)
class Report:
    """What one life came to, in micro-dollars."""

    kills: tuple[Kill, ...]
    answers_count: int
    failures_count: int
    cuts_count: int
    answered_micros: int
    receipts_micros: int
    ledger_micros: int
    without_receipt: tuple[Answered, ...]
    broken: tuple[str, ...]

    @classmethod
    def of(cls, rig: Rig, kills: list[Kill], clients: Clients) -> "Report":
        """Compare the clients' answers with receipts and ledger."""
        costs = _receipt_costs(rig)
        answers = clients.answers
        late = [each for each in answers if not _has_receipt(each, costs)]
        killed = {
            name: [kill.at_s for kill in kills if kill.name == name] for name in ("gateway", *HOSTS)
        }
        names = {peer_id: name for name, peer_id in rig.host_ids.items()}

        def may_lack(answer: Answered) -> bool:
            moments = itertools.chain(killed["gateway"], killed[names[answer.host]])
            return is_excused(answer, moments, set(answers) - set(late))

        broken = [
            f"no receipt of {each}, with kills "
            + ", ".join(f"of {kill.name} {kill.at_s - each.at_s:+.2f} s" for kill in kills)
            for each in late
            if not may_lack(each)
        ]
        broken += [
            f"{each} is billed as {costs.by_answer[each.answer_id]}"
            for each in answers
            if costs.by_answer.get(each.answer_id, each.cost_micros) != each.cost_micros
        ]
        broken += costs.problems
        debit = sum(read_ledger(rig.directory / "settlement").posted.values())
        receipts = sum(costs.by_request.values())
        sure = sum(each.cost_micros for each in answers if not may_lack(each))
        cut_count = clients.cuts_count + len(late) + len(kills)  # a kill may cut a probe
        if debit < sure:
            broken.append(f"{sure} were answered for sure, but the ledger has only {debit}")
        if debit > receipts + cut_count * ANSWER_COST_MICROS_MAX:
            broken.append(f"the ledger has {debit}; all receipts together say {receipts}")
        return cls(
            kills=tuple(kills),
            answers_count=len(answers),
            failures_count=clients.failures_count,
            cuts_count=clients.cuts_count,
            answered_micros=sum(each.cost_micros for each in answers),
            receipts_micros=receipts,
            ledger_micros=debit,
            without_receipt=tuple(late),
            broken=tuple(broken),
        )


def is_excused(answer: Answered, kills_at_s: Iterable[float], proven: set[Answered]) -> bool:
    """Whether a kill explains that an answer has no receipt.

    Args:
        answer: The one without.
        kills_at_s: When its gateway and its host were killed.
        proven: The answers that have their receipt.
    """
    for kill_s in kills_at_s:
        if abs(kill_s - answer.at_s) <= RECEIPT_SECONDS_MAX:
            return True
        if 0 < kill_s - answer.at_s <= STALL_SECONDS_MAX and not any(
            each.host == answer.host and answer.at_s + RECEIPT_SECONDS_MAX < each.at_s < kill_s
            for each in proven
        ):
            return True
    return False


@dataclass
class ReceiptCosts:
    """All receipts that any party has.

    Attributes:
        by_answer: What the gateway wrote down of each answer, as far as its receipt is there.
        unclaimed: Receipts of which the gateway remembers no answer, by host and cost.
        problems: Requests for which receipts differ, or that settlement has twice.
    """

    by_request: dict[str, int] = field(default_factory=dict)
    by_answer: dict[str, int] = field(default_factory=dict)
    unclaimed: dict[tuple[str, int], int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def _receipt_costs(rig: Rig) -> ReceiptCosts:
    costs = ReceiptCosts()
    host_of: dict[str, str] = {}
    for name, peer_id in rig.host_ids.items():
        rows = read_rows(
            rig.directory / name / "journal.sqlite",
            "SELECT lower(hex(request_id)), cost_micros FROM receipts",
        )
        for request_id, cost in rows:
            if request_id in costs.by_request:
                costs.problems.append(f"two receipts for request {request_id}")
            costs.by_request[request_id] = cost
            host_of[request_id] = peer_id
    twice = read_rows(
        rig.directory / "settlement" / "settlement.db",
        "SELECT request_id, count(*) FROM receipts GROUP BY request_id HAVING count(*) > 1",
    )
    costs.problems += [f"settlement has request {name} {count} times" for name, count in twice]
    usage = read_rows(
        rig.directory / "gateway" / "gateway.sqlite3",
        "SELECT lower(hex(request_id)), answer_id, entry FROM usage",
    )
    claimed = set()
    for request_id, answer_id, entry in usage:
        if request_id in costs.by_request:
            claimed.add(request_id)
            costs.by_answer[answer_id] = costs.by_request[request_id]
        if (different := json.loads(entry)["different"]) != "":
            costs.problems.append(f"the gateway counts {answer_id} differently: {different}")
    for request_id, cost in costs.by_request.items():
        if request_id not in claimed:
            key = (host_of[request_id], cost)
            costs.unclaimed[key] = costs.unclaimed.get(key, 0) + 1
    return costs


def _has_receipt(answer: Answered, costs: ReceiptCosts) -> bool:
    """Whether an answer has its receipt; one that the gateway forgot takes one of the same sum."""
    if answer.answer_id in costs.by_answer:
        return True
    key = (answer.host, answer.cost_micros)
    if costs.unclaimed.get(key, 0) > 0:
        costs.unclaimed[key] -= 1
        return True
    return False
