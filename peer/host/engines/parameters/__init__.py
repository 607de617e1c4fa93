"""Which request parameters reach an engine: one table per engine, and what each rule does.

A gateway passes on what its client sent. What costs the GPU without being paid for, or reaches
out of the engine, must not get through, and a parameter that the engine would silently ignore is
refused, because a client that gets something else than it asked for should learn it.
"""

from peer.host.engines.parameters.messages import MESSAGES_COUNT_MAX
from peer.host.engines.parameters.prepare import (
    TABLES,
    EngineLimits,
    PreparedRequest,
    prepare_request,
    table_without,
)

__all__ = [
    "MESSAGES_COUNT_MAX",
    "TABLES",
    "EngineLimits",
    "PreparedRequest",
    "prepare_request",
    "table_without",
]
