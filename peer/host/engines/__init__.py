"""Engines: what turns a request body into an answer, and how they are started and watched."""
