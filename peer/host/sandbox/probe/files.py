"""Attempts on devices, files, memory, and what the host may have left lying about."""

import contextlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

from peer.host.sandbox.probe.kit import CONNECT_S_MAX, Targets, attempt, in_child

_PAGE_BYTES = 4096
_MEMORY_STEP_BYTES = 8 * 1024 * 1024
_STANDARD_DESCRIPTORS_COUNT = 3
# What a sandbox's /dev may hold; graphics cards are lent on purpose.
_HARMLESS_DEVICES = frozenset(
    [
        "console",
        "core",
        "fd",
        "full",
        "mqueue",
        "null",
        "ptmx",
        "pts",
        "random",
        "shm",
        "stderr",
        "stdin",
        "stdout",
        "tty",
        "urandom",
        "zero",
    ]
)
_LENT_DEVICES = ("nvidia", "dri", "kfd")


@attempt("devices: make one")
def _device_make(_targets: Targets) -> str:
    path = Path(tempfile.mkdtemp()) / "disk"
    try:
        os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(7, 0))
    finally:
        shutil.rmtree(path.parent, ignore_errors=True)
    return "mknod works"


@attempt("devices: those of the machine")
def _devices(_targets: Targets) -> str:
    others = [
        name
        for name in sorted(os.listdir("/dev"))
        if name not in _HARMLESS_DEVICES and not name.startswith(_LENT_DEVICES)
    ]
    return f"/dev has {', '.join(others)}" if others else ""


@attempt("devices: disks and memory")
def _disks(_targets: Targets) -> str:
    for name in ("mem", "kmem", "port", "kmsg", "sda", "vda", "nvme0n1", "fuse", "kvm"):
        with contextlib.suppress(OSError):
            os.close(os.open(f"/dev/{name}", os.O_RDONLY | os.O_NONBLOCK))
            return f"/dev/{name} opens"
    return ""


@attempt("files: write to the system")
def _write_system(_targets: Targets) -> str:
    for folder in ("/", "/etc", "/usr", "/usr/bin", "/var", "/opt", "/root", "/home", "/lib"):
        with contextlib.suppress(OSError), tempfile.NamedTemporaryFile(dir=folder):
            return f"writes in {folder}"
    return ""


@attempt("files: write to Python's own")
def _write_python(_targets: Targets) -> str:
    folders = {sys.prefix, sys.base_prefix, os.path.dirname(os.__file__), os.path.dirname(__file__)}
    for folder in sorted(folders):
        with contextlib.suppress(OSError), tempfile.NamedTemporaryFile(dir=folder):
            return f"writes in {folder}"
    return ""


@attempt("files: write outside")
def _write_outside(targets: Targets) -> str:
    with tempfile.NamedTemporaryFile(dir=targets.outside_dir):
        return f"writes in {targets.outside_dir}"


@attempt("files: passwords of the machine")
def _shadow(_targets: Targets) -> str:
    return "reads /etc/shadow" if Path("/etc/shadow").read_bytes() else ""


@attempt("files: those of the owner")
def _secrets(targets: Targets) -> str:
    for path in targets.secret_files:
        with contextlib.suppress(OSError):
            if Path(path).read_bytes().startswith(targets.token.encode()):
                return f"reads {path}"
    return ""


@attempt("files: through another process's root")
def _other_root(targets: Targets) -> str:
    for pid in (1, targets.victim_pid):
        for path in targets.secret_files:
            inside = Path(f"/proc/{pid}/root") / path.lstrip("/")
            with contextlib.suppress(OSError):
                if inside.read_bytes().startswith(targets.token.encode()):
                    return f"reads {inside}"
    return ""


@attempt("files: run what was written to /tmp")
def _run_written(_targets: Targets) -> str:
    folder = Path(tempfile.mkdtemp(dir="/tmp"))  # the sandbox's own
    program = folder / "program"
    try:
        program.write_text("#!/bin/sh\nexit 0\n", encoding="ascii")
        program.chmod(0o700)
        subprocess.run([str(program)], check=True, timeout=CONNECT_S_MAX)
    except subprocess.SubprocessError:
        return ""
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return "what it writes to /tmp can be run"


@attempt("environment: what the host knows")
def _environment(targets: Targets) -> str:
    found = [name for name, value in os.environ.items() if value == targets.token]
    return f"the variable {found[0]}" if found else ""


@attempt("descriptors: left open by the host")
def _left_open(_targets: Targets) -> str:
    for name in sorted(os.listdir("/proc/self/fd"), key=int):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{name}")
            if int(name) >= _STANDARD_DESCRIPTORS_COUNT and not target.startswith("/proc/"):
                return f"descriptor {name} is {target}"
    return ""


@attempt("memory: more than the bound")
def _memory(targets: Targets) -> str:
    if not targets.memory_bytes_max:
        return ""

    def fill() -> None:
        with contextlib.suppress(OSError):  # if somebody must go, then this one
            Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
        kept: list[bytearray] = []
        while len(kept) * _MEMORY_STEP_BYTES <= targets.memory_bytes_max:
            piece = bytearray(_MEMORY_STEP_BYTES)
            piece[::_PAGE_BYTES] = b"x" * (_MEMORY_STEP_BYTES // _PAGE_BYTES)
            kept.append(piece)

    return f"took {targets.memory_bytes_max} bytes" if in_child(fill) else ""
