"""Routes for hardware: what a host reports, how it proves memory, what others may know of it."""

from dataclasses import asdict

import msgspec
from fastapi import APIRouter, Request

from p2p.hardware.report import GpuFacts, HardwareReport
from p2p.hardware.verdict import Speeds
from p2p.puzzle import ROOTS_BYTES
from settlement.api import models
from settlement.api.auth import (
    NODE_SCHEME,
    TOKEN_SCHEME,
    NodeOf,
    NodeOrAccountOf,
    ServiceOf,
)
from settlement.api.problems import (
    ErrorReply,
    Problem,
    auth_problem,
    challenge_problem,
    gpu_problem,
)
from settlement.api.routes_nodes import decoded
from settlement.hardware_operations import (
    ChallengeRefusal,
    DeviceView,
    GpuTaken,
    Wish,
    read_report,
    samples_for,
)
from settlement.service import AuthRefusal

REPORT_S = 300  # three of them fit into the time after which an owner's other host may have a GPU

_ERROR = {"model": ErrorReply}
router = APIRouter(
    prefix="/v1/hosts",
    tags=["hardware"],
    responses={400: _ERROR, 401: _ERROR, 403: _ERROR, 503: _ERROR},
)


@router.post("/hardware", dependencies=[NODE_SCHEME], responses={409: _ERROR})
async def report_hardware(
    body: models.HardwareRequest, request: Request, caller: NodeOf, service: ServiceOf
) -> models.ReportReply:
    """Take what a host says of its machine; a GPU that another live host has is refused.

    The signed request is kept as the evidence of what was claimed.
    """
    kept = await request.body()
    report = _report(body)
    _require_readable(kept, report)
    result = await service.report_hardware(caller, report, kept)
    if isinstance(result, AuthRefusal):
        raise auth_problem(result)
    if isinstance(result, GpuTaken):
        raise gpu_problem(result)
    view = await service.hardware_of(caller.machine.peer_id)
    return models.ReportReply(view.level.value, REPORT_S)


@router.post("/challenges", dependencies=[NODE_SCHEME], responses={404: _ERROR, 429: _ERROR})
async def ask_challenge(
    body: models.ChallengeRequest, caller: NodeOf, service: ServiceOf
) -> models.ChallengeReply:
    """Give a host a seed with which to fill 90 % of the memory of one of its devices."""
    made = await service.issue_challenge(caller, Wish(body.device, body.memory_bytes))
    if isinstance(made, AuthRefusal):
        raise auth_problem(made)
    if isinstance(made, ChallengeRefusal):
        raise challenge_problem(made)
    return models.ChallengeReply(
        made.challenge_id,
        made.seed.hex(),
        made.memory_bytes,
        models.time_text(made.commit_by_ns),
    )


@router.post(
    "/challenges/{challenge_id}/commitment",
    dependencies=[NODE_SCHEME],
    responses={404: _ERROR, 409: _ERROR},
)
async def commit_challenge(
    challenge_id: models.Id, body: models.CommitmentRequest, caller: NodeOf, service: ServiceOf
) -> models.CommitmentReply:
    """Take what a host filled its memory with, and say what of it to show.

    The identical commitment may be repeated; another one is refused.
    """
    roots = decoded(body.roots, "roots")
    if len(roots) != ROOTS_BYTES:
        said = f"roots has {len(roots)} bytes, not {ROOTS_BYTES}."
        raise Problem(400, "invalid_request", said, param="roots")
    held = await service.commit_challenge(caller, challenge_id, roots)
    if isinstance(held, AuthRefusal):
        raise auth_problem(held)
    if isinstance(held, ChallengeRefusal):
        raise challenge_problem(held)
    return models.CommitmentReply(list(samples_for(held)), models.time_text(held.answer_by_ns))


@router.post(
    "/challenges/{challenge_id}/answer",
    dependencies=[NODE_SCHEME],
    responses={404: _ERROR, 409: _ERROR},
)
async def answer_challenge(
    challenge_id: models.Id, body: models.AnswerRequest, caller: NodeOf, service: ServiceOf
) -> models.ProofReply:
    """Check what a host shows, and compare its card's speeds with its maker's figures."""
    speeds = Speeds(body.copy_gb_per_s, body.matmul_tflops)
    answer = decoded(body.answer, "answer")
    proof = await service.answer_challenge(caller, challenge_id, answer, speeds)
    if isinstance(proof, AuthRefusal):
        raise auth_problem(proof)
    if isinstance(proof, ChallengeRefusal):
        raise challenge_problem(proof)
    outcome = "failed" if proof.problems else "passed"
    return models.ProofReply(outcome, proof.proven_bytes, proof.problems.splitlines())


@router.get("/{peer_id}/hardware", dependencies=[NODE_SCHEME, TOKEN_SCHEME])
async def get_hardware(
    peer_id: models.PeerIdText, caller: NodeOrAccountOf, service: ServiceOf
) -> models.HardwareReply:
    """Tell what is known of a host's hardware; to every node and account of the network."""
    view = await service.hardware_of(peer_id)
    return models.HardwareReply(
        peer_id,
        view.level.value,
        models.time_text(view.reported_at_ns) if view.reported_at_ns else None,
        [_device(each) for each in view.devices],
    )


def _device(view: DeviceView) -> models.DeviceItem:
    proof = view.proof
    if proof is None:
        return models.DeviceItem(
            view.kind, view.name, view.memory_bytes, None, None, None, None, []
        )
    return models.DeviceItem(
        view.kind,
        view.name,
        view.memory_bytes,
        proof.proven_bytes,
        proof.copy_mb_per_s / 1000,
        proof.matmul_gflops / 1000,
        models.time_text(proof.at_ns),
        proof.problems.splitlines(),
    )


def _require_readable(kept: bytes, report: HardwareReport) -> None:
    """Refuse a body that would be read otherwise when it is read again, as by an audit.

    The framework's parser takes what the one of the books refuses, such as NaN under a key that
    comes twice.
    """
    try:
        is_same = read_report(kept) == report
    except (msgspec.DecodeError, ValueError):
        is_same = False
    if not is_same:
        said = "The body is not plain JSON in which each key stands once."
        raise Problem(400, "invalid_request", said)


def _report(body: models.HardwareRequest) -> HardwareReport:
    """Return a report; a Problem if it can't be one."""
    try:
        gpus = tuple(GpuFacts(**asdict(gpu)) for gpu in body.gpus)
        return HardwareReport(
            cpu_name=body.cpu_name,
            cpu_cores_count=body.cpu_cores_count,
            cpu_threads_count=body.cpu_threads_count,
            memory_bytes=body.memory_bytes,
            disk_bytes=body.disk_bytes,
            disk_free_bytes=body.disk_free_bytes,
            gpus=gpus,
        )
    except ValueError as error:
        raise Problem(400, "invalid_request", str(error)) from error
