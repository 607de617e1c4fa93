"""The host alone: what it adds to the engine, and what it costs."""
