"""What a record must satisfy before anybody ranks it."""

from p2p import limits
from p2p.errors import RemoteProtocolError, SignatureError
from p2p.records.messages import RECORD, CapabilityRecord
from p2p.signing import Signed, unseal
from p2p.types import NetworkId, PeerId


def check_record(
    envelope: bytes, *, network_id: NetworkId, now_ns: int, peer_id: PeerId | None = None
) -> Signed[CapabilityRecord]:
    """Return the record of an envelope if its own host signed it and it is in force.

    Args:
        envelope: The bytes from the DHT or from the host.
        network_id: Our network.
        now_ns: Wall clock; the record may be ``CLOCK_SKEW_NS_MAX`` off either way.
        peer_id: The host that we asked for, if we asked for one.

    Raises:
        SignatureError: If the signer is not the host that the record names.
        RemoteProtocolError: If the record is malformed, expired, or from the future.
    """
    signed = unseal(RECORD, envelope, network_id=network_id)
    record = signed.value
    if signed.signer_id != record.peer_id:
        raise SignatureError(f"record of {record.peer_id} was signed by {signed.signer_id}")
    if peer_id is not None and record.peer_id != peer_id:
        raise SignatureError(f"record is of {record.peer_id}, not of {peer_id}")
    if record.expires_at_ns + limits.CLOCK_SKEW_NS_MAX < now_ns:
        raise RemoteProtocolError(f"record of {record.peer_id} has expired")
    if record.issued_at_ns - limits.CLOCK_SKEW_NS_MAX > now_ns:
        raise RemoteProtocolError(f"record of {record.peer_id} is from the future: check clocks")
    return signed


def newer_record(
    one: Signed[CapabilityRecord], other: Signed[CapabilityRecord]
) -> Signed[CapabilityRecord]:
    """Return the record with the higher sequence; ``other`` on a tie."""
    return one if one.value.sequence > other.value.sequence else other
