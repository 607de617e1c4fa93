"""Directories that a sealed-in child shares with us: who may read and write them."""

import os
import stat
from pathlib import Path

from peer.host.engines.launcher import ChildStartError
from peer.host.engines.plan import ChildPlan
from peer.host.sandbox.settings import USER_ID

_OTHERS_READ = stat.S_IROTH
_OTHERS_ENTER = stat.S_IROTH | stat.S_IXOTH


def prepare_directories(plan: ChildPlan, *, is_own_user: bool) -> None:
    """Let a child write where its plan says, and nobody else.

    Args:
        plan: Names the directories.
        is_own_user: Whether the child runs as this user; then there is nothing to do.

    Raises:
        ChildStartError: If that can't be done, or the child could not read what it must; says
            what to change.
    """
    if is_own_user:
        return
    for mount in plan.read_only:
        _require_readable(mount.outside)
    for mount in (plan.socket_dir, *([plan.cache_dir] if plan.cache_dir else [])):
        _give(mount.outside)


def _give(directory: Path) -> None:
    """Give a directory to the child's user, or open it if we can't and its parent is closed."""
    if os.geteuid() == 0:
        os.chown(directory, USER_ID, USER_ID)
        return
    if directory.parent.stat().st_mode & stat.S_IRWXO:
        raise ChildStartError(
            f"{directory} can't be shared with a container: others may enter {directory.parent}; "
            f"chmod 700 {directory.parent}"
        )
    directory.chmod(stat.S_IRWXU | stat.S_IRWXG | stat.S_IRWXO)


def _require_readable(path: Path) -> None:
    needed = _OTHERS_ENTER if path.is_dir() else _OTHERS_READ
    if path.stat().st_mode & needed != needed:
        change = "o+rX" if path.is_dir() else "o+r"
        raise ChildStartError(
            f"the engine runs as a user of its own, who can't read {path}: "
            f"chmod {'-R ' if path.is_dir() else ''}{change} {path}"
        )
