"""What a check says, and what is looked at."""

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from p2p.network import NetworkInfo
from p2p.paths import CONTROL_SOCKET_NAME, socket_path
from sparewatt.clients import AskError, control_api
from sparewatt.commands.common import read_network
from sparewatt.host_file import path_in
from sparewatt.host_tables import HostFile
from sparewatt.problems import Problem

KEY_NAME = "node.key"


class State(enum.Enum):
    """How bad it is."""

    GOOD = "good"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "not checked"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What one check found.

    Attributes:
        check: What was looked at, as the owner knows it.
        state: How bad it is.
        what: What is so, or wrong.
        where: A file, a key of host.toml, an address; empty if there is none.
        mend: What to do about it; empty where nothing needs doing.
    """

    check: str
    state: State
    what: str
    where: str = ""
    mend: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """The host that is looked at; nothing of it need exist.

    Attributes:
        path: Its file, or where that would be.
        file: What the file says; the defaults if there is none, or it can't be used.
        file_problem: Why it can't be used, and how to mend that.
        has_file: Whether there is one.
        network: Its network, or None; ``network_problem`` then says why.
        status: What a running host says of itself, or None.
        is_deep: Whether checks may take long.
    """

    path: Path
    data_dir: Path
    file: HostFile
    has_file: bool
    file_problem: Problem | None = None
    network: NetworkInfo | None = None
    network_problem: Problem | None = None
    status: Mapping[str, object] | None = None
    is_deep: bool = False


Check = Callable[[Subject], Sequence[Finding]]
"""Looks at one thing; blocks, within a few seconds unless the subject is_deep."""


def good(check: str, what: str, *, where: str = "") -> Finding:
    """Return the finding that all is well."""
    return Finding(check=check, state=State.GOOD, what=what, where=where)


def warning(check: str, what: str, mend: str, *, where: str = "") -> Finding:
    """Return the finding that something is not as it should be, and the host can work."""
    return Finding(check=check, state=State.WARNING, what=what, where=where, mend=mend)


def failed(check: str, what: str, mend: str, *, where: str = "") -> Finding:
    """Return the finding that the host can't work, or not for money."""
    return Finding(check=check, state=State.FAILED, what=what, where=where, mend=mend)


def skipped(check: str, what: str, mend: str = "") -> Finding:
    """Return the finding that nothing could be found out."""
    return Finding(check=check, state=State.SKIPPED, what=what, mend=mend)


def read_subject(
    path: Path, data_dir: Path, read: Callable[[], HostFile], *, is_deep: bool
) -> Subject:
    """Return what there is of a host, whatever is broken about it.

    Args:
        path: Its file.
        data_dir: Its data directory.
        read: Reads the file.
        is_deep: Whether checks may take long.
    """
    file, file_problem = HostFile(), None
    try:
        file = read()
    except Problem as problem:
        file_problem = problem
    network, network_problem = None, None
    if file.host.network is not None:
        try:
            network = read_network(path_in(path, file.host.network))
        except Problem as problem:
            network_problem = problem
    return Subject(
        path=path,
        data_dir=data_dir,
        file=file,
        has_file=path.exists(),
        file_problem=file_problem,
        network=network,
        network_problem=network_problem,
        status=_status(data_dir),
        is_deep=is_deep,
    )


def _status(data_dir: Path) -> Mapping[str, object] | None:
    if not data_dir.is_dir():
        return None
    control = socket_path(data_dir, CONTROL_SOCKET_NAME)
    if not control.is_socket():
        return None
    try:
        return control_api("the host", str(control)).get("/v1/status")
    except AskError:
        return None
