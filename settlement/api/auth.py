"""Who asks: a bearer token for people and dashboards, a signed request proof for nodes."""

import base64
import binascii
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import APIKeyHeader, HTTPBearer

from settlement.api.problems import auth_problem
from settlement.service import AuthRefusal, Caller, HttpRequest, Operator, Service
from settlement.store import Account

_PROOF_TEXT_BYTES_MAX = 8 * 1024
_BEARER = HTTPBearer(
    auto_error=False,
    scheme_name="token",
    description="An access token `sw_pat_...` of an account, or the operator's.",
)
_PROOF = APIKeyHeader(
    name="Authorization",
    auto_error=False,
    scheme_name="node",
    description=(
        "`Sparewatt BASE64`: a RequestProof envelope (method, path with query, SHA-256 of the"
        " body, time within 120 s, a nonce of one use) signed by an enrolled node key."
    ),
)


async def get_service(request: Request) -> Service:
    """Return the service that the app runs on."""
    service: Service = request.app.state.service
    return service


ServiceOf = Annotated[Service, Depends(get_service)]


def _credentials(request: Request, scheme: str) -> str | None:
    said, _, credentials = request.headers.get("authorization", "").partition(" ")
    return credentials.strip() if said.lower() == scheme else None


async def get_node(request: Request, service: ServiceOf) -> Caller:
    """Return the enrolled node that signed the request."""
    text = _credentials(request, "sparewatt")
    if text is None:
        raise auth_problem(AuthRefusal.MISSING)
    if len(text) > _PROOF_TEXT_BYTES_MAX:
        raise auth_problem(AuthRefusal.INVALID)
    try:
        envelope = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise auth_problem(AuthRefusal.INVALID) from error
    query: bytes = request.scope["query_string"]
    path: bytes = request.scope["raw_path"].partition(b"?")[0] + (b"?" + query if query else b"")
    asked = HttpRequest(request.method, path.decode("latin-1"), await request.body())
    caller = await service.who_signed(envelope, asked)
    if isinstance(caller, AuthRefusal):
        raise auth_problem(caller)
    return caller


async def _bearer(request: Request, service: Service) -> Account | Operator:
    token = _credentials(request, "bearer")
    if token is None:
        raise auth_problem(AuthRefusal.MISSING)
    found = await service.who_bears(token)
    if isinstance(found, AuthRefusal):
        raise auth_problem(found)
    return found


async def get_account(request: Request, service: ServiceOf) -> Account:
    """Return the account whose token the request bears."""
    found = await _bearer(request, service)
    if isinstance(found, Operator):
        raise auth_problem(AuthRefusal.WRONG_ROLE)
    return found


async def get_operator(request: Request, service: ServiceOf) -> Operator:
    """Return the operator, if the request bears the operator's token."""
    found = await _bearer(request, service)
    if isinstance(found, Account):
        raise auth_problem(AuthRefusal.WRONG_ROLE)
    return found


async def get_node_or_account(request: Request, service: ServiceOf) -> Caller | Account:
    """Return whoever asks, by either scheme."""
    if _credentials(request, "sparewatt") is not None:
        return await get_node(request, service)
    return await get_account(request, service)


NodeOf = Annotated[Caller, Depends(get_node)]
AccountOf = Annotated[Account, Depends(get_account)]
OperatorOf = Annotated[Operator, Depends(get_operator)]
NodeOrAccountOf = Annotated[Caller | Account, Depends(get_node_or_account)]

# What the OpenAPI document says of each; the checks themselves are above.
TOKEN_SCHEME = Depends(_BEARER)
NODE_SCHEME = Depends(_PROOF)
