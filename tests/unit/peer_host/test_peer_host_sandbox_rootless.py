"""Sandboxes as an owner has them who is not root: the probe, in namespaces of the test's own.

Root starts the tests, so a user is made up for them: in a mount namespace of its own a process sees
other lists of users, and becomes one of them.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import p2p
import peer
from peer.host.sandbox.check import KNOWN_GAPS

pytestmark = pytest.mark.apt

USER_ID = 40_000 + os.getpid() % 20_000  # of nobody; each run of the tests has its own
SUBORDINATE_IDS = "owner:1000000:65536\n"
SECONDS_MAX = 120
_BECOME = """
set -e
place=$1 user=$2; shift 2
for name in passwd group subuid subgid; do
    test -e /etc/$name || touch /etc/$name
    mount --bind "$place/$name" /etc/$name
done
if test -n "$HIDDEN"; then
    for path in $NEEDED; do
        mkdir -p "$place/shown$path"
        mount --bind "$path" "$place/shown$path"
    done
    mount --rbind "$place/shown$HIDDEN" "$HIDDEN"
fi
cd /
exec setpriv --reuid "$user" --regid "$user" --clear-groups env --ignore-environment \\
    HOME="$place/home" XDG_RUNTIME_DIR="$place/run" TMPDIR="$place/tmp" PATH="$PATH" "$@"
"""
_TRY = """
import json, sys, tempfile
from pathlib import Path
import trio
from peer.host.sandbox.check import try_to_escape
from peer.host.sandbox.choose import open_sandbox
from peer.host.sandbox.settings import SandboxKind

async def main():
    directory = Path(tempfile.mkdtemp())
    async with open_sandbox(SandboxKind(sys.argv[1]), data_dir=directory) as sandbox:
        attempts = await try_to_escape(sandbox.launcher)
        print(json.dumps([len(attempts), [each.name for each in attempts if each.escaped]]))

trio.run(main)
"""


def hidden_directory(path: Path) -> Path | None:
    """The outermost directory above a path that other users may not enter."""
    above = reversed(path.parents)
    return next((each for each in above if not each.stat().st_mode & 0o001), None)


@pytest.fixture
def place() -> Iterator[Path]:
    assert os.geteuid() == 0
    path = Path(tempfile.mkdtemp(prefix="sparewatt-rootless-", dir="/tmp"))
    path.chmod(0o755)
    for name in ("home", "run", "tmp"):
        (path / name).mkdir(mode=0o700)
        os.chown(path / name, USER_ID, USER_ID)
    account = f"owner:x:{USER_ID}:{USER_ID}::{path}/home:/bin/sh\n"
    (path / "passwd").write_text(Path("/etc/passwd").read_text() + account)
    (path / "group").write_text(Path("/etc/group").read_text() + f"owner:x:{USER_ID}:\n")
    for name in ("subuid", "subgid"):
        (path / name).write_text(SUBORDINATE_IDS)
    yield path
    for process in psutil.process_iter(["uids"]):  # podman leaves one that holds its namespace
        if process.info["uids"].real == USER_ID:
            process.kill()
    shutil.rmtree(path)


def run_as_owner(place: Path, *command: str) -> str:
    packages = [Path(each.__file__).resolve().parent for each in (p2p, peer)]
    needed = [Path(sys.base_prefix), Path(sys.prefix), *packages]
    hidden = {hidden_directory(each) for each in needed} - {None}
    assert len(hidden) <= 1
    words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _BECOME, "sh"]
    done = subprocess.run(
        [*words, str(place), str(USER_ID), *command],
        capture_output=True, text=True, check=False, timeout=SECONDS_MAX,
        env={
            "PATH": "/usr/sbin:/usr/bin:/bin",
            "HIDDEN": "".join(map(str, hidden)),
            "NEEDED": " ".join(str(each) for each in needed if hidden_directory(each) in hidden),
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("kind", ["podman", "bubblewrap"])
def test_nothing_escapes_where_the_owner_is_not_root(place, kind) -> None:
    said = run_as_owner(place, sys.executable, "-c", _TRY, kind)
    count, escaped = json.loads(said.splitlines()[-1])
    assert count >= 45
    assert set(escaped) == KNOWN_GAPS.get(kind, frozenset())
