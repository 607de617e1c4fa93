"""What the attempts share: what they aim at, how they are registered, and careful tools."""

import contextlib
import ctypes
import errno
import os
import platform
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

DETAIL_LENGTH_MAX = 200
CONNECT_S_MAX = 2.0
_STATUS_ESCAPED = 42  # of a forked attempt
# Of each attempted system call: its number on x86-64 and on arm64.
_CALLS = {
    "add_key": (248, 217),
    "bpf": (321, 280),
    "clone": (56, 220),
    "clone3": (435, 435),
    "fsopen": (430, 430),
    "init_module": (175, 105),
    "io_uring_setup": (425, 425),
    "kcmp": (312, 272),
    "keyctl": (250, 219),
    "kexec_load": (246, 104),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "pidfd_getfd": (438, 438),
    "process_vm_readv": (310, 270),
    "ptrace": (101, 117),
    "reboot": (169, 142),
    "setns": (308, 268),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
}
_REFUSALS = (errno.EPERM, errno.ENOSYS, errno.EACCES)


@dataclass(frozen=True)
class Targets:
    """What the tester put up outside, for the attempts to reach.

    Attributes:
        tcp_port: Somebody listens there on the machine's loopback.
        abstract_name: Of a unix socket without a file that somebody listens on.
        unix_sockets: Sockets that steer the machine, as a container engine's.
        victim_pid: A process outside, of the same user.
        token: Stands in the victim's command line and in the tester's environment.
        secret_files: Files outside whose content begins with the token.
        outside_dir: A directory outside that the tester's user may write to.
        pids_count_max: The bound on processes; 0 for no attempt.
        memory_bytes_max: The bound on memory; 0 for no attempt.
    """

    tcp_port: int = 0
    abstract_name: str = ""
    unix_sockets: list[str] = field(default_factory=list)
    victim_pid: int = 0
    token: str = ""
    secret_files: list[str] = field(default_factory=list)
    outside_dir: str = ""
    pids_count_max: int = 0
    memory_bytes_max: int = 0


Attempt = Callable[[Targets], str]
ATTEMPTS: dict[str, Attempt] = {}


def attempt(name: str) -> Callable[[Attempt], Attempt]:
    """Register an attempt; it returns what it got, or nothing, or raises OSError."""

    def register(work: Attempt) -> Attempt:
        ATTEMPTS[name] = work
        return work

    return register


LIBC = ctypes.CDLL(None, use_errno=True)


def system_call(name: str, *arguments: object) -> int:
    """Make a system call.

    Raises:
        OSError: If the kernel refuses.
    """
    number = _CALLS[name][platform.machine() in ("aarch64", "arm64")]
    result = int(LIBC.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def is_let_in(name: str, *arguments: object) -> str:
    """Return what happened if a call got past its permission check, though it then failed."""
    try:
        result = system_call(name, *arguments)
    except OSError as error:
        if error.errno in _REFUSALS:
            raise
        return f"{name} got as far as {error.strerror}"
    return f"{name} returned {result}"


def opened(name: str, *arguments: object) -> str:
    """Return a non-empty text if a call returned a descriptor, which is closed."""
    os.close(system_call(name, *arguments))
    return f"{name} works"


def in_child(work: Callable[[], object]) -> bool:
    """Return whether some work succeeded in a process of its own, which it may spoil."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            work()
            os._exit(_STATUS_ESCAPED)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status) == _STATUS_ESCAPED


def reachable(family: int, address: str | tuple[str, int]) -> str:
    """Return a non-empty text if somebody answers there."""
    with socket.socket(family, socket.SOCK_STREAM) as connection:
        connection.settimeout(CONNECT_S_MAX)
        connection.connect(address)
    return f"connected to {address!r}"


def first_writable(paths: Iterator[Path]) -> str:
    """Return the first that opens for writing; nothing is written."""
    for path in paths:
        with contextlib.suppress(OSError):
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY))
            return f"{path} opens for writing"
    return ""


def status_field(name: str) -> str:
    """Return a field of /proc/self/status."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return line.partition(":")[2].strip()
    return ""
