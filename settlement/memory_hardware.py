"""Hardware rows in memory; the same suite as SQLite's."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, fields

from settlement.hardware_store import (
    Challenge,
    GpuClaim,
    GpuConflict,
    MemoryProof,
    StoredReport,
)


@dataclass(slots=True)
class MemoryHardware:
    """The tables, and the open transaction on a copy of them."""

    _reports: dict[str, StoredReport] = field(default_factory=dict)
    _claims: dict[str, GpuClaim] = field(default_factory=dict)
    _conflicts: dict[tuple[str, str], GpuConflict] = field(default_factory=dict)
    _challenges: dict[tuple[str, str], Challenge] = field(default_factory=dict)
    _proofs: dict[tuple[str, str], MemoryProof] = field(default_factory=dict)

    def __copy__(self) -> "MemoryHardware":
        return MemoryHardware(*(getattr(self, each.name).copy() for each in fields(self)))

    def report(self, peer_id: str) -> StoredReport | None:
        """Return a host's report."""
        return self._reports.get(peer_id)

    def claims(self, uuids: Collection[str]) -> dict[str, GpuClaim]:
        """Return those of the GPUs that somebody holds."""
        return {uuid: self._claims[uuid] for uuid in uuids if uuid in self._claims}

    def claims_of(self, peer_id: str) -> tuple[GpuClaim, ...]:
        """Return what a host holds."""
        own = (claim for claim in self._claims.values() if claim.peer_id == peer_id)
        return tuple(sorted(own, key=lambda claim: claim.uuid))

    def conflicts(self, *, rows_max: int) -> tuple[GpuConflict, ...]:
        """Return the newest quarrels, newest first."""
        newest = sorted(self._conflicts.values(), key=lambda each: (-each.at_ns, each.uuid))
        return tuple(newest[:rows_max])

    def challenge(self, challenge_id: str) -> Challenge | None:
        """Return a challenge."""
        found = (c for c in self._challenges.values() if c.challenge_id == challenge_id)
        return next(found, None)

    def challenge_of(self, peer_id: str, device: str) -> Challenge | None:
        """Return the last challenge of a device."""
        return self._challenges.get((peer_id, device))

    def proofs_of(self, peer_id: str) -> tuple[MemoryProof, ...]:
        """Return how the last challenge of each of a host's devices ended."""
        own = (proof for proof in self._proofs.values() if proof.peer_id == peer_id)
        return tuple(sorted(own, key=lambda proof: proof.device))

    def put_report(self, report: StoredReport) -> None:
        """Write a host's report."""
        self._reports[report.peer_id] = report

    def drop_report(self, peer_id: str) -> None:
        """Forget a host's report."""
        self._reports.pop(peer_id, None)

    def put_claims(self, claims: Iterable[GpuClaim]) -> None:
        """Write who holds which GPU."""
        self._claims |= {claim.uuid: claim for claim in claims}

    def drop_claims(self, uuids: Collection[str]) -> None:
        """Forget who holds some GPUs."""
        for uuid in uuids:
            self._claims.pop(uuid, None)

    def put_conflict(self, conflict: GpuConflict) -> None:
        """Write a quarrel, in the place of an older one of the same host over the same GPU."""
        self._conflicts[conflict.uuid, conflict.peer_id] = conflict

    def put_challenge(self, challenge: Challenge) -> None:
        """Write a challenge, in the place of an older one of the same device."""
        self._challenges[challenge.peer_id, challenge.device] = challenge

    def put_proof(self, proof: MemoryProof) -> None:
        """Write how a challenge ended, in the place of an older one of the same device."""
        self._proofs[proof.peer_id, proof.device] = proof

    def drop_proofs(self, peer_id: str, devices: Collection[str]) -> None:
        """Forget the proofs and challenges of devices that a host has no more."""
        for device in devices:
            self._proofs.pop((peer_id, device), None)
            self._challenges.pop((peer_id, device), None)
