"""The host: a GPU owner's engines, offered to the network on the owner's terms."""
