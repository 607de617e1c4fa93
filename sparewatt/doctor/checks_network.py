"""The network: settlement, its clock, our account, bootstrap nodes, and who can reach us."""

import contextlib
import ipaddress
import secrets
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import urlsplit

from p2p import limits
from p2p.clock import system_clock
from p2p.errors import DataDirectoryError
from p2p.keys import load_seed
from p2p.network import NetworkInfo
from p2p.signing import SecretKey
from p2p.types import KEY_BYTES
from sparewatt.doctor.findings import (
    KEY_NAME,
    Finding,
    Subject,
    failed,
    good,
    skipped,
    warning,
)

SETTLEMENT_SECONDS_MAX = 4.0
NODE_SECONDS_MAX = 2.5
NODES_TRIED_MAX = 8
CLOCK_OFFSET_S_LOW = 30  # a quarter of what the network takes
_GREETING = b"\x13/multistream/1.0.0\n"  # how every libp2p node begins
_ANYWHERE = frozenset(("0.0.0.0", "::"))  # compared with, not bound to
_NO_NETWORK = "no network is known"


@dataclass(frozen=True, slots=True)
class _Answer:
    """What settlement said.

    Attributes:
        clock_offset_ns: Its clock minus ours, or None.
        account: ``enrolled``, ``none``, or why it is not known.
    """

    clock_offset_ns: int | None
    problem: str
    account: str


def check_settlement(subject: Subject) -> Sequence[Finding]:
    """Ask settlement for its time, and whether this host belongs to an account."""
    network = subject.network
    if subject.network_problem is not None:
        problem = subject.network_problem
        return [failed("network", problem.message, problem.advice)]
    if network is None:
        return [skipped("settlement", _NO_NETWORK)]
    key = _key(subject)
    answer = _ask(network, key)
    url = network.settlement_url
    if answer.clock_offset_ns is None:
        mend = f"try: curl {url}/v1/health; running hosts go on without it for a while"
        return [failed("settlement", answer.problem, mend, where=url)]
    return [
        good("settlement", f"answers for {network.network_id}", where=url)
        if not answer.problem
        else failed("settlement", answer.problem, "ask its operator for the network's file"),
        _clock(answer.clock_offset_ns),
        _account(answer, has_key=key is not None),
    ]


def check_bootstrap(subject: Subject) -> Sequence[Finding]:
    """Speak to the nodes through which this host finds the others."""
    network = subject.network
    if network is None:
        return [skipped("bootstrap", _NO_NETWORK)]
    if not network.bootstrap:
        mend = "ask the network's operator for a newer file"
        return [warning("bootstrap", "the network's file names no node", mend)]
    tried = network.bootstrap[:NODES_TRIED_MAX]
    with ThreadPoolExecutor(len(tried)) as pool:
        problems = list(pool.map(_speak_to, tried))
    bad = [f"{where}: {what}" for where, what in zip(tried, problems, strict=True) if what]
    what = f"{len(tried) - len(bad)} of {len(tried)} nodes answer"
    if len(bad) == len(tried):
        mend = "look at this machine's connection and its firewall's rules for outgoing TCP"
        return [failed("bootstrap", f"{what}; {bad[0]}", mend)]
    if bad:
        mend = "nothing, while one answers; else ask the network's operator"
        return [warning("bootstrap", f"{what}; {bad[0]}", mend)]
    return [good("bootstrap", what)]


def check_port(subject: Subject) -> Sequence[Finding]:
    """Look at whether gateways can reach this host."""
    relayed = subject.file.host.relayed
    addresses = _announced(subject)
    if any("/p2p-circuit" in address for address in addresses):
        return [good("port", "reachable through a relay", where=_circuit(addresses))]
    if subject.status is None and (finding := _taken_port(subject)):
        return [finding]
    ours = [address for address in addresses if not _is_private(address)]
    if ours:
        what = "a public address is announced; only somebody outside can tell if it is open"
        return [good("port", what, where=ours[0])]
    if _is_local(subject.network):
        return [good("port", "the network is this machine's or this house's own")]
    if relayed:
        if subject.status is None:
            return [good("port", "a relay will be asked to pass requests on")]
        mend = "wait a minute; then look at the bootstrap nodes"
        return [warning("port", "no relay passes requests on yet", mend)]
    what = f"this machine has no public address ({_own_address(subject.network)}): it is behind NAT"
    mend = "open one TCP port in the router and name it under listen, or say relayed = true"
    return [warning("port", what, mend, where="host.listen")]


def _ask(network: NetworkInfo, key: SecretKey | None) -> _Answer:
    import trio

    return trio.run(_ask_settlement, network, key)


async def _ask_settlement(network: NetworkInfo, key: SecretKey | None) -> _Answer:
    import trio

    from peer.settlement_client import SettlementClient, SettlementError, SettlementRefusedError

    problem, account = f"no answer within {SETTLEMENT_SECONDS_MAX:g} s", ""
    async with SettlementClient(
        network.settlement_url,
        key or SecretKey(secrets.token_bytes(KEY_BYTES)),
        network.network_id,
        system_clock,
        root_key=network.root_key,
    ) as client:
        with trio.move_on_after(SETTLEMENT_SECONDS_MAX):
            try:
                await client.network()
                problem = ""
                if key is not None:
                    await client.earnings()
                    account = "enrolled"
            except SettlementRefusedError as error:
                problem, account = "", "none" if error.code == "not_enrolled" else str(error)
            except SettlementError as error:
                problem = str(error)
        return _Answer(client.clock_offset_ns, problem, account)


def _clock(offset_ns: int) -> Finding:
    offset_s = round(offset_ns / limits.SECOND_NS)
    what = f"{abs(offset_s)} s {'behind' if offset_s > 0 else 'ahead of'} settlement's"
    mend = "turn on time synchronisation: sudo timedatectl set-ntp true"
    if abs(offset_ns) > limits.CLOCK_SKEW_NS_MAX:
        return failed("clock", f"{what}: no signature of this host is valid", mend)
    if abs(offset_s) > CLOCK_OFFSET_S_LOW:
        return warning("clock", what, mend)
    return good("clock", "agrees with settlement's" if abs(offset_s) <= 1 else what)


def _account(answer: _Answer, *, has_key: bool) -> Finding:
    mend = "get a one-time code at settlement, then: sparewatt host init"
    if answer.account == "enrolled":
        return good("account", "this host belongs to one")
    if not has_key:
        return skipped("account", "the host has no key yet", mend)
    if answer.account == "none":
        return failed("account", "this host belongs to none, so nobody can pay it", mend)
    return skipped("account", answer.account or "settlement did not say")


def _key(subject: Subject) -> SecretKey | None:
    def asked() -> str:
        raise DataDirectoryError("the key is sealed")

    with contextlib.suppress(FileNotFoundError, DataDirectoryError):
        return SecretKey(load_seed(subject.data_dir / KEY_NAME, asked))
    return None


def _speak_to(multiaddr: str) -> str:
    """Return why a node can't be spoken to, or nothing."""
    place = _place_of(multiaddr)
    if place is None:
        return ""  # a way in that this check doesn't know
    try:
        with socket.create_connection(place, timeout=NODE_SECONDS_MAX) as connection:
            connection.sendall(_GREETING)
            answer = b""
            while len(answer) < len(_GREETING):
                piece = connection.recv(len(_GREETING) - len(answer))
                if not piece:
                    return "hangs up"
                answer += piece
    except TimeoutError:
        return "does not answer"
    except OSError as error:
        return error.strerror or str(error)
    return "" if answer == _GREETING else "speaks another protocol than libp2p"


def _place_of(multiaddr: str) -> tuple[str, int] | None:
    parts = multiaddr.split("/")
    if len(parts) < 5 or parts[1] not in ("ip4", "ip6", "dns", "dns4", "dns6"):
        return None
    if parts[3] != "tcp" or not parts[4].isdigit() or "p2p-circuit" in parts:
        return None
    return parts[2], int(parts[4])


def _taken_port(subject: Subject) -> Finding | None:
    """Return the finding that a port of ours can't be had, or None."""
    for index, multiaddr in enumerate(subject.file.host.listen):
        place = _place_of(multiaddr)
        if place is None or not place[1]:
            continue
        family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(place)
            except OSError as error:
                what = f"{multiaddr} can't be listened on: {error.strerror}"
                mend = "name another port, or end what has it (ss -ltnp shows it)"
                return failed("port", what, mend, where=f"host.listen[{index}]")
    return None


def _announced(subject: Subject) -> list[str]:
    """Return what a running host says of its addresses, or what one would."""
    said = subject.status.get("addresses") if subject.status else None
    if isinstance(said, list):
        return [str(each) for each in said]
    return [each for each in subject.file.host.listen if each.split("/")[2] not in _ANYWHERE]


def _circuit(addresses: Sequence[str]) -> str:
    return next(address for address in addresses if "/p2p-circuit" in address)


def _is_private(multiaddr: str) -> bool:
    try:
        return not ipaddress.ip_address(multiaddr.split("/")[2]).is_global
    except (IndexError, ValueError):
        return False


def _is_local(network: NetworkInfo | None) -> bool:
    """Return whether all of a network's nodes are in the same house."""
    if network is None:
        return False
    settlement = f"/ip4/{urlsplit(network.settlement_url).hostname}"
    return all(_is_private(address) for address in (settlement, *network.bootstrap))


def _own_address(network: NetworkInfo | None) -> str:
    """Return the address from which this machine would speak to the network; sends nothing."""
    with contextlib.suppress(OSError, ValueError):
        url = urlsplit(network.settlement_url) if network else None
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(((url.hostname if url else None) or "192.0.2.1", 9))
            return str(probe.getsockname()[0])
    return "no address at all"
