"""A real vLLM without podman: sealed in by bubblewrap. (test_vllm_all_rows.py has podman's.)"""

from pathlib import Path

import pytest
from rows_kit import CALL, calls
from sealed_kit import seal_problems, sealed_vllm, servers_in
from vllm_kit import left_of

from p2p.types import Feature
from peer.host.sandbox.settings import SandboxKind

pytestmark = pytest.mark.vllm


def test_vllm_serves_sealed_in_by_bubblewrap_and_leaves_nothing(tmp_path: Path) -> None:
    with sealed_vllm(SandboxKind.BUBBLEWRAP, tmp_path) as live:
        servers = servers_in(tmp_path)
        assert servers
        assert [problem for each in servers for problem in seal_problems(each)] == []
        processes = [each for server in servers for each in (server, *server.children(True))]
        assert {Feature.STREAM, Feature.LOGPROBS, Feature.JSON_SCHEMA, Feature.TOOLS} <= set(
            live.model.features
        )
        plain = live.ask()
        assert plain.text
        assert calls("f")(live.ask(**CALL, tool_choice="required"), plain)
    assert left_of(processes) == []
