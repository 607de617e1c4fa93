"""The ports of a network on one machine: the earlier ones, as long as they are free."""

import socket

from sparewatt.ports import LOOPBACK, Ports


def test_who_had_a_port_gets_it_again_and_nobody_else_does():
    earlier = Ports(None)
    had = {name: earlier.take(name) for name in ("settlement", "gateway")}
    ports = Ports(None, had)
    assert ports.take("relay-1") not in had.values()
    assert {name: ports.take(name) for name in had} == had


def test_port_that_somebody_else_took_meanwhile_is_replaced():
    with socket.socket() as taken:
        taken.bind((LOOPBACK, 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert Ports(None, {"settlement": port}).take("settlement") != port
