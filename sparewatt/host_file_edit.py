"""``host.toml`` written again: only what changed, so that an owner's own notes stay.

Lines are edited, and the result is read back: if it does not say what it should (a file may be
written in ways that line by line editing doesn't understand), the file is made anew, and the old
one stays beside it.
"""

import contextlib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from p2p.paths import make_private_directory, write_private
from sparewatt.host_file import line_of, parse_host_file
from sparewatt.host_file_text import render, render_table, toml_value
from sparewatt.host_tables import HostFile, keys_of
from sparewatt.problems import Problem

BACKUP_SUFFIX = ".before"
_ENGINE_HEADER = re.compile(r"\s*\[\[\s*engine\s*\]\]\s*(#.*)?")
_ANY_HEADER = re.compile(r"\s*\[")


def write_host_file(path: Path, file: HostFile) -> Path | None:
    """Write a file, mode 0600, whole or not at all; keep what its owner wrote around the values.

    Returns:
        Where the previous file was put, if it had to be made anew; else None.

    Raises:
        DataDirectoryError: If it can't be written.
    """
    make_private_directory(path.parent)
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, UnicodeDecodeError):
        text = ""
    changed = updated(text, file, path)
    if changed is not None:
        write_private(path, changed)
        return None
    backup = None
    if text.strip():
        backup = path.with_name(path.name + BACKUP_SUFFIX)
        write_private(backup, text)
    write_private(path, render(file))
    return backup


def updated(text: str, file: HostFile, path: Path) -> str | None:
    """Return a text that says what it should, with as few lines changed as possible.

    Args:
        text: What the file holds.
        file: What it shall say.
        path: For messages.

    Returns:
        None if line by line editing can't do it, or there is nothing to edit.
    """
    if not text.strip():
        return None
    with contextlib.suppress(Problem, tomllib.TOMLDecodeError, IndexError):
        old = parse_host_file(text, path)
        lines = _edited(text.split("\n"), old, file)
        changed = "\n".join(lines)
        if parse_host_file(changed, path) == file:
            return changed
    return None


def _edited(lines: list[str], old: HostFile, new: HostFile) -> list[str]:
    for name in keys_of(HostFile):
        before, after = getattr(old, name), getattr(new, name)
        if isinstance(before, tuple):
            lines = _edited_engines(lines, before, after)
        else:
            lines = _edited_table(lines, name, before, after)
    return lines


def _edited_engines(
    lines: list[str], old: tuple[msgspec.Struct, ...], new: tuple[msgspec.Struct, ...]
) -> list[str]:
    if [type(table) for table in old] != [type(table) for table in new]:
        return _with_engines(lines, new)
    for index, (before, after) in enumerate(zip(old, new, strict=True)):
        lines = _edited_table(lines, f"engine[{index}]", before, after)
    return lines


def _edited_table(
    lines: list[str], place: str, old: msgspec.Struct, new: msgspec.Struct
) -> list[str]:
    """Return the lines with those keys of a table changed that differ."""
    for key in keys_of(type(new)):
        value: object = getattr(new, key)
        if getattr(old, key) != value:
            lines = _with_key(lines, place, key, value, new)
    return lines


def _with_key(
    lines: list[str], place: str, key: str, value: object, table: msgspec.Struct
) -> list[str]:
    at = line_of("\n".join(lines), place)
    if at is None:
        return [*lines, "", *render_table(f"[{place}]", table), ""]
    start = next((i for i in _body(lines, at) if re.match(rf"\s*{key}\s*=", lines[i])), None)
    if start is None and value is None:
        return lines  # said in a way that is not a line
    if start is None:
        shown = next((i for i in _body(lines, at) if re.match(rf"#\s*{key}\s*=", lines[i])), None)
        line = f"{key} = {toml_value(value)}"
        if shown is None:
            return [*lines[:at], line, *lines[at:]]
        return [*lines[:shown], line, *lines[shown + 1 :]]
    end = _end_of_value(lines, start)
    if value is None:
        return [*lines[:start], *(f"# {line}" for line in lines[start:end]), *lines[end:]]
    note = _note_after(lines[start]) if end == start + 1 else ""
    return [*lines[:start], f"{key} = {toml_value(value)}{note}", *lines[end:]]


def _body(lines: list[str], header_line: int) -> Iterator[int]:
    """Yield the indices of the lines under a header; its number counts from 1."""
    for index in range(header_line, len(lines)):
        if _ANY_HEADER.match(lines[index]):
            return
        yield index


def _end_of_value(lines: list[str], start: int) -> int:
    """Return the index after a value's last line: a list may have many."""
    for end in range(start + 1, len(lines) + 1):
        with contextlib.suppress(tomllib.TOMLDecodeError):
            tomllib.loads("\n".join(lines[start:end]))
            return end
    raise IndexError("a value without end")


def _note_after(line: str) -> str:
    """Return the comment at the end of a line, with the spaces before it."""
    whole = tomllib.loads(line)
    for match in re.finditer(r"\s*#", line):
        with contextlib.suppress(tomllib.TOMLDecodeError):
            if tomllib.loads(line[: match.start()]) == whole:
                return line[match.start() :]
    return ""


def _with_engines(lines: list[str], engines: tuple[msgspec.Struct, ...]) -> list[str]:
    """Return the lines with all tables of engines made anew, where the first one was."""
    parts = _parts(lines)
    are_engines = [_is_engine(part) for part in parts]
    at = are_engines.index(True) if True in are_engines else len(parts)
    kept = [part for part, is_engine in zip(parts, are_engines, strict=True) if not is_engine]
    fresh = [[*render_table("[[engine]]", table), ""] for table in engines]
    if at == len(parts):
        fresh = [[""], *fresh]
    return [line for part in (*kept[:at], *fresh, *kept[at:]) for line in part]


def _parts(lines: list[str]) -> list[list[str]]:
    """Return the tables' lines, each with the comment right above it; first what is above all."""
    parts: list[list[str]] = [[]]
    for line in lines:
        if _ANY_HEADER.match(line):
            above = parts[-1]
            size = len(above)
            while size and above[size - 1].startswith("#"):
                size -= 1
            parts[-1] = above[:size]
            parts.append(above[size:])
        parts[-1].append(line)
    return parts


def _is_engine(part: list[str]) -> bool:
    return any(_ENGINE_HEADER.fullmatch(line) for line in part)
