"""Joining this host to its owner's account: a one-time code, and the node key that signs it."""

import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import trio

from p2p.clock import system_clock
from p2p.errors import DataDirectoryError
from p2p.keys import load_or_create_key, load_seed, lock_data_directory
from p2p.network import NetworkInfo
from p2p.signing import SecretKey
from peer.host.journal import open_journal
from peer.host.main import JOURNAL_NAME, KEY_NAME
from peer.host.settle import keep_account
from peer.settlement_client import (
    SettlementClient,
    SettlementError,
    SettlementRefusedError,
    account_of_code,
)
from sparewatt.problems import Problem

SETTLEMENT_SECONDS_MAX = 10.0
ResultT = TypeVar("ResultT")
_NOT_ENROLLED = "not_enrolled"


@dataclass(frozen=True, slots=True)
class Membership:
    """How this host stands with settlement.

    Attributes:
        is_member: Whether it belongs to an account; None if settlement did not say.
        problem: Why it is not known.
    """

    is_member: bool | None
    problem: str = ""


def membership(network: NetworkInfo, data_dir: Path) -> Membership:
    """Ask settlement whether this host belongs to an account; a host without key does not."""

    def sealed() -> str:
        raise DataDirectoryError("its key is sealed")

    try:
        key = SecretKey(load_seed(data_dir / KEY_NAME, sealed))
    except FileNotFoundError:
        return Membership(is_member=False)
    except DataDirectoryError as error:
        return Membership(None, str(error))

    async def ask(client: SettlementClient) -> Membership:
        try:
            await client.earnings()
        except SettlementRefusedError as error:
            is_unknown = error.code == _NOT_ENROLLED
            return Membership(is_member=False) if is_unknown else Membership(None, str(error))
        return Membership(is_member=True)

    try:
        return _with_client(network, key, ask)
    except SettlementError as error:
        return Membership(None, str(error))


def checked_code(code: str) -> str:
    """Return a code that may be one, or an empty one.

    Raises:
        Problem: If it is none; never shows it.
    """
    if not code:
        return ""
    with contextlib.suppress(ValueError, SettlementError):
        account_of_code(code)
        return code
    raise Problem("that is no one-time code", "settlement's operator, or its web page, makes one")


def enrol(network: NetworkInfo, data_dir: Path, code: str) -> str:
    """Join this host to the account of a code; makes its key and its journal if there is none.

    Returns:
        The account's id.

    Raises:
        Problem: If settlement says no, or nothing.
        DataDirectoryError: If a host runs on the directory.
        JournalError: If the journal can't be used.
    """
    with lock_data_directory(data_dir):
        key = load_or_create_key(data_dir / KEY_NAME)

        async def ask(client: SettlementClient) -> str:
            async with open_journal(data_dir / JOURNAL_NAME):
                pass  # a code is good once: it is not spent where nothing can be kept
            enrolled = await client.enrol(code, "host")
            async with open_journal(data_dir / JOURNAL_NAME) as journal:
                keep_account(journal, enrolled)
            return enrolled.account_id

        try:
            return _with_client(network, key, ask)
        except SettlementRefusedError as error:
            advice = "get a new one-time code for a host and run `sparewatt host init` again"
            raise Problem(f"settlement did not take the code: {error}", advice) from error
        except SettlementError as error:
            advice = "the code is still good: run `sparewatt host init` again when it answers"
            raise Problem(str(error), advice) from error


def _with_client(
    network: NetworkInfo, key: SecretKey, ask: Callable[[SettlementClient], Awaitable[ResultT]]
) -> ResultT:
    async def run() -> ResultT:
        async with SettlementClient(
            network.settlement_url,
            key,
            network.network_id,
            system_clock,
            root_key=network.root_key,
        ) as client:
            with trio.fail_after(SETTLEMENT_SECONDS_MAX):
                return await ask(client)

    try:
        return trio.run(run)
    except trio.TooSlowError as error:
        raise SettlementError(f"no answer within {SETTLEMENT_SECONDS_MAX:g} s") from error
