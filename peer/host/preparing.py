"""From a gateway's request to the body that an engine gets, or why it gets none."""

from p2p.errors import ErrorCode
from p2p.receipts.messages import Quote
from p2p.receipts.openings import OpenRefusal
from p2p.session.events import ErrorInfo, RequestReceived
from p2p.types import model_key
from peer.host.engines.parameters import EngineLimits, PreparedRequest, prepare_request
from peer.host.pricing import OfferedModel

TOKEN_BYTES_MAX = 256  # beyond it per token of context, a body isn't worth the engine's count

_ACCOUNT_CODES = {
    OpenRefusal.DEFAULTED: ErrorCode.UNPAID,
    OpenRefusal.REPEATED: ErrorCode.INVALID_REQUEST,
}


def account_refusal(refused: OpenRefusal) -> ErrorInfo:
    """Return what a gateway is told whose account takes no request."""
    code = _ACCOUNT_CODES.get(refused, ErrorCode.ALLOWANCE_REFUSED)
    return ErrorInfo(code=code, message=refused.value)


def prepare(
    event: RequestReceived, quote: Quote, parameter_table: str, offered: OfferedModel
) -> PreparedRequest | ErrorInfo:
    """Return the body for an engine, if the request is for the model that its quote names."""
    context_tokens = offered.offer.context_tokens
    if len(event.request.body) > context_tokens * TOKEN_BYTES_MAX:
        message = f"the request is far longer than this host's context of {context_tokens} tokens"
        code = ErrorCode.CONTEXT_LENGTH_EXCEEDED
        return ErrorInfo(code=code, message=message, param="messages")
    model = offered.model
    bounds = EngineLimits(model.name, offered.offer.output_tokens_max, model.missing)
    prepared = prepare_request(parameter_table, event.request.body, bounds)
    if isinstance(prepared, ErrorInfo):
        return prepared
    is_named = prepared.model_id == quote.model_id
    if not is_named and model_key(prepared.model_id) != model_key(quote.model_id):
        message = f"the request is for {prepared.model_id[:100]}, its quote is not"
        return ErrorInfo(code=ErrorCode.MODEL_NOT_FOUND, message=message, param="model")
    return prepared
