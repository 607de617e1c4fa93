"""What the operator does at the machine itself: accounts, credit, tokens, codes.

These work on the data directory, beside a running server: SQLite lets one of them write at a
time, and the server keeps no copy of anything.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from p2p import limits
from p2p.clock import WallClock, system_clock
from p2p.errors import SparewattError
from settlement.hardware_operations import release
from settlement.hardware_store import GpuClaim, GpuConflict
from settlement.issuer import Issuer
from settlement.keys import (
    DATABASE_NAME,
    load_network,
    new_account_id,
    new_code,
    new_token,
    operator_token,
)
from settlement.operations import Credit, CreditOutcome, add_credit
from settlement.service import CODE_TTL_NS
from settlement.store import Account, Code, Store, Token, Writing
from settlement.store_sqlite import SqliteStore

ACCOUNT_NAME_CHARACTERS_MAX = 64
CREDIT_ID_CHARACTERS_MAX = 64
CONFLICTS_SHOWN_MAX = 100

_NO_ACCOUNT = (
    "there is no such account; an id looks like acct_45f975a4d14c1882, and "
    "`sparewatt settlement account add NAME` makes one"
)
_CREDIT_REFUSALS = {
    CreditOutcome.CONFLICT: "this credit id was used for another account or amount",
    CreditOutcome.NO_ACCOUNT: _NO_ACCOUNT,
    CreditOutcome.OUT_OF_RANGE: (
        f"the amount must be at least 1, and all money together at most {limits.MICROS_MAX}"
        " micro-dollars"
    ),
}


class AdminRefusedError(SparewattError):
    """Raised when an operator's order cannot be done; says why."""


def add_account(data_dir: Path, name: str, *, clock: WallClock = system_clock) -> tuple[str, str]:
    """Make an account; return its id and its first access token, which is shown only now.

    Raises:
        AdminRefusedError: If the name is empty or too long.
    """
    if not 0 < len(name) <= ACCOUNT_NAME_CHARACTERS_MAX:
        raise AdminRefusedError(f"a name has 1 to {ACCOUNT_NAME_CHARACTERS_MAX} characters")
    account = Account(new_account_id(), name, clock())
    with _writing(data_dir) as (store, issuer):
        store.put_account(account)
        return account.account_id, _add_token(store, issuer, account.account_id, clock())


def add_token(data_dir: Path, account_id: str, *, clock: WallClock = system_clock) -> str:
    """Return a further access token of an account.

    Raises:
        AdminRefusedError: If there is no such account.
    """
    with _writing(data_dir) as (store, issuer):
        _require_account(store, account_id)
        return _add_token(store, issuer, account_id, clock())


def revoke_token(data_dir: Path, token: str, *, clock: WallClock = system_clock) -> None:
    """Make a token worthless from now on.

    Raises:
        AdminRefusedError: If there is no such token.
    """
    with _writing(data_dir) as (store, issuer):
        found = store.token(issuer.hash_of(token))
        if found is None:
            raise AdminRefusedError("there is no such token")
        store.put_token(replace(found, revoked_at_ns=found.revoked_at_ns or clock()))


def revoke_machine(data_dir: Path, peer_id: str, *, clock: WallClock = system_clock) -> None:
    """Shut a node out: no request of it counts, no allowance names it any more.

    Raises:
        AdminRefusedError: If there is no such node.
    """
    with _writing(data_dir) as (store, _):
        found = store.machine(peer_id)
        if found is None:
            raise AdminRefusedError("no such node is enrolled")
        store.put_machine(replace(found, revoked_at_ns=found.revoked_at_ns or clock()))


def credit(
    data_dir: Path,
    account_id: str,
    micros: int,
    *,
    credit_id: str,
    promo: bool = False,
    hold_s: int = 0,
) -> CreditOutcome:
    """Give an account credit, once per credit id.

    Args:
        data_dir: Settlement's data directory.
        account_id: Who gets it.
        micros: At least 1.
        credit_id: Made by the caller; repeating it with the same amount changes nothing.
        promo: Whether the platform pays for it.
        hold_s: For how long hosts must wait for what they earn from it.

    Raises:
        AdminRefusedError: If it is refused; says why.
    """
    if not 0 < len(credit_id) <= CREDIT_ID_CHARACTERS_MAX:
        raise AdminRefusedError(f"a credit id has 1 to {CREDIT_ID_CHARACTERS_MAX} characters")
    if hold_s < 0:
        raise AdminRefusedError("a hold is 0 seconds or more")
    now_ns = system_clock()
    available_at_ns = now_ns + hold_s * limits.SECOND_NS if hold_s else 0
    asked = Credit(account_id, micros, credit_id, promo, available_at_ns)
    with _writing(data_dir) as (store, _):
        outcome = add_credit(store, asked, now_ns=now_ns)
    if outcome in _CREDIT_REFUSALS:
        raise AdminRefusedError(_CREDIT_REFUSALS[outcome])
    return outcome


def enrolment_code(
    data_dir: Path, account_id: str, role: str, *, clock: WallClock = system_clock
) -> str:
    """Return a one-time code with which one node may join an account, for a day.

    Raises:
        AdminRefusedError: If there is no such account or role.
    """
    if role not in ("host", "gateway"):
        raise AdminRefusedError(f"the role is host or gateway, not {role!r}")
    code = new_code(account_id)
    with _writing(data_dir) as (store, issuer):
        _require_account(store, account_id)
        expires_at_ns = clock() + CODE_TTL_NS
        store.put_code(Code(issuer.hash_of(code), account_id, role, expires_at_ns))
    return code


def release_gpu(data_dir: Path, uuid: str) -> GpuClaim:
    """Take a GPU from the host that holds it; whoever reports it next has it.

    Raises:
        AdminRefusedError: If nobody holds it.
    """
    with _writing(data_dir) as (store, _):
        claim = release(store, uuid)
    if claim is None:
        raise AdminRefusedError(f"no host holds a GPU {uuid}")
    return claim


def gpu_conflicts(data_dir: Path) -> tuple[GpuConflict, ...]:
    """Return the newest claims of GPUs that another host held, newest first."""
    with _writing(data_dir) as (store, _):
        return store.hardware.conflicts(rows_max=CONFLICTS_SHOWN_MAX)


def store_operator_token(data_dir: Path, store: Store, issuer: Issuer, *, now_ns: int) -> None:
    """Make the token in the operator's file good, if it is not yet."""
    name = issuer.hash_of(operator_token(data_dir))
    with store.writing() as writing:
        if writing.token(name) is None:
            writing.put_token(Token(name, "", now_ns))


def _add_token(store: Writing, issuer: Issuer, account_id: str, now_ns: int) -> str:
    token = new_token()
    store.put_token(Token(issuer.hash_of(token), account_id, now_ns))
    return token


def _require_account(store: Writing, account_id: str) -> None:
    if store.account(account_id) is None:
        raise AdminRefusedError(_NO_ACCOUNT)


@contextlib.contextmanager
def _writing(data_dir: Path) -> Iterator[tuple[Writing, Issuer]]:
    issuer = load_network(data_dir).issuer(fee_bps=0)
    store = SqliteStore(data_dir / DATABASE_NAME)
    with contextlib.closing(store), store.writing() as writing:
        yield writing, issuer
