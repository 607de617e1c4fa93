"""Runs settlement as a process of its own; its first line tells the URL."""

import sys
from pathlib import Path

from p2p.types import NetworkId
from settlement.main import SettlementConfig, serve

if __name__ == "__main__":
    serve(
        SettlementConfig(Path(sys.argv[1]), NetworkId("test")),
        ready=lambda ready: print(ready.url, flush=True),
    )
