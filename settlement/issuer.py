"""What settlement signs and hashes with its own secrets. Pure: the secrets are arguments."""

import hashlib
import hmac
from dataclasses import dataclass, field

from p2p import limits
from p2p.receipts.messages import ALLOWANCE, Allowance
from p2p.records import OWNER_TAG, OwnerTag
from p2p.signing import SecretKey, seal
from p2p.types import ID_BYTES, NetworkId, PeerId, peer_id_to_bytes
from settlement.ledger import AllowanceState

OWNER_TAG_TTL_NS = 365 * limits.DAY_NS


@dataclass(frozen=True, slots=True)
class Issuer:
    """Settlement as the network knows it.

    Attributes:
        key: Signs allowances and owner tags; stands in the key list.
        secret: Makes pseudonyms, owner tags and token hashes; 32 bytes, never leaves.
        key_list: The root key's envelope.
        fee_bps: Of new allowances.
    """

    network_id: NetworkId
    key: SecretKey
    secret: bytes = field(repr=False)
    key_list: bytes = field(repr=False)
    fee_bps: int

    def allowance(self, state: AllowanceState) -> bytes:
        """Return the signed envelope of an allowance as it stands."""
        value = Allowance(
            network_id=self.network_id,
            allowance_id=state.allowance_id,
            allowance_version=state.version,
            pseudonym=self._hmac("pseudonym", state.account_id, state.host_peer_id),
            wallet_key=state.wallet_key,
            host_peer_id=state.host_peer_id,
            max_micros=state.max_micros,
            fee_bps=state.fee_bps,
            issued_at_ns=state.issued_at_ns,
            expires_at_ns=state.expires_at_ns,
            settle_by_ns=state.settle_by_ns,
        )
        return seal(self.key, ALLOWANCE, value)

    def owner_tag(self, account_id: str, host_peer_id: PeerId, *, now_ns: int) -> bytes:
        """Return the signed envelope of the tag that all hosts of an account share."""
        value = OwnerTag(
            network_id=self.network_id,
            host_peer_id=host_peer_id,
            tag=self._hmac("owner", account_id)[:ID_BYTES],
            expires_at_ns=now_ns + OWNER_TAG_TTL_NS,
        )
        return seal(self.key, OWNER_TAG, value)

    def hash_of(self, credential: str) -> str:
        """Return under which name a token or an enrolment code is stored."""
        return self._hmac("credential", credential).hex()

    def _hmac(self, purpose: str, *parts: str) -> bytes:
        message = b"".join(len(raw).to_bytes(4, "big") + raw for raw in map(str.encode, parts))
        return hmac.digest(self.secret, purpose.encode() + b"\0" + message, hashlib.sha256)


def proof_nonce(peer_id: PeerId, nonce: bytes) -> bytes:
    """Return the name under which one node's nonce is remembered."""
    return peer_id_to_bytes(peer_id) + nonce
