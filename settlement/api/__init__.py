"""The HTTP API of settlement."""
