"""The money that travels between peers: signed values, the cost formula, both sides' accounts."""
