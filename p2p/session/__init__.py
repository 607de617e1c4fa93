"""The session: one sans-io state machine for both ends of a gateway-host pair."""
