"""Keeps one child process: ``python keeper.py STOP_S PROGRAM [ARGUMENT ...]``.

Stands between the host and an engine that runs without a container, so that nothing of the engine
is left however the host ends. It needs the standard library only, since it runs under whichever
Python the engine has.

- Standard input is the host's life line: when it ends, because the host asks or because the host
  died however hard, the child gets SIGTERM, and STOP_S later SIGKILL. SIGTERM means the same.
- Standard output takes one line: the child's process id, or why it could not be started. What the
  child writes goes to the keeper's standard error.
- What the child started ends with it: its process group, and whatever left the group, which the
  kernel gives to the keeper when its parent ends (PR_SET_CHILD_SUBREAPER).
- If the keeper itself is killed, the kernel kills the child (PR_SET_PDEATHSIG, which fires when
  the *thread* that forked ends; the keeper has only one, trio forks in threads that come and go).
- The exit status is the child's; 128 + N if signal N ended it.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
POLL_S = 0.02
REAP_S_MAX = 5.0  # processes that SIGKILL does not end hang in the kernel; nobody can help
OOM_SCORE = "500"  # if memory ends, the kernel shall take the engine before the host
SIGNAL_STATUS_BASE = 128
READ_BYTES = 4096


def main() -> int:
    """Run the child until it ends or the host wants it to; return its exit status."""
    stop_s, command = float(sys.argv[1]), sys.argv[2:]
    wake = _catch_signals()
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # ends with the keeper, for children that watch it
            stdout=sys.stderr.fileno(),
            start_new_session=True,
            preexec_fn=_be_a_child,  # safe: there is only one thread here
        )
    except OSError as error:
        _report(f"{command[0]}: {error.strerror}")
        return 127
    _report(str(child.pid))
    _watch(child.pid, wake, stop_s)
    return _end_all(child.pid)


def _report(line: str) -> None:
    os.write(sys.stdout.fileno(), line.encode() + b"\n")


def _catch_signals() -> int:
    """Return a descriptor that becomes readable at SIGTERM and when a child ends."""
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C in the terminal is the host's
    return wake


def _be_a_child() -> None:
    """Undo the keeper's signals, and end with it."""
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE, encoding="ascii")
    except OSError:
        return  # a system without it


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _watch(pid: int, wake: int, stop_s: float) -> None:
    """Return when the child has ended, or has had its time to end."""
    watched = [sys.stdin.fileno(), wake]
    deadline_s: float | None = None
    while not _has_ended(pid):
        left_s = None if deadline_s is None else deadline_s - time.monotonic()
        if left_s is not None and left_s <= 0:
            return
        readable, _, _ = select.select(watched, [], [], left_s)
        is_over = False
        if sys.stdin.fileno() in readable:
            is_over = not os.read(sys.stdin.fileno(), READ_BYTES)
        if wake in readable:
            is_over = is_over or signal.SIGTERM in os.read(wake, READ_BYTES)
        _reap_adopted(pid)
        if is_over and deadline_s is None:
            watched = [wake]
            deadline_s = time.monotonic() + stop_s
            os.kill(pid, signal.SIGTERM)


def _has_ended(pid: int) -> bool:
    """Return whether the child has ended; it stays a zombie, so that its number stays its own."""
    how = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return os.waitid(os.P_PID, pid, how) is not None


def _reap_adopted(pid: int) -> None:
    """Reap what ended among the processes that the kernel gave us, but not the child."""
    for each in _children():
        if each != pid:
            os.waitpid(each, os.WNOHANG)


def _end_all(pid: int) -> int:
    """Kill the child's group and all that was given to us; return the child's exit status."""
    status = 0
    deadline_s = time.monotonic() + REAP_S_MAX
    while time.monotonic() < deadline_s:
        _kill_group(pid)
        for each in _children():
            if each != pid:
                os.kill(each, signal.SIGKILL)
        try:
            ended, code = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            break
        if ended == pid:
            pid, status = 0, code
        elif not ended:
            select.select([], [], [], POLL_S)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else SIGNAL_STATUS_BASE - code


def _kill_group(pid: int) -> None:
    """Kill the group of a child that is not reaped yet; afterwards its number may be another's."""
    if pid:
        try:
            os.killpg(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return  # PermissionError: macOS's word for a group of zombies


def _children() -> list[int]:
    """Return our children, dead ones included; none on systems that do not tell."""
    try:
        listed = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii")
    except OSError:
        return []
    return [int(each) for each in listed.split()]


if __name__ == "__main__":
    sys.exit(main())
