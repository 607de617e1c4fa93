"""What engines run in: whether it works here, and, if there is time, whether anything gets out."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import trio

from peer.host.engines.launcher import ChildStartError
from peer.host.sandbox.check import Attempt, ProbeError, escapes, try_to_escape
from peer.host.sandbox.choose import Sandbox, SandboxError, open_sandbox
from peer.host.sandbox.settings import SandboxKind
from sparewatt.doctor.findings import Finding, Subject, failed, good, skipped, warning
from sparewatt.host_tables import FakeTable, OpenAiTable

CHECK: Final = "sandbox"
KEY: Final = "host.sandbox"
SHOWN_COUNT_MAX: Final = 5
_INSTALL: Final = "install podman (or bubblewrap), e.g. sudo apt install podman"


def check_sandbox(subject: Subject) -> Sequence[Finding]:
    """Open the sandbox that the host would, and let the probe loose in it if there is time.

    It is another one than a running host's, whose engines it leaves alone.
    """
    kind = SandboxKind(subject.file.host.sandbox)
    if kind is SandboxKind.NATIVE:
        what = "engines run without one: whoever breaks into one reads your files"
        return [warning(CHECK, what, 'say sandbox = "auto"', where=KEY)]
    engines = subject.file.engine
    if engines and all(isinstance(each, OpenAiTable | FakeTable) for each in engines):
        return [skipped(CHECK, "the host starts no engine itself")]
    image = subject.file.host.sandbox_image or ""
    try:
        return trio.run(_look, kind, image, subject.is_deep)
    except SandboxError as error:
        return [failed(CHECK, str(error), _INSTALL, where=KEY)]


async def _look(kind: SandboxKind, image: str, is_deep: bool) -> Sequence[Finding]:  # noqa: FBT001 - trio.run passes no names
    with tempfile.TemporaryDirectory(prefix="sparewatt-doctor-") as name:
        found: list[Finding] = []
        async with open_sandbox(kind, data_dir=Path(name), image=image) as sandbox:
            found += [_chosen(sandbox), *_passed_over(sandbox)]
            if is_deep:
                found.append(await _probe(sandbox))
        return found


def _chosen(sandbox: Sandbox) -> Finding:
    launcher = sandbox.launcher
    if launcher.warning:
        return warning(CHECK, launcher.warning, _INSTALL, where=KEY)
    return good(CHECK, f"{launcher.name} works; --deep tries to get out of it")


def _passed_over(sandbox: Sandbox) -> Sequence[Finding]:
    """Say why a better one was not taken, if what was taken lacks something."""
    if sandbox.launcher.name in ("podman", "docker"):
        return []
    return [
        warning(CHECK, f"{kind} would be better: {why}", _INSTALL, where=KEY)
        for kind, why in sandbox.passed_over
        if kind is SandboxKind.PODMAN
    ]


async def _probe(sandbox: Sandbox) -> Finding:
    try:
        attempts = await try_to_escape(sandbox.launcher)
    except (ChildStartError, ProbeError) as error:
        return failed(CHECK, str(error), "look at what it names", where=KEY)
    return judge(attempts, sandbox.launcher.name)


def judge(attempts: Sequence[Attempt], name: str) -> Finding:
    """Return what the probe's attempts mean for the owner."""
    out = escapes(attempts, name)
    if not out:
        return good(CHECK, f"none of {len(attempts)} attempts got out of {name}")
    shown = "; ".join(f"{each.name} ({each.detail})" for each in out[:SHOWN_COUNT_MAX])
    mend = f"upgrade {name} and the kernel, or take another sandbox; serve nobody until then"
    return failed(CHECK, f"{len(out)} of {len(attempts)} attempts got out: {shown}", mend)
