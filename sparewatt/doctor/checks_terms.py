"""The owner's terms, where they keep the host from earning."""

from collections.abc import Sequence

import click

from p2p.clock import system_clock
from p2p.errors import SparewattError
from peer.host.consents import CONSENTS_NAME, ConsentBook
from peer.host.schedule import opening_at
from peer.host.status import time_text
from peer.host.time_zones import load_zone
from sparewatt.doctor.findings import Finding, Subject, failed, good, skipped, warning
from sparewatt.engines import choose_engine
from sparewatt.host_tables import FakeTable
from sparewatt.options import dollars, parse_price


def check_price(subject: Subject) -> Sequence[Finding]:
    """Look at what is asked for a million tokens, by the host and by engines of their own price."""
    found = _check_price(subject, subject.file.price.per_mtok, "price.per_mtok", "")
    for index, table in enumerate(subject.file.engine):
        if table.price_per_mtok is not None:
            where, of = f"engine[{index}].price_per_mtok", f" by engine {table.name or index + 1}"
            found += _check_price(subject, table.price_per_mtok, where, of)
    return found


def _check_price(subject: Subject, written: str, where: str, of: str) -> list[Finding]:
    try:
        price = parse_price(written)
    except click.BadParameter as error:
        return [failed("price", error.message, "sparewatt host init suggests one", where=where)]
    if not price.out_micros_per_mtok:
        what = f"answers are given away{of}"
        return [warning("price", what, "say what a million tokens cost", where=where)]
    floor_micros = subject.file.price_policy.floor_out_micros_per_mtok
    if price.out_micros_per_mtok < floor_micros:
        what = f"${price}{of} is below your own floor of ${dollars(floor_micros)} for answers"
        return [warning("price", what, "raise it, or lower the floor", where=where)]
    return [good("price", f"${price} per million tokens of prompt/answer{of}")]


def check_hours(subject: Subject) -> Sequence[Finding]:
    """Look at when the host serves."""
    schedule = subject.file.schedule
    if schedule.mode == "never":
        mend = 'say mode = "always" or "weekly": sparewatt host init'
        return [warning("hours", "the schedule says never", mend, where="schedule.mode")]
    try:
        opening = opening_at(schedule, load_zone(schedule.time_zone), system_clock())
    except SparewattError as error:
        return [failed("hours", str(error), "name your zone", where="schedule.time_zone")]
    until = f" until {time_text(opening.changes_at_ns)}" if opening.changes_at_ns else ""
    if opening.is_open:
        return [good("hours", f"the schedule is open now{until}")]
    if not until:
        mend = "name hours that exist: sparewatt host init"
        return [warning("hours", "the schedule never opens", mend, where="schedule.windows")]
    return [good("hours", f"the schedule is closed now{until}")]


def check_terms(subject: Subject) -> Sequence[Finding]:
    """Look at whether the terms of the models are accepted."""
    if subject.file.host.accept_licences:
        return [good("terms", "you accepted those of every model")]
    book = ConsentBook(subject.data_dir / CONSENTS_NAME, system_clock)
    found: list[Finding] = []
    for index, table in enumerate(subject.file.engine):
        if isinstance(table, FakeTable):
            continue
        choice = choose_engine(table, subject.path, f"engine[{index}]")
        if (model_id := choice.spec.model_id) is None:
            found.append(skipped("terms", "the server says which models, once the host runs"))
            continue
        licence = book.knowledge.licence_of(model_id, choice.licence)
        if book.is_accepted(model_id, licence):
            found.append(good("terms", f"{licence} of {model_id}"))
        else:
            what = f"those of {model_id} ({licence}) are not accepted, so it is not announced"
            found.append(failed("terms", what, f"sparewatt models accept {model_id}"))
    return found or [skipped("terms", "no model is named")]
