"""The signed values of the money: who owes whom how much, and why."""

from dataclasses import dataclass

import msgspec

from p2p import limits
from p2p.proto import money_pb2
from p2p.signing import Kind
from p2p.types import (
    DIGEST_BYTES,
    ID_BYTES,
    KEY_BYTES,
    NO_DIGEST,
    NO_REQUEST,
    PROTOCOL_VERSION,
    AllowanceId,
    Digest,
    FinishReason,
    ModelId,
    NetworkId,
    PeerId,
    PublicKey,
    QuoteId,
    RequestId,
)
from p2p.wire import require_bytes, require_range, require_text

_NONE_OR_ID = (0, ID_BYTES)
_TIME_MAX = 2**62


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyList:
    """Settlement's signing keys; signed by the network's offline root key.

    Attributes:
        sequence: Higher with every new list; a node never goes back to a lower one.
    """

    version: int = PROTOCOL_VERSION
    network_id: NetworkId
    sequence: int
    issued_at_ns: int
    expires_at_ns: int
    keys: tuple[PublicKey, ...]

    def __post_init__(self) -> None:
        require_range("sequence", self.sequence, 1, 2**63 - 1)
        require_range("issued_at_ns", self.issued_at_ns, 1, _TIME_MAX)
        require_range("expires_at_ns", self.expires_at_ns, self.issued_at_ns + 1, _TIME_MAX)
        require_range("number of keys", len(self.keys), 1, 16)
        for key in self.keys:
            require_bytes("key", key, KEY_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """A reserve of one account's credit for one host, signed by settlement.

    Attributes:
        allowance_version: Rises by one when it is raised or prolonged under the same id.
        pseudonym: The account as this one host may know it.
        wallet_key: The only key whose vouchers count.
        max_micros: The most that can ever be owed under it.
        fee_bps: Settlement's share of what is paid, in hundredths of a percent.
        expires_at_ns: No new request after it.
        settle_by_ns: Vouchers are accepted until then; the rest is voided afterwards.
    """

    version: int = PROTOCOL_VERSION
    network_id: NetworkId
    allowance_id: AllowanceId
    allowance_version: int
    pseudonym: bytes
    wallet_key: PublicKey
    host_peer_id: PeerId
    max_micros: int
    fee_bps: int
    issued_at_ns: int
    expires_at_ns: int
    settle_by_ns: int

    def __post_init__(self) -> None:
        require_bytes("allowance_id", self.allowance_id, ID_BYTES)
        require_range("allowance_version", self.allowance_version, 1, 2**31 - 1)
        require_bytes("pseudonym", self.pseudonym, DIGEST_BYTES)
        require_bytes("wallet_key", self.wallet_key, KEY_BYTES)
        require_range("max_micros", self.max_micros, 1, limits.MICROS_MAX)
        require_range("fee_bps", self.fee_bps, 0, limits.FEE_BPS_MAX)
        require_range("issued_at_ns", self.issued_at_ns, 1, _TIME_MAX)
        lifetime_ns = self.expires_at_ns - self.issued_at_ns
        require_range("lifetime_ns", lifetime_ns, 1, limits.ALLOWANCE_TTL_NS_MAX)
        require_range("settle_by_ns", self.settle_by_ns, self.expires_at_ns, _TIME_MAX)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """The price of one model for at most ten minutes, signed by the host.

    A request that names it keeps its prices however long it runs.
    """

    version: int = PROTOCOL_VERSION
    network_id: NetworkId
    quote_id: QuoteId
    host_peer_id: PeerId
    model_id: ModelId
    manifest_digest: Digest
    price_in_micros_per_mtok: int
    price_cached_micros_per_mtok: int
    price_out_micros_per_mtok: int
    minimum_micros: int
    not_before_ns: int
    expires_at_ns: int

    def __post_init__(self) -> None:
        price_max = limits.PRICE_MICROS_PER_MTOK_MAX
        require_bytes("quote_id", self.quote_id, ID_BYTES)
        require_text("model_id", self.model_id, bytes_max=limits.RECORD_TEXT_BYTES_MAX)
        require_bytes("manifest_digest", self.manifest_digest, DIGEST_BYTES)
        require_range("price_in", self.price_in_micros_per_mtok, 0, price_max)
        # Dearer cached tokens would let a host raise a price that gateways rank by with a count
        # that nobody can check.
        require_range(
            "price_cached", self.price_cached_micros_per_mtok, 0, self.price_in_micros_per_mtok
        )
        require_range("price_out", self.price_out_micros_per_mtok, 0, price_max)
        require_range("minimum_micros", self.minimum_micros, 0, limits.MICROS_MAX)
        require_range("not_before_ns", self.not_before_ns, 1, _TIME_MAX)
        lifetime_ns = self.expires_at_ns - self.not_before_ns
        require_range("lifetime_ns", lifetime_ns, 1, limits.QUOTE_TTL_NS)

    @property
    def is_free(self) -> bool:
        """Whether requests at it cost nothing."""
        return not (
            self.price_in_micros_per_mtok
            or self.price_cached_micros_per_mtok
            or self.price_out_micros_per_mtok
            or self.minimum_micros
        )


class Voucher(msgspec.Struct, frozen=True, kw_only=True):
    """All that the gateway owes a host under one allowance, signed by its wallet key.

    A struct like ``Receipt``, as settlement reads thousands a second.

    Attributes:
        sequence: Rises with each voucher of the allowance; the same one with other content is
            equivocation.
        cum_micros: Cumulative; never falls.
        chain_head: The head of the allowance's receipt chain that the gateway agrees with.
    """

    version: int = PROTOCOL_VERSION
    network_id: NetworkId
    allowance_id: AllowanceId
    host_peer_id: PeerId
    sequence: int
    cum_micros: int
    chain_head: Digest

    def __post_init__(self) -> None:
        is_good = (
            len(self.allowance_id) == ID_BYTES
            and len(self.chain_head) == DIGEST_BYTES
            and 1 <= self.sequence < 2**63
            and 0 <= self.cum_micros <= limits.MICROS_MAX
        )
        if not is_good:
            self._check_each()

    def _check_each(self) -> None:
        """Raise ValueError with the name of the field that is wrong."""
        require_bytes("allowance_id", self.allowance_id, ID_BYTES)
        require_range("sequence", self.sequence, 1, 2**63 - 1)
        require_range("cum_micros", self.cum_micros, 0, limits.MICROS_MAX)
        require_bytes("chain_head", self.chain_head, DIGEST_BYTES)


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """What one request came to; part of its allowance's hash chain.

    A struct of msgspec's, as both sides make one per request and a dataclass takes longer.

    Attributes:
        allowance_id: Empty for a request at zero price; the chain is then the session's.
        cached_tokens: Those of ``prompt_tokens`` that the engine had already computed.
        request_hash: SHA-256 of the gateway's salt and the request body.
        answer_hash: SHA-256 of the salt and all delivered chunk bytes.
        previous_hash: The chain's head before this receipt.
    """

    version: int = PROTOCOL_VERSION
    network_id: NetworkId
    host_peer_id: PeerId
    allowance_id: AllowanceId
    request_id: RequestId
    quote_id: QuoteId
    manifest_digest: Digest
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cost_micros: int
    finish_reason: FinishReason
    received_at_ns: int
    started_at_ns: int
    finished_at_ns: int
    request_hash: Digest
    answer_hash: Digest
    previous_hash: Digest
    evidence_digest: Digest = NO_DIGEST
    seed_commitment: Digest = NO_DIGEST
    supersedes_request_id: RequestId = NO_REQUEST

    def __post_init__(self) -> None:
        # One test for the good case: there is a receipt per request, and the calls below are half
        # the price of reading one.
        is_good = (
            len(self.allowance_id) in _NONE_OR_ID
            and len(self.request_id) == len(self.quote_id) == ID_BYTES
            and len(self.manifest_digest) == len(self.request_hash) == DIGEST_BYTES
            and len(self.answer_hash) == len(self.previous_hash) == DIGEST_BYTES
            and 0 <= self.cached_tokens <= self.prompt_tokens <= limits.TOKENS_MAX
            and 0 <= self.completion_tokens <= limits.TOKENS_MAX
            and 0 <= self.cost_micros <= limits.MICROS_MAX
            and 1 <= self.received_at_ns <= self.finished_at_ns <= _TIME_MAX
            and 0 <= self.started_at_ns <= _TIME_MAX
            and not (self.evidence_digest or self.seed_commitment or self.supersedes_request_id)
        )
        if not is_good:
            self._check_each()

    def _check_each(self) -> None:
        """Raise ValueError with the name of the field that is wrong, if one is."""
        require_bytes("allowance_id", self.allowance_id, 0, ID_BYTES)
        require_bytes("request_id", self.request_id, ID_BYTES)
        require_bytes("quote_id", self.quote_id, ID_BYTES)
        require_bytes("manifest_digest", self.manifest_digest, DIGEST_BYTES)
        require_range("prompt_tokens", self.prompt_tokens, 0, limits.TOKENS_MAX)
        require_range("cached_tokens", self.cached_tokens, 0, self.prompt_tokens)
        require_range("completion_tokens", self.completion_tokens, 0, limits.TOKENS_MAX)
        require_range("cost_micros", self.cost_micros, 0, limits.MICROS_MAX)
        require_range("received_at_ns", self.received_at_ns, 1, _TIME_MAX)
        require_range("started_at_ns", self.started_at_ns, 0, _TIME_MAX)
        require_range("finished_at_ns", self.finished_at_ns, self.received_at_ns, _TIME_MAX)
        require_bytes("request_hash", self.request_hash, DIGEST_BYTES)
        require_bytes("answer_hash", self.answer_hash, DIGEST_BYTES)
        require_bytes("previous_hash", self.previous_hash, DIGEST_BYTES)
        require_bytes("evidence_digest", self.evidence_digest, 0, DIGEST_BYTES)
        require_bytes("seed_commitment", self.seed_commitment, 0, DIGEST_BYTES)
        require_bytes("supersedes_request_id", self.supersedes_request_id, 0, ID_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptBatch:
    """The receipts of one allowance that ended within 50 ms, by digest; signed by the host.

    Attributes:
        sequence: Rises by one per batch of the chain.
        previous_head: The chain's head before the batch.
        receipt_digests: SHA-256 of each receipt's encoding, in chain order.
        head: The chain's head after it.
    """

    version: int = PROTOCOL_VERSION
    network_id: NetworkId
    host_peer_id: PeerId
    allowance_id: AllowanceId
    sequence: int
    previous_head: Digest
    receipt_digests: tuple[Digest, ...]
    head: Digest
    signed_at_ns: int

    def __post_init__(self) -> None:
        require_bytes("allowance_id", self.allowance_id, 0, ID_BYTES)
        require_range("sequence", self.sequence, 1, 2**63 - 1)
        require_bytes("previous_head", self.previous_head, DIGEST_BYTES)
        count_max = limits.RECEIPT_BATCH_RECEIPTS_MAX
        require_range("number of receipts", len(self.receipt_digests), 1, count_max)
        for digest in self.receipt_digests:
            require_bytes("receipt digest", digest, DIGEST_BYTES)
        require_bytes("head", self.head, DIGEST_BYTES)
        require_range("signed_at_ns", self.signed_at_ns, 1, _TIME_MAX)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cosignature:
    """The gateway's agreement with a batch, signed by its wallet key.

    Attributes:
        batch_digest: SHA-256 of the batch's whole envelope.
        different_request_ids: Requests whose counts the gateway does not accept.
    """

    version: int = PROTOCOL_VERSION
    network_id: NetworkId
    host_peer_id: PeerId
    batch_digest: Digest
    different_request_ids: tuple[RequestId, ...] = ()

    def __post_init__(self) -> None:
        require_bytes("batch_digest", self.batch_digest, DIGEST_BYTES)
        count_max = limits.RECEIPT_BATCH_RECEIPTS_MAX
        require_range("number of request ids", len(self.different_request_ids), 0, count_max)
        for request_id in self.different_request_ids:
            require_bytes("request id", request_id, ID_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Close:
    """The host's word that nothing more will come under an allowance."""

    version: int = PROTOCOL_VERSION
    network_id: NetworkId
    allowance_id: AllowanceId
    host_peer_id: PeerId
    final_cum_micros: int

    def __post_init__(self) -> None:
        require_bytes("allowance_id", self.allowance_id, ID_BYTES)
        require_range("final_cum_micros", self.final_cum_micros, 0, limits.MICROS_MAX)


@dataclass(frozen=True, slots=True, kw_only=True)
class WalletProof:
    """A gateway shows one host that it holds a wallet key; bound to its transport identity."""

    version: int = PROTOCOL_VERSION
    network_id: NetworkId
    host_peer_id: PeerId
    gateway_peer_id: PeerId
    issued_at_ns: int

    def __post_init__(self) -> None:
        require_range("issued_at_ns", self.issued_at_ns, 1, _TIME_MAX)


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolment:
    """A node key joins an account by the account's one-time code; signed by the node key.

    Attributes:
        role: ``host`` or ``gateway``.
    """

    version: int = PROTOCOL_VERSION
    network_id: NetworkId
    account_id: str
    code: str
    role: str
    issued_at_ns: int

    def __post_init__(self) -> None:
        require_text("account_id", self.account_id, bytes_max=64)
        require_text("code", self.code, bytes_max=64)
        if self.role not in ("host", "gateway"):
            raise ValueError(f"role is {self.role!r}, neither host nor gateway")
        require_range("issued_at_ns", self.issued_at_ns, 1, _TIME_MAX)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestProof:
    """Who sent an HTTP request to settlement; signed by the node key.

    It travels as ``Authorization: Sparewatt BASE64(envelope)``.

    Attributes:
        path: With its query string.
        nonce: 16 random bytes; one use within the clock tolerance.
    """

    version: int = PROTOCOL_VERSION
    network_id: NetworkId
    method: str
    path: str
    body_sha256: Digest
    issued_at_ns: int
    nonce: bytes

    def __post_init__(self) -> None:
        require_text("method", self.method, bytes_max=16)
        require_text("path", self.path, bytes_max=2048)
        require_bytes("body_sha256", self.body_sha256, DIGEST_BYTES)
        require_range("issued_at_ns", self.issued_at_ns, 1, _TIME_MAX)
        require_bytes("nonce", self.nonce, ID_BYTES)


KEY_LIST = Kind("key-list", KeyList, money_pb2.KeyList)
ALLOWANCE = Kind("allowance", Allowance, money_pb2.Allowance)
QUOTE = Kind("quote", Quote, money_pb2.Quote)
VOUCHER = Kind("voucher", Voucher, money_pb2.Voucher)
RECEIPT_BATCH = Kind(
    "receipts", ReceiptBatch, money_pb2.ReceiptBatch, limits.RECEIPT_BATCH_BYTES_MAX
)
COSIGNATURE = Kind("cosignature", Cosignature, money_pb2.Cosignature, limits.COSIGNATURE_BYTES_MAX)
CLOSE = Kind("close", Close, money_pb2.Close)
WALLET_PROOF = Kind("wallet-proof", WalletProof, money_pb2.WalletProof)
ENROLMENT = Kind("enrolment", Enrolment, money_pb2.Enrolment)
REQUEST_PROOF = Kind("request-proof", RequestProof, money_pb2.RequestProof)
