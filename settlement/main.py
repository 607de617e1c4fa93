"""Runs settlement: data directory, database, HTTP."""

import asyncio
import contextlib
import gc
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from p2p import limits
from p2p.clock import WallClock, system_clock
from p2p.errors import AddressInUseError
from p2p.keys import lock_data_directory
from p2p.types import NetworkId
from settlement.admin import store_operator_token
from settlement.api import create_app
from settlement.keys import DATABASE_NAME, NetworkKeys, init_network
from settlement.service import Service, open_service
from settlement.store import Store, StoreUnavailableError
from settlement.store_sqlite import SqliteStore

__all__ = ["NetworkKeys", "Ready", "SettlementConfig", "init_network", "serve"]

FEE_BPS = 500
GRACEFUL_STOP_S = 5
KEEP_ALIVE_S = 75
CONNECTIONS_MAX = 1024
BACKLOG_MAX = 512
GARBAGE_OBJECTS = 50_000  # between two searches for cycles


@dataclass(frozen=True, slots=True)
class SettlementConfig:
    """How settlement runs.

    Attributes:
        host: The address to listen on.
        port: 0 for any free one.
        fee_bps: Of new allowances.
        verify_processes: Processes that check signatures; 0 for none.
    """

    data_dir: Path
    network_id: NetworkId
    host: str = "127.0.0.1"
    port: int = 0
    fee_bps: int = FEE_BPS
    verify_processes: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.fee_bps <= limits.FEE_BPS_MAX:
            raise ValueError(f"fee_bps is {self.fee_bps}, outside 0 to {limits.FEE_BPS_MAX}")


@dataclass(frozen=True, slots=True)
class Ready:
    """Settlement answers now.

    Attributes:
        url: Without a slash at the end.
        stop: Ends ``serve`` soon; may be called from any thread.
    """

    url: str
    stop: Callable[[], None]


def serve(
    config: SettlementConfig,
    *,
    ready: Callable[[Ready], None],
    clock: WallClock = system_clock,
) -> None:
    """Serve until SIGINT, SIGTERM or ``Ready.stop``; running requests get 5 s to end.

    Args:
        config: How.
        ready: Called once, when settlement answers.
        clock: Wall clock.

    Raises:
        DataDirectoryError: If the data directory cannot be used or is in use already.
        AddressInUseError: If the address cannot be listened on.
        StoreUnavailableError: If the service could not start.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(lock_data_directory(config.data_dir))
        listener = stack.enter_context(_listener(config.host, config.port))
        keys = init_network(config.data_dir, config.network_id, clock=clock)
        issuer = keys.issuer(config.fee_bps)
        store = SqliteStore(config.data_dir / DATABASE_NAME)
        stack.enter_context(contextlib.closing(store))
        store_operator_token(config.data_dir, store, issuer, now_ns=clock())

        def opened() -> AbstractAsyncContextManager[Service]:
            running: Store = store
            return open_service(running, issuer, clock, verify_processes=config.verify_processes)

        server = _Server(_uvicorn_config(opened, clock), ready, _url(config.host, listener))
        calm_garbage_collector()
        asyncio.run(server.serve(sockets=[listener]))
        if not server.started:
            raise StoreUnavailableError("settlement could not start; see its log")


def calm_garbage_collector() -> None:
    """Look for cycles rarely, and not among what lives as long as the process.

    A request of a thousand vouchers makes ten thousand objects that die by their counts alone; at
    Python's own thresholds the search through them costs as much as posting them.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_OBJECTS)


class _Server(uvicorn.Server):
    """Tells when it listens, and ends normally after a signal."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[Ready], None], url: str) -> None:
        super().__init__(config)
        self._ready = ready
        self._url = url

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then say so."""
        await super().startup(sockets)
        if self.started:
            self._ready(Ready(self._url, self._stop))

    def _stop(self) -> None:
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take SIGINT and SIGTERM as the wish to stop, and don't raise them again at the end."""
        with super().capture_signals():
            yield
            self._captured_signals.clear()


def _uvicorn_config(
    opened: Callable[[], AbstractAsyncContextManager[Service]], clock: WallClock
) -> uvicorn.Config:
    return uvicorn.Config(
        create_app(opened, clock),
        http="h11",  # httptools sets no bound on headers
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,  # ours comes from the clock by which we judge signed times
        limit_concurrency=CONNECTIONS_MAX,
        backlog=BACKLOG_MAX,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACEFUL_STOP_S,
    )


@contextlib.contextmanager
def _listener(host: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only where the protocol is named; without it an answer's
    # second packet waits 40 ms for the acknowledgement of its first.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(BACKLOG_MAX)
        except (OSError, OverflowError) as error:
            raise AddressInUseError(
                f"cannot listen on {host} port {port}: {error}; choose another --port"
            ) from error
        yield listener


def _url(host: str, listener: socket.socket) -> str:
    port: int = listener.getsockname()[1]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
