"""The system-call policy of every sandbox, and its translation for a sandbox without one. A core.

``seccomp.json`` is the policy, in the form that podman and Docker read: what a language runtime,
llama.cpp, vLLM and CUDA need is allowed, and everything else does not exist (ENOSYS, so that
programs fall back to older calls instead of giving up). Compared with the container engines' own
profiles it also keeps out what makes namespaces (``unshare``, ``setns``, ``clone`` with such
flags, ``clone3``, whose flags a filter can't see), ``ptrace`` and reading other processes'
memory, keys, ``io_uring``, ``bpf``, ``perf``, ``userfaultfd``, and every socket but unix,
internet and routing ones: a socket of the virtual machine's host (AF_VSOCK) knows no network
namespace.

bubblewrap takes a classic BPF program instead. ``compile_policy`` makes it: one comparison per
allowed call, one after the other. The kernel remembers which calls are always allowed (5.11 and
newer), so a long list costs nothing there.
"""

import struct
from collections.abc import Mapping
from typing import Final, Literal

import msgspec

SYSCALL_COUNT_MAX: Final = 1024
RULE_COUNT_MAX: Final = 64
INSTRUCTION_COUNT_MAX: Final = 4096  # BPF_MAXINSNS

# linux/audit.h: the ELF machine, 64 bits, little endian.
_AUDIT_ARCH: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT: Final = 0x40000000  # calls of the x32 ABI have other numbers for the same calls

# linux/seccomp.h
_ALLOW: Final = 0x7FFF0000
_ERRNO: Final = 0x00050000
_KILL_PROCESS: Final = 0x80000000
_ERRNO_MAX: Final = 4095
# struct seccomp_data: nr, arch, instruction pointer, six arguments of 64 bits
_NR_OFFSET: Final = 0
_ARCH_OFFSET: Final = 4
_ARGUMENTS_OFFSET: Final = 16
_ARGUMENT_BYTES: Final = 8
_HALF_BITS: Final = 32
_HALF_MASK: Final = 0xFFFFFFFF

# linux/bpf_common.h
_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_AND: Final = 0x54  # BPF_ALU | BPF_AND | BPF_K
_JUMP_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_JUMP_AT_LEAST: Final = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K

_Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, constant


class PolicyError(ValueError):
    """Raised when a policy can't be read or translated; says where."""


class Condition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one argument of a call must be.

    Attributes:
        index: Which argument, from 0.
        value: What it must equal; for a masked one, the mask.
        value_two: For a masked one, what it must equal under the mask.
    """

    index: int
    value: int
    op: Literal["SCMP_CMP_EQ", "SCMP_CMP_MASKED_EQ"]
    value_two: int = msgspec.field(default=0, name="valueTwo")

    @property
    def mask(self) -> int:
        """The bits that count."""
        return self.value if self.op == "SCMP_CMP_MASKED_EQ" else 2**64 - 1

    @property
    def wanted(self) -> int:
        """What those bits must be."""
        return self.value_two if self.op == "SCMP_CMP_MASKED_EQ" else self.value


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What happens at some calls if all conditions hold."""

    names: list[str]
    action: Literal["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"]
    errno: int = msgspec.field(default=1, name="errnoRet")
    conditions: list[Condition] = msgspec.field(default_factory=list, name="args")


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Rules, of which the first that fits decides, and what happens if none does."""

    rules: list[Rule] = msgspec.field(name="syscalls")
    default_action: Literal["SCMP_ACT_ERRNO"] = msgspec.field(name="defaultAction")
    default_errno: int = msgspec.field(name="defaultErrnoRet")


def parse_policy(document: bytes) -> Policy:
    """Read a policy.

    Raises:
        PolicyError: If it has another form than ``seccomp.json``'s.
    """
    try:
        policy = msgspec.json.decode(document, type=Policy)
    except msgspec.DecodeError as error:
        raise PolicyError(f"the seccomp policy can't be read: {error}") from error
    if len(policy.rules) > RULE_COUNT_MAX:
        raise PolicyError(f"the seccomp policy has more than {RULE_COUNT_MAX} rules")
    return policy


def compile_policy(policy: Policy, numbers: Mapping[str, int], machine: str) -> bytes:
    """Translate a policy into the program that ``bwrap --seccomp`` and the kernel read.

    Args:
        policy: What is allowed.
        numbers: Of the system calls on that machine; rules about others are left out.
        machine: ``x86_64`` or ``aarch64``.

    Returns:
        An array of ``struct sock_filter``, little endian.

    Raises:
        PolicyError: If the machine is unknown, or the program would be too long.
    """
    if machine not in _AUDIT_ARCH:
        raise PolicyError(
            f"there is no seccomp policy for {machine}: only {', '.join(_AUDIT_ARCH)}"
        )
    program: list[_Instruction] = [
        (_LOAD, 0, 0, _ARCH_OFFSET),
        (_JUMP_EQUAL, 1, 0, _AUDIT_ARCH[machine]),
        (_RETURN, 0, 0, _KILL_PROCESS),  # 32-bit calls have other numbers
        (_LOAD, 0, 0, _NR_OFFSET),
    ]
    if machine == "x86_64":
        program += [(_JUMP_AT_LEAST, 0, 1, _X32_BIT), (_RETURN, 0, 0, _KILL_PROCESS)]
    for rule in policy.rules:
        for name in rule.names:
            if name in numbers:
                program += _rule_instructions(rule, numbers[name])
    program.append((_RETURN, 0, 0, _errno_action(policy.default_errno)))
    if len(program) > INSTRUCTION_COUNT_MAX:
        raise PolicyError(f"the seccomp program would have {len(program)} instructions")
    return b"".join(struct.pack("<HBBI", *each) for each in program)


def _rule_instructions(rule: Rule, number: int) -> list[_Instruction]:
    """Return what tests one call's number and arguments; the number stays loaded behind it."""
    action = _ALLOW if rule.action == "SCMP_ACT_ALLOW" else _errno_action(rule.errno)
    if not rule.conditions:
        return [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, action)]
    # From the end backwards, so that each test knows how far it is to the way out.
    tail: list[_Instruction] = [(_RETURN, 0, 0, action), (_LOAD, 0, 0, _NR_OFFSET)]
    for condition in reversed(rule.conditions):
        for is_high in (True, False):
            tail = _half_test(condition, is_high=is_high, exit_distance=len(tail) - 1) + tail
    return [(_JUMP_EQUAL, 0, len(tail), number), *tail]


def _half_test(condition: Condition, *, is_high: bool, exit_distance: int) -> list[_Instruction]:
    """Return what tests 32 of an argument's 64 bits; nothing if none of them counts."""
    shift = _HALF_BITS if is_high else 0
    mask = condition.mask >> shift & _HALF_MASK
    if not mask:
        return []
    offset = _ARGUMENTS_OFFSET + condition.index * _ARGUMENT_BYTES + shift // 8
    test = (_JUMP_EQUAL, 0, exit_distance, condition.wanted >> shift & _HALF_MASK)
    narrow = [] if mask == _HALF_MASK else [(_AND, 0, 0, mask)]
    return [(_LOAD, 0, 0, offset), *narrow, test]


def _errno_action(errno: int) -> int:
    return _ERRNO | min(errno, _ERRNO_MAX)
