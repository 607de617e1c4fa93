"""Errors as they leave: one shape, one status and one code for each kind of refusal."""

import logging
from dataclasses import dataclass
from typing import Annotated

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import Field
from starlette.exceptions import HTTPException

from settlement.api.models import time_text
from settlement.hardware_operations import ChallengeRefusal, GpuTaken
from settlement.operations import AllowanceRefusal, EnrolOutcome
from settlement.service import AuthRefusal
from settlement.store import StoreUnavailableError
from settlement.worker import OverloadedError

RETRY_AFTER_S = 1
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ErrorBody:
    """What went wrong.

    Attributes:
        type: The family, e.g. ``authentication_error``.
        code: What exactly, for programs.
        param: The field at fault, if one is.
    """

    message: Annotated[str, Field(examples=["The account has too little credit."])]
    type: Annotated[str, Field(examples=["insufficient_funds"])]
    code: Annotated[str, Field(examples=["no_credit"])]
    param: str | None = None


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """The body of every answer but 200."""

    error: ErrorBody


class Problem(Exception):  # noqa: N818 - it is an answer, not a failure of ours
    """Raised in a route to answer with an error."""

    def __init__(self, status: int, code: str, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param


_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "insufficient_funds",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    409: "conflict_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}

_AUTH_PROBLEMS = {
    AuthRefusal.MISSING: (401, "Authorization is missing."),
    AuthRefusal.INVALID: (401, "Authorization is not valid for this request."),
    AuthRefusal.REVOKED: (401, "This token or node was revoked."),
    AuthRefusal.NOT_ENROLLED: (401, "This node is not enrolled; start it with --enrol-code-file."),
    AuthRefusal.CLOCK_SKEW: (
        401,
        "The signed time is more than 120 s from settlement's clock; see the Date header.",
    ),
    AuthRefusal.REPLAYED: (401, "This request was sent before; sign each one anew."),
    AuthRefusal.WRONG_ROLE: (403, "A node of this role may not do this."),
}
_ALLOWANCE_PROBLEMS = {
    AllowanceRefusal.NO_CREDIT: (402, "The account has too little credit."),
    AllowanceRefusal.CONFLICT: (409, "This allowance id stands for another host, key or account."),
    AllowanceRefusal.ENDED: (409, "This allowance is closed or expired; take a new id."),
    AllowanceRefusal.HOST_NOT_ENROLLED: (404, "This host is not enrolled with settlement."),
}
_ENROL_PROBLEMS = {
    EnrolOutcome.BAD_CODE: (403, "There is no such enrolment code."),
    EnrolOutcome.CODE_USED: (409, "Another node used this enrolment code; make a new one."),
    EnrolOutcome.CODE_EXPIRED: (403, "This enrolment code has expired; make a new one."),
    EnrolOutcome.WRONG_ROLE: (403, "This enrolment code is for another role."),
    EnrolOutcome.OTHER_ACCOUNT: (409, "This node belongs to another account or role."),
}

_CHALLENGE_PROBLEMS = {
    ChallengeRefusal.NO_REPORT: (404, "This host has reported no hardware; do that first."),
    ChallengeRefusal.NO_DEVICE: (404, "This host has reported no such device."),
    ChallengeRefusal.BAD_MEMORY: (
        400,
        "memory_bytes is all of a GPU's reported memory; of the processor's, 16 MiB to all of it.",
    ),
    ChallengeRefusal.TOO_SOON: (
        429,
        "This device was challenged less than five minutes ago; wait for that to pass.",
    ),
    ChallengeRefusal.UNKNOWN: (404, "This host has no such challenge; ask for a new one."),
    ChallengeRefusal.OTHER_COMMITMENT: (409, "This challenge was committed to before."),
    ChallengeRefusal.NOT_COMMITTED: (409, "Commit to this challenge before you answer it."),
    ChallengeRefusal.LATE: (409, "This came after its time; ask for a new challenge."),
    ChallengeRefusal.OVER: (409, "This challenge was answered, or replaced; ask for a new one."),
}


def challenge_problem(refusal: ChallengeRefusal) -> Problem:
    """Return the answer to a challenge that does not go on."""
    status, message = _CHALLENGE_PROBLEMS[refusal]
    return Problem(status, refusal.value, message)


def gpu_problem(taken: GpuTaken) -> Problem:
    """Return the answer to a report of a GPU that another host has."""
    claim = taken.claim
    said = (
        f"GPU {claim.uuid} belongs to host {claim.peer_id}, which last reported it at"
        f" {time_text(claim.seen_at_ns)}. If the card is yours: stop that host, or let it report"
        f" without it. Unless it does, the GPU is free from {time_text(taken.free_at_ns)} on."
    )
    return Problem(409, "gpu_taken", said, param="gpus")


def auth_problem(refusal: AuthRefusal) -> Problem:
    """Return the answer to a caller that may not."""
    status, message = _AUTH_PROBLEMS[refusal]
    return Problem(status, refusal.value, message)


def allowance_problem(refusal: AllowanceRefusal) -> Problem:
    """Return the answer to an order without an allowance."""
    status, message = _ALLOWANCE_PROBLEMS[refusal]
    return Problem(status, refusal.value, message)


def enrol_problem(outcome: EnrolOutcome) -> Problem:
    """Return the answer to an enrolment that failed."""
    status, message = _ENROL_PROBLEMS[outcome]
    return Problem(status, outcome.value, message)


def problem_response(problem: Problem) -> JSONResponse:
    """Return a problem in the one shape."""
    kind = _TYPES.get(problem.status, "api_error")
    body = {
        "message": problem.message,
        "type": kind,
        "code": problem.code,
        "param": problem.param,
    }
    headers = {}
    if problem.status == 401:
        headers["www-authenticate"] = "Bearer, Sparewatt"
    if problem.status in (429, 503):
        headers["retry-after"] = str(RETRY_AFTER_S)
    return JSONResponse({"error": body}, problem.status, headers)


def install_problem_handlers(app: FastAPI) -> None:
    """Make every error of an app leave in the one shape."""
    app.add_exception_handler(Problem, _on_problem)
    app.add_exception_handler(RequestValidationError, _on_validation)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(OverloadedError, _on_overload)
    app.add_exception_handler(StoreUnavailableError, _on_overload)
    app.add_exception_handler(Exception, _on_bug)


def document_errors(app: FastAPI) -> None:
    """Take FastAPI's own 422 out of the document: a wrong body gets our 400."""
    for operations in app.openapi()["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)


async def _on_problem(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Problem)
    return problem_response(error)


async def _on_validation(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
    if first["type"] == "json_invalid":
        return problem_response(Problem(400, "invalid_json", "The body is not JSON."))
    param = ".".join(where) or None
    said = f"{param or 'body'}: {first['msg']}"
    return problem_response(Problem(400, "invalid_request", said, param=param))


async def _on_http(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    codes = {404: "not_found", 405: "method_not_allowed", 400: "invalid_request"}
    code = codes.get(error.status_code, "http_error")
    return problem_response(Problem(error.status_code, code, str(error.detail)))


async def _on_overload(_: Request, error: Exception) -> JSONResponse:
    _log.warning("answered 503: %s", error)
    message = "Settlement cannot write at the moment; nothing was done."
    return problem_response(Problem(503, "unavailable", message))


async def _on_bug(_: Request, __: Exception) -> JSONResponse:
    return problem_response(Problem(500, "internal", "Settlement failed; this was logged."))
