"""What the screen says about a status, without a screen."""

from datetime import UTC, timedelta, timezone

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tui.model.notices import History, Severity, notices, tokens_per_s
from tui.model.status import Clock, Engine, HostState, HostStatus, Offer, Settlement, Slots
from tui.model.words import (
    format_age,
    format_bytes,
    format_clock,
    format_count,
    format_dollars,
    format_duration,
    format_moment,
    format_price,
    format_rate,
    shorten_address,
    shorten_id,
    shorten_model,
)
from tui.testing import SERVING


def test_status_round_trip_keeps_everything() -> None:
    assert msgspec.json.decode(msgspec.json.encode(SERVING), type=HostStatus) == SERVING


def test_status_of_another_version_is_still_read() -> None:
    data = b'{"state":"serving","peer_id":"12D3","new_field":{"a":1},"engine":{"new":2}}'
    status = msgspec.json.decode(data, type=HostStatus)
    assert (status.state, status.slots) == (HostState.SERVING, Slots())


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"null", b'{"state":"dancing","peer_id":"x"}', b'{"state":"serving"}']
)
def test_status_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(data, type=HostStatus)


@pytest.mark.parametrize(
    ("micros", "text"),
    [
        (0, "$0.000000"),
        (1, "$0.000001"),
        (-1, "-$0.000001"),
        (1_310, "$0.001310"),
        (1_000_000, "$1.000000"),
        (1_234_567_890, "$1,234.567890"),
        (2**53 - 1, "$9,007,199,254.740991"),
    ],
)
def test_dollars_are_exact_to_the_micro(micros: int, text: str) -> None:
    assert format_dollars(micros) == text


@given(st.integers(-(2**53), 2**53))
def test_dollars_read_back_are_the_micros(micros: int) -> None:
    text = format_dollars(micros)
    digits = "".join(character for character in text if character.isdigit())
    assert int(digits) * (-1 if text.startswith("-") else 1) == micros


@pytest.mark.parametrize(
    ("micros", "text"),
    [(0, "free"), (20_000, "$0.02"), (1_500_000, "$1.50"), (1, "$0.000001"), (15, "$0.000015")],
)
def test_price_has_the_decimals_it_needs(micros: int, text: str) -> None:
    assert format_price(micros) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0s"), (0.9, "0s"), (59, "59s"), (60, "1m 0s"), (11_532, "3h 12m"), (200_000, "2d 7h")],
)
def test_duration_shows_two_units(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_age_shows_tenths_while_young() -> None:
    assert (format_age(300), format_age(59_900), format_age(61_000)) == ("0.3s", "59.9s", "1m 1s")


def test_counts_and_rates_that_are_unknown_are_a_dash() -> None:
    assert (format_count(None), format_count(1980), format_rate(None)) == ("-", "1,980", "-")
    assert (format_rate(31.42), format_rate(1234.5)) == ("31.4", "1,234")


def test_long_names_are_cut() -> None:
    assert shorten_id("12D3KooWQYV9dGMFoRzNStwp") == "12D3KooW…NStwp"
    assert shorten_id("short") == "short"
    assert shorten_model("owner/SmolLM2-135M", 20) == "SmolLM2-135M"
    assert shorten_model("owner/SmolLM2-135M", 8) == "SmolLM2…"


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("/ip4/203.0.113.7/tcp/4001", "203.0.113.7:4001"),
        ("/ip6/::1/tcp/1/p2p/12D3", "[::1]:1"),
        ("/dns4/a.example/tcp/4001/p2p/12D3/p2p-circuit", "via relay a.example:4001"),
        ("/memory/1", "/memory/1"),
    ],
)
def test_address_is_written_as_people_do(address: str, text: str) -> None:
    assert shorten_address(address) == text


def test_clock_shows_the_owners_time_of_day() -> None:
    assert format_clock("2026-03-01T12:03:00Z", UTC) == "12:03:00"
    assert format_clock("2026-03-01T12:03:00Z", timezone(timedelta(hours=2))) == "14:03:00"
    assert (format_clock(None, UTC), format_clock("soon", UTC)) == ("--:--:--", "--:--:--")


def test_notices_of_a_host_at_work_are_none() -> None:
    assert notices(SERVING) == ()


@pytest.mark.parametrize(
    ("status", "severity", "words"),
    [
        (HostStatus(HostState.STARTING, "x"), Severity.HINT, "Starting"),
        (HostStatus(HostState.PAUSED, "x"), Severity.WARNING, "Press r"),
        (
            HostStatus(HostState.DRAINING, "x", slots=Slots(4, 2, 1)),
            Severity.WARNING,
            "3 to finish",
        ),
        (
            HostStatus(HostState.REFUSING, "x", state_reason="the clock is wrong"),
            Severity.ERROR,
            "Refusing to serve: the clock is wrong",
        ),
        (HostStatus(HostState.STOPPED, "x"), Severity.ERROR, "Stopped"),
        (
            HostStatus(HostState.SERVING, "x", clock=Clock(-600_000, ok=False)),
            Severity.ERROR,
            "off by -600 s",
        ),
        (
            HostStatus(HostState.SERVING, "x", engine=Engine(state="failed", detail="no memory")),
            Severity.ERROR,
            "no memory",
        ),
        (
            HostStatus(HostState.SERVING, "x", engine=Engine(state="loading")),
            Severity.HINT,
            "loading",
        ),
        (
            HostStatus(
                HostState.SERVING,
                "x",
                engine=Engine(state="ready"),
                settlement=Settlement(reachable=False, detail="connection refused"),
            ),
            Severity.WARNING,
            "connection refused",
        ),
        (
            HostStatus(
                HostState.SERVING,
                "x",
                engine=Engine(state="ready"),
                settlement=Settlement(reachable=True, detail="no account is known here"),
            ),
            Severity.WARNING,
            "no account is known here",
        ),
    ],
)
def test_notice_says_what_the_owner_must_know(
    status: HostStatus, severity: Severity, words: str
) -> None:
    first = notices(status)[0]
    assert first.severity is severity
    assert words in first.text


def test_notices_come_worst_first() -> None:
    status = HostStatus(
        HostState.PAUSED,
        "x",
        clock=Clock(600_000, ok=False),
        engine=Engine(state="loading"),
    )
    assert [notice.severity for notice in notices(status)] == [
        Severity.ERROR,
        Severity.WARNING,
        Severity.HINT,
    ]


def test_rate_is_the_sum_of_all_requests() -> None:
    assert tokens_per_s(SERVING) == pytest.approx(64.4)


def test_history_keeps_the_newest_minute() -> None:
    history = History()
    history.add(7.0)
    assert history.points[-2:] == (0.0, 7.0)
    for point in range(100):
        history.add(float(point))
    assert (len(history.points), history.points[0], history.points[-1]) == (60, 40.0, 99.0)


def test_offer_without_prices_is_free() -> None:
    assert format_price(Offer("a").price_in_micros_per_mtok) == "free"


def test_memory_and_moments_are_written_as_people_do() -> None:
    assert (format_bytes(24 * 2**30), format_bytes(300 * 2**20)) == ("24.0 GiB", "300 MiB")
    assert format_moment("2026-03-02T07:00:00Z", UTC) == "Mon 07:00"
    assert format_moment(None, UTC) == ""
