"""Attempts to reach anything over the network."""

import contextlib
import socket

from peer.host.sandbox.probe.kit import Targets, attempt, reachable

_AF_VSOCK = 40
_AF_ALG = 38


@attempt("network: a way out")
def _network_out(_targets: Targets) -> str:
    names = [name for _, name in socket.if_nameindex() if name != "lo"]
    return f"has the interfaces {', '.join(names)}" if names else ""


@attempt("network: the machine's loopback")
def _network_loopback(targets: Targets) -> str:
    return reachable(socket.AF_INET, ("127.0.0.1", targets.tcp_port))


@attempt("network: abstract unix sockets of the machine")
def _network_abstract(targets: Targets) -> str:
    return reachable(socket.AF_UNIX, f"\0{targets.abstract_name}")


@attempt("network: the virtual machine's host")
def _network_vsock(_targets: Targets) -> str:
    socket.socket(_AF_VSOCK, socket.SOCK_STREAM).close()
    return "a vsock socket opens"


@attempt("network: raw sockets")
def _network_raw(_targets: Targets) -> str:
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()
    return "a raw socket opens"


@attempt("network: packet sockets")
def _network_packet(_targets: Targets) -> str:
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()
    return "a packet socket opens"


@attempt("network: the kernel's crypto sockets")
def _network_alg(_targets: Targets) -> str:
    socket.socket(_AF_ALG, socket.SOCK_SEQPACKET).close()
    return "a crypto socket opens"


@attempt("sockets that steer the machine")
def _control_sockets(targets: Targets) -> str:
    reached: list[str] = []
    for path in targets.unix_sockets:
        with contextlib.suppress(OSError):
            reached.append(reachable(socket.AF_UNIX, path))
    return "; ".join(reached)
