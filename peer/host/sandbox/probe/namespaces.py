"""Attempts to get other namespaces, mounts, or more privileges."""

import contextlib
import ctypes
import os
import struct
import tempfile

from peer.host.sandbox.probe.kit import (
    LIBC,
    Targets,
    attempt,
    in_child,
    opened,
    status_field,
    system_call,
)

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
_SIGCHLD = 17


@attempt("namespaces: unshare a user namespace")
def _unshare_user(_targets: Targets) -> str:
    return "unshare works" if in_child(lambda: system_call("unshare", CLONE_NEWUSER)) else ""


@attempt("namespaces: unshare network and mounts")
def _unshare_network(_targets: Targets) -> str:
    is_done = in_child(lambda: system_call("unshare", CLONE_NEWNET | CLONE_NEWNS))
    return "unshare works" if is_done else ""


@attempt("namespaces: clone into a user namespace")
def _clone_user(_targets: Targets) -> str:
    pid = system_call("clone", CLONE_NEWUSER | _SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return "clone works"


@attempt("namespaces: clone3, whose flags no filter sees")
def _clone3(_targets: Targets) -> str:
    arguments = struct.pack("<8Q", CLONE_NEWUSER, 0, 0, 0, _SIGCHLD, 0, 0, 0)
    pid = system_call("clone3", arguments, len(arguments))
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return "clone3 works"


@attempt("namespaces: enter another")
def _setns(_targets: Targets) -> str:
    def enter() -> None:
        with open("/proc/self/ns/net", "rb") as namespace:
            system_call("setns", namespace.fileno(), 0)

    return "setns works" if in_child(enter) else ""


@attempt("mounts: mount a file system")
def _mount(_targets: Targets) -> str:
    where = tempfile.mkdtemp()
    try:
        if LIBC.mount(b"none", where.encode(), b"tmpfs", 0, None) < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        LIBC.umount2(where.encode(), 0)
    finally:
        os.rmdir(where)
    return "mount works"


@attempt("mounts: the new interface")
def _mount_new(_targets: Targets) -> str:
    with contextlib.suppress(OSError):
        return opened("fsopen", b"tmpfs", 0)
    return opened("open_tree", -100, b"/", 1)


@attempt("mounts: another root directory")
def _chroot(_targets: Targets) -> str:
    return "chroot works" if in_child(lambda: os.chroot("/")) else ""


@attempt("privileges: be root")
def _be_root(_targets: Targets) -> str:
    if os.geteuid() == 0:
        return "is root"
    return "setuid works" if in_child(lambda: os.setuid(0)) else ""


@attempt("privileges: capabilities")
def _capabilities(_targets: Targets) -> str:
    held = {name: status_field(name) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
    return ", ".join(f"{name} {value}" for name, value in held.items() if int(value, 16))


@attempt("privileges: gain some from a program")
def _new_privileges(_targets: Targets) -> str:
    return "" if status_field("NoNewPrivs") == "1" else "no_new_privs is not set"


@attempt("privileges: more groups")
def _groups(_targets: Targets) -> str:
    return "is in the root group" if 0 in (os.getegid(), *os.getgroups()) else ""
