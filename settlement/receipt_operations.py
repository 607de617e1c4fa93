"""Receipts from both sides: stored once, matched when the gateway's signature is there.

The outcome for any set of submissions is the same in any order.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from p2p.types import NO_ALLOWANCE, AllowanceId, Digest, PeerId, RequestId, sha256
from settlement.ledger import AllowanceState
from settlement.operations import NOT_A_PARTY, UNKNOWN_ALLOWANCE
from settlement.price_operations import uses_of
from settlement.price_store import Use
from settlement.reconcile import BatchState, ReceiptOutcome, merge_batch
from settlement.store import Machine, Reading, StoredBatch, StoredReceipt, Writing
from settlement.submissions import CheckedBatch, Unreadable


@dataclass(frozen=True, slots=True)
class ReceiptResult:
    """What became of one batch of receipts."""

    outcome: ReceiptOutcome
    reason: str = ""


def submit_receipts(
    store: Writing,
    submitter: Machine,
    items: Sequence[CheckedBatch | Unreadable],
    *,
    now_ns: int,
) -> list[ReceiptResult]:
    """Store batches and join what both sides say of them; one result each, in their order."""
    batches = [item for item in items if isinstance(item, CheckedBatch)]
    ids = {item.batch.value.allowance_id for item in batches} - {NO_ALLOWANCE}
    allowances = store.allowances(ids)
    stored = store.batches({item.digest for item in batches})
    signed = _signed_digests(store, batches)
    changed: dict[Digest, StoredBatch] = {}
    fresh: list[StoredReceipt] = []
    uses: list[Use] = []
    results = []
    for item in items:
        if isinstance(item, Unreadable):
            results.append(ReceiptResult(ReceiptOutcome.REFUSED, item.reason))
            continue
        refusal = _refusal(item, submitter, allowances)
        if refusal:
            results.append(ReceiptResult(ReceiptOutcome.REFUSED, refusal))
            continue
        before = stored.get(item.digest)
        receipts = _receipts(item)
        contradicted = _contradicted(signed, item, receipts)
        outcome, after = _merge(item, submitter, before, allowances, contradicted)
        stored[item.digest] = after
        if after != before:
            changed[item.digest] = after
        if before is None:
            fresh += receipts
            for each in receipts:
                signed[item.batch.value.host_peer_id, each.request_id].add(each.digest)
        if after.state.cosigned and not (before and before.state.cosigned):
            uses += uses_of(item.receipts, after.state.different, now_ns=now_ns)
        results.append(ReceiptResult(outcome))
    store.put_batches(changed.values())
    store.add_receipts(fresh)
    store.prices.add_uses(uses)
    return results


_Signed = defaultdict[tuple[PeerId, RequestId], set[Digest]]


def _signed_digests(store: Reading, batches: Sequence[CheckedBatch]) -> _Signed:
    """Return the digests of all that the batches' hosts signed for the batches' requests."""
    requests: defaultdict[PeerId, set[RequestId]] = defaultdict(set)
    for item in batches:
        requests[item.batch.value.host_peer_id].update(each.request_id for each in item.receipts)
    signed: _Signed = defaultdict(set)
    for host_peer_id, request_ids in requests.items():
        for request_id, digests in store.receipt_digests(host_peer_id, request_ids).items():
            signed[host_peer_id, request_id] |= digests
    return signed


def _contradicted(
    signed: _Signed, item: CheckedBatch, receipts: Sequence[StoredReceipt]
) -> frozenset[RequestId]:
    """Return the requests of a batch for which its host also signed something else."""
    host = item.batch.value.host_peer_id
    return frozenset(
        each.request_id for each in receipts if signed[host, each.request_id] - {each.digest}
    )


def contradicted_requests(
    store: Reading, batch: StoredBatch, receipts: Sequence[tuple[RequestId, Digest]]
) -> frozenset[RequestId]:
    """Return the requests for which the batch's host also signed something else."""
    known = store.receipt_digests(batch.host_peer_id, {request_id for request_id, _ in receipts})
    return frozenset(
        request_id for request_id, digest in receipts if known.get(request_id, set()) - {digest}
    )


def _refusal(
    item: CheckedBatch,
    submitter: Machine,
    allowances: dict[AllowanceId, AllowanceState],
) -> str:
    batch = item.batch.value
    if batch.allowance_id == NO_ALLOWANCE:
        is_host = submitter.peer_id == batch.host_peer_id
        return "" if is_host or item.cosignature is not None else NOT_A_PARTY
    state = allowances.get(batch.allowance_id)
    if state is None:
        return UNKNOWN_ALLOWANCE
    if state.host_peer_id != batch.host_peer_id:
        return "the batch is of another host than its allowance"
    if submitter.peer_id != state.host_peer_id and submitter.account_id != state.account_id:
        return NOT_A_PARTY
    if item.cosignature is not None and item.cosignature.signer != state.wallet_key:
        return "the cosignature is not by the allowance's wallet key"
    return ""


def _merge(
    item: CheckedBatch,
    submitter: Machine,
    before: StoredBatch | None,
    allowances: dict[AllowanceId, AllowanceState],
    contradicted: frozenset[RequestId],
) -> tuple[ReceiptOutcome, StoredBatch]:
    batch, said = item.batch.value, _said(item, submitter)
    cosignature = item.cosignature.envelope if item.cosignature else b""
    payer = _payer(item, submitter, allowances)
    fresh = StoredBatch(
        digest=item.digest,
        allowance_id=batch.allowance_id,
        host_peer_id=batch.host_peer_id,
        account_id=(before.account_id if before else "") or payer,
        sequence=batch.sequence,
        envelope=item.batch.envelope,
        cosignature=(before.cosignature if before else b"") or cosignature,
        state=BatchState(),
    )
    outcome, state = merge_batch(before.state if before else None, said, contradicted)
    return outcome, replace(fresh, state=state)


def _said(item: CheckedBatch, submitter: Machine) -> BatchState:
    is_host = submitter.peer_id == item.batch.value.host_peer_id
    different: frozenset[RequestId] = frozenset()
    if item.cosignature is not None:
        own = {receipt.request_id for receipt in item.receipts}
        different = frozenset(item.cosignature.value.different_request_ids) & own
    return BatchState(is_host, not is_host, item.cosignature is not None, different)


def _payer(
    item: CheckedBatch, submitter: Machine, allowances: dict[AllowanceId, AllowanceState]
) -> str:
    """Return the account that pays; for a free session the gateway's, once it submits."""
    state = allowances.get(item.batch.value.allowance_id)
    if state is not None:
        return state.account_id
    return "" if submitter.peer_id == item.batch.value.host_peer_id else submitter.account_id


def _receipts(item: CheckedBatch) -> list[StoredReceipt]:
    pairs = zip(item.receipts, item.encodings, strict=True)
    return [
        StoredReceipt(receipt.request_id, sha256(data), item.digest, data)
        for receipt, data in pairs
    ]
