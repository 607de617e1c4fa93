"""``python -m bench.inside``: what each side of the main path costs per request, and what it calls.

A real gateway and a real host, over real libp2p, TCP and journals, in one process and one thread,
so that each step of each task can be timed by the thread's own CPU clock and given to its side.
Engine and load are the bench's, as processes on another core. CPU times still vary with the
machine; the number of Python calls per request hardly does, and is what to compare two trees by.

  python -m bench.inside --case S1:64                  # CPU by side and task
  python -m bench.inside --case S1:64 --calls 40       # and calls by function, dearest 40 (slower)
"""

import argparse
import contextlib
import cProfile
import os
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import CodeType
from typing import Protocol, cast

import trio

from bench import tools
from bench.cases import Case, parse_case
from bench.inside_world import Inside, open_inside
from bench.run import order_of
from bench.targets import CORE_OF_LOAD, CORE_OF_TARGET, Target, running_engine
from sparewatt.daemon import calm_garbage_collector

SIDES = ("gateway", "host")
OTHER = "other"
SHOWN_TASKS_COUNT = 12
WARMUP_ROUNDS = 8  # requests of each client before what is measured
REQUESTS_COUNT = {"S1": 2000, "S2": 400, "S3": 60}
LOAD_S_MAX = 600.0
LIBRARY = "site-packages"


@dataclass(eq=False)
class Meter(trio.abc.Instrument):
    """Gives each step of each task to the side under which the task was started.

    Attributes:
        cpu_ns: Of the thread, by side and by task.
        steps: How many steps, by side and task.
        profiles: By side, if calls are counted.
    """

    with_calls: bool
    cpu_ns: Counter[tuple[str, str]] = field(default_factory=Counter)
    steps: Counter[tuple[str, str]] = field(default_factory=Counter)
    profiles: dict[str, cProfile.Profile] = field(default_factory=dict)
    is_open: bool = False
    _sides: dict[int, tuple[trio.lowlevel.Task, str]] = field(default_factory=dict)
    _began_ns: int = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Start the clock."""
        if self.is_open:
            if self.with_calls:
                side = self._side(task)
                self.profiles.setdefault(side, cProfile.Profile()).enable()
            self._began_ns = time.thread_time_ns()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Stop it."""
        if self.is_open and self._began_ns:
            took_ns = time.thread_time_ns() - self._began_ns
            side = self._side(task)
            if self.with_calls and side in self.profiles:
                self.profiles[side].disable()
            self.cpu_ns[side, task.name.rpartition(".")[2]] += took_ns
            self.steps[side, task.name.rpartition(".")[2]] += 1

    def _side(self, task: trio.lowlevel.Task) -> str:
        known = self._sides.get(id(task))
        if known is not None and known[0] is task:
            return known[1]
        side, at = OTHER, task
        while side == OTHER and at.parent_nursery is not None:
            side = at.name if at.name in SIDES else OTHER
            at = at.parent_nursery.parent_task
        self._sides[id(task)] = (task, side)
        return side


@dataclass(frozen=True, slots=True)
class Measured:
    """What a window brought.

    Attributes:
        requests: Ended in it.
        tokens: Of them.
        thread_s: CPU of the thread in which everything runs.
        process_s: With the threads in which the journals wait.
    """

    requests: int
    tokens: int
    wall_s: float
    thread_s: float
    process_s: float
    traffic: dict[str, int]


async def _window(inside: Inside, meter: Meter, requests_count: int) -> Measured:
    """Measure so many requests, however long they take: others may work on this machine, too."""
    before = inside.counters()
    meter.is_open = True
    began = (time.monotonic(), time.thread_time(), time.process_time())
    await inside.wait_requests(before["requests"] + requests_count)
    meter.is_open = False
    ended = (time.monotonic(), time.thread_time(), time.process_time())
    gone = {name: n - before[name] for name, n in inside.counters().items()}
    wall_s, thread_s, process_s = (b - a for a, b in zip(began, ended, strict=True))
    return Measured(gone["requests"], gone["tokens"], wall_s, thread_s, process_s, gone)


async def _measure(
    case: Case, requests_count: int, engine_url: str, meter: Meter, directory: Path
) -> Measured:
    case = replace(case, scenario=replace(case.scenario, window_s=LOAD_S_MAX))
    async with open_inside(directory, engine_url) as inside:
        target = Target("inside", inside.base_url, {}, inside.api_key, with_cost=True)
        async with _load(order_of(case, target)):
            await inside.wait_requests(WARMUP_ROUNDS * case.concurrency)
            measured = await _window(inside, meter, requests_count)
        if measured.traffic["refused"] or measured.traffic["failed"]:
            raise SystemExit(f"not all requests were answered: {measured.traffic}")
        return measured


@contextlib.asynccontextmanager
async def _load(order: bytes) -> AsyncIterator[None]:
    process = await trio.lowlevel.open_process(
        [str(tools.tools_python()), "-m", "bench.load"],
        cwd=tools.ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    await process.stdin.send_all(order)
    await process.stdin.aclose()
    try:
        yield
    finally:
        process.kill()


# -- what is shown ---------------------------------------------------------------------------------


def _report(case: Case, measured: Measured, meter: Meter) -> str:
    unit, count = ("request", measured.requests)
    if case.scenario.is_stream:
        unit, count = "token", measured.tokens
    count = max(1, count)
    stepped = sum(meter.cpu_ns.values()) / 1e9
    lines = [
        f"{case}: {measured.requests / measured.wall_s:.0f} requests/s, "
        f"{measured.tokens / measured.wall_s:.0f} tokens/s, "
        f"{measured.process_s / measured.wall_s:.2f} cores; µs of CPU per {unit}:"
    ]
    for side in (*SIDES, OTHER):
        own = {task: ns for (of, task), ns in meter.cpu_ns.items() if of == side}
        lines.append(f"{sum(own.values()) / 1000 / count:9.1f}  {side}")
        lines += [
            f"{ns / 1000 / count:17.1f}  {task} ({meter.steps[side, task] / count:.2f} steps)"
            for task, ns in Counter(own).most_common(SHOWN_TASKS_COUNT)
            if ns / 1000 / count >= 0.05
        ]
    lines.append(f"{(measured.thread_s - stepped) * 1e6 / count:9.1f}  trio between the steps")
    lines.append(f"{(measured.process_s - measured.thread_s) * 1e6 / count:9.1f}  other threads")
    writes = max(1, measured.traffic["gateway_writes"])
    answers = max(1, measured.traffic["host_writes"])
    lines.append(
        f"writes: the gateway {writes / count:.3f} per {unit}, "
        f"{measured.traffic['gateway_frames'] / writes:.1f} frames each; "
        f"the host {answers / count:.3f}, {measured.traffic['host_frames'] / answers:.1f} each"
    )
    return "\n".join(lines)


def _calls(meter: Meter, count: int, shown_count: int) -> str:
    lines = []
    for side in SIDES:
        profile = meter.profiles.get(side)
        if profile is None:
            continue
        entries = cast("list[_Entry]", profile.getstats())
        python = [each for each in entries if isinstance(each.code, CodeType)]
        builtin = [each for each in entries if not isinstance(each.code, CodeType)]
        ours = [each for each in python if LIBRARY not in _name(each.code)]
        lines.append(
            f"{side}: {_sum(python) / count:.1f} calls of Python functions "
            f"({_sum(ours) / count:.1f} of them ours), {_sum(builtin) / count:.1f} of builtins"
        )
        lines.append("  calls  own µs  with calls  function")
        entries.sort(key=lambda each: -each.inlinetime)
        lines += [
            f"{each.callcount / count:7.2f} {each.inlinetime * 1e6 / count:7.2f} "
            f"{each.totaltime * 1e6 / count:11.2f}  {_name(each.code)}"
            for each in entries[:shown_count]
        ]
    return "\n".join(lines)


class _Entry(Protocol):
    """What the profiler knows of a function."""

    code: CodeType | str
    callcount: int
    inlinetime: float
    totaltime: float


def _sum(entries: "list[_Entry]") -> int:
    return sum(each.callcount for each in entries)


def _name(code: CodeType | str) -> str:
    if isinstance(code, str):
        return code
    path = code.co_filename.removeprefix(f"{tools.ROOT}/")
    return f"{code.co_qualname} ({path}:{code.co_firstlineno})"


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", type=parse_case, default=parse_case("S1:64"), metavar="S2:200")
    parser.add_argument("--requests", type=int, default=0, help="how many to measure")
    parser.add_argument("--calls", type=int, default=0, metavar="COUNT", help="functions to show")
    options = parser.parse_args()
    meter = Meter(with_calls=options.calls > 0)
    os.sched_setaffinity(0, {CORE_OF_TARGET})
    tools.BUILD.mkdir(parents=True, exist_ok=True)
    calm_garbage_collector()
    with (
        running_engine(CORE_OF_LOAD) as (engine_url, _),
        tempfile.TemporaryDirectory(prefix="inside-", dir=tools.BUILD) as directory,
    ):
        measured = trio.run(
            _measure,
            options.case,
            options.requests or REQUESTS_COUNT[options.case.scenario.name],
            engine_url,
            meter,
            Path(directory),
            instruments=[meter],
        )
    print(_report(options.case, measured, meter))
    if options.calls:
        count = measured.tokens if options.case.scenario.is_stream else measured.requests
        print(_calls(meter, max(1, count), options.calls))


if __name__ == "__main__":
    main()
