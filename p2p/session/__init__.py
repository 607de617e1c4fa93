"""The session: one sans-io state machine for both ends of a gateway-host pair."""

from p2p.session.session import Session
from p2p.session.states import Role

__all__ = ["Role", "Session"]
