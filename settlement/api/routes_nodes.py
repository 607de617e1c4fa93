"""Routes for nodes: join, reserve, be paid, show receipts."""

import base64
import binascii
from collections.abc import Sequence

import msgspec
from fastapi import APIRouter, Response

from p2p import limits
from p2p.errors import RemoteProtocolError
from p2p.types import AllowanceId, PeerId, PublicKey, peer_id_to_bytes
from settlement import queries
from settlement.api import models
from settlement.api.auth import (
    NODE_SCHEME,
    TOKEN_SCHEME,
    AccountOf,
    NodeOf,
    NodeOrAccountOf,
    ServiceOf,
)
from settlement.api.problems import (
    ErrorReply,
    Problem,
    allowance_problem,
    auth_problem,
    enrol_problem,
)
from settlement.keys import new_code
from settlement.ledger import Order
from settlement.operations import AllowanceRefusal
from settlement.queries import EarningsView
from settlement.service import AuthRefusal
from settlement.store import Account
from settlement.submissions import ReceiptTexts

_ERROR = {"model": ErrorReply}
router = APIRouter(prefix="/v1", tags=["nodes"], responses={400: _ERROR, 503: _ERROR})
_NODE_ERRORS: dict[int | str, dict[str, object]] = {401: dict(_ERROR), 403: dict(_ERROR)}


@router.post("/enrolment-codes", dependencies=[TOKEN_SCHEME])
async def make_enrolment_code(
    body: models.CodeRequest, account: AccountOf, service: ServiceOf
) -> models.CodeReply:
    """Make a one-time code with which one node may join the account, for a day."""
    code = new_code(account.account_id)
    made = await service.make_code(account, body.role, code)
    return models.CodeReply(code, models.time_text(made.expires_at_ns))


@router.post("/enrolments", responses={403: _ERROR, 409: _ERROR})
async def enrol(body: models.EnrolmentRequest, service: ServiceOf) -> models.EnrolmentReply:
    """Join the account that made a code. The same node may repeat it with the same code."""
    result = await service.enrol(decoded(body.enrolment, "enrolment"))
    if isinstance(result, AuthRefusal):
        raise auth_problem(result)
    if isinstance(result, RemoteProtocolError):
        raise Problem(400, "bad_envelope", str(result), param="enrolment")
    outcome, machine = result
    if machine is None:
        raise enrol_problem(outcome)
    tag = text(service.owner_tag(machine)) if machine.role == "host" else None
    return models.EnrolmentReply(machine.account_id, machine.role, tag)


@router.post(
    "/allowances",
    dependencies=[NODE_SCHEME],
    responses={**_NODE_ERRORS, 402: _ERROR, 404: _ERROR, 409: _ERROR},
)
async def order_allowance(
    body: models.AllowanceRequest, caller: NodeOf, service: ServiceOf
) -> models.AllowanceReply:
    """Reserve credit for one host; the same id with more raises or prolongs it.

    The identical order gets the identical answer for the first half of its duration.
    """
    asked = Order(
        AllowanceId(bytes.fromhex(body.allowance_id)),
        caller.machine.account_id,
        _peer_id(body.host_peer_id),
        PublicKey(bytes.fromhex(body.wallet_key)),
        body.max_micros,
        body.duration_s * limits.SECOND_NS,
    )
    result = await service.allowance(caller, asked)
    if isinstance(result, AuthRefusal):
        raise auth_problem(result)
    if isinstance(result, AllowanceRefusal):
        raise allowance_problem(result)
    return models.AllowanceReply(text(result))


@router.post(
    "/vouchers",
    dependencies=[NODE_SCHEME],
    responses=_NODE_ERRORS,
    response_model=models.VouchersReply,
)
async def post_vouchers(
    body: models.EnvelopesRequest, caller: NodeOf, service: ServiceOf
) -> Response:
    """Post what vouchers raise: in any order, however often, from either side."""
    return _results(await service.vouchers(caller, body.items))


@router.post(
    "/closes",
    dependencies=[NODE_SCHEME],
    responses=_NODE_ERRORS,
    response_model=models.ClosesReply,
)
async def post_closes(
    body: models.EnvelopesRequest, caller: NodeOf, service: ServiceOf
) -> Response:
    """Give back what a host says that it will not claim."""
    return _results(await service.closes(caller, body.items))


@router.post(
    "/receipts",
    dependencies=[NODE_SCHEME],
    responses=_NODE_ERRORS,
    response_model=models.ReceiptsReply,
)
async def post_receipts(
    body: models.ReceiptsRequest, caller: NodeOf, service: ServiceOf
) -> Response:
    """Store batches of receipts, and match them once the gateway's signature is there."""
    items = [
        ReceiptTexts(tuple(each.receipts), each.batch, each.cosignature) for each in body.items
    ]
    return _results(await service.receipts(caller, items))


def _results(results: Sequence[object] | AuthRefusal) -> Response:
    """Return one result for each item as JSON.

    The results have the fields of the documented models, and are written as they are: a thousand
    of them through FastAPI's own way cost as much as posting them.
    """
    if isinstance(results, AuthRefusal):
        raise auth_problem(results)
    content = msgspec.json.encode({"results": results})
    return Response(content, media_type="application/json")


@router.get("/earnings", dependencies=[NODE_SCHEME, TOKEN_SCHEME], responses=_NODE_ERRORS)
async def get_earnings(caller: NodeOrAccountOf, service: ServiceOf) -> models.EarningsReply:
    """Tell what the calling host, or all hosts of the account, earned."""
    if isinstance(caller, Account):
        account_id, now_ns = caller.account_id, service.clock()
        return earnings_reply(
            await service.read(
                lambda store: queries.earnings(
                    store, queries.account_hosts(store, account_id), now_ns=now_ns
                )
            )
        )
    result = await service.host_earnings(caller)
    if isinstance(result, AuthRefusal):
        raise auth_problem(result)
    return earnings_reply(result)


def earnings_reply(view: EarningsView) -> models.EarningsReply:
    """Return earnings as JSON."""
    return models.EarningsReply(
        view.today_micros, view.total_micros, view.payable_micros, view.held_micros
    )


def text(data: bytes) -> str:
    """Return bytes as they stand in JSON."""
    return base64.b64encode(data).decode("ascii")


def decoded(data: str, param: str) -> bytes:
    """Return the bytes of a base64 field; a Problem if it is none."""
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Problem(400, "bad_base64", f"{param} is not base64.", param=param) from error


def _peer_id(peer_id: str) -> PeerId:
    try:
        peer_id_to_bytes(peer_id)
    except ValueError as error:
        raise Problem(400, "invalid_request", str(error), param="host_peer_id") from error
    return PeerId(peer_id)
