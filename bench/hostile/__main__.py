"""How honest clients fare while somebody attacks: a gateway, a host, and one attack after another.

    .venv/bin/python -m bench.hostile [--only http|p2p|WORD] [--seconds 4] [--json FILE]

It starts a whole network over a cheap engine (``engine.py``) with ``sparewatt up`` in a
temporary directory, measures honest streamed requests, each on a connection of its own, then the
same during each attack, and prints a table. Where there are two cores, the network has one of them
and the load, honest and hostile, the other; the attacker is niced, so that it takes its measurer's
time least. ``rss`` and ``fds`` are the largest growth of gateway and host during the attack.
"""

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil
import trio

from bench.hostile.web import ATTACKS as HTTP_ATTACKS
from bench.hostile.web import Attack, Target

HERE = Path(__file__).resolve().parent
SPAREWATT = Path(sys.executable).with_name("sparewatt")
MODEL = "sparewatt/fake"
HONEST_TASKS = 4
HONEST_TOKENS = 4
SETTLE_S = 1.0  # for what an attack left behind to be cleared away
WARM_UP_REQUESTS = 100  # allowances double with use
REQUEST_S_MAX = 20.0


@dataclass
class Sample:
    """What honest clients saw in one phase.

    Attributes:
        first_ms: Time to the first event, each request on a fresh connection.
        failed: Requests without a whole answer.
    """

    first_ms: list[float] = field(default_factory=list)
    failed: int = 0

    def percentile(self, percent: float) -> float:
        """Return the time below which so many percent of the requests were."""
        ranked = sorted(self.first_ms)
        if not ranked:
            return float("inf")
        return ranked[min(len(ranked) - 1, int(len(ranked) * percent / 100))]


@dataclass
class Row:
    """One attack's line of the table."""

    attack: str
    requests: int
    failed: int
    p50_ms: float
    p99_ms: float
    p99_times: float
    rss_mib: float
    fds: int


# -- honest clients --------------------------------------------------------------------------------


async def ask_once(target: Target, sample: Sample) -> None:
    """Send one request and read its whole answer."""
    messages = [{"role": "user", "content": "hello"}]
    body = json.dumps(
        {"model": target.model, "messages": messages, "stream": True, "max_tokens": HONEST_TOKENS}
    ).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nconnection: close\r\n"
        f"content-type: application/json\r\nauthorization: Bearer {target.key}\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    ).encode()
    began = trio.current_time()
    data = b""
    with trio.move_on_after(REQUEST_S_MAX):
        try:
            async with await trio.open_tcp_stream("127.0.0.1", target.port) as stream:
                await stream.send_all(head + body)
                first_ms = 0.0
                while part := await stream.receive_some(65536):
                    data += part
                    if not first_ms and b"data: " in data:
                        first_ms = (trio.current_time() - began) * 1000
        except (OSError, trio.BrokenResourceError):
            pass
    if data.startswith(b"HTTP/1.1 200") and data.endswith(b"0\r\n\r\n") and b"[DONE]" in data:
        sample.first_ms.append(first_ms)
    else:
        sample.failed += 1
        print("  failed:", data[:300], file=sys.stderr)


async def measure(target: Target, seconds: float) -> Sample:
    """Run honest clients for a while."""
    sample = Sample()
    until = trio.current_time() + seconds

    async def client() -> None:
        while trio.current_time() < until:
            await ask_once(target, sample)

    async with trio.open_nursery() as nursery:
        for _ in range(HONEST_TASKS):
            nursery.start_soon(client)
    return sample


# -- what it costs ---------------------------------------------------------------------------------


class Meter:
    """Follows memory and descriptors of some processes."""

    def __init__(self, pids: list[int]) -> None:
        self._processes = [psutil.Process(pid) for pid in pids]
        self._begin = self._now()
        self.rss_mib = 0.0
        self.fds = 0

    def _now(self) -> list[tuple[int, int]]:
        return [(each.memory_info().rss, each.num_fds()) for each in self._processes]

    async def follow(self) -> None:
        """Note the largest growth until cancelled."""
        while True:
            for (rss, fds), (rss_then, fds_then) in zip(self._now(), self._begin, strict=True):
                self.rss_mib = max(self.rss_mib, (rss - rss_then) / (1 << 20))
                self.fds = max(self.fds, fds - fds_then)
            await trio.sleep(0.1)


# -- the network -----------------------------------------------------------------------------------


def free_port() -> int:
    """Return a port of the loopback that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def cores() -> tuple[list[int], list[int]]:
    """Return the cores of the network and those of the load."""
    found = sorted(os.sched_getaffinity(0))
    return (found, found) if len(found) == 1 else (found[1:2], found[:1])


@contextmanager
def running(command: list[str], core: list[int]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process on these cores while the block runs."""
    process = subprocess.Popen(command)
    os.sched_setaffinity(process.pid, core)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def wait_listening(port: int) -> None:
    """Wait until something listens on a port."""
    for _ in range(200):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.1):
            return
        trio.run(trio.sleep, 0.05)
    raise SystemExit(f"nothing listens on port {port}")


@contextmanager
def network(directory: str) -> Iterator[tuple[Target, list[int]]]:
    """Run settlement, relays, a gateway and a host; give their target and the latter two's pids."""
    theirs, ours = cores()
    port = free_port()
    engine = [sys.executable, str(HERE / "engine.py"), str(port)]
    with running(engine, ours):
        wait_listening(port)
        spec = f"openai=http://127.0.0.1:{port}/v1"
        up = [str(SPAREWATT), "up", "--data", directory, "--hosts", "1", "--engine", spec]
        subprocess.run([*up, "--price", "2000/4000"], check=True, stdout=subprocess.DEVNULL)
        try:
            found = json.loads((Path(directory) / "network.json").read_text())
            gateway, host = found["gateway"], found["hosts"][0]
            for pid in (gateway["pid"], host["pid"]):
                for thread in psutil.Process(pid).threads():
                    os.sched_setaffinity(thread.id, theirs)
            os.sched_setaffinity(0, ours)
            yield make_target(gateway, host, directory), [gateway["pid"], host["pid"]]
        finally:
            down = [str(SPAREWATT), "down", "--data", directory]
            subprocess.run(down, check=False, stdout=subprocess.DEVNULL)


def make_target(gateway: dict[str, str], host: dict[str, str], directory: str) -> Target:
    """Return where gateway and host of a network listen."""
    listening = [
        each.laddr.port
        for each in psutil.Process(int(host["pid"])).net_connections("tcp")
        if each.status == psutil.CONN_LISTEN
    ]
    return Target(
        port=int(gateway["url"].rpartition(":")[2]),
        key=gateway["api_key"],
        model=MODEL,
        host=f"/ip4/127.0.0.1/tcp/{listening[0]}/p2p/{host['peer_id']}",
        host_port=listening[0],
        network_id=network_id_of(directory),
    )


def network_id_of(directory: str) -> str:
    """Return the id of the network in a directory."""
    for path in Path(directory).rglob("*.json"):
        with contextlib.suppress(ValueError, AttributeError):
            found = json.loads(path.read_text()).get("network_id")
            if found:
                return str(found)
    raise SystemExit("the network's id stands nowhere")


# -- one attack after another ----------------------------------------------------------------------


def attacks(only: str) -> dict[str, Attack]:
    """Return the attacks whose name holds a word."""
    from bench.hostile.wire import ATTACKS as P2P_ATTACKS  # noqa: PLC0415 - libp2p takes 3 s to import

    return {name: it for name, it in {**HTTP_ATTACKS, **P2P_ATTACKS}.items() if only in name}


@asynccontextmanager
async def attacked(name: str, target: Target) -> AsyncIterator[None]:
    """Run one attack in a process of its own while the block runs."""
    command = [sys.executable, "-m", "bench.hostile", "--attack", name]
    command += ["--target", json.dumps(asdict(target))]
    command = ["nice", "-n", "10", *command]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)  # noqa: ASYNC220 - forks at once
    assert process.stdout is not None
    await trio.to_thread.run_sync(process.stdout.readline)  # it has begun
    await trio.sleep(SETTLE_S)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def run_attack(name: str, target: Target) -> None:
    """Attack until killed: what the attacker's process does."""
    attack = attacks(name)[name]
    print("attacking", flush=True)
    trio.run(attack, target)


async def run_all(options: argparse.Namespace, target: Target, pids: list[int]) -> list[Row]:
    """Measure without and under each attack."""
    warm = Sample()
    while len(warm.first_ms) < WARM_UP_REQUESTS:
        warm.first_ms += (await measure(target, 1.0)).first_ms
    quiet = await measure(target, 2 * options.seconds)
    rows: list[Row] = []
    print_row(row_of("none, before", quiet, quiet, None))
    for name in attacks(options.only):
        meter = Meter(pids)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(meter.follow)
            async with attacked(name, target):
                sample = await measure(target, options.seconds)
            nursery.cancel_scope.cancel()
        rows.append(row_of(name, sample, quiet, meter))
        print_row(rows[-1])
        await trio.sleep(SETTLE_S)
    after = await measure(target, 2 * options.seconds)
    print_row(row_of("none, afterwards", after, quiet, None))
    quiet.first_ms += after.first_ms
    quiet.failed += after.failed
    for row in rows:
        row.p99_times = round(row.p99_ms / quiet.percentile(99), 2)
    return [row_of("none", quiet, quiet, None), *rows]


def row_of(name: str, sample: Sample, quiet: Sample, meter: Meter | None) -> Row:
    """Return a line of the table."""
    return Row(
        attack=name,
        requests=len(sample.first_ms),
        failed=sample.failed,
        p50_ms=round(sample.percentile(50), 1),
        p99_ms=round(sample.percentile(99), 1),
        p99_times=round(sample.percentile(99) / quiet.percentile(99), 2),
        rss_mib=round(meter.rss_mib, 1) if meter else 0.0,
        fds=meter.fds if meter else 0,
    )


def print_table(rows: list[Row]) -> None:
    """Print what was measured once more, beside the quiet before and after."""
    print(
        "\n| attack | requests | failed | first event p50 ms | p99 ms | p99 ratio | rss MiB | fds |"
    )
    print("|-|-|-|-|-|-|-|-|")
    for row in rows:
        print_row(row)


def print_row(row: Row) -> None:
    """Print a line of the table."""
    print(
        f"| {row.attack:<42} | {row.requests:>5} | {row.failed:>3} | {row.p50_ms:>6} |"
        f" {row.p99_ms:>6} | {row.p99_times:>5} | {row.rss_mib:>6} | {row.fds:>5} |",
        flush=True,
    )


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="run attacks whose name holds this")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    parser.add_argument("--attack", help=argparse.SUPPRESS)
    parser.add_argument("--target", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.attack:
        return run_attack(options.attack, Target(**json.loads(options.target)))
    temporary = tempfile.TemporaryDirectory(prefix="hostile-")
    with temporary as directory, network(directory) as (target, pids):
        rows = trio.run(run_all, options, target, pids)
    print_table(rows)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return None


if __name__ == "__main__":
    main()
