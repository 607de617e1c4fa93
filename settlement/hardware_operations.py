"""Who has which GPU, and whose memory is proven: rules, inside the store's transaction. Pure.

A GPU's uuid belongs to one host at a time. It renews its claim with every report, several times
an hour. Another host gets the GPU

- at once, if the holder reports that it has it no more, or was shut out;
- 15 minutes after the holder's last report, if both belong to one account: the owner moved the
  card, or made a new key. Two live hosts with one card never both pass, not even of one owner;
- 24 hours after it, if they don't: the card was sold. Who learns another's uuid can't take it
  while that host is down for a night.

A claim before that is refused, and kept with its signature.
"""

import enum
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import msgspec

from p2p import limits
from p2p.hardware.report import GpuFacts, HardwareReport
from p2p.hardware.verdict import Card, Level, Speeds, misfits
from p2p.puzzle import MEMORY_BYTES_MIN, Puzzle, Sample, puzzle_of, samples_of
from settlement.hardware_store import (
    Challenge,
    GpuClaim,
    GpuConflict,
    MemoryProof,
    StoredReport,
)
from settlement.store import Machine, Reading, Writing

CPU = "cpu"
SAME_OWNER_FREE_NS = 15 * limits.MINUTE_NS
OTHER_OWNER_FREE_NS = limits.DAY_NS
REPORT_TTL_NS = limits.DAY_NS  # a host reports every few minutes; after a day it is gone
PROOF_TTL_NS = 30 * limits.DAY_NS
REST_NS = 5 * limits.MINUTE_NS  # between two challenges of one device: a check costs 50 ms
FILL_BASE_NS = 60 * limits.SECOND_NS  # to start, import and measure
FILL_BYTES_PER_S_MIN = 400_000_000  # one slow core hashes so fast; hashing is the slowest part
ANSWER_NS_MAX = 30 * limits.SECOND_NS  # the memory is still full: only reading and sending


@dataclass(frozen=True, slots=True)
class Request:
    """A signed request and what it said, as evidence."""

    body: bytes
    proof: bytes


def read_report(body: bytes) -> HardwareReport:
    """Return what the body of a report says.

    Raises:
        ValueError: If it is none.
    """
    return msgspec.json.decode(body, type=HardwareReport)


def stored_report(store: Reading, peer_id: str) -> HardwareReport | None:
    """Return a host's newest report."""
    stored = store.hardware.report(peer_id)
    return read_report(stored.body) if stored else None


# -- reports ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GpuTaken:
    """Why a report was refused.

    Attributes:
        free_at_ns: When the claimant may have the GPU if the holder says nothing until then.
    """

    claim: GpuClaim
    free_at_ns: int


def take_report(
    store: Writing, machine: Machine, report: HardwareReport, request: Request, *, now_ns: int
) -> GpuTaken | None:
    """Take a host's report, or keep as evidence that it claims another's GPU.

    Args:
        store: The transaction.
        machine: Who reports.
        report: What ``request`` says.
        request: As it came.
        now_ns: Settlement's clock.

    Returns:
        Which GPU is another's; None if the report was taken.
    """
    uuids = {gpu.uuid for gpu in report.gpus}
    held = store.hardware.claims(uuids)
    others = [claim for claim in held.values() if claim.peer_id != machine.peer_id]
    for claim in sorted(others, key=lambda claim: claim.uuid):
        free_at_ns = _free_at_ns(store, claim, machine)
        if now_ns < free_at_ns:
            store.hardware.put_conflict(
                GpuConflict(
                    claim.uuid, machine.peer_id, claim.peer_id, now_ns, request.body, request.proof
                )
            )
            return GpuTaken(claim, free_at_ns)
    for peer_id in {claim.peer_id for claim in others}:
        _forget(store, peer_id)
    mine = {claim.uuid: claim for claim in store.hardware.claims_of(machine.peer_id)}
    gone = mine.keys() - uuids
    store.hardware.drop_claims(gone)
    store.hardware.drop_proofs(machine.peer_id, gone)
    fresh = {uuid: GpuClaim(uuid, machine.peer_id, now_ns, now_ns) for uuid in uuids}
    store.hardware.put_claims(
        replace(mine.get(uuid, claim), seen_at_ns=now_ns) for uuid, claim in fresh.items()
    )
    store.hardware.put_report(StoredReport(machine.peer_id, request.body, request.proof, now_ns))
    return None


def _free_at_ns(store: Reading, claim: GpuClaim, claimant: Machine) -> int:
    holder = store.machine(claim.peer_id)
    if holder is None or holder.revoked_at_ns:
        return 0
    same = holder.account_id == claimant.account_id
    return claim.seen_at_ns + (SAME_OWNER_FREE_NS if same else OTHER_OWNER_FREE_NS)


def release(store: Writing, uuid: str) -> GpuClaim | None:
    """Take a GPU from whoever holds it, with all that this host reported; the operator's word."""
    claim = store.hardware.claims((uuid,)).get(uuid)
    if claim is not None:
        _forget(store, claim.peer_id)
    return claim


def _forget(store: Writing, peer_id: str) -> None:
    """Forget all that a host reported: what it has without that GPU, it must say anew."""
    uuids = [claim.uuid for claim in store.hardware.claims_of(peer_id)]
    store.hardware.drop_claims(uuids)
    store.hardware.drop_proofs(peer_id, uuids)
    store.hardware.drop_report(peer_id)


# -- challenges ---------------------------------------------------------------------------------


class ChallengeRefusal(enum.Enum):
    """Why a challenge does not go on."""

    NO_REPORT = "no_report"
    NO_DEVICE = "no_such_device"
    BAD_MEMORY = "bad_memory"
    TOO_SOON = "too_soon"
    UNKNOWN = "challenge_not_found"
    OTHER_COMMITMENT = "other_commitment"
    NOT_COMMITTED = "not_committed"
    LATE = "late"
    OVER = "over"


@dataclass(frozen=True, slots=True)
class Wish:
    """What a host wants to prove.

    Attributes:
        device: A GPU's uuid, or ``cpu``.
        memory_bytes: For a GPU all of it; for the processor what the host offers.
    """

    device: str
    memory_bytes: int


def issue_challenge(
    store: Writing,
    machine: Machine,
    wish: Wish,
    fresh: tuple[str, bytes],
    *,
    now_ns: int,
) -> Challenge | ChallengeRefusal:
    """Give a host something to solve.

    Args:
        store: The transaction.
        machine: The host.
        wish: What it wants to prove.
        fresh: An id of 32 hex digits and a seed of 32 bytes that nobody could know before.
        now_ns: Settlement's clock.
    """
    report = stored_report(store, machine.peer_id)
    if report is None:
        return ChallengeRefusal.NO_REPORT
    most = _memory_bytes_of(report, wish.device)
    if most is None:
        return ChallengeRefusal.NO_DEVICE
    is_whole = wish.device == CPU or wish.memory_bytes == most
    if not MEMORY_BYTES_MIN <= wish.memory_bytes <= most or not is_whole:
        return ChallengeRefusal.BAD_MEMORY
    last = store.hardware.challenge_of(machine.peer_id, wish.device)
    if last is not None and now_ns < last.issued_at_ns + REST_NS:
        return ChallengeRefusal.TOO_SOON
    challenge_id, seed = fresh
    fill_ns = FILL_BASE_NS + wish.memory_bytes * limits.SECOND_NS // FILL_BYTES_PER_S_MIN
    challenge = Challenge(
        challenge_id,
        machine.peer_id,
        wish.device,
        seed,
        wish.memory_bytes,
        now_ns,
        now_ns + fill_ns,
    )
    store.hardware.put_challenge(challenge)
    return challenge


def commit(
    store: Writing,
    machine: Machine,
    challenge_id: str,
    roots: bytes,
    below: Callable[[int], int],
    *,
    now_ns: int,
) -> Challenge | ChallengeRefusal:
    """Take a host's commitment, once, and choose what it must show.

    Args:
        store: The transaction.
        machine: The host.
        challenge_id: Which.
        roots: Of all rows.
        below: Chance: returns a number below its argument.
        now_ns: Settlement's clock.
    """
    challenge = _own(store, machine, challenge_id)
    if challenge is None:
        return ChallengeRefusal.UNKNOWN
    if challenge.roots:
        same = challenge.roots == roots and not challenge.is_over
        return challenge if same else ChallengeRefusal.OTHER_COMMITMENT
    if now_ns > challenge.commit_by_ns:
        return ChallengeRefusal.LATE
    samples = samples_of(puzzle_for(challenge), below)
    committed = replace(
        challenge,
        roots=roots,
        samples=json.dumps(samples),
        answer_by_ns=now_ns + ANSWER_NS_MAX,
    )
    store.hardware.put_challenge(committed)
    return committed


def answerable(
    store: Reading, machine: Machine, challenge_id: str, *, now_ns: int
) -> Challenge | ChallengeRefusal:
    """Return a challenge that may be answered now, or why not."""
    challenge = _own(store, machine, challenge_id)
    if challenge is None:
        return ChallengeRefusal.UNKNOWN
    if challenge.is_over:
        return ChallengeRefusal.OVER
    if not challenge.roots:
        return ChallengeRefusal.NOT_COMMITTED
    return ChallengeRefusal.LATE if now_ns > challenge.answer_by_ns else challenge


@dataclass(frozen=True, slots=True)
class Answer:
    """A host's answer after its check.

    Attributes:
        fault: What is wrong in it; empty if it is right.
        speeds: As the host measured.
        proof: The envelope that signs it.
    """

    fault: str
    speeds: Speeds
    proof: bytes


def finish_challenge(
    store: Writing,
    challenge: Challenge,
    answer: Answer,
    cards: Mapping[str, Card],
    *,
    now_ns: int,
) -> MemoryProof | ChallengeRefusal:
    """Write how a challenge ended, once.

    Args:
        store: The transaction.
        challenge: As ``answerable`` gave it.
        answer: Checked.
        cards: What each kind of card does.
        now_ns: Settlement's clock.
    """
    report = stored_report(store, challenge.peer_id)
    if store.hardware.challenge(challenge.challenge_id) != challenge or report is None:
        return ChallengeRefusal.OVER
    gpu = _gpu_of(report, challenge.device)
    problems = [answer.fault] if answer.fault else []
    if gpu is not None:
        problems += misfits(gpu.name, gpu.memory_bytes, answer.speeds, cards)
    proof = MemoryProof(
        challenge.peer_id,
        challenge.device,
        0 if answer.fault else puzzle_for(challenge).fill_bytes,
        round(answer.speeds.copy_gb_per_s * 1000),
        round(answer.speeds.matmul_tflops * 1000),
        "\n".join(problems),
        now_ns,
        answer.proof,
    )
    store.hardware.put_proof(proof)
    store.hardware.put_challenge(replace(challenge, is_over=True))
    return proof


def puzzle_for(challenge: Challenge) -> Puzzle:
    """Return what a challenge asks to be solved."""
    return puzzle_of(challenge.seed, challenge.memory_bytes)


def samples_for(challenge: Challenge) -> tuple[Sample, ...]:
    """Return what a host that has committed must show."""
    return tuple((int(row), int(segment)) for row, segment in json.loads(challenge.samples))


def _own(store: Reading, machine: Machine, challenge_id: str) -> Challenge | None:
    challenge = store.hardware.challenge(challenge_id)
    return challenge if challenge and challenge.peer_id == machine.peer_id else None


def _gpu_of(report: HardwareReport, device: str) -> GpuFacts | None:
    return next((gpu for gpu in report.gpus if gpu.uuid == device), None)


def _memory_bytes_of(report: HardwareReport, device: str) -> int | None:
    if device == CPU:
        return report.memory_bytes
    gpu = _gpu_of(report, device)
    return gpu.memory_bytes if gpu else None


# -- what is known ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DeviceView:
    """A GPU, or the processor, without what would name its very piece.

    Attributes:
        proof: How its last challenge ended; None if there was none, or too long ago.
    """

    kind: str
    name: str
    memory_bytes: int
    proof: MemoryProof | None

    @property
    def is_proven(self) -> bool:
        """Whether its memory was shown and nothing contradicts its name."""
        return self.proof is not None and not self.proof.problems


@dataclass(frozen=True, slots=True)
class HardwareView:
    """What is known of a host's hardware."""

    level: Level
    reported_at_ns: int
    devices: tuple[DeviceView, ...]


def hardware_view(store: Reading, peer_id: str, *, now_ns: int) -> HardwareView:
    """Return what is known of a host: every GPU of it must be proven for it to count so.

    Args:
        store: A view.
        peer_id: The host.
        now_ns: Settlement's clock.
    """
    stored = store.hardware.report(peer_id)
    if stored is None or now_ns > stored.at_ns + REPORT_TTL_NS:
        return HardwareView(Level.NONE, 0, ())
    report = read_report(stored.body)
    proofs = {
        proof.device: proof
        for proof in store.hardware.proofs_of(peer_id)
        if now_ns <= proof.at_ns + PROOF_TTL_NS
    }
    devices = tuple(
        DeviceView("gpu", gpu.name, gpu.memory_bytes, proofs.get(gpu.uuid)) for gpu in report.gpus
    ) or (DeviceView("cpu", report.cpu_name, report.memory_bytes, proofs.get(CPU)),)
    is_proven = all(device.is_proven for device in devices)
    level = Level.CHALLENGED if is_proven else Level.SELF_REPORTED
    return HardwareView(level, stored.at_ns, devices)
