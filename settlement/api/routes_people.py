"""Routes for people: balances, statements, receipts, and the state of all books."""

from typing import Annotated

from fastapi import APIRouter, Path, Query

from p2p import limits
from p2p.types import RequestId, digest_text
from settlement import queries
from settlement.api import models
from settlement.api.auth import TOKEN_SCHEME, AccountOf, OperatorOf, ServiceOf
from settlement.api.problems import ErrorReply, Problem
from settlement.api.routes_nodes import earnings_reply, text
from settlement.queries import ReceiptView
from settlement.store import PAGE_ROWS_MAX

_ERROR = {"model": ErrorReply}
router = APIRouter(responses={400: _ERROR, 503: _ERROR})

AfterOf = Annotated[
    int, Query(ge=0, le=limits.MICROS_MAX, description="Only what has a higher number.")
]
LimitOf = Annotated[int, Query(ge=1, le=PAGE_ROWS_MAX, description="The most that are returned.")]


@router.get("/health", tags=["network"])
async def get_health(service: ServiceOf) -> models.HealthReply:
    """Tell that settlement is there and can read its books."""
    await service.read(lambda store: store.account("none"))
    return models.HealthReply("ok")


@router.get("/v1/network", tags=["network"])
async def get_network(service: ServiceOf) -> models.NetworkReply:
    """Tell the network's signing keys, vouched for by its root key, the fee and the time."""
    issuer = service.issuer
    now = models.time_text(service.clock())
    return models.NetworkReply(issuer.network_id, text(issuer.key_list), now, issuer.fee_bps)


@router.get("/v1/account", tags=["accounts"], dependencies=[TOKEN_SCHEME], responses={401: _ERROR})
async def get_account(account: AccountOf, service: ServiceOf) -> models.AccountReply:
    """Tell an account's balances."""
    now_ns = service.clock()
    view = await service.read(lambda store: queries.account_view(store, account, now_ns=now_ns))
    return models.AccountReply(
        account.account_id,
        account.name,
        view.available_micros,
        view.reserved_micros,
        view.promo_micros,
        {host: earnings_reply(earned) for host, earned in view.hosts.items()},
    )


@router.get(
    "/v1/statement", tags=["accounts"], dependencies=[TOKEN_SCHEME], responses={401: _ERROR}
)
async def get_statement(
    account: AccountOf, service: ServiceOf, after: AfterOf = 0, limit: LimitOf = 100
) -> models.StatementReply:
    """List the entries of the account and of its hosts, oldest first."""
    lines = await service.read(
        lambda store: queries.statement(store, account.account_id, after=after, rows_max=limit)
    )
    entries = [
        models.StatementEntry(
            line.number,
            line.transaction_id,
            line.kind.value,
            line.reference,
            models.time_text(line.at_ns),
            line.account,
            line.micros,
            line.balance_micros,
        )
        for line in lines
    ]
    return models.StatementReply(entries, lines[-1].number if len(lines) == limit else None)


@router.get("/v1/receipts", tags=["accounts"], dependencies=[TOKEN_SCHEME], responses={401: _ERROR})
async def get_receipts(
    account: AccountOf, service: ServiceOf, after: AfterOf = 0, limit: LimitOf = 100
) -> models.ReceiptPageReply:
    """List the account's receipts, as client and as host, oldest first."""
    views = await service.read(
        lambda store: queries.receipts(store, account.account_id, after=after, rows_max=limit)
    )
    following = views[-1].number if len(views) == limit else None
    return models.ReceiptPageReply([_receipt(view) for view in views], following)


@router.get(
    "/v1/receipts/{request_id}",
    tags=["accounts"],
    dependencies=[TOKEN_SCHEME],
    responses={401: _ERROR, 404: _ERROR},
)
async def get_receipt(
    request_id: Annotated[str, Path(pattern=r"^[0-9a-f]{32}$")],
    account: AccountOf,
    service: ServiceOf,
) -> models.ReceiptPageReply:
    """Show the receipts of one request: one, or several if the host signed contradictions."""
    wanted = RequestId(bytes.fromhex(request_id))
    views = await service.read(
        lambda store: queries.receipts_of_request(store, account.account_id, wanted)
    )
    if not views:
        raise Problem(404, "receipt_not_found", "There is no receipt of this request.")
    return models.ReceiptPageReply([_receipt(view) for view in views], None)


@router.get("/v1/ledger/check", tags=["ledger"])
async def check_ledger(service: ServiceOf) -> models.CheckReply:
    """Rebuild all balances from their entries, compare, and check every rule of the books."""
    check = await service.check_ledger()
    totals = {kind.value: micros for kind, micros in sorted(check.class_totals_micros.items())}
    return models.CheckReply(
        check.is_ok, check.sum_micros, totals, check.transactions, list(check.problems)
    )


@router.get(
    "/v1/ledger/balances",
    tags=["ledger"],
    dependencies=[TOKEN_SCHEME],
    responses={401: _ERROR, 403: _ERROR},
)
async def get_balances(_: OperatorOf, service: ServiceOf) -> models.BalancesReply:
    """List all ledger accounts; for the operator."""
    return models.BalancesReply(await service.read(lambda store: store.all_balances()))


def _receipt(view: ReceiptView) -> models.ReceiptReply:
    receipt, batch = view.receipt, view.batch
    return models.ReceiptReply(
        number=view.number,
        request_id=receipt.request_id.hex(),
        allowance_id=receipt.allowance_id.hex(),
        host_peer_id=receipt.host_peer_id,
        manifest_digest=digest_text(receipt.manifest_digest),
        prompt_tokens=receipt.prompt_tokens,
        cached_tokens=receipt.cached_tokens,
        completion_tokens=receipt.completion_tokens,
        cost_micros=receipt.cost_micros,
        finish_reason=receipt.finish_reason.name.lower(),
        received_at=models.time_text(receipt.received_at_ns),
        finished_at=models.time_text(receipt.finished_at_ns),
        outcome=view.outcome.value,
        receipt=text(view.receipt_data),
        batch=text(batch.envelope),
        cosignature=text(batch.cosignature) if batch.cosignature else None,
    )
