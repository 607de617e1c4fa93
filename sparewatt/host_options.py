"""From what the owner wrote, in ``host.toml`` and in flags, to the host's config."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click
import msgspec

from p2p.paths import socket_path
from sparewatt.commands.common import default_data_dir, read_network
from sparewatt.engines import choose_engine, slots_count
from sparewatt.host_file import path_in, place_problem, placed
from sparewatt.host_tables import (
    DemoTable,
    EngineTable,
    FakeTable,
    HostFile,
    LlamacppTable,
    LlamaServerTable,
    OpenAiTable,
    PriceTable,
    TgiTable,
    VllmTable,
    VllmUrlTable,
)
from sparewatt.options import (
    ENGINE_FORMS,
    Engine,
    Price,
    parse_listen,
    parse_price,
    parse_price_part,
    parse_region,
)

if TYPE_CHECKING:
    from peer.host.config import HostConfig, HostedEngine, Prices

StructT = TypeVar("StructT", bound=msgspec.Struct)
VLLM_PYTHON_VARIABLE = "SPAREWATT_VLLM_PYTHON"  # for --engine vllm=…; a file says python = …
ENGINE_MISSING = (
    f"Missing option '--engine'.\n  → {ENGINE_FORMS}; or say it in "
    "host.toml, which `sparewatt host init` writes"
)
NETWORK_MISSING = (
    "Missing option '--network'.\n  → The network to join: its file, e.g. join.json; or say it in "
    "host.toml, which `sparewatt host init` writes"
)


@dataclass(frozen=True, slots=True)
class HostFlags:
    """What ``sparewatt host`` was told on its command line; None where it was not."""

    network_file: Path | None = None
    engine: Engine | None = None
    price: Price | None = None
    model_id: str | None = None
    slots: int | None = None
    queue_max: int | None = None
    context_tokens: int | None = None
    threads: int | None = None
    region: str | None = None
    listen: tuple[str, ...] = ()
    relayed: bool = False
    accepts_licences: bool = False
    sandbox: str | None = None


def with_flags(file: HostFile, flags: HostFlags) -> HostFile:
    """Return a file in which each flag that was given stands in place of its key.

    Raises:
        click.UsageError: If a flag of one engine is given where the file has several.
    """
    host = _replaced(
        file.host,
        network=str(flags.network_file.absolute()) if flags.network_file else None,
        listen=flags.listen or None,
        relayed=flags.relayed or None,
        accept_licences=flags.accepts_licences or None,
        region=flags.region,
        sandbox=flags.sandbox,
        slots=flags.slots,
        queue=flags.queue_max,
    )
    price = file.price
    if flags.price is not None:
        price = msgspec.structs.replace(price, per_mtok=str(flags.price), cached_per_mtok=None)
    engines = _engines_with_flags(file.engine, flags)
    return msgspec.structs.replace(file, host=host, price=price, engine=engines)


def data_dir_of(file: HostFile, path: Path) -> Path | None:
    """Return the data directory that a file names, or None."""
    return path_in(path, file.host.data) if file.host.data is not None else None


def require_startable(file: HostFile) -> str:
    """Return the network file that a host's file names, which must name an engine too.

    Raises:
        click.UsageError: If it does not; the flags might have.
    """
    if file.host.network is None:
        raise click.UsageError(NETWORK_MISSING)
    if not file.engine:
        raise click.UsageError(ENGINE_MISSING)
    return file.host.network


def host_config(
    file: HostFile, path: Path, *, data_dir: Path, enrol_code: str | None
) -> "HostConfig":
    """Return the config of a host.

    Args:
        file: What the owner decided.
        path: Where it stands, or would; relative paths begin there, and errors name it.
        data_dir: Where the host keeps its own.
        enrol_code: The one-time code that joins it to an account, or None.

    Raises:
        click.UsageError: If network or engine is named nowhere.
        Problem: If a value is well-formed and can't be used; names its place in the file.
    """
    from peer.host.config import EngineTimeouts, HostConfig
    from peer.host.sandbox.settings import SandboxKind
    from peer.host.terms import Terms
    from sparewatt.model_files import hub_access

    network_file = require_startable(file)
    prices = _prices(file.price, path)
    engines = tuple(_hosted(file, index, path, prices) for index in range(len(file.engine)))
    names = [engine.name for engine in engines]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise place_problem(
                path, f"engine[{index}].name", f"two engines are named {name}", "rename one"
            )
    with placed(path, "host.listen"):
        listen = parse_listen(file.host.listen)
    with placed(path, "host.region"):
        region = parse_region(file.host.region)
    return HostConfig(
        data_dir=data_dir,
        network=read_network(path_in(path, network_file)),
        listen=listen,
        engines=engines,
        control_socket=socket_path(data_dir),
        region=region,
        enrol_code=enrol_code,
        use_relay=file.host.relayed,
        accepts_licences=file.host.accept_licences,
        store_dir=default_data_dir("models"),
        hub=hub_access(None),
        sandbox=SandboxKind(file.host.sandbox),
        sandbox_image=file.host.sandbox_image or "",
        timeouts=EngineTimeouts(
            head_s=file.timeouts.head_s,
            token_s=file.timeouts.token_s,
            load_s=file.timeouts.load_s,
        ),
        terms=Terms(
            price=file.price_policy,
            schedule=file.schedule,
            access=file.access,
            per_client=file.per_client,
            idle=file.idle,
            heat=file.heat,
            power=file.power,
        ),
    )


def engine_table(engine: Engine) -> EngineTable:
    """Return the table of an engine that ``--engine`` named; a catalogue's model is fetched.

    Raises:
        Problem: If this machine can't have a model of the catalogue.
    """
    match engine.kind:
        case "model":
            from sparewatt.catalogue_engine import catalogue_engine

            return catalogue_engine(engine.value)
        case "llamacpp":
            return LlamacppTable(model=engine.value)
        case "llama-server":
            binary, _, model = engine.value.partition(",")
            return LlamaServerTable(model=model, binary=binary)
        case "vllm":
            return VllmTable(model=engine.value, python=os.environ.get(VLLM_PYTHON_VARIABLE))
        case "vllm-url":
            return VllmUrlTable(url=engine.value)
        case "tgi":
            return TgiTable(url=engine.value)
        case "openai":
            return OpenAiTable(url=engine.value)
        case "demo":
            return DemoTable()
        case _:
            return FakeTable()


def _engines_with_flags(
    engines: tuple[EngineTable, ...], flags: HostFlags
) -> tuple[EngineTable, ...]:
    if flags.engine is not None:
        engines = (engine_table(flags.engine),)
    given = {
        "model_id": flags.model_id,
        "context_tokens": flags.context_tokens,
        "threads": flags.threads,
    }
    given = {key: value for key, value in given.items() if value is not None}
    if flags.price is not None:  # it wins over every price in the file
        own = {"price_per_mtok": None, "price_cached_per_mtok": None}
        engines = tuple(msgspec.structs.replace(each, **own) for each in engines)
    if not engines or not given:
        return engines
    if len(engines) > 1:
        flag = next(iter(given)).replace("_tokens", "").replace("_", "-")
        raise click.UsageError(
            f"--{flag} is about one engine, and the file has {len(engines)}: say it there"
        )
    known = {key: value for key, value in given.items() if key in engines[0].__struct_fields__}
    return (_replaced(engines[0], **known),)


def _replaced(table: StructT, **values: object) -> StructT:
    """Return a table with those values that are not None."""
    given = {key: value for key, value in values.items() if value is not None}
    return msgspec.structs.replace(table, **given)


def _hosted(file: HostFile, index: int, path: Path, prices: "Prices") -> "HostedEngine":
    """Return one engine with its terms; what its table leaves open is as for the whole host."""
    from peer.host.config import DEFAULT_ENGINE_NAME, HostedEngine

    table, place = file.engine[index], f"engine[{index}]"
    choice = choose_engine(table, path, place)
    default_name = DEFAULT_ENGINE_NAME if index == 0 else f"engine-{index + 1}"
    with placed(path, f"{place}.name"):
        try:
            return HostedEngine(
                name=table.name or default_name,
                spec=choice.spec,
                prices=_engine_prices(table, path, place, prices),
                slots=table.slots or file.host.slots or slots_count(table),
                queue_max=file.host.queue if table.queue is None else table.queue,
                licence=choice.licence,
                quantization=choice.quantization,
            )
        except ValueError as error:  # all else has its bounds in the table
            raise click.BadParameter(str(error)) from error


def _prices(table: PriceTable, path: Path) -> "Prices":
    """Return what every engine asks that has no prices of its own."""
    from peer.host.config import Prices

    with placed(path, "price.per_mtok"):
        price = parse_price(table.per_mtok)
    cached_micros = price.in_micros_per_mtok
    if table.cached_per_mtok is not None:
        with placed(path, "price.cached_per_mtok"):
            cached_micros = parse_price_part(table.cached_per_mtok)
    return Prices(
        in_micros_per_mtok=price.in_micros_per_mtok,
        cached_micros_per_mtok=cached_micros,
        out_micros_per_mtok=price.out_micros_per_mtok,
        minimum_micros=table.minimum_micros,
    )


def _engine_prices(table: EngineTable, path: Path, place: str, prices: "Prices") -> "Prices":
    """Return what one engine asks.

    Args:
        table: Its own word wins. With a price of its own, cached tokens cost as others of its
            prompts unless it says so too.
        path: The file.
        place: Where in it.
        prices: Of the whole host.
    """
    from peer.host.config import Prices

    price_in, price_out = prices.in_micros_per_mtok, prices.out_micros_per_mtok
    cached_micros = prices.cached_micros_per_mtok
    if table.price_per_mtok is not None:
        with placed(path, f"{place}.price_per_mtok"):
            price = parse_price(table.price_per_mtok)
        price_in, price_out = price.in_micros_per_mtok, price.out_micros_per_mtok
        cached_micros = price_in
    if table.price_cached_per_mtok is not None:
        with placed(path, f"{place}.price_cached_per_mtok"):
            cached_micros = parse_price_part(table.price_cached_per_mtok)
    minimum_micros = table.price_minimum_micros
    return Prices(
        in_micros_per_mtok=price_in,
        cached_micros_per_mtok=cached_micros,
        out_micros_per_mtok=price_out,
        minimum_micros=prices.minimum_micros if minimum_micros is None else minimum_micros,
    )
