"""What still has to leave on one non-blocking socket."""

import socket
from collections import deque


class Outbox:
    """Bytes in order, sent as far as the kernel takes them.

    Attributes:
        pending_bytes: What the kernel did not take yet.
        sent_bytes: What it took so far, in all.
    """

    __slots__ = ("_parts", "_socket", "pending_bytes", "sent_bytes")

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._parts: deque[memoryview] = deque()
        self.pending_bytes = 0
        self.sent_bytes = 0

    def send(self, data: bytes) -> None:
        """Send what fits and keep the rest.

        Raises:
            OSError: When the connection is gone.
        """
        taken = 0
        if not self._parts:
            taken = self._offer(data)
        if taken < len(data):
            self._parts.append(memoryview(data)[taken:])
            self.pending_bytes += len(data) - taken

    def drain(self) -> None:
        """Send more of what is kept, after the socket became writable.

        Raises:
            OSError: When the connection is gone.
        """
        while self._parts:
            part = self._parts[0]
            taken = self._offer(part)
            self.pending_bytes -= taken
            if taken < len(part):
                self._parts[0] = part[taken:]
                return
            self._parts.popleft()

    def _offer(self, data: bytes | memoryview) -> int:
        try:
            taken = self._socket.send(data)
        except BlockingIOError:
            return 0
        self.sent_bytes += taken
        return taken
