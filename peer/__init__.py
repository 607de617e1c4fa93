"""The two ends of a request: the host that serves it and the gateway that sends it."""
