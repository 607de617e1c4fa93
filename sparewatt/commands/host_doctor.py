"""``sparewatt host doctor``: what is wrong with this host, where, and how to mend it."""

import contextlib
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sparewatt.commands.common import default_data_dir, example, host_data_option, host_file_option

if TYPE_CHECKING:
    from sparewatt.doctor.findings import Subject


@click.command(
    "doctor", epilog=example("sparewatt host doctor", "sparewatt host doctor --deep --json")
)
@host_file_option()
@host_data_option()
@click.option("--deep", is_flag=True, help="Take minutes: digests of large models, the sandbox.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor_command(
    config_file: Path | None, data_dir: Path | None, *, deep: bool, as_json: bool
) -> None:
    """Say what is wrong with this host, and how to mend it.

    It works with and without a running host, and changes nothing. The exit status is 1 if
    something keeps the host from serving or from being paid.
    """
    from sparewatt.doctor.findings import Finding, State
    from sparewatt.doctor.report import show_live, to_json
    from sparewatt.doctor.run import DEEP_SECONDS_MAX, QUICK_SECONDS_MAX, run_checks, worst

    started_s = time.monotonic()
    subject = _subject(config_file, data_dir, is_deep=deep)
    within_s = DEEP_SECONDS_MAX if deep else QUICK_SECONDS_MAX
    results = run_checks(subject, within_s=within_s - (time.monotonic() - started_s))
    findings: list[Finding]
    if as_json:
        findings = [finding for _, part in results for finding in part]
        click.echo(json.dumps(to_json(findings, seconds=time.monotonic() - started_s), indent=2))
    else:
        findings = show_live(results)
    raise SystemExit(1 if worst(findings) is State.FAILED else 0)


def _subject(config_file: Path | None, data_dir: Path | None, *, is_deep: bool) -> "Subject":
    from sparewatt.commands.host import find_host_file
    from sparewatt.doctor.findings import read_subject
    from sparewatt.host_file import FILE_NAME
    from sparewatt.host_options import data_dir_of
    from sparewatt.problems import Problem

    folder = data_dir or default_data_dir("host")
    path = config_file or folder / FILE_NAME
    if data_dir is None:
        with contextlib.suppress(Problem):  # the check of the settings says it
            folder = data_dir_of(find_host_file(config_file, None)[1], path) or folder
    return read_subject(
        path, folder, lambda: find_host_file(config_file, data_dir)[1], is_deep=is_deep
    )
