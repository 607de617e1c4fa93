"""What a daemon's log makes of words that a peer chose."""

import json
import logging
import sys

from sparewatt.daemon import JsonLines, TerminalLines

FORGED = "gone\x1b[2J\r\n2026-01-01 00:00:00,000 INFO    root  all is well\x9b\u202e"


def record(exc_info=None) -> logging.LogRecord:
    return logging.LogRecord("peer", logging.INFO, "file", 1, "host: %s", (FORGED,), exc_info)


def test_words_of_a_peer_neither_steer_a_terminal_nor_forge_a_line():
    line = TerminalLines().format(record())
    assert line.isprintable()
    assert r"gone\x1b[2J\r\n2026" in line


def test_traceback_keeps_its_lines_and_steers_nothing():
    try:
        raise ValueError(FORGED)
    except ValueError:
        text = TerminalLines().format(record(sys.exc_info()))
    lines = text.split("\n")
    assert len(lines) > 3
    assert all(line.isprintable() for line in lines)
    assert "\n  File" in text


def test_line_of_json_is_one_line():
    text = JsonLines().format(record())
    assert "\n" not in text
    assert "\x1b" not in text
    assert json.loads(text)["message"] == f"host: {FORGED}"
