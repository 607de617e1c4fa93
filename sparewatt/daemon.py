"""The rim of every daemon: its log, its signals, its ready file, its end in bounded time."""

import contextlib
import ctypes
import gc
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from p2p.errors import SparewattError
from p2p.paths import READY_FILE_NAME, make_private_directory, write_private
from sparewatt.problems import Problem
from sparewatt.processes import PARENT_VARIABLE

if TYPE_CHECKING:
    import trio

STOP_SECONDS_MAX = 8.0
GARBAGE_OBJECTS = 10_000  # between two searches for cycles: a few hundred requests' worth
_PR_SET_PDEATHSIG = ctypes.c_int(1)  # the number of the request in Linux's sys/prctl.h


class JsonLines(logging.Formatter):
    """One JSON object per record: time, level, logger, message, and what the caller added."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        fields: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)


class TerminalLines(logging.Formatter):
    """A plain line per record, in which nothing that a peer said steers the terminal.

    Peers' words stand in messages: with an escape sequence in them one could clear the screen,
    and with a line break forge a line. Tracebacks keep their lines.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s  %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return the line of a record without its traceback."""
        return _printable(super().formatMessage(record))

    def formatException(  # noqa: N802 - logging's name
        self,
        ei: tuple[type[BaseException], BaseException, TracebackType | None]
        | tuple[None, None, None],
    ) -> str:
        """Return a traceback."""
        return "\n".join(map(_printable, super().formatException(ei).split("\n")))


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def set_up_log(*, verbose: bool) -> None:
    """Log to standard error: JSON lines into a file or pipe, plain lines onto a terminal."""
    handler = logging.StreamHandler()
    if sys.stderr.isatty():
        handler.setFormatter(TerminalLines())
    else:
        handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=[handler])
    for noisy in ("httpx", "httpcore", "aioquic", "multiaddr", "uvicorn.access"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    # To libp2p every peer that is away is an error. It passes nothing on to our handler, and what
    # has no handler at all would reach the log as bare text.
    logging.getLogger("libp2p").addHandler(handler if verbose else logging.NullHandler())


def run_daemon(main: Callable[[], Awaitable[None]]) -> None:
    """Run a trio daemon until it ends or SIGINT or SIGTERM comes.

    The first signal cancels ``main``, which shuts down in order; a second one, or a shutdown of
    more than ``STOP_SECONDS_MAX``, ends the process at once.

    Raises:
        Problem: If the daemon raised one of our own errors: something that the user can mend.
    """
    import trio

    die_with_parent()
    calm_garbage_collector()
    with explained():
        trio.run(partial(_until_signal, main))


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turn our own errors, alone or in a group, into a message without a traceback."""
    try:
        yield
    except SparewattError as error:
        raise Problem(str(error)) from error
    except BaseExceptionGroup as group:
        ours, rest = group.split(SparewattError)
        if ours is None or rest is not None:
            raise
        raise Problem("; ".join(str(error) for error in _leaves(ours))) from group


def calm_garbage_collector() -> None:
    """Look for cycles less often, and not among what lives as long as the process.

    With libp2p there are 110,000 such objects: a search through all of them stopped every stream
    for 30 to 60 ms (measured), again and again under load.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_OBJECTS)


def ready_writer(data_dir: Path) -> Callable[[Mapping[str, object]], None]:
    """Return a function that writes ``ready.json``, readable by the owner only."""
    make_private_directory(data_dir)
    path = data_dir / READY_FILE_NAME

    def write(fields: Mapping[str, object]) -> None:
        write_private(path, json.dumps({"pid": os.getpid(), **fields}, indent=2) + "\n")

    return write


def die_with_parent() -> None:
    """If whoever started this process asked for it, end when that one does (Linux only)."""
    wanted = os.environ.get(PARENT_VARIABLE)
    if not wanted or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(wanted):  # it ended before we asked
        raise SystemExit(0)


async def _until_signal(main: Callable[[], Awaitable[None]]) -> None:
    import trio

    scope = trio.CancelScope()
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_stop_at_signal, signals, scope)
            with scope:
                await main()
            nursery.cancel_scope.cancel()


async def _stop_at_signal(signals: AsyncIterator[int], scope: "trio.CancelScope") -> None:
    first = True
    async for number in signals:
        if not first:
            _end_now(f"second {signal.Signals(number).name}")
        first = False
        logging.getLogger(__name__).info("%s: shutting down", signal.Signals(number).name)
        timer = threading.Timer(STOP_SECONDS_MAX, _end_now, ("shutdown took too long",))
        timer.daemon = True
        timer.start()
        scope.cancel()


def _end_now(reason: str) -> None:
    logging.getLogger(__name__).error("ending at once: %s", reason)
    os._exit(1)


def _leaves(group: BaseExceptionGroup[SparewattError]) -> Iterator[SparewattError]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
