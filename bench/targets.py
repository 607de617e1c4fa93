"""What stands between load and engine: nothing, nginx, vllm-router, or a whole Sparewatt network.

The engine runs on core 0 beside the load; what is measured shares core 1. With nothing between,
the engine is what is measured, and stands on core 1 itself.
"""

import contextlib
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path

import msgspec

from bench import tools, usage
from p2p.clock import system_clock
from peer.gateway.keys import new_key
from settlement.admin import credit
from sparewatt.builder import LocalNetwork
from sparewatt.clients import AskError, JsonApi, objects, text
from sparewatt.network_dir import (
    GATEWAY,
    JOIN_NAME,
    LOGS_NAME,
    SETTLEMENT,
    HostPlan,
    NetworkState,
    read_layout,
    read_secrets,
)
from sparewatt.options import Engine, Price
from sparewatt.ports import Ports
from sparewatt.processes import spawn, stop, wait_ready

CORE_OF_LOAD, CORE_OF_TARGET = 0, 1
START_S_MAX = 20.0
STOP_S_MAX = 10.0
PRICE = Price(in_micros_per_mtok=20_000, out_micros_per_mtok=40_000)
CREDIT_MICROS = 100_000_000_000  # $100,000: money must not be what stops a run
UNITS_PER_MINUTE = 1_000_000_000  # likewise the limits of the key, which stay on
CONTROL_S_MAX = 5.0
POLL_S = 0.1

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Target:
    """Something that answers, and whose processes are watched.

    Attributes:
        watched: Groups of pids that count; ``engine`` is the bench's own.
        with_cost: Whether its answers name a price.
        rss_before_kib: Of each group, before any load.
        traffic: Returns counters of all links between gateway and hosts together.
    """

    name: str
    base_url: str
    watched: Mapping[str, list[int]]
    api_key: str = "sk-bench"
    with_cost: bool = False
    rss_before_kib: Mapping[str, int] = field(default_factory=dict)
    traffic: Callable[[], Mapping[str, int]] = dict


@contextlib.contextmanager
def running_engine(core: int) -> Iterator[tuple[str, int]]:
    """Run the engine; yield its URL and its pid."""
    command = [str(tools.tools_python()), "-m", "bench.engine", "--core", str(core)]
    process = subprocess.Popen(command, cwd=tools.ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        port = int(process.stdout.readline())
        yield f"http://127.0.0.1:{port}/v1", process.pid
    finally:
        end(process)


@contextlib.contextmanager
def direct() -> Iterator[Target]:
    """Nothing between: an engine on the core of what is measured."""
    with running_engine(CORE_OF_TARGET) as (url, pid):
        yield Target("direct", url, {"direct": [pid]})


@contextlib.contextmanager
def nginx(engine: tuple[str, int]) -> Iterator[Target]:
    """One nginx worker that buffers nothing and keeps its connections."""
    port = _free_port()
    with tempfile.TemporaryDirectory(prefix="bench-nginx-") as directory:
        config = Path(directory) / "nginx.conf"
        config.write_text(_nginx_config(engine[0], port, directory))
        command = [
            tools.nginx(),
            "-p",
            directory,
            "-e",
            f"{directory}/error.log",
            "-c",
            str(config),
        ]
        with _running(command, f"http://127.0.0.1:{port}/health") as pid:
            watched = {"nginx": [pid], "engine": [engine[1]]}
            yield Target("nginx", f"http://127.0.0.1:{port}/v1", watched)


@contextlib.contextmanager
def vllm_router(engine: tuple[str, int]) -> Iterator[Target]:
    """The router of the vLLM project with one worker behind it."""
    port = _free_port()
    command = [
        *(str(tools.vllm_router()), "--host", "127.0.0.1", "--port", str(port)),
        *("--worker-urls", engine[0].removesuffix("/v1"), "--policy", "round_robin"),
        *("--log-level", "error", "--prometheus-port", str(_free_port())),
    ]
    with _running(command, f"http://127.0.0.1:{port}/health") as pid:
        watched = {"vllm-router": [pid], "engine": [engine[1]]}
        yield Target("vllm-router", f"http://127.0.0.1:{port}/v1", watched)


@contextlib.contextmanager
def sparewatt(engine: tuple[str, int], hosts_count: int, say: Say) -> Iterator[Target]:
    """A real network with everything on; gateway and hosts share core 1, the rest core 0."""
    tools.BUILD.mkdir(parents=True, exist_ok=True)
    data_dir = Path(tempfile.mkdtemp(prefix="net-", dir=tools.BUILD))  # journals need a real disk
    network = LocalNetwork(data_dir, _once(say), dies_with_us=True)
    plans = [
        HostPlan(name=f"host-{index + 1}", engine=Engine("openai", engine[0]), price=PRICE)
        for index in range(hosts_count)
    ]
    try:
        state = network.up(plans, base_port=None)
        key = _rich_key(data_dir)
        with _gateway(data_dir, state, takes_turns=hosts_count > 1) as gateway_pid:
            hosts = [_some(host.pid) for host in state.hosts]
            rest = [_some(state.settlement.pid), *(_some(relay.pid) for relay in state.relays)]
            usage.pin([gateway_pid, *hosts], CORE_OF_TARGET)
            usage.pin(rest, CORE_OF_LOAD)
            api = JsonApi("the gateway", state.gateway.url, key)
            _wait(lambda: len(_links(api)) >= hosts_count, "the gateway's hosts")
            watched = {"gateway": [gateway_pid], "host": hosts, "rest": rest, "engine": [engine[1]]}
            yield Target(
                "sparewatt",
                f"{state.gateway.url}/v1",
                watched,
                api_key=key,
                with_cost=True,
                rss_before_kib={name: usage.rss_kib(pids) for name, pids in watched.items()},
                traffic=lambda: _traffic(api),
            )
    finally:
        network.halt()
        shutil.rmtree(data_dir, ignore_errors=True)


def _once(say: Say) -> Say:
    """Return the same, but silent on what was just said."""
    last = ""

    def say_once(text: str) -> None:
        nonlocal last
        if text != last:
            last = text
            say(text)

    return say_once


def _rich_key(data_dir: Path) -> str:
    """Give the client's account credit, and return a key whose own limits are high."""
    kept = read_secrets(data_dir)
    assert kept is not None
    credit(data_dir / SETTLEMENT, kept.client.account_id, CREDIT_MICROS, credit_id="bench")
    made = new_key(
        data_dir / GATEWAY,
        "bench",
        now_ns=system_clock(),
        requests_per_minute=UNITS_PER_MINUTE,
        tokens_per_minute=UNITS_PER_MINUTE,
    )
    return made.key


@contextlib.contextmanager
def _gateway(data_dir: Path, state: NetworkState, *, takes_turns: bool) -> Iterator[int]:
    """Yield the pid of the network's gateway, or of one in its place that goes round its hosts."""
    if not takes_turns:
        yield _some(state.gateway.pid)
        return
    layout = read_layout(data_dir)
    assert layout is not None
    stop([([each for each in layout.processes if each.name == GATEWAY], STOP_S_MAX)])
    directory, port = data_dir / GATEWAY, state.gateway.url.rpartition(":")[2]
    started = spawn(
        GATEWAY,
        [
            *("gateway", "--network", str(data_dir / JOIN_NAME), "--data", str(directory)),
            *("--port", port, "--policy", "round_robin"),
        ],
        data_dir=directory,
        log=data_dir / LOGS_NAME / "gateway.log",
        dies_with_us=True,
    )
    try:
        wait_ready([started], within_s=START_S_MAX, say=lambda _: None)
        yield started.record.pid
    finally:
        stop([([started.record], STOP_S_MAX)])


def _links(api: JsonApi) -> list[Mapping[str, object]]:
    """Return the hosts that the gateway can use."""
    hosts = objects(api.get("/v1/hosts"), "data")
    return [host for host in hosts if text(host, "state") == "linked"]


def _traffic(api: JsonApi) -> dict[str, int]:
    total: Counter[str] = Counter()
    for host in _links(api):
        total.update(msgspec.convert(host["traffic"], dict[str, int]))
    return dict(total)


def _nginx_config(engine_url: str, port: int, directory: str) -> str:
    address = engine_url.removeprefix("http://").removesuffix("/v1")
    folders = "".join(
        f"{name}_temp_path {directory}/{name};"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""
daemon off; master_process off; worker_processes 1; pid {directory}/nginx.pid;
events {{ worker_connections 8192; }}
http {{
  access_log off; tcp_nodelay on; keepalive_requests 100000000; {folders}
  upstream engine {{ server {address}; keepalive 2048; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; proxy_request_buffering off; proxy_read_timeout 600s;
    }}
  }}
}}
"""


@contextlib.contextmanager
def _running(command: list[str], health_url: str) -> Iterator[int]:
    """Run a program on the core of what is measured until the block ends; yield its pid."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            usage.pin([process.pid], CORE_OF_TARGET)
            _wait(lambda: _answers(health_url, process), command[0])
            usage.pin(usage.family([process.pid]), CORE_OF_TARGET)
            yield process.pid
        finally:
            end(process)


def _answers(url: str, process: "subprocess.Popen[bytes]") -> bool:
    if process.poll() is not None:
        raise tools.ToolMissingError(f"{url} ended at once with status {process.returncode}")
    with urllib.request.urlopen(url, timeout=CONTROL_S_MAX) as answer:
        return bool(answer.status == HTTPStatus.OK)


def _wait(is_ready: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + START_S_MAX
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, AskError):
            if is_ready():
                return
        time.sleep(POLL_S)
    raise tools.ToolMissingError(f"{what}: not ready in {START_S_MAX:.0f} s")


def end(process: "subprocess.Popen[bytes] | subprocess.Popen[str]") -> None:
    """Stop a process that we started; kill it if it does not."""
    process.terminate()
    try:
        process.wait(STOP_S_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    return Ports(None).take("bench")


def _some(pid: int | None) -> int:
    assert pid is not None
    return pid
