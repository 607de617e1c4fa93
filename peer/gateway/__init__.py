"""The gateway: the OpenAI API on a client's machine, served by hosts of the network."""
