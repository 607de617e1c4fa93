"""``python -m bench.run``: measure, show, and write JSON.

One case, fast:
  python -m bench.run --case S1:16 --targets sparewatt --runs 1 --profile gateway
"""

import argparse
import contextlib
import json
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from bench import profiler, report, targets, tools, usage
from bench.cases import ALL_CASES, Case, parse_case
from bench.figures import Row, Sample, make_row
from bench.report import Report
from bench.targets import CORE_OF_LOAD, Target

TARGETS = ("sparewatt", "direct", "nginx", "vllm-router")
QUICK_TARGETS = ("sparewatt", "direct")
TRIES_PER_RUN_MAX = 4
IDLE_CORES = 0.2  # a machine that uses less has ended what the run before left
IDLE_LOOK_S = 0.3
IDLE_WAIT_S_MAX = 8.0
LOAD_S_MAX = 60.0
PROGRESS_RUNS = 8
PROFILED = ("gateway", "host")


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line said."""

    cases: tuple[Case, ...]
    targets: tuple[str, ...]
    runs: int
    out: Path | None
    merge: bool
    profile: str | None
    is_quick: bool


@dataclass(slots=True)
class Bench:
    """The samples so far."""

    options: Options
    samples: dict[tuple[str, str], list[Sample]] = field(default_factory=dict)
    dropped: dict[tuple[str, str], int] = field(default_factory=dict)
    rss_before_kib: dict[tuple[str, str], Mapping[str, int]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    begun_s: float = field(default_factory=time.monotonic)
    done: int = 0

    def run(self) -> list[Row]:
        """Measure all cases through all targets and return the figures.

        SIGTERM and Ctrl-C end it early, with the figures of what was measured.
        """
        with contextlib.suppress(KeyboardInterrupt):
            self._measure_all()
        return self.rows()

    def _measure_all(self) -> None:
        for hosts_count in sorted({case.hosts_count for case in self.options.cases}):
            cases = [case for case in self.options.cases if case.hosts_count == hosts_count]
            with contextlib.ExitStack() as stack:
                engine = stack.enter_context(targets.running_engine(CORE_OF_LOAD))
                started = list(self._started(stack, engine, hosts_count))
                for run in range(self.options.runs):
                    for case in cases:
                        for target in started:
                            self._measure(run, case, target)

    def _started(
        self, stack: contextlib.ExitStack, engine: tuple[str, int], hosts_count: int
    ) -> Iterator[Target]:
        """Start the targets; note those that can't be had here."""
        for name in self.options.targets:
            if name != "sparewatt" and hosts_count > 1:
                continue
            try:
                yield stack.enter_context(_open(name, engine, hosts_count))
            except tools.ToolMissingError as error:
                self._note(f"{name} left out: {error}")

    def _measure(self, run: int, case: Case, target: Target) -> None:
        """Do one run that counts, or give up after several that others disturbed.

        A quick look takes what it gets; the table shows how disturbed it was.
        """
        key = (target.name, str(case))
        self.rss_before_kib[key] = target.rss_before_kib
        for _ in range(TRIES_PER_RUN_MAX):
            wait_idle()
            before = target.traffic()
            sample = self._sample(case, target)
            sample.traffic = {name: n - before.get(name, 0) for name, n in target.traffic().items()}
            _say(report.one_line(run + 1, target.name, case, sample))
            if sample.is_quiet or self.options.is_quick:
                self._count()
                self.samples.setdefault(key, []).append(sample)
                return
            self.dropped[key] = self.dropped.get(key, 0) + 1

    def _sample(self, case: Case, target: Target) -> Sample:
        profiled = target.watched.get(self.options.profile or "")
        load = start_load(case, target)
        if not profiled:
            return finish_load(load)
        out = tools.BUILD / f"{target.name}-{self.options.profile}-{case}".replace(":", "-")
        stacks = out.with_suffix(".folded")
        time.sleep(case.scenario.warmup_s)
        spy = profiler.start(profiled[0], case.scenario.window_s, stacks)
        sample = finish_load(load)
        spy.wait(LOAD_S_MAX)
        table = profiler.flat(stacks.read_text().splitlines())
        out.with_suffix(".txt").write_text(table)
        _say(f"{table}\n-> {out.with_suffix('.txt')} and {stacks}")
        return sample

    def rows(self) -> list[Row]:
        """Return the figures of every case through every target."""
        rows = []
        for case in self.options.cases:
            for name in self.options.targets:
                samples = self.samples.get((name, str(case)))
                dropped = self.dropped.get((name, str(case)), 0)
                if samples:
                    rows.append(
                        make_row(
                            name,
                            case,
                            samples,
                            rss_before_kib=self.rss_before_kib[name, str(case)],
                            dropped=dropped,
                        )
                    )
                elif dropped:
                    self._note(f"{name} {case}: no run was quiet, {dropped} dropped")
        return rows

    def _count(self) -> None:
        """Say now and then how far it is."""
        alone = sum(case.hosts_count > 1 for case in self.options.cases)
        each = len(self.options.cases) * len(self.options.targets)
        total = self.options.runs * (each - alone * (len(self.options.targets) - 1))
        self.done += 1
        if self.done % PROGRESS_RUNS == 0:
            left_s = (time.monotonic() - self.begun_s) / self.done * (total - self.done)
            _say(f"-- {self.done} of {total} runs, about {left_s / 60:.0f} min left")

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)
            _say(text)


def _open(
    name: str, engine: tuple[str, int], hosts_count: int
) -> contextlib.AbstractContextManager[Target]:
    if name == "direct":
        return targets.direct()
    if name == "nginx":
        return targets.nginx(engine)
    if name == "vllm-router":
        return targets.vllm_router(engine)
    return targets.sparewatt(engine, hosts_count, _say)


def order_of(case: Case, target: Target, core: int = CORE_OF_LOAD) -> bytes:
    """Return what ``bench.load`` reads: a case, and where to send it."""
    order = {
        "base_url": target.base_url,
        "api_key": target.api_key,
        "model": "bench",
        "is_stream": case.scenario.is_stream,
        "tokens_count": case.scenario.tokens_count,
        "gap_ms": case.scenario.gap_ms,
        "window_s": case.scenario.window_s,
        "warmup_s": case.scenario.warmup_s,
        "concurrency": case.concurrency,
        "with_cost": target.with_cost,
        "watched": target.watched,
        "core": core,
    }
    return json.dumps(order).encode()


def start_load(case: Case, target: Target) -> "subprocess.Popen[bytes]":
    """Start ``bench.load`` on a case."""
    process = subprocess.Popen(
        [str(tools.tools_python()), "-m", "bench.load"],
        cwd=tools.ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.write(order_of(case, target))
    process.stdin.close()
    process.stdin = None
    return process


def finish_load(process: "subprocess.Popen[bytes]") -> Sample:
    """Return what a load saw, once it has ended."""
    out, _ = process.communicate(timeout=LOAD_S_MAX)
    if process.returncode:
        raise SystemExit("the load failed")
    return msgspec.json.decode(out, type=Sample)


def wait_idle(seconds_max: float = IDLE_WAIT_S_MAX) -> None:
    """Wait until the run before has ended altogether, and nobody else works here."""
    deadline = time.monotonic() + seconds_max
    while time.monotonic() < deadline:
        before_s = usage.machine_busy_s()
        time.sleep(IDLE_LOOK_S)
        if usage.machine_busy_s() - before_s <= IDLE_CORES * IDLE_LOOK_S:
            return


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _read_options(arguments: Sequence[str]) -> Options:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", type=parse_case, action="append", metavar="S2:200x4")
    parser.add_argument("--targets", default="", help=f"of {','.join(TARGETS)}")
    parser.add_argument("--runs", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="one short run a case, two targets")
    parser.add_argument("--out", type=Path, help="write JSON here")
    parser.add_argument("--merge", action="store_true", help="keep other cases of --out")
    parser.add_argument("--profile", choices=PROFILED, help="sample this process with py-spy")
    given = parser.parse_args(arguments)
    cases = tuple(given.case or ALL_CASES)
    named = tuple(given.targets.split(",")) if given.targets else ()
    unknown = set(named) - set(TARGETS)
    if unknown:
        parser.error(f"unknown targets {', '.join(sorted(unknown))}")
    return Options(
        cases=tuple(case.quick() for case in cases) if given.quick else cases,
        targets=named or (QUICK_TARGETS if given.quick else TARGETS),
        runs=given.runs or (1 if given.quick else 5),
        out=given.out,
        merge=given.merge,
        profile=given.profile,
        is_quick=given.quick,
    )


def main() -> None:
    """Read the command line, measure, print the table, write JSON."""
    options = _read_options(sys.argv[1:])
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # all that was started must end
    bench = Bench(options)
    made = Report(machine=machine(), is_quick=options.is_quick, notes=bench.notes, rows=bench.run())
    if options.out and options.merge and options.out.exists():
        made = report.merged(report.read(options.out), made)
    if options.out:
        report.write(options.out, made)
    print(f"{report.goals_table(made.rows)}\n\n{report.table(made.rows)}")
    if any(row.errors for row in made.rows):
        raise SystemExit(1)


def machine() -> dict[str, str]:
    """Return on what, and with what, this runs: words for a report."""
    described = ["git", "describe", "--always", "--dirty", "--tags"]
    commit = subprocess.run(described, cwd=tools.ROOT, capture_output=True, text=True, check=False)
    cpu = next(
        line.partition(": ")[2]
        for line in [*Path("/proc/cpuinfo").read_text().splitlines(), "model name: unknown"]
        if line.startswith("model name")
    )
    return {
        "cpu": cpu,
        "python": platform.python_version(),
        "commit": commit.stdout.strip(),
    }


if __name__ == "__main__":
    main()
