"""The composition root and the only command; knows everyone, imported by nobody."""
