"""Does what hosts signed of their hardware say what is stored of it? Pure."""

from collections.abc import Iterator

from p2p.errors import RemoteProtocolError
from p2p.receipts.messages import REQUEST_PROOF
from p2p.signing import unseal
from p2p.types import NetworkId, sha256
from settlement.hardware_operations import read_report
from settlement.hardware_store import GpuClaim, GpuConflict, MemoryProof, StoredReport

_REPORT_PATH = "/v1/hosts/hardware"
_CHALLENGE_PATH = "/v1/hosts/challenges/"


def report_problems(row: StoredReport | GpuConflict, network_id: NetworkId) -> Iterator[str]:
    """Yield what is wrong with a kept report, or one kept because it claims another's GPU."""
    yield from _signed_problems(row.peer_id, row.proof, _REPORT_PATH, row.body, network_id)
    try:
        report = read_report(row.body)
    except ValueError as error:
        yield f"its report can't be read: {error}"
        return
    if isinstance(row, GpuConflict):
        if row.uuid not in {gpu.uuid for gpu in report.gpus}:
            yield "its report does not name the GPU"
        if row.holder_peer_id == row.peer_id:
            yield "it names the holder as the claimant"


def claim_problems(claims: set[GpuClaim], report: StoredReport | None) -> Iterator[str]:
    """Yield where the GPUs that a host holds are not those of its report."""
    try:
        said = {gpu.uuid for gpu in read_report(report.body).gpus} if report else set()
    except ValueError:
        return  # said already
    held = {claim.uuid for claim in claims}
    for uuid in sorted(held - said):
        yield f"it holds {uuid}, which its report does not name"
    for uuid in sorted(said - held):
        yield f"its report names {uuid}, which it does not hold"
    for claim in claims:
        if report and not claim.claimed_at_ns <= claim.seen_at_ns == report.at_ns:
            yield f"{claim.uuid} was seen at another time than its report came"


def proof_problems(row: MemoryProof, network_id: NetworkId) -> Iterator[str]:
    """Yield what is wrong with how a challenge ended; its answer itself is not kept."""
    yield from _signed_problems(row.peer_id, row.proof, _CHALLENGE_PATH, None, network_id)
    if not row.proven_bytes and not row.problems:
        yield "nothing was proven, and no problem is named"


def _signed_problems(
    peer_id: str, envelope: bytes, path: str, body: bytes | None, network_id: NetworkId
) -> Iterator[str]:
    try:
        proof = unseal(REQUEST_PROOF, envelope, network_id=network_id)
    except RemoteProtocolError as error:
        yield str(error)
        return
    if proof.signer_id != peer_id:
        yield "it is not signed by its host"
    if proof.value.method != "POST" or not proof.value.path.startswith(path):
        yield "what its host signed is another request"
    if body is not None and proof.value.body_sha256 != sha256(body):
        yield "its host signed another report"
