"""Is what was signed still what is stored? Signatures and fields of every kept message. Pure."""

from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from typing import TypeVar

from p2p.errors import RemoteProtocolError
from p2p.receipts.chain import check_batch
from p2p.receipts.messages import (
    ALLOWANCE,
    CLOSE,
    COSIGNATURE,
    RECEIPT_BATCH,
    VOUCHER,
    Close,
    Receipt,
    Voucher,
)
from p2p.signing import Kind, Signed, SignedValue, unseal
from p2p.types import NetworkId, PublicKey, sha256
from settlement.ledger import AllowanceState
from settlement.store import StoredBatch, StoredVoucher

ValueT = TypeVar("ValueT", bound=SignedValue)
NO_ALLOWANCE_ROW = "its allowance is not there"


@dataclass(frozen=True, slots=True)
class ReceiptRow:
    """One row of ``receipts``."""

    number: int
    request_id: str
    digest: bytes
    host_peer_id: str
    account_id: str
    data: bytes


def promise_problems(
    state: AllowanceState,
    envelope: bytes,
    *,
    signed_anew: Callable[[AllowanceState], bytes],
    keys: Set[PublicKey],
    network_id: NetworkId,
) -> Iterator[str]:
    """Yield what is wrong with the envelope in which settlement promised an allowance.

    Args:
        state: The allowance as stored.
        envelope: Empty if there is none.
        signed_anew: Returns the envelope that its state asks for.
        keys: Those that may sign.
        network_id: Where.
    """
    if not envelope:
        yield "its signed envelope is missing"
        return
    try:
        promised = unseal(ALLOWANCE, envelope, network_id=network_id)
    except RemoteProtocolError as error:
        yield str(error)
        return
    if promised.signer not in keys:
        yield "it is signed by none of settlement's keys"
    if promised.value != unseal(ALLOWANCE, signed_anew(state), network_id=network_id).value:
        yield "the signed envelope says something else than the stored allowance"


def voucher_problems(
    row: StoredVoucher, state: AllowanceState | None, network_id: NetworkId
) -> Iterator[str]:
    """Yield what is wrong with a kept voucher."""
    voucher = _read(VOUCHER, row.envelope, network_id)
    if isinstance(voucher, str):
        yield voucher
        return
    value: Voucher = voucher.value
    if (value.allowance_id, value.sequence, value.cum_micros, sha256(row.envelope)) != (
        row.allowance_id,
        row.sequence,
        row.cum_micros,
        row.digest,
    ):
        yield "its columns say something else than its signed envelope"
    if state is None:
        yield NO_ALLOWANCE_ROW
        return
    if voucher.signer != state.wallet_key:
        yield "it is not signed by its allowance's wallet key"
    if value.host_peer_id != state.host_peer_id:
        yield "it names another host than its allowance"
    if value.cum_micros > state.max_micros:
        yield f"its {value.cum_micros} are above its allowance's {state.max_micros}"


def close_problems(
    envelope: bytes, state: AllowanceState | None, network_id: NetworkId
) -> tuple[int | None, list[str]]:
    """Return the last sum that a kept close names, None if unreadable, and what is wrong."""
    close = _read(CLOSE, envelope, network_id)
    if isinstance(close, str):
        return None, [close]
    value: Close = close.value
    if state is None:
        return value.final_cum_micros, [NO_ALLOWANCE_ROW]
    rules = (
        (value.allowance_id == state.allowance_id, "it is of another allowance"),
        (close.signer_id == state.host_peer_id, "it is not signed by its allowance's host"),
        (value.host_peer_id == state.host_peer_id, "it names another host than its allowance"),
        (value.final_cum_micros <= state.max_micros, "it is above its allowance's maximum"),
    )
    return value.final_cum_micros, [text for holds, text in rules if not holds]


def batch_problems(
    batch: StoredBatch,
    rows: Sequence[ReceiptRow],
    state: AllowanceState | None,
    network_id: NetworkId,
) -> Iterator[str]:
    """Yield what is wrong with a batch of receipts and its signatures.

    Args:
        batch: As stored.
        rows: Its receipts, in order.
        state: Its allowance; None for a free session's too.
        network_id: Where.
    """
    signed = _read(RECEIPT_BATCH, batch.envelope, network_id)
    if isinstance(signed, str):
        yield signed
        return
    value = signed.value
    if sha256(batch.envelope) != batch.digest or (
        (value.allowance_id, value.host_peer_id, value.sequence)
        != (batch.allowance_id, batch.host_peer_id, batch.sequence)
    ):
        yield "its columns say something else than its signed envelope"
    if signed.signer_id != value.host_peer_id:
        yield "it is not signed by its host"
    try:
        receipts = check_batch(value, [row.data for row in rows])
    except RemoteProtocolError as error:
        yield str(error)
        return
    for row, receipt in zip(rows, receipts, strict=True):
        yield from _receipt_problems(row, receipt, batch)
    if batch.allowance_id and state is None:
        yield NO_ALLOWANCE_ROW
    if state is not None and (batch.account_id, batch.host_peer_id) != (
        state.account_id,
        state.host_peer_id,
    ):
        yield "its account or host is not its allowance's"
    yield from _cosignature_problems(batch, receipts, state, network_id)


def _receipt_problems(row: ReceiptRow, receipt: Receipt, batch: StoredBatch) -> Iterator[str]:
    said = (row.request_id, row.digest, row.host_peer_id, row.account_id)
    held = (receipt.request_id.hex(), sha256(row.data), batch.host_peer_id, batch.account_id)
    if said != held:
        yield f"the columns of receipt {row.number} say something else than the receipt"


def _cosignature_problems(
    batch: StoredBatch,
    receipts: Sequence[Receipt],
    state: AllowanceState | None,
    network_id: NetworkId,
) -> Iterator[str]:
    if batch.state.cosigned != bool(batch.cosignature):
        yield "whether it is cosigned is stored wrongly"
    if not batch.cosignature:
        return
    signed = _read(COSIGNATURE, batch.cosignature, network_id)
    if isinstance(signed, str):
        yield signed
        return
    if signed.value.batch_digest != batch.digest:
        yield "its cosignature is of another batch"
    if state is not None and signed.signer != state.wallet_key:
        yield "its cosignature is not by its allowance's wallet key"
    excepted = set(signed.value.different_request_ids) & {each.request_id for each in receipts}
    if excepted - batch.state.different:
        yield "its cosignature excepts receipts that it does not count as different"


def _read(kind: Kind[ValueT], envelope: bytes, network_id: NetworkId) -> Signed[ValueT] | str:
    try:
        return unseal(kind, envelope, network_id=network_id)
    except RemoteProtocolError as error:
        return str(error)
