"""Puts a machine to the test: how much memory it really has, and how fast it is."""
