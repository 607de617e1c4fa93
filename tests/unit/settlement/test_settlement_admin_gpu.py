"""What the operator sees of quarrels over GPUs, and how he decides one."""

import contextlib

import pytest
from click.testing import CliRunner
from settlement_kit import HOST_MACHINE, fill

from p2p.testing.money import HOST, NETWORK, NOW_NS, key
from settlement.admin import AdminRefusedError, gpu_conflicts, release_gpu
from settlement.hardware_store import GpuClaim, GpuConflict
from settlement.keys import DATABASE_NAME, init_network
from settlement.store_sqlite import SqliteStore
from sparewatt.commands.settlement import settlement_command

UUID = "GPU-5f1f4ac8-6b14-3f7e-9d36-0c4f5a0d7c11"
CLAIMANT = key("claimant").peer_id
CONFLICT = GpuConflict(UUID, CLAIMANT, HOST.peer_id, NOW_NS, b"body", b"proof")


@pytest.fixture
def data_dir(tmp_path):
    init_network(tmp_path, NETWORK)
    store = SqliteStore(tmp_path / DATABASE_NAME)
    with contextlib.closing(store), store.writing() as writing:
        fill(writing)
        writing.hardware.put_claims([GpuClaim(UUID, HOST_MACHINE.peer_id, NOW_NS, NOW_NS)])
        writing.hardware.put_conflict(CONFLICT)
    return tmp_path


def test_operator_sees_conflicts_and_releases_a_gpu_once(data_dir):
    assert gpu_conflicts(data_dir) == (CONFLICT,)
    assert release_gpu(data_dir, UUID).peer_id == HOST.peer_id
    with pytest.raises(AdminRefusedError, match=f"no host holds a GPU {UUID}"):
        release_gpu(data_dir, UUID)


def test_command_lists_conflicts_and_releases(data_dir):
    def run(*arguments: str):
        return CliRunner().invoke(settlement_command, [*arguments, "--data", str(data_dir)])

    listed = run("gpu", "conflicts")
    assert f"{UUID}  claimed by {CLAIMANT}, held by {HOST.peer_id}" in listed.output
    released = run("gpu", "release", UUID)
    assert released.output == f"released {UUID}, which host {HOST.peer_id} held\n"
    assert run("gpu", "release", UUID).exit_code == 1
