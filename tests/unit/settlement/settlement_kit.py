"""Books with two accounts in them, for the tests of settlement's rooms."""

from p2p import limits
from p2p.receipts.messages import CLOSE, Close
from p2p.signing import Signed, sealed
from p2p.testing.money import HOST, NETWORK, NOW_NS, SETTLEMENT, WALLET, id_bytes, key
from p2p.types import AllowanceId
from settlement.issuer import Issuer
from settlement.ledger import Order
from settlement.operations import Credit, CreditOutcome, add_credit, place_order
from settlement.queries import check_ledger
from settlement.store import Account, Machine, Store, Writing

GATEWAY = key("gateway")
ISSUER = Issuer(NETWORK, SETTLEMENT, bytes(32), b"", 500)
ALICE = Account("alice", "Alice", NOW_NS)
BOB = Account("bob", "Bob", NOW_NS)
HOST_MACHINE = Machine(HOST.peer_id, "bob", "host", NOW_NS)
GATEWAY_MACHINE = Machine(GATEWAY.peer_id, "alice", "gateway", NOW_NS)
CREDIT_MICROS = 1_000_000


def fill(writing: Writing) -> None:
    """Let Alice have a gateway and a million micro-dollars, and Bob a host."""
    writing.put_account(ALICE)
    writing.put_account(BOB)
    writing.put_machine(HOST_MACHINE)
    writing.put_machine(GATEWAY_MACHINE)
    outcome = add_credit(writing, Credit("alice", CREDIT_MICROS, "first"), now_ns=NOW_NS)
    assert outcome is CreditOutcome.CREDITED


def order_of(
    name: str = "allowance", *, max_micros: int = 20_000, duration_ns: int = limits.HOUR_NS
) -> Order:
    """Return Alice's order for ``HOST``."""
    allowance_id = AllowanceId(id_bytes(name))
    return Order(allowance_id, "alice", HOST.peer_id, WALLET.public, max_micros, duration_ns)


def issue(writing: Writing, name: str = "allowance", *, max_micros: int = 20_000) -> AllowanceId:
    """Issue an allowance to Alice for ``HOST``."""
    asked = order_of(name, max_micros=max_micros)
    assert isinstance(place_order(writing, ISSUER, asked, now_ns=NOW_NS), bytes)
    return asked.allowance_id


def close_of(final_cum_micros: int, *, name: str = "allowance") -> Signed[Close]:
    """Return ``HOST``'s close."""
    value = Close(
        network_id=NETWORK,
        allowance_id=AllowanceId(id_bytes(name)),
        host_peer_id=HOST.peer_id,
        final_cum_micros=final_cum_micros,
    )
    return sealed(HOST, CLOSE, value)


def require_right_books(store: Store) -> None:
    """Fail unless every rule of the books holds."""
    with store.reading() as reading:
        check = check_ledger(reading)
    assert check.problems == ()
    assert check.is_ok
