"""Relay and bootstrap nodes, run by anybody with a public address."""
