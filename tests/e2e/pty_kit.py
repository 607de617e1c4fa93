"""A program on a terminal of its own: what it shows, and what somebody types."""

import contextlib
import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

SHOWN_SECONDS_MAX = 120.0  # of a machine that does much else
COLUMNS, ROWS = 80, 24
# Makes the terminal that it was given its own, so that Ctrl-C reaches it as it does a person's.
_TAKE_TERMINAL = """\
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "sparewatt", *sys.argv[1:]])
"""
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]|\r")
CTRL_C = "\x03"


class Terminal:
    """One program's terminal."""

    def __init__(self, process: "subprocess.Popen[bytes]", master: int) -> None:
        self.process = process
        self._master = master
        self._raw = b""
        self._seen = 0

    @property
    def text(self) -> str:
        """All that was shown, without colours and cursor movements."""
        return _ESCAPES.sub("", self.raw_text)

    @property
    def raw_text(self) -> str:
        """All that was shown, as the terminal got it."""
        return self._raw.decode("utf-8", "replace")

    def expect(self, words: str, within_s: float = SHOWN_SECONDS_MAX) -> str:
        """Wait until words are shown after those expected before; return what came until then."""
        deadline = time.monotonic() + within_s
        while (at := self.text.find(words, self._seen)) < 0:
            left_s = deadline - time.monotonic()
            assert left_s > 0, f"{words!r} did not come; shown was:\n{self.text}"
            if not self._read(left_s):
                assert words in self.text[self._seen :], f"ended before {words!r}:\n{self.text}"
        shown = self.text[self._seen : at]
        self._seen = at + len(words)
        return shown

    def type(self, keys: str, *, enter: bool = True) -> None:
        """Type keys, and Enter."""
        os.write(self._master, keys.encode() + (b"\n" if enter else b""))

    def answer(self, question: str, keys: str = "") -> None:
        """Wait for a question, and answer it."""
        self.expect(question)
        self.type(keys)

    def wait(self, within_s: float = SHOWN_SECONDS_MAX) -> int:
        """Wait for the program's end, and return its exit status."""
        deadline = time.monotonic() + within_s
        while self._read(max(0.0, deadline - time.monotonic())):
            assert time.monotonic() < deadline, f"did not end; shown was:\n{self.text}"
        return self.process.wait(timeout=within_s)

    def _read(self, within_s: float) -> bool:
        """Take what is shown within a time; False at the end."""
        if not select.select([self._master], [], [], within_s)[0]:
            return True
        try:
            piece = os.read(self._master, 65536)
        except OSError:  # Linux says so when the other side is closed
            return False
        self._raw += piece
        return bool(piece)


@contextlib.contextmanager
def terminal(
    *arguments: str, cwd: Path, env: Mapping[str, str] | None = None
) -> Iterator[Terminal]:
    """Run ``sparewatt ARGUMENTS`` on a terminal of 80 columns; kill it if it is left running."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    with subprocess.Popen(
        [sys.executable, "-c", _TAKE_TERMINAL, *arguments],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        cwd=cwd,
        env={**os.environ, "TERM": "xterm-256color", **(env or {})},
        start_new_session=True,
    ) as process:
        os.close(slave)
        try:
            yield Terminal(process, master)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            os.close(master)
