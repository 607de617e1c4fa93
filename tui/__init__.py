"""The owner's terminal UI, over a host's control API."""
