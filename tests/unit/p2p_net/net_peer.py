"""A node in a process of its own, to be stopped, frozen and killed by tests.

``python net_peer.py SEED_HEX LISTEN``; prints its multiaddr when it takes links.
"""

import sys

import trio
from net_nodes import PROTOCOL, Echo, multiaddr_of, new_config

from p2p.net import open_node
from p2p.signing import SecretKey


async def main(seed: str, listen: str) -> None:
    config = new_config(key=SecretKey(bytes.fromhex(seed)), listen=(listen,), dht_server=True)
    async with open_node(config) as node:
        node.serve_links(PROTOCOL, Echo)
        print(multiaddr_of(node), flush=True)
        await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2])
