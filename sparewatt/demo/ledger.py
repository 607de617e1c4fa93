"""Settlement's ledger before and after a request, and what moved in between."""

from collections.abc import Mapping
from dataclasses import dataclass

from sparewatt.clients import JsonApi, number

CLIENT_CLASSES = ("client:available", "client:reserved", "client:promo")
HOST_CLASSES = ("host:payable", "host:held")
FEE_ACCOUNT = "platform:fee"


@dataclass(frozen=True, slots=True)
class Movement:
    """What moved between two looks at the ledger, in micro-dollars.

    Attributes:
        debit_micros: What the client has less, reserved credit included.
        host_micros: What all hosts have more.
        fee_micros: What the platform has more.
        sum_micros: Of all accounts, after; zero unless the books are broken.
    """

    before: Mapping[str, int]
    after: Mapping[str, int]
    debit_micros: int
    host_micros: int
    fee_micros: int
    sum_micros: int

    @property
    def is_balanced(self) -> bool:
        """Whether nothing was lost and nothing made."""
        return self.sum_micros == 0 and self.debit_micros == self.host_micros + self.fee_micros


def read_balances(settlement: JsonApi) -> dict[str, int]:
    """Return every account's balance; needs the operator's token.

    Raises:
        AskError: If settlement does not answer.
    """
    balances = settlement.get("/v1/ledger/balances").get("balances")
    if not isinstance(balances, dict):
        return {}
    return {str(name): int(micros) for name, micros in balances.items()}


def ledger_holds(settlement: JsonApi) -> bool:
    """Return whether settlement's own check of its books found them in order.

    Raises:
        AskError: If settlement does not answer.
    """
    check = settlement.get("/v1/ledger/check")
    return check.get("ok") is True and number(check, "sum_micros") == 0


def movement(before: Mapping[str, int], after: Mapping[str, int]) -> Movement:
    """Return what moved between two states of the ledger."""
    return Movement(
        before=before,
        after=after,
        debit_micros=_total(before, CLIENT_CLASSES) - _total(after, CLIENT_CLASSES),
        host_micros=_total(after, HOST_CLASSES) - _total(before, HOST_CLASSES),
        fee_micros=_total(after, (FEE_ACCOUNT,)) - _total(before, (FEE_ACCOUNT,)),
        sum_micros=sum(after.values()),
    )


def _total(balances: Mapping[str, int], classes: tuple[str, ...]) -> int:
    return sum(
        micros
        for name, micros in balances.items()
        if any(name == each or name.startswith(f"{each}:") for each in classes)
    )
