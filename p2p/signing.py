"""libp2p signed envelopes (RFC 0002) with one domain per message type.

An envelope binds a public key, a payload type and a payload. The signature covers the domain, the
payload type and the payload, each behind its length as a varint, so that no signature made for
one type can be read as another's. We verify the bytes that came, then require that the envelope
and the payload are the encodings that we would have written.

The public key travels inside the envelope, unsigned; who may sign what is the caller's question,
answered by ``signer`` of the result.
"""

import dataclasses
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import nacl.bindings
import nacl.exceptions
import nacl.signing
from google.protobuf.message import Message

from p2p import limits
from p2p.errors import LocalProtocolError, RemoteProtocolError, SignatureError
from p2p.types import KEY_BYTES, NetworkId, PeerId, PublicKey, peer_id_from_key
from p2p.wire import decode_value, encode_value

SIGNATURE_BYTES = 64
ENVELOPE_OVERHEAD_BYTES_MAX = 256


class SignedValue(Protocol):
    """What every signed message carries."""

    @property
    def version(self) -> int:
        """The version of the message's meaning."""

    @property
    def network_id(self) -> NetworkId:
        """The network in which it is valid."""


ValueT = TypeVar("ValueT", bound=SignedValue)


@dataclass(frozen=True, slots=True)
class Kind(Generic[ValueT]):
    """One type of signed message: its name on the wire, its shape, its size.

    Attributes:
        domain: What separates this type's signatures from all others'.
        payload_type: The envelope's.
    """

    name: str
    value_type: type[ValueT]
    message_type: type[Message]
    bytes_max: int = limits.SIGNED_BYTES_MAX

    domain: bytes = dataclasses.field(init=False)
    payload_type: bytes = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "domain", f"sparewatt/{self.name}/1".encode())
        object.__setattr__(self, "payload_type", f"/sparewatt/{self.name}/1".encode())


@dataclass(frozen=True, slots=True)
class Signed(Generic[ValueT]):
    """A message whose signature, form, version and network were checked.

    Attributes:
        value: The message.
        signer: The key that signed it; whether that key may is for the caller to check.
        envelope: The bytes that were verified; keep and pass on these, never a re-encoding.
    """

    value: ValueT
    signer: PublicKey
    envelope: bytes = dataclasses.field(repr=False)

    @property
    def signer_id(self) -> PeerId:
        """The signer's peer id."""
        return peer_id_from_key(self.signer)


class SecretKey:
    """An Ed25519 signing key; its text form shows the public half only."""

    __slots__ = ("_key", "public")

    def __init__(self, seed: bytes) -> None:
        self._key = nacl.signing.SigningKey(seed)
        self.public = PublicKey(bytes(self._key.verify_key))

    @property
    def peer_id(self) -> PeerId:
        """The peer id of the public half."""
        return peer_id_from_key(self.public)

    @property
    def seed(self) -> bytes:
        """The 32 secret bytes; for the key file and for libp2p only."""
        return bytes(self._key)

    def sign(self, data: bytes) -> bytes:
        """Return the 64-byte signature of ``data``."""
        return self._key.sign(data).signature

    def __repr__(self) -> str:
        return f"<SecretKey of {self.peer_id}>"


def seal(key: SecretKey, kind: Kind[ValueT], value: ValueT) -> bytes:
    """Return the signed envelope of a message.

    Raises:
        LocalProtocolError: If the value does not fit its protobuf message, or is longer than its
            kind may be, so that nobody would accept it.
    """
    payload = encode_value(value, kind.message_type)
    if len(payload) > kind.bytes_max:
        raise LocalProtocolError(
            f"this {kind.name} has {len(payload)} bytes; the most is {kind.bytes_max}"
        )
    signature = key.sign(signed_bytes(kind.domain, kind.payload_type, payload))
    return _pack_envelope(key.public, kind.payload_type, payload, signature)


def sealed(key: SecretKey, kind: Kind[ValueT], value: ValueT) -> Signed[ValueT]:
    """Return what ``unseal`` would return of our own fresh envelope."""
    return Signed(value, key.public, seal(key, kind, value))


def unseal(kind: Kind[ValueT], envelope: bytes, *, network_id: NetworkId) -> Signed[ValueT]:
    """Return the checked message of an envelope.

    Args:
        kind: The type that it must be.
        envelope: The bytes received.
        network_id: The network in which it must be valid.

    Raises:
        SignatureError: If the signature does not verify for this type, or the message is for
            another network or of another version.
        RemoteProtocolError: If envelope or payload are malformed or not in their one encoding.
    """
    if len(envelope) > kind.bytes_max + ENVELOPE_OVERHEAD_BYTES_MAX:
        raise RemoteProtocolError(f"{kind.name} envelope has {len(envelope)} bytes: too long")
    public, payload_type, payload, signature = _unpack_envelope(envelope)
    if payload_type != kind.payload_type:
        raise SignatureError(f"expected a {kind.name}, got payload type {payload_type[:64]!r}")
    message = signed_bytes(kind.domain, kind.payload_type, payload)
    try:
        nacl.bindings.crypto_sign_open(signature + message, public)
    except (nacl.exceptions.BadSignatureError, nacl.exceptions.ValueError) as error:
        raise SignatureError(f"the signature of this {kind.name} does not verify") from error
    value = decode_value(kind.value_type, kind.message_type, payload, bytes_max=kind.bytes_max)
    if value.version != 1:
        raise SignatureError(f"{kind.name} of version {value.version}; this node knows version 1")
    if value.network_id != network_id:
        raise SignatureError(
            f"{kind.name} is for network {value.network_id!r}, not for {network_id!r}"
        )
    return Signed(value, public, envelope)


def signed_bytes(domain: bytes, payload_type: bytes, payload: bytes) -> bytes:
    """Return what an envelope's signature covers (RFC 0002: each part behind its varint length)."""
    return b"".join(_varint(len(part)) + part for part in (domain, payload_type, payload))


# -- the envelope's own encoding ----------------------------------------------------------------
# message PublicKey { KeyType Type = 1; bytes Data = 2; }
# message Envelope { PublicKey public_key = 1; bytes payload_type = 2; bytes payload = 3;
#                    bytes signature = 5; }
# Written by hand: it is five tags, and the strict form is then a comparison with what we write.

_PUBLIC_KEY_HEAD = bytes.fromhex("0a2408011220")


def _pack_envelope(public: bytes, payload_type: bytes, payload: bytes, signature: bytes) -> bytes:
    return b"".join(
        (
            _PUBLIC_KEY_HEAD,
            public,
            b"\x12",
            _varint(len(payload_type)),
            payload_type,
            b"\x1a",
            _varint(len(payload)),
            payload,
            b"\x2a",
            _varint(len(signature)),
            signature,
        )
    )


def _unpack_envelope(data: bytes) -> tuple[PublicKey, bytes, bytes, bytes]:
    head = len(_PUBLIC_KEY_HEAD)
    if not data.startswith(_PUBLIC_KEY_HEAD) or len(data) < head + KEY_BYTES:
        raise RemoteProtocolError("envelope does not begin with an Ed25519 public key")
    public = data[head : head + KEY_BYTES]
    payload_type, at = _field(data, head + KEY_BYTES, 0x12, "payload type")
    payload, at = _field(data, at, 0x1A, "payload")
    signature, at = _field(data, at, 0x2A, "signature")
    if at != len(data):
        raise RemoteProtocolError("envelope has bytes after its signature")
    if len(signature) != SIGNATURE_BYTES:
        raise RemoteProtocolError(f"envelope's signature has {len(signature)} bytes, not 64")
    if _pack_envelope(public, payload_type, payload, signature) != data:
        raise RemoteProtocolError("envelope is not in its deterministic form")
    return PublicKey(public), payload_type, payload, signature


def _field(data: bytes, at: int, tag: int, name: str) -> tuple[bytes, int]:
    if at >= len(data) or data[at] != tag:
        raise RemoteProtocolError(f"envelope lacks its {name}")
    length, start = _read_varint(data, at + 1)
    end = start + length
    if end > len(data):
        raise RemoteProtocolError(f"envelope ends inside its {name}")
    return data[start:end], end


def _varint(value: int) -> bytes:
    if value < len(_SHORT_VARINTS):
        return _SHORT_VARINTS[value]
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


_SHORT_VARINTS = tuple(bytes((value,)) for value in range(0x80))


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 28, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise RemoteProtocolError("envelope holds a broken length")
