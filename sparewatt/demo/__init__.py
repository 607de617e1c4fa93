"""The demo: a network of its own, one question to each of its hosts, and the bill checked."""
