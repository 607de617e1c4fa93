"""Routes for prices: the quotes that hosts gave, and what models cost lately."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter
from pydantic import Field

from settlement.api import models
from settlement.api.auth import NODE_SCHEME, TOKEN_SCHEME, NodeOf, NodeOrAccountOf, ServiceOf
from settlement.api.problems import ErrorReply, auth_problem
from settlement.pricing import ACCOUNTS_MIN, WINDOW_HOURS
from settlement.service import AuthRefusal

_ERROR = {"model": ErrorReply}
router = APIRouter(
    prefix="/v1", tags=["prices"], responses={400: _ERROR, 401: _ERROR, 403: _ERROR, 503: _ERROR}
)


@dataclass(frozen=True)
class QuoteItem:
    """What became of one quote."""

    outcome: Annotated[str, Field(examples=["kept"])]
    reason: str


@dataclass(frozen=True)
class QuotesReply:
    """One result for each item, in their order."""

    results: list[QuoteItem]


@dataclass(frozen=True)
class IndexItem:
    """Medians of the prices that were paid for one model, weighted by tokens."""

    model_id: Annotated[str, Field(examples=["Qwen/Qwen3-8B"])]
    price_in_micros_per_mtok: Annotated[int, Field(examples=[50_000])]
    price_cached_micros_per_mtok: Annotated[int, Field(examples=[25_000])]
    price_out_micros_per_mtok: Annotated[int, Field(examples=[200_000])]
    tokens: Annotated[int, Field(examples=[1_250_000])]
    accounts: Annotated[int, Field(examples=[7])]


@dataclass(frozen=True)
class IndexReply:
    """The price index; a model that fewer accounts paid for is not in it."""

    computed_at: models.Time
    window_hours: int
    accounts_min: int
    models: list[IndexItem]


@router.post("/quotes", dependencies=[NODE_SCHEME])
async def post_quotes(
    body: models.EnvelopesRequest, caller: NodeOf, service: ServiceOf
) -> QuotesReply:
    """Keep quotes that the calling host gave and that receipts name, for the price index."""
    results = await service.quotes(caller, body.items)
    if isinstance(results, AuthRefusal):
        raise auth_problem(results)
    return QuotesReply([QuoteItem(each.outcome.value, each.reason) for each in results])


@router.get("/prices/index", dependencies=[NODE_SCHEME, TOKEN_SCHEME])
async def get_price_index(caller: NodeOrAccountOf, service: ServiceOf) -> IndexReply:
    """Tell what models cost in the last 24 hours; at most a minute old."""
    computed_at_ns, found = await service.price_index()
    items = [
        IndexItem(
            each.model_id,
            each.price_in_micros_per_mtok,
            each.price_cached_micros_per_mtok,
            each.price_out_micros_per_mtok,
            each.tokens,
            each.accounts,
        )
        for each in found
    ]
    return IndexReply(models.time_text(computed_at_ns), WINDOW_HOURS, ACCOUNTS_MIN, items)
