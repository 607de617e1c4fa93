"""TCP ports of this machine: free ones, or a row from a base."""

import socket
from collections.abc import Iterator, Mapping

from sparewatt.problems import Problem

LOOPBACK = "127.0.0.1"


class Ports:
    """Hands out ports: in order from a base, or the earlier ones, or free ones of the system."""

    def __init__(self, base: int | None, earlier: Mapping[str, int] | None = None) -> None:
        """Make one.

        Args:
            base: Where the row begins; None for no row.
            earlier: What each purpose had the last time, and has again if it is free.
        """
        self._earlier = dict(earlier or {})
        self._row: Iterator[int] | None = iter(range(base, 65536)) if base else None
        self._given: set[int] = set(self._earlier.values())

    def take(self, purpose: str) -> int:
        """Return a port that nothing listens on now.

        Raises:
            Problem: If the next port of the row is taken.
        """
        if self._row is None:
            had = self._earlier.pop(purpose, 0)
            return had if had and is_free(had) else self._take_free()
        port = next(self._row, None)
        if port is None:
            raise Problem("the ports end at 65535", "choose a lower --base-port")
        if not is_free(port):
            raise Problem(
                f"port {port}, for {purpose}, is in use",
                "choose another --base-port, or leave it out to take free ports",
            )
        return port

    def _take_free(self) -> int:
        while True:
            with socket.socket() as probe:
                probe.bind((LOOPBACK, 0))
                port: int = probe.getsockname()[1]
            if port not in self._given:
                self._given.add(port)
                return port


def is_free(port: int) -> bool:
    """Return whether a loopback port can be listened on."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True
