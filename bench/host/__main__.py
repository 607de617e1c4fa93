"""``python -m bench.host``: the host beside the engine alone, in the same run.

Engine and load share core 0, the host has core 1. Through the host, the load speaks libp2p and the
session itself and pays by vouchers; the engine alone it asks over HTTP.

  python -m bench.host --quick              # at most 90 s
  python -m bench.host --profile            # and where the host's time goes at 200 streams
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from bench import profiler, report, tools, usage
from bench.cases import Case
from bench.figures import Row, Sample, make_row
from bench.host.driver import DriverOrder
from bench.host.figures import CASES, ENGINE, FULL, HOST, QUICK_WINDOW_S, section
from bench.host.server import Place
from bench.report import Report
from bench.run import IDLE_WAIT_S_MAX, finish_load, machine, order_of, start_load, wait_idle
from bench.targets import CORE_OF_LOAD, CORE_OF_TARGET, Target, end, running_engine
from sparewatt.processes import PARENT_VARIABLE

RUNS_COUNT = 3
TRIES_PER_RUN_MAX = 3
BUDGET_S, QUICK_BUDGET_S = 240.0, 60.0  # no run begins later; the last one still ends
QUICK_IDLE_S_MAX = 1.0
START_S_MAX = 60.0
SETTLE_S = 1.0  # before the memory of an idle host is read
RUN_S_MAX = 45.0
SPY_S_MAX = 60.0


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line said."""

    out: Path
    is_quick: bool
    with_profile: bool

    @property
    def cases(self) -> tuple[Case, ...]:
        """What to measure."""
        if not self.is_quick:
            return CASES
        return tuple(
            replace(case, scenario=replace(case.scenario, window_s=QUICK_WINDOW_S))
            for case in CASES
        )


@dataclass(frozen=True, slots=True)
class Pair:
    """A host that runs, its driver, and its engine."""

    driver: "subprocess.Popen[bytes]"
    host: Target
    engine: Target

    def ask(self, case: Case) -> Sample:
        """Have the driver do one run."""
        assert self.driver.stdin is not None
        self.driver.stdin.write(order_of(case, self.host) + b"\n")
        self.driver.stdin.flush()
        return msgspec.json.decode(_line(self.driver, RUN_S_MAX), type=Sample)

    def ask_engine(self, case: Case) -> Sample:
        """Ask the engine alone, over HTTP."""
        load = start_load(case, self.engine)
        try:
            return finish_load(load)
        finally:
            end(load)


@dataclass(slots=True)
class Bench:
    """The samples so far."""

    options: Options
    samples: dict[tuple[str, str], list[Sample]] = field(default_factory=dict)
    dropped: dict[tuple[str, str], int] = field(default_factory=dict)
    rss_before_kib: Mapping[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _deadline_s: float = 0.0

    def run(self) -> Report:
        """Measure; SIGTERM and Ctrl-C end it early, with what was measured."""
        described = machine()
        try:
            self._measure_all()
        except KeyboardInterrupt:
            self._note("ended early by a signal")
        return Report(
            machine=described,
            is_quick=self.options.is_quick,
            notes=self.notes,
            rows=self._rows(),
        )

    def _measure_all(self) -> None:
        budget_s = QUICK_BUDGET_S if self.options.is_quick else BUDGET_S
        self._deadline_s = time.monotonic() + budget_s
        with running_pair() as pair:
            self.rss_before_kib = pair.host.rss_before_kib
            idle = {name: f"{kib / 1024:.0f} MiB" for name, kib in self.rss_before_kib.items()}
            self.notes.append(f"idle: host {idle[HOST]}, engine {idle[ENGINE]}")
            for run in range(1 if self.options.is_quick else RUNS_COUNT):
                for case in self.options.cases:
                    for name in (HOST, ENGINE):
                        self._measure(run, case, name, pair)
            if self.options.with_profile:
                _profile(pair)

    def _measure(self, run: int, case: Case, name: str, pair: Pair) -> None:
        """Do one run that counts; a quick look takes what it gets."""
        key = (name, str(case))
        for _ in range(TRIES_PER_RUN_MAX):
            if time.monotonic() >= self._deadline_s:
                self._note("the time was up before all runs were done")
                return
            wait_idle(QUICK_IDLE_S_MAX if self.options.is_quick else IDLE_WAIT_S_MAX)
            sample = pair.ask(case) if name == HOST else pair.ask_engine(case)
            _say(report.one_line(run + 1, name, case, sample))
            if sample.is_quiet or self.options.is_quick:
                self.samples.setdefault(key, []).append(sample)
                return
            self.dropped[key] = self.dropped.get(key, 0) + 1

    def _rows(self) -> list[Row]:
        rows = []
        for case in self.options.cases:
            for name in (HOST, ENGINE):
                key = (name, str(case))
                dropped = self.dropped.get(key, 0)
                if key in self.samples:
                    before = self.rss_before_kib if name == HOST else {}
                    made = make_row(
                        name, case, self.samples[key], rss_before_kib=before, dropped=dropped
                    )
                    rows.append(made)
                elif dropped:
                    self._note(f"{name} {case}: no run was quiet, {dropped} dropped")
        return rows

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)
            _say(text)


@contextlib.contextmanager
def running_pair() -> Iterator[Pair]:
    """Run an engine, a host on it, and a driver of the host."""
    tools.BUILD.mkdir(parents=True, exist_ok=True)
    with (
        running_engine(CORE_OF_LOAD) as (url, engine_pid),
        tempfile.TemporaryDirectory(prefix="host-", dir=tools.BUILD) as name,  # on a real disk
    ):
        directories = [Path(name) / each for each in ("host", "driver")]
        for each in directories:
            each.mkdir()
        arguments = ("--engine", url, "--data", str(directories[0]), "--core", str(CORE_OF_TARGET))
        with _running("bench.host.server", *arguments) as host:
            place = msgspec.json.decode(_line(host, START_S_MAX), type=Place)
            with _running("bench.host.driver") as driver:
                order = DriverOrder(place, str(directories[1]), CORE_OF_LOAD)
                assert driver.stdin is not None
                driver.stdin.write(msgspec.json.encode(order) + b"\n")
                driver.stdin.flush()
                _line(driver, START_S_MAX)
                time.sleep(SETTLE_S)
                watched = {HOST: [host.pid], ENGINE: [engine_pid]}
                before = {group: usage.rss_kib(pids) for group, pids in watched.items()}
                yield Pair(
                    driver,
                    Target(HOST, "http://driver.invalid", watched, rss_before_kib=before),
                    Target(ENGINE, url, {ENGINE: [engine_pid]}),
                )


@contextlib.contextmanager
def _running(module: str, *arguments: str) -> "Iterator[subprocess.Popen[bytes]]":
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=tools.ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, PARENT_VARIABLE: str(os.getpid())},
    )
    try:
        yield process
    finally:
        end(process)


def _line(process: "subprocess.Popen[bytes]", seconds_max: float) -> bytes:
    """Return the next line of a process, which is stopped if it takes too long."""
    assert process.stdout is not None
    timer = threading.Timer(seconds_max, process.terminate)
    timer.start()
    try:
        line = process.stdout.readline()
    finally:
        timer.cancel()
    if not line:
        raise SystemExit(f"{process.args!r} ended, or said nothing in {seconds_max:.0f} s")
    return line


def _profile(pair: Pair) -> None:
    """Sample the host at 200 streams, in a run that does not count."""
    out = tools.BUILD / "host-alone"
    stacks = out.with_suffix(".folded")
    case = replace(FULL, scenario=replace(FULL.scenario, warmup_s=1.0))
    spy = profiler.start(pair.host.watched[HOST][0], case.scenario.window_s, stacks)
    try:
        _say(report.one_line(1, "profiled", case, pair.ask(case)))
        spy.wait(SPY_S_MAX)
    finally:
        end(spy)
    table = profiler.flat(stacks.read_text().splitlines())
    out.with_suffix(".txt").write_text(table)
    _say(f"{table}\n-> {out.with_suffix('.txt')} and {stacks}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _read_options(arguments: Sequence[str]) -> Options:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = tools.BUILD / "host.json"
    parser.add_argument("--quick", action="store_true", help="one short run a case")
    parser.add_argument("--profile", action="store_true", help="sample the host with py-spy, too")
    parser.add_argument("--out", type=Path, default=default, help="write JSON here")
    given = parser.parse_args(arguments)
    return Options(out=given.out, is_quick=given.quick, with_profile=given.profile)


def main() -> None:
    """Read the command line, measure, print the tables, write JSON."""
    options = _read_options(sys.argv[1:])
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # all that was started must end
    made = Bench(options).run()
    if not made.rows:
        raise SystemExit(f"nothing was measured; {options.out} is as it was")
    report.write(options.out, made)
    print(section(made))
    print(f"\nTo publish: python -m bench.host.publish {options.out} docs/performance.md")
    if any(row.errors for row in made.rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
