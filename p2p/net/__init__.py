"""The only importer of libp2p: a node, its links and its directory."""
