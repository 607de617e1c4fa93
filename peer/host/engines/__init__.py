"""Engines: how each is launched, what it accepts, how it is spoken to."""
