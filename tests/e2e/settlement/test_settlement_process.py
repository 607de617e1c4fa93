"""Settlement as a real process: started, killed, started again."""

import contextlib
import secrets
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import trio

from p2p.clock import system_clock
from p2p.errors import AddressInUseError, DataDirectoryError
from p2p.receipts.messages import VOUCHER, Voucher
from p2p.signing import SecretKey, seal
from p2p.types import GENESIS_HEAD, AllowanceId, NetworkId
from peer.settlement_client import SettlementClient, SettlementUnreachableError
from settlement import admin
from settlement.keys import load_network
from settlement.main import SettlementConfig, init_network, serve
from settlement.testing import running_settlement

pytestmark = pytest.mark.sockets
NETWORK = NetworkId("test")
SERVER = Path(__file__).with_name("settlement_server.py")
CLIENTS_COUNT = 16


@contextlib.contextmanager
def server(data_dir):
    process = subprocess.Popen(
        [sys.executable, str(SERVER), str(data_dir)], stdout=subprocess.PIPE, text=True
    )
    try:
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:")
        yield process, url
    finally:
        process.kill()
        process.wait(10)
        process.stdout.close()


def client(url, key, root_key):
    return SettlementClient(url, key, NETWORK, system_clock, root_key=root_key)


def new_key():
    return SecretKey(secrets.token_bytes(32))


@dataclass
class Load:
    """Sixteen gateways that raise one allowance each, until settlement is gone."""

    url: str
    data_dir: Path
    host: SecretKey = field(default_factory=new_key)
    acknowledged: dict[AllowanceId, int] = field(default_factory=dict)
    acknowledged_count: int = 0

    async def run(self, enough: int, kill) -> None:
        self._enough, self._is_enough = enough, trio.Event()
        root_key = load_network(self.data_dir).root_key
        bob, _ = admin.add_account(self.data_dir, "Bob")
        async with client(self.url, self.host, root_key) as host:
            await host.enrol(admin.enrolment_code(self.data_dir, bob, "host"), "host")
        async with trio.open_nursery() as nursery:
            for _ in range(CLIENTS_COUNT):
                nursery.start_soon(self._one, root_key)
            await self._is_enough.wait()
            kill()

    async def _one(self, root_key) -> None:
        account, _ = admin.add_account(self.data_dir, "Alice")
        admin.credit(self.data_dir, account, 20_000, credit_id=account)
        code = admin.enrolment_code(self.data_dir, account, "gateway")
        allowance_id, wallet = AllowanceId(secrets.token_bytes(16)), new_key()
        with contextlib.suppress(SettlementUnreachableError):
            async with client(self.url, new_key(), root_key) as gateway:
                await gateway.enrol(code, "gateway")
                await gateway.allowance(
                    allowance_id=allowance_id,
                    host_peer_id=self.host.peer_id,
                    wallet_key=wallet.public,
                    max_micros=20_000,
                    duration_s=3600,
                )
                self.acknowledged[allowance_id] = 0
                for sequence in range(1, 20_000):
                    value = Voucher(
                        network_id=NETWORK,
                        allowance_id=allowance_id,
                        host_peer_id=self.host.peer_id,
                        sequence=sequence,
                        cum_micros=sequence,
                        chain_head=GENESIS_HEAD,
                    )
                    (result,) = await gateway.vouchers([seal(wallet, VOUCHER, value)])
                    self.acknowledged[allowance_id] = result.cum_micros
                    self.acknowledged_count += 1
                    if self.acknowledged_count >= self._enough:
                        self._is_enough.set()


def test_kill_under_load_of_sixteen_loses_nothing_acknowledged(tmp_path):
    with server(tmp_path) as (process, url):
        load = Load(url, tmp_path)
        trio.run(load.run, 300, process.kill)
    assert len(load.acknowledged) == CLIENTS_COUNT
    with server(tmp_path) as (_, url):
        check = httpx.get(f"{url}/v1/ledger/check", trust_env=False).json()
        assert check["ok"], check
        token = (tmp_path / "operator-token").read_text().strip()
        balances = httpx.get(
            f"{url}/v1/ledger/balances",
            headers={"authorization": f"Bearer {token}"},
            trust_env=False,
        ).json()["balances"]
    posted = balances[f"host:payable:{load.host.peer_id}"] + balances.get("platform:fee", 0)
    acknowledged = sum(load.acknowledged.values())
    assert acknowledged <= posted <= acknowledged + CLIENTS_COUNT


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_settlement_with_status_0(tmp_path, sent):
    with server(tmp_path) as (process, url), httpx.Client(trust_env=False) as http:
        assert http.get(f"{url}/health").status_code == 200  # the connection stays open
        process.send_signal(sent)
        assert process.wait(8) == 0


def test_port_in_use_is_refused(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = SettlementConfig(tmp_path, NETWORK, port=taken.getsockname()[1])
        with pytest.raises(AddressInUseError, match="--port"):
            serve(config, ready=lambda _: None)


def test_data_directory_in_use_or_of_another_network_is_refused(tmp_path):
    config = SettlementConfig(tmp_path, NETWORK)
    with (
        running_settlement(tmp_path, NETWORK),
        pytest.raises(DataDirectoryError, match="in use by pid"),
    ):
        serve(config, ready=lambda _: None)
    with pytest.raises(DataDirectoryError, match="belongs to network 'test'"):
        serve(SettlementConfig(tmp_path, NetworkId("other")), ready=lambda _: None)


def test_keys_are_private_and_stay_the_same(tmp_path):
    first = init_network(tmp_path, NETWORK)
    (tmp_path / "root.key").unlink()  # taken offline
    again = init_network(tmp_path, NETWORK)
    assert (again.root_key, again.signing_key.public, again.secret, again.key_list) == (
        first.root_key,
        first.signing_key.public,
        first.secret,
        first.key_list,
    )
    for name in ("signing.key", "secret.key", "key-list.json", "operator-token"):
        assert (tmp_path / name).stat().st_mode & 0o077 == 0, name


def test_key_file_that_others_may_read_is_refused(tmp_path):
    init_network(tmp_path, NETWORK)
    (tmp_path / "signing.key").chmod(0o644)
    with pytest.raises(DataDirectoryError, match="chmod 600"):
        serve(SettlementConfig(tmp_path, NETWORK), ready=lambda _: None)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"network_id": 5, "key_list": "x"}', "\x00"])
def test_key_list_that_is_broken_is_refused(tmp_path, content):
    init_network(tmp_path, NETWORK)
    (tmp_path / "key-list.json").write_text(content)
    with pytest.raises(DataDirectoryError):
        load_network(tmp_path)


def test_admin_without_settlement_says_so(tmp_path):
    with pytest.raises(DataDirectoryError, match="settlement init"):
        admin.add_account(tmp_path / "nothing", "Alice")


def test_admin_refuses_what_makes_no_sense(tmp_path):
    init_network(tmp_path, NETWORK)
    account, _ = admin.add_account(tmp_path, "Alice")
    for refused in (
        lambda: admin.add_account(tmp_path, ""),
        lambda: admin.add_token(tmp_path, "acct_nobody"),
        lambda: admin.credit(tmp_path, "acct_nobody", 5, credit_id="c"),
        lambda: admin.credit(tmp_path, account, 0, credit_id="c"),
        lambda: admin.credit(tmp_path, account, 5, credit_id=""),
        lambda: admin.credit(tmp_path, account, 5, credit_id="c", hold_s=-1),
        lambda: admin.enrolment_code(tmp_path, account, "owner"),
        lambda: admin.enrolment_code(tmp_path, "acct_nobody", "host"),
        lambda: admin.revoke_token(tmp_path, "sw_pat_x"),
        lambda: admin.revoke_machine(tmp_path, "12D3KooW"),
    ):
        with pytest.raises(admin.AdminRefusedError):
            refused()
    admin.credit(tmp_path, account, 5, credit_id="c", promo=True, hold_s=60)
