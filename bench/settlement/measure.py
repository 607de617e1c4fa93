"""Runs of one kind of load, and what they cost."""

import json
import urllib.request
from collections import Counter
from dataclasses import astuple, dataclass
from statistics import median, quantiles
from time import monotonic

from bench.settlement.load import Answer, Load, send_all
from bench.settlement.machine import Use, rss_mb, tree
from bench.settlement.server import Server
from bench.settlement.world import Post, World

WARM_UP_SHARE = 0.2
OK_STATUS = 200


@dataclass(frozen=True, slots=True)
class Plan:
    """What to send.

    Attributes:
        kind: ``vouchers`` or ``receipts``.
        per_request: Vouchers, or batches of receipts, in one request.
        receipts_per_batch: 0 for vouchers.
        connections: At once.
        per_s: Vouchers a second, evenly; 0 for as fast as it goes.
        items: In one run, about.
    """

    name: str
    kind: str
    per_request: int
    connections: int
    items: int
    runs: int
    per_s: float = 0.0
    receipts_per_batch: int = 0

    @property
    def requests(self) -> int:
        """How many requests one run has."""
        return max(2, self.items // (self.per_request * (self.receipts_per_batch or 1)))


@dataclass(frozen=True, slots=True)
class Figures:
    """What one run came to, or the median of several.

    Attributes:
        count: Vouchers, or receipts that both sides submitted.
        per_core_s: For each CPU second of settlement and its workers.
        other_cores: What neither settlement nor the load used: undisturbed below 0.3.
    """

    count: float
    per_s: float
    per_core_s: float
    cpu_s_per_1k: float
    server_cores: float
    worker_cores: float
    client_cores: float
    other_cores: float


@dataclass(frozen=True, slots=True)
class Measured:
    """All runs of a plan.

    Attributes:
        acknowledge_ms_p50: From when a request was due until its answer was here; over all runs.
    """

    plan: Plan
    median: Figures
    acknowledge_ms_p50: float
    acknowledge_ms_p99: float
    acknowledge_ms_max: float
    rss_mb: float
    runs: list[Figures]


async def measure(server: Server, world: World, plan: Plan) -> Measured:
    """Run a plan; return medians, pooled percentiles, and each run."""
    runs, latencies_ms = [], []
    for _ in range(plan.runs):
        run, answers = await _run(server, world, plan)
        runs.append(run)
        latencies_ms += [1000 * each.latency_s for each in answers]
    cuts = quantiles(latencies_ms, n=100, method="inclusive")
    middle = Figures(*(median(each) for each in zip(*map(astuple, runs), strict=True)))
    memory_mb = rss_mb(tree(server.pid))
    return Measured(plan, middle, cuts[49], cuts[98], max(latencies_ms), memory_mb, runs)


async def _run(server: Server, world: World, plan: Plan) -> tuple[Figures, list[Answer]]:
    warm_up = _posts(world, plan, max(1, int(plan.requests * WARM_UP_SHARE)))
    posts = _posts(world, plan, plan.requests)
    load = Load(server.url, plan.connections, plan.per_s / plan.per_request)
    _require_taken(await send_all(load, warm_up), plan)
    before, start_s = Use.now(server.pid), monotonic()
    answers = await send_all(load, posts)
    wall_s, use = monotonic() - start_s, Use.now(server.pid).since(before)
    _require_taken(answers, plan)
    count, cpu_s = sum(each.count for each in posts), use.server_s + use.workers_s
    figures = Figures(
        count,
        per_s=count / wall_s,
        per_core_s=count / cpu_s,
        cpu_s_per_1k=1000 * cpu_s / count,
        server_cores=use.server_s / wall_s,
        worker_cores=use.workers_s / wall_s,
        client_cores=use.client_s / wall_s,
        other_cores=use.others_s / wall_s,
    )
    return figures, answers


def _posts(world: World, plan: Plan, requests: int) -> list[Post]:
    if plan.kind == "vouchers":
        return world.voucher_posts(requests, plan.per_request)
    return world.receipt_posts(requests, plan.per_request, plan.receipts_per_batch)


def _require_taken(answers: list[Answer], plan: Plan) -> None:
    """Fail unless every item was new and taken: a refusal is quick and would flatter us."""
    outcomes: Counter[str] = Counter()
    for each in answers:
        if each.status != OK_STATUS:
            raise RuntimeError(f"settlement answered {each.status}: {each.body[:300]!r}")
        outcomes.update(item["outcome"] for item in json.loads(each.body)["results"])
    if set(outcomes) != {"posted" if plan.kind == "vouchers" else "matched"}:
        raise RuntimeError(f"settlement did not take everything: {dict(outcomes)}")


def require_right_books(url: str, world: World) -> int:
    """Let settlement rebuild its books, compare them with what it acknowledged; return how much."""
    with urllib.request.urlopen(f"{url}/v1/ledger/check") as answer:
        check = json.load(answer)
    cum = sum(reserve.cum_micros for reserves in world.reserves for reserve in reserves)
    posted = sum(check["accounts"].get(each, 0) for each in ("host:payable", "platform:fee"))
    if not check["ok"] or posted != cum:
        raise RuntimeError(f"the books are wrong: {cum} was acknowledged, {check}")
    return cum
