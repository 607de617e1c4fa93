"""The questions, in their order. Each takes the file as it is and returns it with the answer in.

What stands in the file is the default, so whoever runs this again and presses Enter changes
nothing. No question writes anything.
"""

import ipaddress
import os
import re
from pathlib import Path
from typing import TypeVar

import click
import msgspec

from p2p.network import NetworkInfo
from sparewatt.commands.common import read_network
from sparewatt.host_file import path_in
from sparewatt.host_init.price import KWH_MICROS_DEFAULT, Running, suggested_price
from sparewatt.host_init.setup import Joined, Setup
from sparewatt.host_tables import HostFile
from sparewatt.options import (
    MICROS_PER_DOLLAR,
    PORT_MAX,
    Price,
    dollars,
    dollars_to_micros,
    parse_price,
    parse_region,
)
from sparewatt.problems import Problem

NETWORK_FILE_NAME = "join.json"
PORT_DEFAULT = 4002
LISTEN_ANY = "/ip4/0.0.0.0/tcp/{port}"
TableT = TypeVar("TableT", bound=msgspec.Struct)
_AMOUNT = re.compile(r"[0-9]{1,4}(\.[0-9]{1,6})?")


def ask_network(setup: Setup, file: HostFile, named: Path | None) -> tuple[HostFile, Joined]:
    """Ask which network to join.

    Args:
        setup: This run.
        file: As it is.
        named: What ``--network`` said.
    """
    setup.heading("Network")
    if named is not None:
        joined = _network(str(named))
        setup.say(f"{joined.info.network_id}, as {named} says")
    else:
        default = _network_default(setup, file)
        if not default:
            setup.hint(
                "A network is a file that its operator gives you; `sparewatt up` makes one for "
                "trying out."
            )
        joined = setup.ask.text("  Network file", default, _network)
        setup.say(f"{joined.info.network_id}, settled at {joined.info.settlement_url}")
    # The file may lie among somebody's downloads: the host keeps a copy of its own.
    kept = f"{joined.info.network_id}.json"
    return msgspec.structs.replace(file, host=_with(file.host, network=kept)), joined


def ask_price(setup: Setup, file: HostFile, tokens_per_s: float) -> HostFile:
    """Ask for the price of electricity, and then for the host's own.

    Args:
        setup: This run.
        file: As it is.
        tokens_per_s: An estimate; 0 if nothing is known of the engine.
    """
    setup.heading("Price")
    own = [each for each in file.engine if each.price_per_mtok is not None]
    if len(file.engine) > 1 and own:
        setup.hint(f"{len(own)} engines keep prices of their own: price_per_mtok in the file.")
    if tokens_per_s <= 0:
        price = setup.ask.text(
            "  Dollars per million tokens, in/out", _price_now(file), parse_price
        )
        return _priced(file, price)
    said = file.price.dollars_per_kwh or dollars(KWH_MICROS_DEFAULT)
    kwh = setup.ask.text("  What a kWh of electricity costs you, in dollars", said, _amount)
    running = Running(tokens_per_s, setup.facts.watts, kwh)
    setup.say(
        f"At about {tokens_per_s:.0f} tokens/s and {running.watts} W, a million tokens of answer "
        f"cost you ${_about(running.electricity_micros_per_mtok)} of electricity."
    )
    suggestion = Price(*suggested_price(running))
    setup.hint(
        f"Suggested: twice that, and a quarter of it for prompts: {suggestion}. Nobody has to buy "
        "at your price; gateways choose by price and speed."
    )
    default = _price_now(file) if not setup.is_new else str(suggestion)
    price = setup.ask.text("  Dollars per million tokens, in/out", default, parse_price)
    _show_earnings(setup, running, price)
    file = _priced(file, price)
    price_table = _with(file.price, dollars_per_kwh=dollars(kwh))
    return msgspec.structs.replace(file, price=price_table)


def ask_reach(setup: Setup, file: HostFile, network: NetworkInfo) -> HostFile:
    """Ask how gateways reach this host."""
    setup.heading("Reachability")
    is_near = all(_is_private(address) for address in network.bootstrap)
    if setup.facts.is_public:
        setup.say(f"This machine has the public address {setup.facts.address}.")
    elif is_near:
        setup.say("The network is this machine's or this house's own.")
    else:
        setup.say(
            f"This machine's address is {setup.facts.address or 'unknown'}: it is behind a router. "
            "Either open one TCP port there and send it on to this machine, or let a relay pass "
            "requests on, which takes a little longer."
        )
    port_text = setup.ask.text(
        "  TCP port for gateways (0: any)", str(_port_of(setup, file)), _port
    )
    relayed = file.host.relayed if not setup.is_new else not (setup.facts.is_public or is_near)
    relayed = setup.ask.yes("  Be reachable through a relay too?", default=relayed)
    region_default = file.host.region if not setup.is_new else _region_of_locale()
    region = setup.ask.text(
        "  Country to announce, two letters (-: none)", region_default or "-", _region
    )
    listen = _listen(file, port_text)
    host = _with(file.host, listen=listen, relayed=relayed, region=region)
    return msgspec.structs.replace(file, host=host)


def _network_default(setup: Setup, file: HostFile) -> str:
    if file.host.network is not None:
        return str(path_in(setup.path, file.host.network))
    return NETWORK_FILE_NAME if Path(NETWORK_FILE_NAME).is_file() else ""


def _network(answer: str) -> Joined:
    if not answer:
        raise Problem("a network's file is needed", "ask its operator; name it with --network")
    path = Path(answer).expanduser().absolute()
    return Joined(read_network(path), path)


def _price_now(file: HostFile) -> str:
    """Return what the only engine asks, or those that have no price of their own."""
    own = file.engine[0].price_per_mtok if len(file.engine) == 1 else None
    return file.price.per_mtok if own is None else own


def _priced(file: HostFile, price: Price) -> HostFile:
    """Return the file with a price, where the one before stood; a price of cached tokens goes."""
    if str(price) == _price_now(file):
        return file
    if len(file.engine) == 1 and file.engine[0].price_per_mtok is not None:
        (engine,) = file.engine
        engine = _with(engine, price_per_mtok=str(price), price_cached_per_mtok=None)
        return msgspec.structs.replace(file, engine=(engine,))
    table = _with(file.price, per_mtok=str(price), cached_per_mtok=None)
    return msgspec.structs.replace(file, price=table)


def _show_earnings(setup: Setup, running: Running, price: Price) -> None:
    earned = running.earned_micros_per_hour(price.out_micros_per_mtok)
    spent = running.electricity_micros_per_hour
    setup.say(
        f"An hour of answers without a pause would earn ${_about(earned)}, before settlement's "
        f"fee, and take ${_about(spent)} of electricity.",
        "" if earned > spent else "yellow",
    )


def _about(micros: int) -> str:
    """Return an estimate in dollars, to a tenth of a cent."""
    return f"{micros / MICROS_PER_DOLLAR:.3f}"


def _port_of(setup: Setup, file: HostFile) -> int:
    """Return the port that stands in the file; for a new one the usual."""
    if setup.is_new:
        return PORT_DEFAULT
    return int(file.host.listen[0].split("/")[4]) if file.host.listen else PORT_DEFAULT


def _listen(file: HostFile, port: int) -> tuple[str, ...]:
    """Return where to listen: as before, if that is the port already."""
    ports = {int(address.split("/")[4]) for address in file.host.listen}
    return file.host.listen if ports == {port} else (LISTEN_ANY.format(port=port),)


def _port(answer: str) -> int:
    if not answer.isdigit() or int(answer) > PORT_MAX:
        raise click.BadParameter(f"{answer!r} is no port: write 0 to {PORT_MAX}")
    return int(answer)


def _region(answer: str) -> str:
    return parse_region("" if answer == "-" else answer)


def _amount(answer: str) -> int:
    text = answer.removeprefix("$")
    if not _AMOUNT.fullmatch(text) or not dollars_to_micros(text):
        raise click.BadParameter(f"{answer!r} is no amount: write dollars above 0, e.g. 0.25")
    return dollars_to_micros(text)


def _region_of_locale() -> str:
    """Return the country of the language that this user's programs speak, or nothing."""
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        if match := re.match(r"[a-z]{2}_([A-Z]{2})\b", os.environ.get(name, "")):
            return match[1]
    return ""


def _is_private(multiaddr: str) -> bool:
    try:
        return not ipaddress.ip_address(multiaddr.split("/")[2]).is_global
    except (IndexError, ValueError):
        return False


def _with(table: TableT, **values: object) -> TableT:
    return msgspec.structs.replace(table, **values)
