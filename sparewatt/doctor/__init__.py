"""What is wrong with a host, where, and how to mend it."""
