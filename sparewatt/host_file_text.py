"""How ``host.toml`` is written: whole, with the comment of every key.

The text is made from the tables that read it, so that a key can't be without its comment. No
library does that: one that keeps comments knows none, and ours are most of the file.
"""

import json
import textwrap
from collections.abc import Iterator

import msgspec

from sparewatt.host_tables import HostFile, keys_of

COLUMNS = 78
_HEAD = """\
What this host serves, to whom, and for how much. Change it as you like and start the host again:
sparewatt host. Flags win over this file; `sparewatt host init` asks for everything anew and shows
what stands here; `sparewatt host doctor` says what is wrong. Relative paths begin at this file.
"""


def render(file: HostFile) -> str:
    """Return a file's text: each key with its comment; what has no value is commented out."""
    lines = list(_comment(_HEAD))
    for name in keys_of(HostFile):
        value: object = getattr(file, name)
        tables = value if isinstance(value, tuple) else (value,)
        header = f"[[{name}]]" if isinstance(value, tuple) else f"[{name}]"
        for table in tables:
            assert isinstance(table, msgspec.Struct)
            lines += ["", *render_table(header, table)]
    return "\n".join(lines) + "\n"


def render_table(header: str, table: msgspec.Struct) -> Iterator[str]:
    """Yield the lines of one table.

    Args:
        header: As in ``[host]`` or ``[[engine]]``.
        table: Its values.
    """
    yield from _comment(type(table).__doc__ or "")
    yield header
    tag = table.__struct_config__.tag
    if tag is not None:
        yield f"kind = {toml_value(tag)}"
    for key, mark in keys_of(type(table)).items():
        value: object = getattr(table, key)
        yield ""
        yield from _comment(mark.description or "")
        if value is not None:
            yield f"{key} = {toml_value(value)}"
        else:
            example = mark.examples[0] if mark.examples else mark.ge
            yield f"# {key} = {toml_value(example)}"


def toml_value(value: object) -> str:
    """Return a value as TOML writes it.

    Args:
        value: A text, number, truth value, a struct of them, or a list or tuple of any of these.
    """
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            # JSON's escapes are TOML's, but for the one character that JSON leaves as it is.
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case int() | float():
            return repr(value)
        case list() | tuple():
            return f"[{', '.join(toml_value(each) for each in value)}]"
        case msgspec.Struct():
            fields = msgspec.structs.asdict(value).items()
            return f"{{ {', '.join(f'{name} = {toml_value(each)}' for name, each in fields)} }}"
        case _:
            raise TypeError(f"{type(value).__name__} has no form in a host's file")


def _comment(text: str) -> Iterator[str]:
    for line in textwrap.wrap(" ".join(text.split()), COLUMNS - 2):
        yield f"# {line}"
