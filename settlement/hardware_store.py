"""What settlement keeps of hosts' hardware: reports, who holds which GPU, challenges, proofs.

Each row that accuses or credits somebody holds the signed request that made it, so that it can be
shown to others: a request proof names method, path, time and the hash of the body.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Protocol

from p2p.types import PeerId


@dataclass(frozen=True, slots=True)
class StoredReport:
    """The newest report of a host that was taken.

    Attributes:
        body: As it was sent.
        proof: The envelope that signs it.
        at_ns: When it came.
    """

    peer_id: PeerId
    body: bytes
    proof: bytes
    at_ns: int


@dataclass(frozen=True, slots=True)
class GpuClaim:
    """That a host has a GPU. There is at most one for each uuid.

    Attributes:
        claimed_at_ns: When it first said so.
        seen_at_ns: When it last did.
    """

    uuid: str
    peer_id: PeerId
    claimed_at_ns: int
    seen_at_ns: int


@dataclass(frozen=True, slots=True)
class GpuConflict:
    """That a host claimed a GPU which another one held: the newest such claim of each host.

    Attributes:
        peer_id: The claimant's.
        body: Its report; ``proof`` is the envelope that signs it.
    """

    uuid: str
    peer_id: PeerId
    holder_peer_id: PeerId
    at_ns: int
    body: bytes
    proof: bytes


@dataclass(frozen=True, slots=True)
class Challenge:
    """A memory challenge under way; a host has at most one for each device.

    Attributes:
        challenge_id: 32 hex digits.
        device: A GPU's uuid, or ``cpu``.
        roots: What the host committed to; empty before.
        samples: What it must show, as JSON; empty before it has committed.
        answer_by_ns: 0 before it has committed.
        is_over: Whether it was answered.
    """

    challenge_id: str
    peer_id: PeerId
    device: str
    seed: bytes
    memory_bytes: int
    issued_at_ns: int
    commit_by_ns: int
    roots: bytes = b""
    samples: str = ""
    answer_by_ns: int = 0
    is_over: bool = False


@dataclass(frozen=True, slots=True)
class MemoryProof:
    """How the last challenge of a device ended.

    Attributes:
        device: A GPU's uuid, or ``cpu``.
        proven_bytes: What was filled and shown; 0 if the answer was wrong.
        copy_mb_per_s: As the host measured; ``matmul_gflops`` likewise.
        problems: What does not fit, a line each; empty if all does.
        proof: The envelope that signs the answer.
    """

    peer_id: PeerId
    device: str
    proven_bytes: int
    copy_mb_per_s: int
    matmul_gflops: int
    problems: str
    at_ns: int
    proof: bytes


class HardwareReading(Protocol):
    """A consistent view of what is known of hardware."""

    def report(self, peer_id: str) -> StoredReport | None:
        """Return a host's report."""

    def claims(self, uuids: Collection[str]) -> dict[str, GpuClaim]:
        """Return those of the GPUs that somebody holds."""

    def claims_of(self, peer_id: str) -> tuple[GpuClaim, ...]:
        """Return what a host holds."""

    def conflicts(self, *, rows_max: int) -> tuple[GpuConflict, ...]:
        """Return the newest quarrels, newest first."""

    def challenge(self, challenge_id: str) -> Challenge | None:
        """Return a challenge."""

    def challenge_of(self, peer_id: str, device: str) -> Challenge | None:
        """Return the last challenge of a device."""

    def proofs_of(self, peer_id: str) -> tuple[MemoryProof, ...]:
        """Return how the last challenge of each of a host's devices ended."""


class HardwareWriting(HardwareReading, Protocol):
    """The same inside a transaction."""

    def put_report(self, report: StoredReport) -> None:
        """Write a host's report."""

    def drop_report(self, peer_id: str) -> None:
        """Forget a host's report."""

    def put_claims(self, claims: Iterable[GpuClaim]) -> None:
        """Write who holds which GPU."""

    def drop_claims(self, uuids: Collection[str]) -> None:
        """Forget who holds some GPUs."""

    def put_conflict(self, conflict: GpuConflict) -> None:
        """Write a quarrel, in the place of an older one of the same host over the same GPU."""

    def put_challenge(self, challenge: Challenge) -> None:
        """Write a challenge, in the place of an older one of the same device."""

    def put_proof(self, proof: MemoryProof) -> None:
        """Write how a challenge ended, in the place of an older one of the same device."""

    def drop_proofs(self, peer_id: str, devices: Collection[str]) -> None:
        """Forget the proofs and challenges of devices that a host has no more."""
