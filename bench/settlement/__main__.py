"""Measure settlement over HTTP: vouchers and receipts a second for each core, and how soon.

    python -m bench.settlement              everything, some minutes; make bench-settlement
    python -m bench.settlement --part vouchers --runs 3 --seconds 2

A real settlement process with its real database (SQLite, WAL, synchronous FULL) on one core,
nodes that sign and send on the other. Each figure is the median of the runs, percentiles are
pooled. Afterwards every acknowledged voucher must stand in books that settlement itself finds
right, or the benchmark fails.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from bench.settlement.bare import bare_limits
from bench.settlement.machine import cores
from bench.settlement.measure import Plan, measure, require_right_books
from bench.settlement.report import Results, table
from bench.settlement.server import running_server
from bench.settlement.world import Shape, make_world

PARTS = ("bare", "vouchers", "rate", "receipts")
GUESS_PER_S = 8000  # sizes the runs that go as fast as they can


def main() -> None:
    """Run what the command line asks for; print JSON, then a table on standard error."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="sparewatt-bench-") as directory:
        results = _measure(options, Path(directory))
    text = json.dumps(asdict(results), indent=2)
    if options.out:
        options.out.write_text(text + "\n")
    print(text)
    print(table(results), file=sys.stderr)


def _measure(options: argparse.Namespace, directory: Path) -> Results:
    allowed = cores()
    server_cores, client_cores = allowed[: options.server_cores], allowed[-1:]
    shape = Shape(options.hosts, options.hosts, options.allowances_per_host)
    bare: dict[str, float] = {}
    if "bare" in options.part:
        per_run = max(1, int(options.seconds * 10))
        bare = bare_limits(directory, shape, requests=per_run, per_request=100)
    world = make_world(directory / "settlement", shape)
    with running_server(
        world.data_dir,
        server_cores=server_cores,
        client_cores=client_cores,
        verify_processes=options.verify_processes,
    ) as server:
        loads = []
        for plan in _plans(options):
            print(f"{plan.name}: {plan.runs} runs", file=sys.stderr, flush=True)
            loads.append(asyncio.run(measure(server, world, plan)))
        checked = require_right_books(server.url, world)
    return Results(server_cores, client_cores, options.verify_processes, bare, loads, checked)


def _plans(options: argparse.Namespace) -> list[Plan]:
    """Return the loads to run, in their order."""
    runs, seconds = options.runs, options.seconds
    plans = []
    if "vouchers" in options.part:
        for per_request, connections in ((100, 4), (10, 16), (1000, 2)):
            items = int(seconds * GUESS_PER_S)
            plans.append(
                Plan(f"vouchers x{per_request}", "vouchers", per_request, connections, items, runs)
            )
    if "rate" in options.part:
        per_s = float(options.rate)
        items = int(seconds * per_s)
        plans.append(Plan("vouchers at a rate", "vouchers", 100, 32, items, runs, per_s))
    if "receipts" in options.part:
        for receipts, batches in ((1, 100), (8, 25)):
            items = int(seconds * GUESS_PER_S / 4)
            name = f"receipts x{receipts}"
            plans.append(
                Plan(name, "receipts", batches, 4, items, runs, receipts_per_batch=receipts)
            )
    return plans


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.settlement",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of one run, about")
    parser.add_argument("--rate", type=int, default=6000, help="vouchers a second of part `rate`")
    parser.add_argument("--hosts", type=int, default=20, help="and as many gateways")
    parser.add_argument("--allowances-per-host", type=int, default=1000)
    parser.add_argument("--server-cores", type=int, default=1)
    parser.add_argument("--verify-processes", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    return parser.parse_args()


if __name__ == "__main__":
    main()
