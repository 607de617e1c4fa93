"""Attempts on the kernel: its calls and its settings."""

import contextlib
from pathlib import Path

from peer.host.sandbox.probe.kit import (
    Targets,
    attempt,
    first_writable,
    is_let_in,
    opened,
    status_field,
)


@attempt("kernel: no filter of system calls")
def _no_filter(_targets: Targets) -> str:
    return "" if status_field("Seccomp") == "2" else "no filter is in force"


@attempt("kernel: keys")
def _keys(_targets: Targets) -> str:
    with contextlib.suppress(OSError):
        return is_let_in("keyctl", 0, -3, 0)
    return is_let_in("add_key", b"user", b"probe", b"x", 1, -3)


@attempt("kernel: bpf")
def _bpf(_targets: Targets) -> str:
    return is_let_in("bpf", 0, 0, 0)


@attempt("kernel: performance counters")
def _perf(_targets: Targets) -> str:
    return is_let_in("perf_event_open", 0, 0, -1, -1, 0)


@attempt("kernel: io_uring")
def _io_uring(_targets: Targets) -> str:
    return is_let_in("io_uring_setup", 0, 0)


@attempt("kernel: userfaultfd")
def _userfaultfd(_targets: Targets) -> str:
    return opened("userfaultfd", 1)


@attempt("kernel: files by handle")
def _by_handle(_targets: Targets) -> str:
    return is_let_in("open_by_handle_at", -1, 0, 0)


@attempt("kernel: modules")
def _modules(_targets: Targets) -> str:
    return is_let_in("init_module", 0, 0, 0)


@attempt("kernel: restart and swap")
def _restart(_targets: Targets) -> str:
    with contextlib.suppress(OSError):
        return is_let_in("reboot", 0, 0, 0, 0)  # without its magic numbers: does nothing
    return is_let_in("swapon", 0, 0)


@attempt("kernel: its log")
def _kernel_log(_targets: Targets) -> str:
    return is_let_in("syslog", 10, 0, 0)  # how large it is


@attempt("kernel: settings in /proc")
def _proc_settings(_targets: Targets) -> str:
    names = (
        "sys/kernel/core_pattern",
        "sys/kernel/modprobe",
        "sysrq-trigger",
        "sys/vm/drop_caches",
    )
    return first_writable(Path("/proc") / name for name in names)


@attempt("kernel: settings in /sys")
def _sys_settings(_targets: Targets) -> str:
    names = ("kernel/uevent_helper", "power/state", "kernel/mm/transparent_hugepage/enabled")
    return first_writable(Path("/sys") / name for name in names)


@attempt("kernel: control groups")
def _control_groups(_targets: Targets) -> str:
    root = Path("/sys/fs/cgroup")
    names = ("release_agent", "cgroup.procs", "notify_on_release", "memory.limit_in_bytes")
    folders = [root, *root.glob("*"), *root.glob("*/*")]
    return first_writable(folder / name for folder in folders for name in names)
