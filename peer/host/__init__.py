"""The host: announces what a machine can run, serves it over sessions, and is paid for it."""
