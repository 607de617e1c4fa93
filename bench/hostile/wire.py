"""Attacks on a host's libp2p port; each runs until it is cancelled."""

from bench.hostile.web import Attack

ATTACKS: dict[str, Attack] = {}
