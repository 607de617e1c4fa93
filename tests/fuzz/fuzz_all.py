"""Fuzzes every decoder for some seconds each, two at a time: ``python fuzz_all.py SECONDS``."""

import concurrent.futures
import pathlib
import re
import subprocess
import sys

FOLDER = pathlib.Path(__file__).parent
PROCESSES = 2
START_SECONDS_MAX = 60
_STATISTICS = re.compile(r"stat::(number_of_executed_units|peak_rss_mb):\s+(\d+)")

sys.path.insert(0, str(FOLDER))
import fuzz_targets  # noqa: E402 - found by the line above


def fuzz(name: str, seconds: int) -> str:
    """Fuzz one target; return an empty text, or the end of what it said of its crash."""
    made = subprocess.run(
        [sys.executable, str(FOLDER / "fuzz_one.py"), name, str(seconds)],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=seconds + START_SECONDS_MAX,
        check=False,
    )
    said = made.stdout + made.stderr
    numbers = dict(_STATISTICS.findall(said))
    runs, memory = numbers.get("number_of_executed_units"), numbers.get("peak_rss_mb")
    if made.returncode == 0 and runs:
        print(f"{name:22} {int(runs):>9,} inputs, {memory} MiB at most", flush=True)
        return ""
    return f"{name} crashed (exit {made.returncode}):\n{said[-3000:]}"


def main(seconds: int, names: list[str]) -> int:
    """Return 1 if any target crashed, and say where."""
    chosen = names or sorted(fuzz_targets.TARGETS)
    with concurrent.futures.ThreadPoolExecutor(PROCESSES) as pool:
        crashes = [text for text in pool.map(lambda name: fuzz(name, seconds), chosen) if text]
    print("\n\n".join(crashes), file=sys.stderr)
    return int(bool(crashes))


if __name__ == "__main__":
    raise SystemExit(main(int(sys.argv[1]), sys.argv[2:]))
