"""A whole settlement for the tests of others: real HTTP, real database, in a thread.

It is the product itself; only its thread and its clock are the test's.
"""

import contextlib
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from p2p.clock import WallClock, system_clock
from p2p.types import NetworkId, PublicKey
from settlement import admin
from settlement.keys import load_network, operator_token
from settlement.main import Ready, SettlementConfig, serve

START_WAIT_S = 20
STOP_WAIT_S = 10


@dataclass(frozen=True, slots=True)
class RunningSettlement:
    """A settlement that answers.

    Attributes:
        root_key: For the network file.
        clock: The one that it runs by.
    """

    url: str
    data_dir: Path
    network_id: NetworkId
    root_key: PublicKey
    clock: WallClock = system_clock

    @property
    def operator_token(self) -> str:
        """The operator's bearer token."""
        return operator_token(self.data_dir)

    def add_account(self, name: str, *, micros: int = 0) -> tuple[str, str]:
        """Make an account with some credit; return its id and token."""
        account_id, token = admin.add_account(self.data_dir, name, clock=self.clock)
        if micros:
            admin.credit(self.data_dir, account_id, micros, credit_id=f"first-{account_id}")
        return account_id, token

    def code(self, account_id: str, role: str) -> str:
        """Return a one-time enrolment code."""
        return admin.enrolment_code(self.data_dir, account_id, role, clock=self.clock)


@contextlib.contextmanager
def running_settlement(
    data_dir: Path,
    network_id: NetworkId,
    *,
    fee_bps: int = 500,
    clock: WallClock = system_clock,
    port: int = 0,
) -> Iterator[RunningSettlement]:
    """Run settlement in a thread for as long as the block lasts."""
    told: queue.Queue[Ready | BaseException] = queue.Queue()
    config = SettlementConfig(data_dir, network_id, port=port, fee_bps=fee_bps)

    def run() -> None:
        try:
            serve(config, ready=told.put, clock=clock)
        except BaseException as error:  # noqa: BLE001 - handed to the test's thread
            told.put(error)

    thread = threading.Thread(target=run, name="settlement", daemon=True)
    thread.start()
    first = told.get(timeout=START_WAIT_S)
    if isinstance(first, BaseException):
        raise first
    try:
        keys = load_network(data_dir)
        yield RunningSettlement(first.url, data_dir, network_id, keys.root_key, clock)
    finally:
        first.stop()
        thread.join(STOP_WAIT_S)
        if thread.is_alive():
            raise RuntimeError("settlement did not stop")
