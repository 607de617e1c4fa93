"""Hardware rows in SQLite."""

import json
import sqlite3
from collections.abc import Collection, Iterable
from dataclasses import astuple
from typing import cast

from p2p.types import PeerId
from settlement.hardware_store import (
    Challenge,
    GpuClaim,
    GpuConflict,
    MemoryProof,
    StoredReport,
)

Row = tuple[object, ...]
_GPU = "SELECT uuid, peer_id, claimed_at_ns, seen_at_ns FROM gpus"
_CHALLENGE = (
    "SELECT challenge_id, peer_id, device, seed, memory_bytes, issued_at_ns, commit_by_ns, roots,"
    " samples, answer_by_ns, is_over FROM challenges"
)


class SqliteHardware:
    """The tables through a connection, inside its transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def _rows(self, sql: str, *values: object) -> list[Row]:
        return cast(list[Row], self._connection.execute(sql, values).fetchall())

    def _put(self, table: str, *values: object) -> None:
        marks = ", ".join("?" * len(values))
        self._connection.execute(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", values)

    # -- reading --------------------------------------------------------------------------------

    def report(self, peer_id: str) -> StoredReport | None:
        """Return a host's report."""
        sql = "SELECT peer_id, body, proof, at_ns FROM hardware_reports WHERE peer_id = ?"
        return next(map(report_of, self._rows(sql, peer_id)), None)

    def claims(self, uuids: Collection[str]) -> dict[str, GpuClaim]:
        """Return those of the GPUs that somebody holds."""
        sql = f"{_GPU} WHERE uuid IN (SELECT value FROM json_each(?))"
        found = map(claim_of, self._rows(sql, json.dumps(sorted(uuids))))
        return {claim.uuid: claim for claim in found}

    def claims_of(self, peer_id: str) -> tuple[GpuClaim, ...]:
        """Return what a host holds."""
        sql = f"{_GPU} WHERE peer_id = ? ORDER BY uuid"
        return tuple(map(claim_of, self._rows(sql, peer_id)))

    def conflicts(self, *, rows_max: int) -> tuple[GpuConflict, ...]:
        """Return the newest quarrels, newest first."""
        sql = (
            "SELECT uuid, peer_id, holder_peer_id, at_ns, body, proof FROM gpu_conflicts"
            " ORDER BY at_ns DESC, uuid LIMIT ?"
        )
        return tuple(map(conflict_of, self._rows(sql, rows_max)))

    def challenge(self, challenge_id: str) -> Challenge | None:
        """Return a challenge."""
        rows = self._rows(f"{_CHALLENGE} WHERE challenge_id = ?", challenge_id)
        return next(map(_challenge_of, rows), None)

    def challenge_of(self, peer_id: str, device: str) -> Challenge | None:
        """Return the last challenge of a device."""
        rows = self._rows(f"{_CHALLENGE} WHERE peer_id = ? AND device = ?", peer_id, device)
        return next(map(_challenge_of, rows), None)

    def proofs_of(self, peer_id: str) -> tuple[MemoryProof, ...]:
        """Return how the last challenge of each of a host's devices ended."""
        sql = (
            "SELECT peer_id, device, proven_bytes, copy_mb_per_s, matmul_gflops, problems, at_ns,"
            " proof FROM memory_proofs WHERE peer_id = ? ORDER BY device"
        )
        return tuple(map(proof_of, self._rows(sql, peer_id)))

    # -- writing --------------------------------------------------------------------------------

    def put_report(self, report: StoredReport) -> None:
        """Write a host's report."""
        self._put("hardware_reports", *astuple(report))

    def drop_report(self, peer_id: str) -> None:
        """Forget a host's report."""
        self._connection.execute("DELETE FROM hardware_reports WHERE peer_id = ?", (peer_id,))

    def put_claims(self, claims: Iterable[GpuClaim]) -> None:
        """Write who holds which GPU."""
        for claim in claims:
            self._put("gpus", *astuple(claim))

    def drop_claims(self, uuids: Collection[str]) -> None:
        """Forget who holds some GPUs."""
        self._connection.executemany("DELETE FROM gpus WHERE uuid = ?", ((u,) for u in uuids))

    def put_conflict(self, conflict: GpuConflict) -> None:
        """Write a quarrel, in the place of an older one of the same host over the same GPU."""
        self._put("gpu_conflicts", *astuple(conflict))

    def put_challenge(self, challenge: Challenge) -> None:
        """Write a challenge, in the place of an older one of the same device."""
        self._put("challenges", *astuple(challenge))

    def put_proof(self, proof: MemoryProof) -> None:
        """Write how a challenge ended, in the place of an older one of the same device."""
        self._put("memory_proofs", *astuple(proof))

    def drop_proofs(self, peer_id: str, devices: Collection[str]) -> None:
        """Forget the proofs and challenges of devices that a host has no more."""
        keys = [(peer_id, device) for device in devices]
        for table in ("memory_proofs", "challenges"):
            sql = f"DELETE FROM {table} WHERE peer_id = ? AND device = ?"
            self._connection.executemany(sql, keys)


def report_of(row: Row) -> StoredReport:
    """Return a row of ``hardware_reports``."""
    peer_id, *rest = cast(tuple[str, bytes, bytes, int], row)
    return StoredReport(PeerId(peer_id), *cast(tuple[bytes, bytes, int], tuple(rest)))


def claim_of(row: Row) -> GpuClaim:
    """Return a row of ``gpus``."""
    return GpuClaim(*cast(tuple[str, PeerId, int, int], row))


def conflict_of(row: Row) -> GpuConflict:
    """Return a row of ``gpu_conflicts``."""
    return GpuConflict(*cast(tuple[str, PeerId, PeerId, int, bytes, bytes], row))


def proof_of(row: Row) -> MemoryProof:
    """Return a row of ``memory_proofs``."""
    return MemoryProof(*cast(tuple[PeerId, str, int, int, int, str, int, bytes], row))


def _challenge_of(row: Row) -> Challenge:
    *most, is_over = row
    fields = cast(tuple[str, PeerId, str, bytes, int, int, int, bytes, str, int], tuple(most))
    return Challenge(*fields, bool(is_over))
