"""The probe inside a sandbox: a test module supplies ``launcher``; none of it may get out."""

from peer.host.engines.launcher import Launcher
from peer.host.sandbox.check import KNOWN_GAPS, escapes, try_to_escape

ATTEMPTS_COUNT_MIN = 45


async def test_nothing_escapes(launcher: Launcher) -> None:
    attempts = await try_to_escape(launcher)
    assert len(attempts) >= ATTEMPTS_COUNT_MIN
    assert escapes(attempts, launcher.name) == []
    gaps = KNOWN_GAPS.get(launcher.name, frozenset())
    assert {each.name for each in attempts if each.escaped} == gaps  # what is closed is said
