"""A challenge that settlement gives, so that others may know of it."""

from collections.abc import Callable
from dataclasses import dataclass

from p2p.hardware.report import HardwareReport
from p2p.puzzle import puzzle_of
from peer.host.challenge.local import Claim, require_device, require_room
from peer.host.challenge.prover import Runtime, Solved, open_prover
from peer.settlement_client import ChallengeEnded, SettlementClient

CPU = "cpu"


@dataclass(frozen=True, slots=True)
class RemoteResult:
    """How it went.

    Attributes:
        ended: What settlement says.
    """

    ended: ChallengeEnded
    solved: Solved


async def run_remote(
    client: SettlementClient,
    report: HardwareReport,
    claim: Claim,
    runtime: Runtime,
    *,
    on_progress: Callable[[float], None],
) -> RemoteResult:
    """Report this machine, ask for a seed, solve it here, and show what is asked for.

    Args:
        client: Settlement, as this host.
        report: This machine.
        claim: Which device; all of a GPU's memory, or some of the processor's.
        runtime: Who computes; its GPU is the claim's.
        on_progress: Called with the share that is done.

    Raises:
        ChallengeError: If it could not be carried out here.
        SettlementUnreachableError: If settlement gave no usable answer.
        SettlementRefusedError: If it said no: a GPU of another host, too soon, too late.
    """
    await client.report_hardware(report)
    device = runtime.gpu_uuid if claim.is_gpu else CPU
    require_room(puzzle_of(bytes(32), claim.memory_bytes), claim)
    issued = await client.issue_challenge(device, claim.memory_bytes)
    puzzle = puzzle_of(issued.seed_bytes, issued.memory_bytes)
    async with open_prover(runtime, puzzle) as prover:
        solved = await prover.solve(on_progress)
        require_device(claim, solved)
        asked = await client.commit_challenge(issued.challenge_id, solved.roots)
        answer = await prover.show(asked.samples)
        ended = await client.answer_challenge(issued.challenge_id, answer, solved.speeds)
    return RemoteResult(ended, solved)
