"""What a gateway believes of a host's counts: one running request and its own bound on it.

A token stands for at least one byte: of the request for the prompt, of what was delivered for the
answer. Whatever a host claims beyond that is refused, and never vouched for.
"""

import enum
from dataclasses import dataclass

from p2p import limits
from p2p.receipts.cost import (
    Usage,
    completion_tokens_max,
    cost_micros,
    prompt_product_of,
    prompt_tokens_max,
    running_cost_micros,
)
from p2p.receipts.messages import Quote, Receipt
from p2p.types import FinishReason


class CountFault(enum.Enum):
    """What a host got wrong."""

    PROMPT = "more prompt tokens than the request has bytes"
    COMPLETION = "more completion tokens than bytes were delivered"
    LENGTH = "more completion tokens than the request allows"
    FELL = "a cumulative count fell"
    DUE = "a due above the prompt's cost"
    COST = "a cost that does not follow from the counts and the quote"
    RECEIPT = "a receipt of something else than was asked"
    CHAIN = "a receipt that does not follow the one before it"


@dataclass(frozen=True, slots=True)
class CountRefusal:
    """Why a host's count is not accepted.

    Attributes:
        claimed: What the host says, in the fault's unit (tokens or micro-dollars).
        allowed: The most that we accept.
    """

    fault: CountFault
    claimed: int = 0
    allowed: int = 0

    def __str__(self) -> str:
        """Return it for people."""
        return f"{self.fault.value}: {self.claimed}, at most {self.allowed}"


@dataclass(slots=True)
class Count:
    """One request as the gateway counts it.

    Attributes:
        tokens_max: The most completion tokens that the request asks for, all choices together.
        cost_micros: By the formula, of what was counted so far; 0 before a due or start.
        is_refused: The host claimed too much once; nothing more is counted.
    """

    quote: Quote
    body_bytes: int
    choices: int
    tokens_max: int = limits.TOKENS_MAX
    prompt_product: int = 0
    completion_tokens: int = 0
    delivered_bytes: int = 0
    cost_micros: int = 0
    is_started: bool = False
    is_cancelled: bool = False
    is_refused: bool = False

    def prompt(self, prompt_tokens: int) -> CountRefusal | None:
        """Count the prompt."""
        if self.is_refused:
            return None
        allowed = prompt_tokens_max(self.body_bytes)
        if prompt_tokens > allowed:
            return self._refuse(CountFault.PROMPT, prompt_tokens, allowed)
        self.prompt_product = prompt_product_of(self.quote, prompt_tokens)
        self.cost_micros = running_cost_micros(
            self.quote, self.prompt_product, self.completion_tokens
        )
        return None

    def due(self, prompt_tokens: int, micros: int) -> CountRefusal | None:
        """Count a prompt that is to be vouched for ahead."""
        refusal = self.prompt(prompt_tokens)
        if refusal is None and micros > self.cost_micros and not self.is_refused:
            refusal = self._refuse(CountFault.DUE, micros, self.cost_micros)
            self.cost_micros = 0
        return refusal

    def chunk(self, count_bytes: int, completion_tokens: int) -> CountRefusal | None:
        """Count a chunk of so many bytes, after which the count is so high."""
        self.delivered_bytes += count_bytes
        if self.is_refused:
            return None
        if completion_tokens > self.delivered_bytes + self.choices:
            allowed = completion_tokens_max(self.delivered_bytes, self.choices)
            return self._refuse(CountFault.COMPLETION, completion_tokens, allowed)
        if completion_tokens > self.tokens_max + self.choices:  # each choice has an end token
            return self._refuse_length(completion_tokens)
        if completion_tokens < self.completion_tokens:
            return self._refuse(CountFault.FELL, completion_tokens, self.completion_tokens)
        self.completion_tokens = completion_tokens
        self.cost_micros = running_cost_micros(self.quote, self.prompt_product, completion_tokens)
        return None

    @property
    def is_owed(self) -> bool:
        """Whether anything can be owed: bytes came, or we cancelled a started request."""
        return self.delivered_bytes > 0 or (self.is_cancelled and self.is_started)

    def receipt(self, receipt: Receipt) -> CountRefusal | None:
        """Judge the counts and the cost of the request's receipt."""
        allowed = prompt_tokens_max(self.body_bytes)
        if receipt.prompt_tokens > allowed:
            return self._refuse(CountFault.PROMPT, receipt.prompt_tokens, allowed)
        allowed = completion_tokens_max(self.delivered_bytes, self.choices)
        if receipt.completion_tokens > allowed:
            return self._refuse(CountFault.COMPLETION, receipt.completion_tokens, allowed)
        if receipt.completion_tokens > self.tokens_max + self.choices:
            return self._refuse_length(receipt.completion_tokens)
        usage = Usage(receipt.prompt_tokens, receipt.cached_tokens, receipt.completion_tokens)
        expected = cost_micros(self.quote, usage, delivered=self.is_owed)
        nothing = not receipt.completion_tokens or receipt.finish_reason is FinishReason.HOST_ERROR
        if receipt.cost_micros != expected and not (nothing and receipt.cost_micros == 0):
            return self._refuse(CountFault.COST, receipt.cost_micros, expected)
        return None

    def _refuse_length(self, claimed: int) -> CountRefusal:
        return self._refuse(CountFault.LENGTH, claimed, self.tokens_max + self.choices)

    def _refuse(self, fault: CountFault, claimed: int, allowed: int) -> CountRefusal:
        self.is_refused = True
        return CountRefusal(fault, claimed, allowed)
