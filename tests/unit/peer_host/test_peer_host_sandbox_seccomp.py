"""The seccomp policy: what it says, and what it becomes as a program of the kernel."""

import json
import os
import platform
import struct
import subprocess
import sys
from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peer.host.sandbox.choose import read_compiled_policy
from peer.host.sandbox.seccomp import Policy, PolicyError, compile_policy, parse_policy

FOLDER = files("peer.host.sandbox")
DOCUMENT = (FOLDER / "seccomp.json").read_bytes()
NUMBERS = json.loads((FOLDER / "syscalls.json").read_bytes())
POLICY = parse_policy(DOCUMENT)
ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x80000000
ENOSYS = 38
CLONE_NEWUSER, CLONE_NEWTIME = 0x10000000, 0x80
THREAD = 0x003D0F00  # what pthread_create asks clone for
# Linux numbers of calls that no engine may make, x86-64 and aarch64.
FORBIDDEN = {
    "ptrace": (101, 117), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "unshare": (272, 97), "setns": (308, 268), "bpf": (321, 280),
    "perf_event_open": (298, 241), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427), "userfaultfd": (323, 282), "keyctl": (250, 219),
    "add_key": (248, 217), "request_key": (249, 218), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104),
    "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264), "fsopen": (430, 430),
    "fsmount": (432, 432), "move_mount": (429, 429), "open_tree": (428, 428),
    "mount_setattr": (442, 442), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "process_madvise": (440, 440), "pidfd_getfd": (438, 438), "kcmp": (312, 272),
    "reboot": (169, 142), "swapon": (167, 224), "settimeofday": (164, 170),
    "clock_settime": (227, 112), "clock_adjtime": (305, 266), "acct": (163, 89),
    "quotactl": (179, 60), "syslog": (103, 116), "fanotify_init": (300, 262), "seccomp": (317, 277),
    "memfd_secret": (447, 447), "mbind": (237, 235), "move_pages": (279, 239),
    "mknodat": (259, 33), "vhangup": (153, 58), "lookup_dcookie": (212, 18),
}  # fmt: skip


def judge(program: bytes, arch: int, number: int, arguments: tuple[int, ...]) -> int:
    """Run a BPF program as the kernel would."""
    data = struct.pack("<iIQ6Q", number, arch, 0, *arguments)
    code = list(struct.iter_unpack("<HBBI", program))
    at = accumulator = 0
    while True:
        operation, if_true, if_false, constant = code[at]
        at += 1
        match operation:
            case 0x20:
                accumulator = struct.unpack_from("<I", data, constant)[0]
            case 0x54:
                accumulator &= constant
            case 0x15:
                at += if_true if accumulator == constant else if_false
            case 0x35:
                at += if_true if accumulator >= constant else if_false
            case 0x06:
                return constant
            case _:
                pytest.fail(f"no such operation: {operation:#x}")


def expected(policy: Policy, name: str | None, arguments: tuple[int, ...]) -> int:
    """Say what a policy means, from its own words."""
    for rule in policy.rules:
        fits = all(arguments[c.index] & c.mask == c.wanted for c in rule.conditions)
        if name in rule.names and fits:
            return ALLOW if rule.action == "SCMP_ACT_ALLOW" else ERRNO | rule.errno
    return ERRNO | policy.default_errno


@pytest.fixture(params=["x86_64", "aarch64"])
def machine(request) -> str:
    return request.param


def program(machine: str) -> bytes:
    return compile_policy(POLICY, NUMBERS[machine], machine)


PROGRAMS = {machine: program(machine) for machine in ARCH}
WORDS = st.one_of(
    st.integers(0, 2**64 - 1), st.integers(0, 64), st.sampled_from([THREAD, CLONE_NEWUSER])
)


@given(number=st.integers(0, 500), arguments=st.tuples(*[WORDS] * 6), on=st.sampled_from([*ARCH]))
def test_program_says_what_the_policy_says(number, arguments, on) -> None:
    names = {value: name for name, value in NUMBERS[on].items()}
    said = judge(PROGRAMS[on], ARCH[on], number, arguments)
    assert said == expected(POLICY, names.get(number), arguments)


def test_every_allowed_call_is_allowed(machine) -> None:
    for name in POLICY.rules[0].names:
        if name in NUMBERS[machine]:
            number = NUMBERS[machine][name]
            assert judge(PROGRAMS[machine], ARCH[machine], number, (0,) * 6) == ALLOW


@pytest.mark.parametrize("name", FORBIDDEN)
def test_forbidden_call_does_not_exist(name, machine) -> None:
    number = FORBIDDEN[name][machine == "aarch64"]
    assert name not in {each for rule in POLICY.rules for each in rule.names}
    assert judge(PROGRAMS[machine], ARCH[machine], number, (0,) * 6) == ERRNO | ENOSYS


def test_threads_may_be_made_and_namespaces_not(machine) -> None:
    clone = NUMBERS[machine]["clone"]
    run = PROGRAMS[machine]
    assert judge(run, ARCH[machine], clone, (THREAD, 0, 0, 0, 0, 0)) == ALLOW
    for bit in (0x20000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
        assert judge(run, ARCH[machine], clone, (THREAD | bit, 0, 0, 0, 0, 0)) == ERRNO | ENOSYS
    assert judge(run, ARCH[machine], NUMBERS[machine]["clone3"], (0,) * 6) == ERRNO | ENOSYS


@pytest.mark.parametrize(("family", "is_allowed"), [(1, True), (2, True), (10, True), (16, True),
    (17, False), (38, False), (40, False), (0, False), (2**32 + 1, False)])  # fmt: skip
def test_sockets_are_unix_and_internet_ones(family, is_allowed, machine) -> None:
    said = judge(PROGRAMS[machine], ARCH[machine], NUMBERS[machine]["socket"], (family,) + (0,) * 5)
    assert (said == ALLOW) is is_allowed


def test_netlink_is_for_routes_only(machine) -> None:
    socket = NUMBERS[machine]["socket"]
    assert judge(PROGRAMS[machine], ARCH[machine], socket, (16, 3, 12, 0, 0, 0)) != ALLOW


def test_calls_of_another_architecture_kill(machine) -> None:
    assert judge(PROGRAMS[machine], 0x40000003, 1, (0,) * 6) == KILL  # i386


def test_calls_of_x32_kill() -> None:
    assert judge(PROGRAMS["x86_64"], ARCH["x86_64"], 0x40000001, (0,) * 6) == KILL


def test_unknown_machine_is_refused() -> None:
    with pytest.raises(PolicyError, match="riscv64"):
        compile_policy(POLICY, {}, "riscv64")


@pytest.mark.parametrize("document", [b"", b"[]", b'{"syscalls": []}', b'{"x": 1}',
    DOCUMENT.replace(b"SCMP_CMP_EQ", b"SCMP_CMP_GT")])  # fmt: skip
def test_policy_of_another_form_is_refused(document) -> None:
    with pytest.raises(PolicyError):
        parse_policy(document)


_FILTERED = """
import ctypes, os, subprocess, sys, threading
program = sys.stdin.buffer.read()
libc = ctypes.CDLL(None, use_errno=True)
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]
whole = Program(len(program) // 8, program)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(whole)) == 0, ctypes.get_errno()
assert libc.unshare(0x10000000) == -1 and ctypes.get_errno() == 38
thread = threading.Thread(target=lambda: print("thread"))
thread.start(); thread.join()
print(subprocess.run(["/bin/echo", "child"], capture_output=True, text=True).stdout, end="")
"""


def test_kernel_takes_the_program_and_python_lives_with_it() -> None:
    assert platform.machine() in ARCH
    done = subprocess.run(
        [sys.executable, "-c", _FILTERED], input=read_compiled_policy(), capture_output=True,
        check=False, timeout=60, env=dict(os.environ),
    )  # fmt: skip
    assert done.stderr == b""
    assert done.stdout == b"thread\nchild\n"
