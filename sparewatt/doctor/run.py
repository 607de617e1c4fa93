"""All checks at once, each in a thread of its own, so that the slowest one sets the time."""

import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence

from p2p.errors import SparewattError
from sparewatt.doctor.checks_engine import check_engine
from sparewatt.doctor.checks_files import check_daemon, check_data, check_settings
from sparewatt.doctor.checks_machine import check_disk, check_gpu, check_memory, check_system
from sparewatt.doctor.checks_network import check_bootstrap, check_port, check_settlement
from sparewatt.doctor.checks_sandbox import check_sandbox
from sparewatt.doctor.checks_terms import check_hours, check_price, check_terms
from sparewatt.doctor.findings import Check, Finding, State, Subject, failed, skipped
from sparewatt.problems import Problem

QUICK_SECONDS_MAX = 5.0
DEEP_SECONDS_MAX = 600.0

CHECKS: Mapping[str, Check] = {
    "system": check_system,
    "memory": check_memory,
    "disk": check_disk,
    "GPU": check_gpu,
    "settings": check_settings,
    "data": check_data,
    "host": check_daemon,
    "engine": check_engine,
    "sandbox": check_sandbox,
    "settlement": check_settlement,
    "bootstrap": check_bootstrap,
    "port": check_port,
    "price": check_price,
    "hours": check_hours,
    "terms": check_terms,
}


def run_checks(
    subject: Subject, checks: Mapping[str, Check] = CHECKS, *, within_s: float
) -> Iterator[tuple[str, Sequence[Finding]]]:
    """Yield each check's name and findings as it ends; what is not done in time is skipped.

    A check that hangs is left behind: its thread ends with the process.
    """
    done: queue.SimpleQueue[tuple[str, Sequence[Finding]]] = queue.SimpleQueue()
    for name, check in checks.items():
        threading.Thread(
            target=lambda name=name, check=check: done.put((name, _findings(name, check, subject))),
            daemon=True,
        ).start()
    deadline = time.monotonic() + within_s
    missing = dict.fromkeys(checks)
    while missing:
        try:
            name, findings = done.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            break
        del missing[name]
        yield name, findings
    for name in missing:
        yield name, [skipped(name, f"took longer than {within_s:g} s")]


def worst(findings: Sequence[Finding]) -> State:
    """Return the worst state among findings."""
    order = (State.FAILED, State.WARNING, State.SKIPPED)
    states = {finding.state for finding in findings}
    return next((state for state in order if state in states), State.GOOD)


def _findings(name: str, check: Check, subject: Subject) -> Sequence[Finding]:
    try:
        return check(subject)
    except Problem as problem:
        return [failed(name, problem.message, problem.advice)]
    except (SparewattError, OSError) as error:
        return [failed(name, str(error), "look at what it names")]
    except Exception as error:  # noqa: BLE001 - one broken check must not hide the others
        return [failed(name, f"the check itself failed: {error!r}", "report it as a bug")]
