"""The kinds of values that flags take, each with an error that says what to write instead."""

import difflib
import ipaddress
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import click

from p2p import limits

MICROS_PER_DOLLAR = 1_000_000
PRICE_DECIMALS_COUNT_MAX = 6
PRICE_DOLLARS_MAX = 1_000_000
PRICE_MICROS_BARE_MIN = 1000
ENGINE_FORMS = (
    "model=ID of the catalogue, llamacpp=MODEL.gguf, vllm=FOLDER-OR-ID, "
    "llama-server=PROGRAM,MODEL.gguf, openai=URL (or vllm-url=URL, tgi=URL) of a server that "
    "already runs, or demo"
)
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_DECIMAL = re.compile(r"[0-9]{1,7}(\.[0-9]{1,6})?")
_WHOLE = re.compile(r"[0-9]{1,13}")
_PORT = re.compile(r"[0-9]{1,5}")
_REGION = re.compile(r"[A-Za-z]{2}")
PORT_MAX = 65_535
PRICE_HELP = (
    "Of a million tokens of prompt and of answer: micro-dollars (50000/200000), or dollars with a "
    "point or a dollar sign (0.05/0.20)."
)
_PRICE_FORM = (
    "write IN/OUT per million tokens, in micro-dollars (50000/200000) or in dollars with at most "
    f"{PRICE_DECIMALS_COUNT_MAX} decimals ($0.05/$0.20)"
)


@dataclass(frozen=True, slots=True)
class Price:
    """What a host asks, in micro-dollars per million tokens."""

    in_micros_per_mtok: int
    out_micros_per_mtok: int

    def __str__(self) -> str:
        return f"{dollars(self.in_micros_per_mtok)}/{dollars(self.out_micros_per_mtok)}"


@dataclass(frozen=True, slots=True)
class Engine:
    """What computes a host's answers.

    Attributes:
        kind: ``model``, ``llamacpp``, ``llama-server``, ``vllm``, ``vllm-url``, ``tgi``,
            ``openai``, ``demo`` or ``fake``.
        value: A model's id, a file, a folder, a program and a file, a URL, or empty.
    """

    kind: str
    value: str = ""

    def __str__(self) -> str:
        return f"{self.kind}={self.value}" if self.value else self.kind


def read_price(_ctx: click.Context, _param: click.Parameter, value: str | None) -> Price | None:
    """Return the price that a flag says, or None if it was not given (a click callback)."""
    return None if value is None else parse_price(value)


def parse_price(value: str) -> Price:
    """Return the price that ``IN/OUT`` says.

    Whole numbers are micro-dollars per million tokens, as everywhere on the wire; a dollar sign
    or a decimal point makes it dollars per million tokens.

    Raises:
        click.BadParameter: If it is neither; says how one is written.
    """
    parts = value.split("/")
    if len(parts) != 2:
        raise click.BadParameter(f"{value!r} is not a price: {_PRICE_FORM}")
    price_in, price_out = (_price_micros(part, value) for part in parts)
    if max(price_in, price_out) > PRICE_DOLLARS_MAX * MICROS_PER_DOLLAR:
        raise click.BadParameter(f"{value!r} is over ${PRICE_DOLLARS_MAX} per million tokens")
    return Price(price_in, price_out)


def parse_price_part(value: str) -> int:
    """Return micro-dollars per million tokens, of one price.

    Raises:
        click.BadParameter: If it is none; says how one is written.
    """
    return _price_micros(value, value)


def _price_micros(part: str, value: str) -> int:
    dollars_text = part.removeprefix("$")
    if (dollars_text != part or "." in part) and _DECIMAL.fullmatch(dollars_text):
        return dollars_to_micros(dollars_text)
    if not _WHOLE.fullmatch(part):
        raise click.BadParameter(f"{value!r} is not a price: {_PRICE_FORM}")
    micros = int(part)
    if 0 < micros < PRICE_MICROS_BARE_MIN:
        # An owner who means dollars would all but give his machine away.
        raise click.BadParameter(
            f"{part} could be dollars or micro-dollars: write ${part} for dollars per million "
            f"tokens; in micro-dollars at least {PRICE_MICROS_BARE_MIN} (or 0, for free)"
        )
    return micros


def read_engine(_ctx: click.Context, _param: click.Parameter, value: str | None) -> Engine | None:
    """Return the engine that a flag says, or None if it was not given (a click callback)."""
    return None if value is None else parse_engine(value)


def parse_engine(value: str) -> Engine:
    """Return the engine that e.g. ``llamacpp=FILE``, ``vllm=FOLDER`` or ``openai=URL`` says.

    Raises:
        click.BadParameter: If it is none, or what it names is missing; says what to write.
    """
    kind, _, rest = value.partition("=")
    if kind in ("demo", "fake") and not rest:
        return Engine(kind)
    read = _ENGINE_VALUES.get(kind)
    if read is None or not rest:
        raise click.BadParameter(f"{value!r} is not an engine: write {ENGINE_FORMS}")
    return Engine(kind, read(kind, rest))


def _url_value(kind: str, rest: str) -> str:
    if not rest.startswith("http://"):
        raise click.BadParameter(
            f"{rest!r} must begin with http://, e.g. {kind}=http://127.0.0.1:8000/v1"
        )
    return rest.rstrip("/")


def _catalogue_value(_kind: str, rest: str) -> str:
    """Return the id of a model as the catalogue spells it."""
    from sparewatt.catalogue import find_model, read_catalogue

    found = find_model(read_catalogue(), rest)
    if found is None:
        names = [each.model_id for each in read_catalogue()]
        near = difflib.get_close_matches(rest, names, 1)
        advice = f"did you mean {near[0]}?" if near else "`sparewatt models list` names all"
        raise click.BadParameter(f"the catalogue has no model {rest}: {advice}")
    return found.model_id


def _gguf_value(_kind: str, rest: str) -> str:
    path = Path(rest).expanduser()
    if not path.is_file():
        raise click.BadParameter(f"there is no model file {rest}: name a GGUF file")
    return str(path.resolve())


def _llama_server_value(kind: str, rest: str) -> str:
    """Return ``PROGRAM,FILE``; the program is the one in the PATH if only a file is named."""
    program, comma, model = rest.rpartition(",")
    found = shutil.which(str(Path(program).expanduser()) if comma else "llama-server")
    if found is None:
        what = program if comma else "llama-server in the PATH"
        raise click.BadParameter(
            f"there is no program {what}: write llama-server=/PATH/llama-server,MODEL.gguf"
        )
    return f"{Path(found).absolute()},{_gguf_value(kind, model)}"


def _vllm_value(_kind: str, rest: str) -> str:
    """Return a folder's absolute path, or a repository's id."""
    folder = Path(rest).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise click.BadParameter(
                f"{rest} is no model's folder: it has no config.json; a GGUF file is for llamacpp"
            )
        return str(folder.resolve())
    if folder.is_file():
        raise click.BadParameter(f"{rest} is a file: name its folder; a GGUF file is for llamacpp")
    if not _REPOSITORY.fullmatch(rest):
        raise click.BadParameter(
            f"there is no folder {rest}: name a model's folder, or a Hugging Face id like "
            "Qwen/Qwen3-8B"
        )
    return rest


_ENGINE_VALUES: Mapping[str, Callable[[str, str], str]] = {
    "model": _catalogue_value,
    "llamacpp": _gguf_value,
    "llama-server": _llama_server_value,
    "vllm": _vllm_value,
    "vllm-url": _url_value,
    "tgi": _url_value,
    "openai": _url_value,
}


def read_dollars(_ctx: click.Context, _param: click.Parameter, value: str) -> int:
    """Return micro-dollars of an amount in dollars (a click callback).

    Raises:
        click.BadParameter: If it is no amount above zero.
    """
    text = value.removeprefix("$")
    if not _DECIMAL.fullmatch(text) or not dollars_to_micros(text):
        raise click.BadParameter(
            f"{value!r} is not an amount: write dollars above 0, e.g. 25 or 0.50"
        )
    return dollars_to_micros(text)


def read_listen(
    _ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]
) -> tuple[str, ...]:
    """Return the multiaddrs to listen on (a click callback)."""
    return parse_listen(values)


def parse_listen(values: tuple[str, ...]) -> tuple[str, ...]:
    """Return the multiaddrs to listen on.

    Raises:
        click.BadParameter: If one is not an IP address and a TCP port.
    """
    for value in values:
        parts = value.split("/")
        if len(parts) != 5 or not _is_tcp_address(*parts):
            raise click.BadParameter(
                f"{value!r} is not an address to listen on: write /ip4/ADDRESS/tcp/PORT, "
                "e.g. /ip4/0.0.0.0/tcp/4001, or /ip6/…; port 0 takes a free one"
            )
    return values


def _is_tcp_address(start: str, family: str, address: str, transport: str, port: str) -> bool:
    try:
        version = ipaddress.ip_address(address).version
    except ValueError:
        return False
    is_port = bool(_PORT.fullmatch(port)) and int(port) <= PORT_MAX
    return (start, family, transport) == ("", f"ip{version}", "tcp") and is_port


def read_region(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    """Return a country code, or None if none was named (a click callback)."""
    return None if value is None else parse_region(value)


def parse_region(value: str) -> str:
    """Return a country code in capitals, or nothing.

    Raises:
        click.BadParameter: If it is neither.
    """
    if value and not _REGION.fullmatch(value):
        raise click.BadParameter(f"{value!r} is not a country code: write two letters, e.g. DE")
    return value.upper()


def read_model_id(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    """Return a model's id, or None if none was named (a click callback)."""
    return None if value is None else parse_model_id(value)


def parse_model_id(value: str) -> str:
    """Return a model's id.

    Raises:
        click.BadParameter: If it is empty or longer than a record may hold.
    """
    if not 1 <= len(value.encode()) <= limits.RECORD_TEXT_BYTES_MAX:
        raise click.BadParameter(
            f"a model's id has 1 to {limits.RECORD_TEXT_BYTES_MAX} bytes, "
            "e.g. HuggingFaceTB/SmolLM2-135M-Instruct"
        )
    return value


PORT = click.IntRange(0, PORT_MAX)


def dollars_to_micros(text: str) -> int:
    """Return micro-dollars, exactly; the text has at most six decimals."""
    return int(Decimal(text) * MICROS_PER_DOLLAR)


def dollars(micros: int) -> str:
    """Return an amount in dollars with as many decimals as it needs, at least two."""
    sign = "-" if micros < 0 else ""
    whole, rest = divmod(abs(micros), MICROS_PER_DOLLAR)
    decimals = f"{rest:06d}".rstrip("0")
    return f"{sign}{whole}.{decimals:0<2}"


def exact_dollars(micros: int) -> str:
    """Return an amount in dollars to the micro-dollar: always six decimals."""
    sign = "-" if micros < 0 else ""
    whole, rest = divmod(abs(micros), MICROS_PER_DOLLAR)
    return f"{sign}{whole}.{rest:06d}"
