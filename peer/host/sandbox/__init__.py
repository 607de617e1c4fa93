"""Engines sealed in: podman, Docker or bubblewrap, and a probe that tries to get out."""
