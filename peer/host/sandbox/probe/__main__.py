"""Runs every attempt and writes one report."""

import json
import sys
from pathlib import Path

from peer.host.sandbox.probe import files, kernel, namespaces, network, processes
from peer.host.sandbox.probe.kit import ATTEMPTS, DETAIL_LENGTH_MAX, Attempt, Targets

_MODULES = (network, processes, namespaces, kernel, files)  # each registers its attempts


def main() -> int:
    """Try everything and write the report; return the exit status."""
    targets = Targets(**json.loads(sys.argv[1]))
    report = Path(sys.argv[2])
    results = [_run(name, attempt, targets) for name, attempt in ATTEMPTS.items()]
    part = report.with_suffix(".part")
    part.write_text(json.dumps({"attempts": results}), encoding="utf-8")
    part.chmod(0o644)  # whoever asked may be another user
    part.rename(report)
    return 0


def _run(name: str, attempt: Attempt, targets: Targets) -> dict[str, object]:
    try:
        got = attempt(targets)
    except (OSError, MemoryError, ValueError) as error:
        return {"name": name, "escaped": False, "detail": str(error)[:DETAIL_LENGTH_MAX]}
    return {"name": name, "escaped": bool(got), "detail": got[:DETAIL_LENGTH_MAX]}


if __name__ == "__main__":
    sys.exit(main())
