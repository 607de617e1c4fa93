"""Fetches what the pages show besides the status."""

from collections.abc import Sequence
from typing import TypeVar
from urllib.parse import quote

import msgspec

from tui.client import CommandRefusedError, Source
from tui.model.answers import (
    Catalogue,
    CustomerList,
    EngineList,
    Facts,
    Licence,
    ReceiptPage,
    TermsAnswer,
)

FactT = TypeVar("FactT", bound=msgspec.Struct)

RECEIPT_BATCHES_COUNT = 50
LICENCES_COUNT_MAX = 32  # a server may list hundreds of models; the first ones are looked up


async def fetch(source: Source, needs: frozenset[str], model_ids: Sequence[str]) -> Facts:
    """Return what a page needs; None for what the host, e.g. an older one, does not answer.

    Args:
        source: The host.
        needs: Attributes of ``Facts``.
        model_ids: Whose licences are asked for, if those are needed.
    """
    licences = {}
    for model_id in model_ids[:LICENCES_COUNT_MAX] if "licences" in needs else ():
        found = await fetch_licence(source, model_id)
        if found is not None:
            licences[model_id] = found
    receipts = f"/v1/receipts?limit={RECEIPT_BATCHES_COUNT}"
    return Facts(
        engines=await _get(source, "/v1/engines", EngineList) if "engines" in needs else None,
        catalogue=await _get(source, "/v1/models", Catalogue) if "catalogue" in needs else None,
        terms=await _get(source, "/v1/terms", TermsAnswer) if "terms" in needs else None,
        receipts=await _get(source, receipts, ReceiptPage) if "receipts" in needs else None,
        customers=(
            await _get(source, "/v1/customers", CustomerList) if "customers" in needs else None
        ),
        licences=licences,
    )


async def fetch_licence(source: Source, model_id: str) -> Licence | None:
    """Return what is to be accepted of a model, or None if the host does not say."""
    return await _get(source, f"/v1/licences?model={quote(model_id, safe='')}", Licence)


async def _get(source: Source, path: str, kind: type[FactT]) -> FactT | None:
    try:
        return msgspec.json.decode(await source.ask("GET", path), type=kind)
    except (CommandRefusedError, msgspec.DecodeError):
        return None
