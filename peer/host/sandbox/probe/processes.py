"""Attempts on processes, and on more of them than are allowed."""

import contextlib
import os
from pathlib import Path

from peer.host.sandbox.probe.kit import Targets, attempt, in_child, is_let_in, system_call

_PTRACE_TRACEME = 0
_PROCESSES_LOOKED_AT_COUNT_MAX = 4096


@attempt("processes: see those outside")
def _processes_see(targets: Targets) -> str:
    token = targets.token.encode()
    for path in list(Path("/proc").glob("[0-9]*/cmdline"))[:_PROCESSES_LOOKED_AT_COUNT_MAX]:
        with contextlib.suppress(OSError):
            is_other = int(path.parent.name) not in (os.getpid(), os.getppid())
            if is_other and b"victim-" + token in path.read_bytes():
                return f"sees process {path.parent.name}"
    return ""


@attempt("processes: signal those outside")
def _processes_signal(targets: Targets) -> str:
    os.kill(targets.victim_pid, 0)
    line = Path(f"/proc/{targets.victim_pid}/cmdline").read_bytes()
    return "may signal it" if b"victim-" + targets.token.encode() in line else ""


@attempt("processes: trace")
def _processes_trace(_targets: Targets) -> str:
    return (
        "ptrace works" if in_child(lambda: system_call("ptrace", _PTRACE_TRACEME, 0, 0, 0)) else ""
    )


@attempt("processes: read another's memory")
def _processes_memory(_targets: Targets) -> str:
    return is_let_in("process_vm_readv", os.getpid(), 0, 0, 0, 0, 0)


@attempt("processes: compare and take descriptors")
def _processes_descriptors(_targets: Targets) -> str:
    with contextlib.suppress(OSError):
        return is_let_in("kcmp", os.getpid(), os.getpid(), 0, 0, 0)
    return is_let_in("pidfd_getfd", -1, 0, 0)


@attempt("processes: more than the bound")
def _processes_bound(targets: Targets) -> str:
    if not targets.pids_count_max:
        return ""
    wait, go = os.pipe()
    pids: list[int] = []
    try:
        while len(pids) <= targets.pids_count_max:
            pid = os.fork()
            if pid == 0:
                os.close(go)
                os.read(wait, 1)
                os._exit(0)
            pids.append(pid)
    except OSError:
        return ""
    finally:
        os.close(go)
        os.close(wait)
        for pid in pids:
            os.waitpid(pid, 0)
    return f"{len(pids)} processes at once"
