"""The last things that the host logged, for the owner's screen."""

import logging
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice

ENTRIES_COUNT_MAX = 500
MESSAGE_LENGTH_MAX = 1000
_LOGGER_NAME = "peer"  # the overlay's own loggers may name addresses of clients


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One line.

    Attributes:
        index: Rises by one, from 1 at the start of the process.
        time: RFC 3339, UTC.
        level: ``info``, ``warning``, ``error``…
    """

    index: int
    time: str
    level: str
    message: str


class Logbook(logging.Handler):
    """A ring of entries. Use as ``with Logbook() as logbook``."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._entries: deque[LogEntry] = deque(maxlen=ENTRIES_COUNT_MAX)
        self._level_before = logging.NOTSET
        self.last_index = 0

    def __enter__(self) -> "Logbook":
        logger = logging.getLogger(_LOGGER_NAME)
        self._level_before = logger.level
        logger.setLevel(min(logger.getEffectiveLevel(), logging.INFO))
        logger.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logger = logging.getLogger(_LOGGER_NAME)
        logger.removeHandler(self)
        logger.setLevel(self._level_before)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        self.last_index += 1
        time = datetime.fromtimestamp(record.created, UTC)
        entry = LogEntry(
            self.last_index,
            time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            record.levelname.lower(),
            record.getMessage()[:MESSAGE_LENGTH_MAX],
        )
        self._entries.append(entry)

    def after(self, index: int) -> tuple[LogEntry, ...]:
        """Return the entries with a higher index that are still kept."""
        first_kept = self.last_index - len(self._entries)
        return tuple(islice(self._entries, max(0, index - first_kept), None))
