"""Who a customer is to a host, whom the owner lets in, and how much in a minute. A core.

A host knows a customer by what the session proved: its pseudonym (one per account and host, signed
by settlement), the wallet key that signs its vouchers, and the peer id of its connection, which is
new at each start of a gateway. At zero price there may be no more than the peer id.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from peer.host.terms import AccessTerms, ClientTerms

MINUTE_NS = 60 * 1_000_000_000
# Use is summed in steps of this; a minute is the last twelve and the one that runs.
STEP_NS = MINUTE_NS // 12
CUSTOMERS_COUNT_MAX = 20_000  # as many as the books remember; the one not seen longest is forgotten


@dataclass(frozen=True, slots=True)
class CustomerNames:
    """What a customer can be called, the most lasting name first.

    Attributes:
        pseudonym: Empty while no allowance was shown.
        wallet_key: Empty if none was proved.
        peer_id: Of the connection.
    """

    pseudonym: bytes
    wallet_key: bytes
    peer_id: str

    @property
    def all(self) -> tuple[str, ...]:
        """The names as they stand in the owner's lists."""
        names = []
        if self.pseudonym:
            names.append(f"pseudonym:{self.pseudonym.hex()}")
        if self.wallet_key:
            names.append(f"wallet:{self.wallet_key.hex()}")
        return (*names, f"peer:{self.peer_id}")


@dataclass(frozen=True, slots=True)
class Use:
    """What a customer had, or has in work."""

    requests: int = 0
    tokens: int = 0
    micros: int = 0

    def plus(self, other: "Use") -> "Use":
        """Return the sum."""
        return Use(
            self.requests + other.requests,
            self.tokens + other.tokens,
            self.micros + other.micros,
        )


class Door:
    """The owner's lists, ready to be asked."""

    def __init__(self, access: AccessTerms) -> None:
        self._allow = frozenset(access.allow)
        self._deny = frozenset(access.deny)
        self.is_open = not (self._allow or self._deny)

    def refuses(self, names: CustomerNames) -> str:
        """Return why a customer may not come in; empty if it may."""
        if self.is_open:
            return ""
        if self._deny.intersection(names.all):
            return "this host's owner does not serve this customer"
        if self._allow and not self._allow.intersection(names.all):
            return "this host's owner serves chosen customers only"
        return ""


class MinuteBook:
    """What each customer had in the last minute; looked at before a request is taken.

    It is counted with what the customer has in work. One request may overshoot the bound by its own
    length: nobody knows before how long an answer is.
    """

    def __init__(self, customers_max: int = CUSTOMERS_COUNT_MAX) -> None:
        self._customers_max = customers_max
        self._steps: dict[str, deque[tuple[int, Use]]] = {}

    def add(self, name: str, use: Use, now_ns: int) -> None:
        """Count what a customer had."""
        steps = self._steps.pop(name, None)
        if steps is None:
            steps = deque()
            if len(self._steps) >= self._customers_max:
                del self._steps[next(iter(self._steps))]
        self._steps[name] = steps  # last in the order of the dict: used last
        self._forget(steps, now_ns)
        step = now_ns // STEP_NS
        if steps and steps[-1][0] == step:
            steps[-1] = (step, steps[-1][1].plus(use))
        else:
            steps.append((step, use))

    def used(self, name: str, now_ns: int) -> Use:
        """Return what a customer had in the last minute."""
        steps = self._steps.get(name)
        if steps is None:
            return Use()
        self._forget(steps, now_ns)
        total = Use()
        for _, use in steps:
            total = total.plus(use)
        return total

    def wait_ms(self, name: str, now_ns: int) -> int:
        """Return when the oldest of it is forgotten: another try before is in vain."""
        steps = self._steps.get(name)
        oldest = steps[0][0] if steps else now_ns // STEP_NS
        return max(0, ((oldest + 13) * STEP_NS - now_ns) // 1_000_000)

    @staticmethod
    def _forget(steps: deque[tuple[int, Use]], now_ns: int) -> None:
        step = now_ns // STEP_NS
        while steps and not step - 12 <= steps[0][0] <= step:  # a clock set back forgets too
            steps.popleft()


def over_bound(terms: ClientTerms, used: Use) -> str:
    """Return which bound of a minute another request would break; empty if none."""
    bounds: Sequence[tuple[str, int, int]] = (
        ("requests", terms.requests_per_minute, used.requests),
        ("tokens", terms.tokens_per_minute, used.tokens),
        ("micro-dollars", terms.micros_per_minute, used.micros),
    )
    for name, most, held in bounds:
        if most and held >= most:
            return f"this host takes {most} {name} a minute of a customer; you had {held}"
    return ""
