"""One call of the Kademlia protocol: which nodes do you know nearest to this key?

The stock call swallows every error, so that a node which refuses looks like one that knows nobody.
"""

from libp2p.host.basic_host import BasicHost
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.kad_dht.utils import maybe_consume_signed_record
from libp2p.peer.id import ID
from libp2p.peer.peerstore import env_to_send_in_RPC
from libp2p.utils.varint import (
    encode_varint_prefixed,
    read_varint_prefixed_bytes_limited,
)
from multiaddr import Multiaddr
from multiaddr.exceptions import Error as MultiaddrError

from p2p import limits
from p2p.errors import RemoteProtocolError
from p2p.net.lookup import NEAREST_COUNT
from p2p.net.patches import KAD_PROTOCOL
from p2p.net.streams import end_stream

_ANSWER_BYTES_MAX = 256 * 1024
_ADDRESS_S = 3600


async def find_node(host: BasicHost, peer: ID, key: bytes) -> list[bytes]:
    """Return the ids that a node names as nearest to a key; their addresses go to the peerstore.

    Raises:
        BaseLibp2pError: If the node cannot be reached or ends the stream.
        RemoteProtocolError: If its answer is not one.
    """
    own_record, _ = env_to_send_in_RPC(host)
    question = Message(type=Message.FIND_NODE, key=key, senderRecord=own_record)
    stream = await host.new_stream(peer, [KAD_PROTOCOL])
    try:
        await stream.write(encode_varint_prefixed(question.SerializeToString()))
        answer = Message.FromString(
            await read_varint_prefixed_bytes_limited(stream, _ANSWER_BYTES_MAX)
        )
    except BaseException:
        await end_stream(stream, graceful=False)
        raise
    await end_stream(stream, graceful=True)
    if answer.type != Message.FIND_NODE or not maybe_consume_signed_record(answer, host, peer):
        raise RemoteProtocolError(f"{peer} answered FIND_NODE with something else")
    return [named.id for named in answer.closerPeers[:NEAREST_COUNT] if _learn(host, named)]


def _learn(host: BasicHost, named: Message.Peer) -> bool:
    """Remember where a named peer is said to be; whether it makes sense to ask it."""
    if not named.id or len(named.id) > limits.DHT_KEY_BYTES_MAX:
        return False
    if not maybe_consume_signed_record(named, host):
        return False
    addresses = []
    for raw in named.addrs[: limits.RECORD_ADDRESSES_MAX]:
        try:
            addresses.append(Multiaddr(raw))
        except (MultiaddrError, ValueError):
            continue
    if addresses:
        host.get_peerstore().add_addrs(ID(named.id), addresses, _ADDRESS_S)
    return True
