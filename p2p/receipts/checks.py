"""Who may sign what, and when it is in force: the questions that ``signing.unseal`` leaves open."""

from collections.abc import Container

from p2p import limits
from p2p.errors import RemoteProtocolError, SignatureError
from p2p.receipts.messages import (
    ALLOWANCE,
    CLOSE,
    COSIGNATURE,
    KEY_LIST,
    QUOTE,
    RECEIPT_BATCH,
    VOUCHER,
    WALLET_PROOF,
    Allowance,
    Close,
    Cosignature,
    KeyList,
    Quote,
    ReceiptBatch,
    Voucher,
    WalletProof,
)
from p2p.signing import Signed, unseal
from p2p.types import Digest, NetworkId, PeerId, PublicKey

_SKEW_NS = limits.CLOCK_SKEW_NS_MAX


def check_key_list(
    envelope: bytes, *, network_id: NetworkId, root_key: PublicKey, now_ns: int
) -> Signed[KeyList]:
    """Return settlement's key list if the network's root key signed it and it is in force.

    Raises:
        SignatureError: If another key signed it.
        RemoteProtocolError: If it is malformed or not in force.
    """
    signed = unseal(KEY_LIST, envelope, network_id=network_id)
    if signed.signer != root_key:
        raise SignatureError("the key list is not signed by the network's root key")
    _require_in_force("key list", signed.value.issued_at_ns, signed.value.expires_at_ns, now_ns)
    return signed


def check_allowance(
    envelope: bytes,
    *,
    network_id: NetworkId,
    signers: Container[PublicKey],
    host_peer_id: PeerId,
    now_ns: int,
) -> Signed[Allowance]:
    """Return an allowance if settlement signed it for this host and it is in force.

    Args:
        envelope: The bytes received.
        network_id: Our network.
        signers: Settlement's keys, from its key list.
        host_peer_id: The host that is to be paid.
        now_ns: Wall clock.

    Raises:
        SignatureError: If another key signed it.
        RemoteProtocolError: If it is malformed, for another host, or not in force.
    """
    signed = unseal(ALLOWANCE, envelope, network_id=network_id)
    if signed.signer not in signers:
        raise SignatureError("the allowance is not signed by settlement")
    if signed.value.host_peer_id != host_peer_id:
        raise RemoteProtocolError("the allowance is for another host")
    _require_in_force("allowance", signed.value.issued_at_ns, signed.value.expires_at_ns, now_ns)
    return signed


def check_quote(
    envelope: bytes, *, network_id: NetworkId, host_peer_id: PeerId, now_ns: int
) -> Signed[Quote]:
    """Return a quote if its host signed it and it is in force.

    Raises:
        SignatureError: If another key signed it.
        RemoteProtocolError: If it is malformed, of another host, or not in force.
    """
    signed = unseal(QUOTE, envelope, network_id=network_id)
    _require_host("quote", signed.signer_id, signed.value.host_peer_id, host_peer_id)
    _require_in_force("quote", signed.value.not_before_ns, signed.value.expires_at_ns, now_ns)
    return signed


def check_voucher_envelope(
    envelope: bytes, *, network_id: NetworkId, host_peer_id: PeerId
) -> Signed[Voucher]:
    """Return a voucher made out to this host; whose it is, its allowance says.

    Raises:
        SignatureError: If its signature does not verify.
        RemoteProtocolError: If it is malformed or for another host.
    """
    signed = unseal(VOUCHER, envelope, network_id=network_id)
    if signed.value.host_peer_id != host_peer_id:
        raise RemoteProtocolError("the voucher is made out to another host")
    return signed


def check_batch_envelope(
    envelope: bytes, *, network_id: NetworkId, host_peer_id: PeerId
) -> Signed[ReceiptBatch]:
    """Return a receipt batch if its host signed it.

    Raises:
        SignatureError: If another key signed it.
        RemoteProtocolError: If it is malformed or of another host.
    """
    signed = unseal(RECEIPT_BATCH, envelope, network_id=network_id)
    _require_host("receipt batch", signed.signer_id, signed.value.host_peer_id, host_peer_id)
    return signed


def check_cosignature(
    envelope: bytes, *, network_id: NetworkId, host_peer_id: PeerId, wallet_key: PublicKey
) -> Signed[Cosignature]:
    """Return a cosignature if the customer's wallet key signed it for this host.

    Which batch it is of, its ``batch_digest`` says.

    Raises:
        SignatureError: If another key signed it.
        RemoteProtocolError: If it is malformed or for another host.
    """
    signed = unseal(COSIGNATURE, envelope, network_id=network_id)
    if signed.signer != wallet_key:
        raise SignatureError("the cosignature is not signed by the customer's wallet key")
    if signed.value.host_peer_id != host_peer_id:
        raise RemoteProtocolError("the cosignature is for another host")
    return signed


def is_cosigned(batch_digest: Digest, cosignature: Cosignature) -> bool:
    """Return whether a cosignature is of this batch and agrees with all of it."""
    return cosignature.batch_digest == batch_digest and not cosignature.different_request_ids


def check_close(envelope: bytes, *, network_id: NetworkId, host_peer_id: PeerId) -> Signed[Close]:
    """Return a close if its host signed it.

    Raises:
        SignatureError: If another key signed it.
        RemoteProtocolError: If it is malformed or of another host.
    """
    signed = unseal(CLOSE, envelope, network_id=network_id)
    _require_host("close", signed.signer_id, signed.value.host_peer_id, host_peer_id)
    return signed


def check_wallet_proof(
    envelope: bytes,
    *,
    network_id: NetworkId,
    host_peer_id: PeerId,
    gateway_peer_id: PeerId,
    now_ns: int,
) -> Signed[WalletProof]:
    """Return a gateway's proof that it holds a wallet key; the key is its ``signer``.

    Args:
        envelope: The bytes of its hello.
        network_id: Our network.
        host_peer_id: Us.
        gateway_peer_id: Whom the transport authenticated; a proof seen elsewhere is worthless.
        now_ns: Wall clock.

    Raises:
        SignatureError: If its signature does not verify, or it was made for another link.
        RemoteProtocolError: If it is malformed, or our clocks differ too much.
    """
    signed = unseal(WALLET_PROOF, envelope, network_id=network_id)
    if (signed.value.host_peer_id, signed.value.gateway_peer_id) != (host_peer_id, gateway_peer_id):
        raise SignatureError("the wallet proof was made for another link")
    if abs(signed.value.issued_at_ns - now_ns) > _SKEW_NS:
        raise RemoteProtocolError("the wallet proof is of another time: check clocks")
    return signed


def _require_host(name: str, signer: PeerId, named: PeerId, asked: PeerId) -> None:
    if signer != named:
        raise SignatureError(f"a {name} of {named} was signed by {signer}")
    if named != asked:
        raise RemoteProtocolError(f"the {name} is of {named}, not of {asked}")


def _require_in_force(name: str, from_ns: int, until_ns: int, now_ns: int) -> None:
    if now_ns > until_ns + _SKEW_NS:
        raise RemoteProtocolError(f"the {name} has expired")
    if now_ns < from_ns - _SKEW_NS:
        raise RemoteProtocolError(f"the {name} is from the future: check clocks")
