"""What differs between engines that the host starts: one ``Recipe`` each. A core: values only.

``supervised.SupervisedEngine`` does the rest, the same for all: start, watch, stop, start again.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from peer.host.engines.api import EngineLoad, EngineModel
from peer.host.engines.plan import NO_BOUNDS, ChildBounds, ChildPlan, Mount

SOCKET_NAME = "e.sock"


@dataclass(frozen=True, slots=True)
class Answer:
    """What an engine answered to a small question."""

    status: int
    body: bytes


Ask = Callable[[str], Awaitable[Answer | None]]
"""Gets a path from the engine; None if nobody answered."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an engine is with loading.

    Attributes:
        percent: 0 to 100; a guess of the time, not a promise.
        text: What it does now, as the end of a sentence.
    """

    percent: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """Where a child is to sit, as a plan needs to know it.

    Attributes:
        python: The Python that has this package, as the child finds it.
        inside: Where the child finds a mount.
        socket_dir: Where it listens, as ``SOCKET_NAME``.
        cache_dir: Where it may keep compiled kernels, or None.
        slots: Requests at a time.
        gpus: Their UUIDs.
    """

    python: str
    inside: Callable[[Mount], str]
    socket_dir: Mount
    cache_dir: Mount | None = None
    slots: int = 1
    bounds: ChildBounds = NO_BOUNDS
    gpus: tuple[str, ...] = ()

    @property
    def socket(self) -> str:
        """The socket's path, as the child finds it."""
        return f"{self.inside(self.socket_dir)}/{SOCKET_NAME}"


class LogReader(Protocol):
    """Understands what an engine writes while it loads."""

    @property
    def progress(self) -> Progress:
        """How far it is, by what was read."""

    @property
    def trouble(self) -> str:
        """What went wrong and what to do about it, or empty."""

    def read_line(self, line: str) -> None:
        """Take one line, without its end."""


class Recipe(Protocol):
    """One kind of engine with one model."""

    @property
    def parameter_table(self) -> str:
        """Which table of ``parameters.TABLES`` applies."""

    @property
    def count_path(self) -> str:
        """Where it counts a request's prompt tokens; empty if it can't."""

    @property
    def metrics_path(self) -> str:
        """Where it shows Prometheus metrics; empty if it does not."""

    def find_problem(self) -> str:
        """Return why it can't be started, or an empty text. Blocks: looks at files."""

    def plan(self, seat: Seat) -> ChildPlan:
        """Return what to run."""

    def new_reader(self) -> LogReader:
        """Return what reads the log of one start."""

    async def look(self, ask: Ask, reader: LogReader) -> EngineModel | None:
        """Return what it serves, or None while it is not ready."""

    def read_load(self, body: bytes) -> EngineLoad | None:
        """Return how busy it says it is in its metrics, or None if it can't be read."""
