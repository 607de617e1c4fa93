"""Settlement as an operator runs it: the command, its own process, its real database."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

from bench.settlement.machine import stay_on
from p2p.paths import READY_FILE_NAME
from sparewatt.processes import PARENT_VARIABLE

START_WAIT_S = 30
STOP_WAIT_S = 10


@dataclass(frozen=True, slots=True)
class Server:
    """A settlement that answers."""

    url: str
    pid: int


@contextlib.contextmanager
def running_server(
    data_dir: Path, *, server_cores: list[int], client_cores: list[int], verify_processes: int
) -> Iterator[Server]:
    """Run settlement on its cores, and this process on its own, for as long as the block lasts."""
    command = [sys.executable, "-m", "sparewatt", "settlement", "serve", "--data", str(data_dir)]
    command += ["--port", "0", "--verify-processes", str(verify_processes)]
    stay_on(server_cores)
    with (data_dir / "log").open("wb") as log:
        parent = {PARENT_VARIABLE: str(os.getpid())}  # it ends when we do, however we end
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | parent)
    stay_on(client_cores)
    try:
        yield Server(_url(process, data_dir), process.pid)
    finally:
        process.terminate()
        process.wait(STOP_WAIT_S)


def _url(process: "subprocess.Popen[bytes]", data_dir: Path) -> str:
    path, end_s = data_dir / READY_FILE_NAME, monotonic() + START_WAIT_S
    while monotonic() < end_s and process.poll() is None:
        with contextlib.suppress(OSError, ValueError):
            ready: dict[str, object] = json.loads(path.read_text())
            if ready["pid"] == process.pid:
                return str(ready["url"])
        sleep(0.05)
    raise RuntimeError(f"settlement did not start:\n{(data_dir / 'log').read_text()[-2000:]}")
