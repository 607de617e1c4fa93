"""A real vLLM, sealed in, and what the kernel says of how it is."""

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import psutil
import trio
from live_engine import LiveEngine, live_engine
from rows_kit import TOOLS_TEMPLATE
from vllm_kit import FIGURES, MODEL

from p2p.types import ModelId
from peer.host.config import EngineTimeouts, VllmSpec
from peer.host.engines.supervised import EnginePlace, SupervisedEngine
from peer.host.engines.vllm import VllmRecipe
from peer.host.sandbox.choose import open_sandbox
from peer.host.sandbox.settings import USER_ID, SandboxKind
from peer.http.loop import Loop

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
READY_S_MAX = 1200  # two minutes where nothing else runs
NO_NEWS_S_MAX = 600  # it says nothing while it imports PyTorch


@asynccontextmanager
async def open_sealed(kind: SandboxKind, place: Path) -> AsyncIterator[SupervisedEngine]:
    """Open a vLLM in a sandbox; it does not run yet."""
    loop = Loop()
    spec = VllmSpec(
        model=str(ROOT / "build" / "vllm-model" / MODEL.rpartition("/")[2]),
        model_id=ModelId(MODEL),
        python=str(PYTHON),
        cpu_kv_gib=1,
        context_tokens=2048,
        tool_parser="hermes",
        template_file=TOOLS_TEMPLATE,
    )
    async with open_sandbox(kind, data_dir=place) as sandbox, trio.open_nursery() as nursery:
        assert sandbox.launcher.name == kind.value
        nursery.start_soon(loop.run)
        yield SupervisedEngine(
            VllmRecipe(spec),
            loop,
            launcher=sandbox.launcher,
            place=EnginePlace(
                socket_dir=place / "socket",
                log_path=place / "engine.log",
                cache_dir=place / "cache",
                slots=2,
            ),
            timeouts=EngineTimeouts(load_s=NO_NEWS_S_MAX),
        )
        nursery.cancel_scope.cancel()


@contextmanager
def sealed_vllm(kind: SandboxKind, place: Path) -> Iterator[LiveEngine]:
    """Run one with its self-test, and note how long that took."""
    began_s = time.monotonic()
    with live_engine(lambda: open_sealed(kind, place), "vllm", within_s=READY_S_MAX) as live:
        FIGURES[f"start and self-test of vLLM, sealed in by {kind}"] = time.monotonic() - began_s
        yield live


def servers_in(place: Path) -> list[psutil.Process]:
    """Return vLLM's server that listens in a place, however it is sealed in.

    Not its keeper, nor the process of bubblewrap that waits for them.
    """
    inside = "/run/engine/e.sock"
    return [
        each
        for each in psutil.process_iter(["cmdline"])
        if (each.info["cmdline"] or [""])[0] == str(PYTHON)
        and inside in each.info["cmdline"]
        and _shows(each, place)
    ]


def _shows(process: psutil.Process, place: Path) -> bool:
    """Return whether a process sees our socket directory as its own."""
    theirs = _root_of(process) / "run" / "engine" / "e.sock"
    ours = place / "socket" / "e.sock"
    return theirs.exists() and theirs.stat().st_ino == ours.stat().st_ino


def _root_of(process: psutil.Process) -> Path:
    """Return a process's file system, as the kernel shows it to others."""
    return Path("/proc", str(process.pid), "root")


def seal_problems(process: psutil.Process) -> list[str]:
    """Return what the kernel says of a process that a sealed-in one must not have."""
    lines = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii").splitlines()
    status = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    wanted = {
        "Uid": [str(USER_ID)] * 4,
        "CapEff": ["0" * 16],
        "CapBnd": ["0" * 16],
        "NoNewPrivs": ["1"],
        "Seccomp": ["2"],
    }
    wrong = [f"{name}: {status[name]}" for name, value in wanted.items() if status[name] != value]
    ours, theirs = Path("/proc/self/ns"), Path(f"/proc/{process.pid}/ns")
    names = ("net", "pid", "ipc", "mnt", "uts")
    wrong += [
        f"our {each}" for each in names if (ours / each).readlink() == (theirs / each).readlink()
    ]
    cards = Path(f"/proc/{process.pid}/net/dev").read_text(encoding="ascii").splitlines()[2:]
    wrong += [card for card in cards if not card.strip().startswith("lo:")]
    mounts = Path(f"/proc/{process.pid}/mounts").read_text(encoding="utf-8").splitlines()
    (root, *_) = [line.split() for line in mounts if line.split()[1] == "/"]
    return wrong if "ro" in root[3].split(",") else [*wrong, f"root: {root}"]
