"""``sparewatt host init``: from a bare machine to a serving host, one question after another."""
