"""One open request at the host, and why one is not opened or goes no further."""

import enum
from dataclasses import dataclass

from p2p.receipts.allowance import AllowanceTab
from p2p.receipts.messages import Quote


class Gate(enum.Enum):
    """Whether more may be released, and else what is missing."""

    OPEN = "open"
    UNPAID = "unpaid"
    EXHAUSTED = "exhausted"


class OpenRefusal(enum.Enum):
    """Why a request is not taken; ALLOWANCE_REFUSED or UNPAID on the wire."""

    UNKNOWN_ALLOWANCE = "no such allowance was shown on this session"
    EXPIRED = "the allowance has expired"
    EXHAUSTED = "the allowance is used up; raise it"
    NOT_FREE = "this model has a price, and the request names no allowance"
    REPEATED = "a request of this id is open"
    DEFAULTED = "earlier answers were not paid for"


@dataclass(slots=True)
class OpenRequest:
    """One open request, and what it costs so far."""

    tab: AllowanceTab
    quote: Quote
    cost_micros: int = 0
    prompt_product: int = 0
    completion_tokens: int = 0
    due_until_paid_micros: int | None = None
