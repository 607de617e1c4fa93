"""What an engine writes: followed while it loads, kept short, quoted when it fails."""

import codecs
import os
import re
from pathlib import Path

LOG_BYTES_MAX = 16 * 1024 * 1024
KEPT_BYTES = 64 * 1024
READ_BYTES_MAX = 256 * 1024  # at a time; what a start writes is less
LINE_CHARS_MAX = 4096
TAIL_BYTES = 2000
TAIL_LINES_COUNT = 4
_LINE_END = re.compile(r"[\r\n]+")  # progress bars end theirs with a return


class EngineLog:
    """One engine's log. The child appends to it, so that it can be cut while it is written to."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._before = path.with_name(f"{path.name}.1")
        self._offset = 0
        self._rest = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def begin(self) -> None:
        """Put away the log of the run before, and read from the start."""
        if self._path.exists():
            self._path.replace(self._before)
        self._offset, self._rest = 0, ""
        self._decoder.reset()

    def read_lines(self) -> list[str]:
        """Return the whole lines that were written since the last call, cut to a bound."""
        text = self._rest + self._decoder.decode(self._read_on())
        *lines, self._rest = _LINE_END.split(text)
        self._rest = self._rest[-LINE_CHARS_MAX:]
        return [line[:LINE_CHARS_MAX] for line in lines if line]

    def trim(self) -> None:
        """Start the file again if it grew too long; its end stays beside it."""
        try:
            if self._path.stat().st_size <= LOG_BYTES_MAX:
                return
            kept = self._end(KEPT_BYTES)
            with open(self._before, "wb", opener=_open_private) as file:
                file.write(kept)
            os.truncate(self._path, 0)
            self._offset = 0
        except OSError:
            return  # a full disk, say; the next look tries again

    def tail(self) -> str:
        """Return the end of the log, in one line."""
        try:
            text = self._end(TAIL_BYTES).decode(errors="replace")
        except OSError:
            text = ""
        lines = [line.strip() for line in _LINE_END.split(text) if line.strip()]
        return " | ".join(lines[-TAIL_LINES_COUNT:]) or "it wrote nothing"

    def _read_on(self) -> bytes:
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read(READ_BYTES_MAX)
        except OSError:
            return b""
        self._offset += len(data)
        return data

    def _end(self, size: int) -> bytes:
        with self._path.open("rb") as file:
            file.seek(max(0, self._path.stat().st_size - size))
            return file.read(size)


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)
