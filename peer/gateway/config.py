"""What a gateway is told at its start, and what it says once it serves."""

from dataclasses import dataclass, field
from pathlib import Path

from p2p.errors import SparewattError
from p2p.network import NetworkInfo
from peer.gateway.http import Rates
from peer.gateway.routing import Policy

NODE_KEY_NAME = "node.key"
WALLET_SEED_NAME = "wallet.seed"


class GatewayConfigError(SparewattError):
    """Raised when a gateway must not start as it was told to; says what to do instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """One gateway.

    Attributes:
        data_dir: Holds keys, wallet and journal; one process at a time.
        bind_host: A numeric address; anything but loopback needs a client key first.
        port: 0 lets the system choose.
        models: To look for beside those of the network file.
        probe: Whether to measure hosts by small paid requests before they are needed.
        enrol_code: A one-time code that joins this gateway to an account, or None.
        names: Host names under which clients reach us, beside loopback and ``bind_host``.
    """

    data_dir: Path
    network: NetworkInfo
    bind_host: str = "127.0.0.1"
    port: int = 0
    models: tuple[str, ...] = ()
    policy: Policy = Policy.LOWEST_LATENCY
    probe: bool = True
    enrol_code: str | None = field(default=None, repr=False)
    names: tuple[str, ...] = ()
    rates: Rates = field(default_factory=Rates)


@dataclass(frozen=True, slots=True)
class Ready:
    """A gateway that answers.

    Attributes:
        url: Where, without a slash at the end; OpenAI's base URL is this and ``/v1``.
        peer_id: Its node key's id, as settlement knows it.
    """

    url: str
    peer_id: str
