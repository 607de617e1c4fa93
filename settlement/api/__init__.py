"""The HTTP API of settlement."""

from settlement.api.app import create_app

__all__ = ["create_app"]
