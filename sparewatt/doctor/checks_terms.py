"""The owner's terms, where they keep the host from earning."""

from collections.abc import Sequence

import click

from sparewatt.doctor.findings import Finding, Subject, failed, good, warning
from sparewatt.options import parse_price


def check_price(subject: Subject) -> Sequence[Finding]:
    """Look at what is asked for a million tokens."""
    where = "price.per_mtok"
    try:
        price = parse_price(subject.file.price.per_mtok)
    except click.BadParameter as error:
        return [failed("price", error.message, "sparewatt host init suggests one", where=where)]
    if not price.out_micros_per_mtok:
        what = "answers are given away"
        return [warning("price", what, "say what a million tokens cost", where=where)]
    return [good("price", f"${price} per million tokens of prompt/answer")]
