"""``host.toml`` as it is read: errors name the line and the key, and what to write instead."""

import contextlib
import difflib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click
import msgspec

from sparewatt.host_tables import HostFile, engine_kinds, keys_of, table_type
from sparewatt.problems import Problem

FILE_NAME: Final = "host.toml"
FILE_BYTES_MAX: Final = 256 * 1024  # some thousand lines; what is longer is another file

_VALIDATION = re.compile(r"(?P<what>.*?)(?: - at `\$\.?(?P<path>.*)`)?", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<key>.*)`")
_MISSING = re.compile(r"Object missing required field `(?P<key>.*)`")
_TOML_PLACE = re.compile(r" \(at line (?P<line>[0-9]+), column [0-9]+\)")
_HEADER = re.compile(r"\s*(?P<open>\[\[?)\s*(?P<name>[A-Za-z0-9_-]+)\s*\]\]?\s*(#.*)?")
_KEY = re.compile(r"\s*(?P<key>[A-Za-z0-9_-]+)\s*=")
_PLACE = re.compile(r"(?P<table>[a-z_]+)(?:\[(?P<index>[0-9]+)\])?(?:\.(?P<key>[^.\[]+))?.*")
_BYTE_ORDER_MARK: Final = "\ufeff"
_LONG = re.compile(r"[0-9_]{4300}")
_TOO_LONG: Final = "a number has more than 4,300 digits"
_SHORTER: Final = "write a number that the key's comment allows"
_TYPE = re.compile(r"\b(str|int|float|bool|array|object)\b")
_TYPE_WORDS: Final = {
    "str": "a text in quotes",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": "a list in [ ]",
    "object": "a table",
}


def read_host_file(path: Path) -> HostFile:
    """Return what a file says.

    Raises:
        Problem: If it can't be read, is no TOML, or has a key or a value that it may not have; it
            names the file, the line and the key, what is wrong, and what to do.
    """
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
        text = data.decode("utf-8")
    except OSError as error:
        raise Problem(
            f"can't read {path}: {error.strerror}",
            "`sparewatt host init` writes one; --config names another",
        ) from error
    except UnicodeDecodeError as error:
        raise Problem(f"{path} is not text: {error.reason}", "save it as UTF-8") from error
    if text.startswith(_BYTE_ORDER_MARK):
        what = f"{path}, line 1: it begins with a byte order mark"
        raise Problem(what, "save it as UTF-8 without one")
    if len(data) > FILE_BYTES_MAX:
        raise Problem(f"{path} has more than {FILE_BYTES_MAX} bytes", "name a host's file")
    return parse_host_file(text, path)


def parse_host_file(text: str, path: Path) -> HostFile:
    """Return what a file's text says.

    Args:
        text: All of it.
        path: For messages.

    Raises:
        Problem: As ``read_host_file`` does.
    """
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _syntax_problem(str(error), path) from error
    except RecursionError as error:
        what = f"{path}: lists or tables stand too deep in one another"
        raise Problem(what, "no key of it needs more than two levels") from error
    except ValueError as error:  # Python reads no whole number of more than 4,300 digits
        raise Problem(f"{_where_too_long(path, text)}: {_TOO_LONG}", _SHORTER) from error
    try:
        return msgspec.convert(values, HostFile)
    except msgspec.ValidationError as error:
        raise _value_problem(str(error), text, path) from error


def place_problem(path: Path, place: str, what: str, advice: str) -> Problem:
    """Return the problem of a value that is well-formed and still wrong.

    Args:
        path: The file.
        place: As in ``price.per_mtok`` or ``engine[0].model``.
        what: What is wrong with it.
        advice: What to write instead; empty for what the key is.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        text = ""
    return Problem(f"{_where(path, text, place)}: {what}", advice or _meaning(place, text))


@contextlib.contextmanager
def placed(path: Path, place: str) -> Iterator[None]:
    """Say of a value that a parser refuses where it stands.

    Raises:
        Problem: In place of the parser's ``click.BadParameter``.
    """
    try:
        yield
    except click.BadParameter as error:
        what, _, advice = error.message.split(", e.g. ")[0].partition(": ")
        raise place_problem(path, place, what, advice) from error


def path_in(file: Path, written: str) -> Path:
    """Return the path that a file means: from its own folder, or from the user's home."""
    return file.absolute().parent / Path(written).expanduser()


def line_of(text: str, place: str) -> int | None:
    """Return the number of the line where a key or its table stands, from 1, or None.

    Args:
        text: A whole file that is valid TOML.
        place: As in ``price.per_mtok`` or ``engine[0].model``.
    """
    wanted = _PLACE.fullmatch(place)
    if wanted is None:
        return None
    table, key = wanted["table"], wanted["key"]
    skip = int(wanted["index"] or 0)
    inside = False
    found = None
    for number, line in enumerate(text.split("\n"), 1):
        if header := _HEADER.fullmatch(line):
            is_named = header["name"] == table
            inside = is_named and skip == 0
            found = number if inside else found
            skip -= is_named
            continue
        match = _KEY.match(line)
        if match and (match["key"] == key if inside else match["key"] == table and not found):
            return number
    return found


def _where(path: Path, text: str, place: str) -> str:
    line = line_of(text, place)
    return f"{path}, line {line}, {place}" if line else f"{path}, {place}"


def _where_too_long(path: Path, text: str) -> str:
    found = next((n for n, line in enumerate(text.split("\n"), 1) if _LONG.search(line)), None)
    return f"{path}, line {found}" if found else f"{path}"


def _syntax_problem(error: str, path: Path) -> Problem:
    match = _TOML_PLACE.search(error)
    what = _TOML_PLACE.sub("", error)
    where = f"{path}, line {match['line']}" if match else f"{path}"
    return Problem(
        f"{where}: {what[:1].lower()}{what[1:]}",
        'write key = value, with texts in "quotes", one a line',
    )


def _value_problem(error: str, text: str, path: Path) -> Problem:
    match = _VALIDATION.fullmatch(error)
    assert match is not None
    what, place = match["what"], match["path"] or ""
    if unknown := _UNKNOWN.fullmatch(what):
        key = _shown(unknown["key"])
        where = _where(path, text, f"{place}.{key}" if place else key)
        kind = "key" if place else "table"
        return Problem(f"{where}: there is no such {kind}", _suggestion(key, place, text))
    if missing := _MISSING.fullmatch(what):
        return _missing_problem(missing["key"], place, text, path)
    if place.endswith(".kind"):
        kinds = ", ".join(engine_kinds())
        return Problem(f"{_where(path, text, place)}: no such engine", f"write one of {kinds}")
    return Problem(f"{_where(path, text, place)}: {_in_words(what)}", _meaning(place, text))


def _shown(key: str) -> str:
    """Return a key as a terminal may show it: quoted where it is not what a key looks like."""
    return key if key and key.isprintable() else repr(key)


def _in_words(what: str) -> str:
    """Return msgspec's finding in an owner's words, e.g. ``must be a text, not a list``."""
    what = what.replace("Expected ", "must be ", 1).replace(", got ", ", not ")
    what = what.replace("`", "").replace(" | null", "")
    return _TYPE.sub(lambda match: _TYPE_WORDS[match[1]], what)


def _missing_problem(key: str, place: str, text: str, path: Path) -> Problem:
    if key == "kind":
        advice = f"say kind = with one of {', '.join(engine_kinds())}"
    else:
        advice = f"say {key} = …: {_meaning(f'{place}.{key}', text)}"
    return Problem(f"{_where(path, text, place)}: {key} is missing", advice)


def _meaning(place: str, text: str) -> str:
    """Return the comment of a key."""
    table = _table_at(place, text)
    key = place.rpartition(".")[2]
    mark = keys_of(table).get(re.sub(r"\[.*", "", key)) if table else None
    return (mark.description if mark else "") or f"write its keys under {_header_of(place)}"


def _header_of(place: str) -> str:
    name = re.sub(r"[\[.].*", "", place)
    return "[[engine]]" if name == "engine" else f"[{name}]"


def _suggestion(key: str, place: str, text: str) -> str:
    """Return what may have been meant by a key that does not exist."""
    table = _table_at(f"{place}.{key}", text) if place else HostFile
    own = list(keys_of(table)) if table else []
    if near := difflib.get_close_matches(key, own, 1):
        return f"did you mean {near[0]}?"
    for field in ("host", "price", "timeouts"):
        if place != field and key in keys_of(table_type(field)):
            return f"it belongs under [{field}]"
    return f"remove it, or write one of {', '.join(own)}"


def _table_at(place: str, text: str) -> type[msgspec.Struct] | None:
    match = _PLACE.fullmatch(place)
    if match is None or match["table"] not in keys_of(HostFile):
        return None
    if match["table"] != "engine":
        return table_type(match["table"])
    engines = tomllib.loads(text).get("engine")
    index = int(match["index"] or 0)
    if not isinstance(engines, list) or index >= len(engines):
        return None
    return engine_kinds().get(str(engines[index].get("kind")))
