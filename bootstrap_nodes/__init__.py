"""The known networks, as data: id, settlement root key, node addresses."""
