"""The small cores: health, failover, rates, the guard at the door."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.errors import HTTP_STATUS, RETRY_ELSEWHERE, ErrorCode
from p2p.limits import SECOND_NS
from p2p.session.events import ErrorInfo
from peer.gateway import failover, health, openai_errors, ratelimit
from peer.gateway.failover import Blame, Failure, Verdict
from peer.gateway.guard import Guard, bearer, is_loopback
from peer.gateway.ratelimit import WINDOW_NS, Bucket


def error(code: ErrorCode, **fields: object) -> ErrorInfo:
    return ErrorInfo(code=code, message="why", **fields)


# -- health --------------------------------------------------------------------------------------


def test_health_first_measurement_is_taken_as_it_is() -> None:
    known = health.after_answer(health.UNKNOWN, ttft_ms=100, tokens_per_s=None)
    assert (known.ttft_ms, known.tokens_per_s, known.is_measured) == (100, None, True)


def test_health_average_moves_towards_what_is_new() -> None:
    known = health.after_answer(health.UNKNOWN, ttft_ms=100, tokens_per_s=50)
    for _ in range(20):
        known = health.after_answer(known, ttft_ms=200, tokens_per_s=10)
    assert 195 < known.ttft_ms < 200
    assert 10 < known.tokens_per_s < 11


def test_health_failures_are_avoided_twice_as_long_each_time_up_to_a_bound() -> None:
    known, waits = health.UNKNOWN, []
    for _ in range(12):
        known = health.after_failure(known, "no", now_ns=0)
        waits.append(known.avoid_until_ns)
    assert waits[1] == 2 * waits[0]
    assert waits[-1] == health.BACKOFF_NS_MAX
    rested = health.after_answer(known, ttft_ms=1, tokens_per_s=1)
    assert (rested.avoid_until_ns, rested.failures_count, rested.last_error) == (0, 0, "")


def test_health_busy_host_is_no_failure() -> None:
    known = health.after_busy(health.UNKNOWN, retry_after_ms=2_000, now_ns=5)
    assert known.avoid_until_ns == 5 + 2 * SECOND_NS
    assert (known.error_ratio, known.failures_count) == (0, 0)


# -- failover ------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ErrorCode)
def test_verdict_after_the_first_token_always_ends_the_stream(code: ErrorCode) -> None:
    verdict = failover.verdict(error(code), delivered=True, tries=1, allow_fallbacks=True)
    assert verdict is Verdict.END_STREAM


@pytest.mark.parametrize("code", ErrorCode)
def test_verdict_before_the_first_token_follows_the_code(code: ErrorCode) -> None:
    verdict = failover.verdict(error(code), delivered=False, tries=1, allow_fallbacks=True)
    assert (verdict is Verdict.NEXT_HOST) is (code in RETRY_ELSEWHERE)


def test_verdict_tries_are_bounded() -> None:
    code = ErrorCode.ENGINE_FAILED
    most = failover.TRIES_COUNT_MAX
    assert (
        failover.verdict(error(code), delivered=False, tries=most, allow_fallbacks=True)
        is Verdict.ANSWER_ERROR
    )


def test_blame_tells_busy_faulty_and_innocent_apart() -> None:
    assert failover.blame(error(ErrorCode.BUSY)) is Blame.BUSY
    assert failover.blame(error(ErrorCode.ENGINE_FAILED)) is Blame.HOST
    assert failover.blame(error(ErrorCode.INVALID_REQUEST)) is Blame.NONE


def test_final_error_reports_the_failure_and_not_the_busy_host() -> None:
    failures = [
        Failure("a", error(ErrorCode.ENGINE_FAILED)),
        Failure("b", error(ErrorCode.BUSY, retry_after_ms=900)),
    ]
    told = failover.final_error("m", failures)
    assert (told.status, told.metadata) == (502, {"host": "a"})
    assert failover.final_error("m", failures[1:]).status == 503


@pytest.mark.parametrize("code", ErrorCode)
def test_from_host_every_code_has_a_status_and_a_name(code: ErrorCode) -> None:
    told = openai_errors.from_host(error(code), "host")
    assert told.status == HTTP_STATUS[code]
    assert told.code
    assert (told.status in (429, 503)) is ("retry-after" in told.headers())


# -- rates ---------------------------------------------------------------------------------------


def test_bucket_takes_the_limit_at_once_and_then_says_when() -> None:
    bucket = Bucket(60)
    assert all(bucket.take(1, now_ns=0).admitted for _ in range(60))
    refused = bucket.take(1, now_ns=0)
    assert not refused.admitted
    assert refused.retry_after_ns == SECOND_NS
    assert bucket.take(1, now_ns=SECOND_NS).admitted
    assert not bucket.take(1, now_ns=SECOND_NS).admitted


def test_bucket_charge_may_overdraw_and_delays_what_follows() -> None:
    bucket = Bucket(100)
    bucket.charge(250, now_ns=0)
    standing = bucket.standing(0, now_ns=0)
    assert not standing.admitted
    assert standing.remaining == 0
    assert bucket.standing(0, now_ns=WINDOW_NS * 3 // 2).admitted


@given(
    st.integers(1, 1000),
    st.lists(st.integers(0, WINDOW_NS // 10), min_size=1, max_size=200),
)
def test_bucket_never_admits_more_than_its_rate(limit: int, gaps: list[int]) -> None:
    bucket, now_ns, admitted = Bucket(limit), 0, 0
    for gap in gaps:
        now_ns += gap
        admitted += bucket.take(1, now_ns=now_ns).admitted
        assert admitted <= limit + 1 + now_ns * limit // WINDOW_NS


def test_rate_headers_are_openais() -> None:
    told = ratelimit.headers("requests", Bucket(60).take(1, now_ns=0))
    assert told == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1000ms",
    }


# -- the door ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:8400", "localhost", "LOCALHOST:1", "[::1]:80", "[::1]", "gw.example:8400"],
)
def test_guard_names_of_ours_pass(host: str) -> None:
    guard = Guard("127.0.0.1", frozenset(("gw.example",)))
    assert guard.objection({"host": host}) is None
    assert guard.objection({"host": host, "origin": f"http://{host}"}) is None


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "evil.example:8400",
        "127.0.0.1@evil.example",
        "127.0.0.1:80:evil",
        "[::1]evil",
        "192.168.1.5",
        "0.0.0.0",
    ],
)
def test_guard_other_names_are_refused(host: str) -> None:
    objection = Guard("127.0.0.1").objection({"host": host})
    assert objection is not None
    assert objection.status == 403


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "http://evil.example",
        "https://localhost.evil.example",
        "file://",
        "",
        "chrome-extension://localhost",
        "http://localhost:3000",
        "http://127.0.0.1",
        "http://localhost@evil.example",
        "http://localhost/",
    ],
)
def test_guard_other_origins_are_refused(origin: str) -> None:
    objection = Guard("127.0.0.1").objection({"host": "localhost", "origin": origin})
    assert objection is not None
    assert objection.status == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://localhost:8400"},
        {"origin": "HTTP://LOCALHOST:8400"},
        {"referer": "http://localhost:8400/some/page?of=ours"},
        {"referer": "http://localhost:8400"},
        {"sec-fetch-site": "same-origin"},
        {"sec-fetch-site": "none"},
        {"content-type": "text/plain", "authorization": "Bearer x"},  # 415 says what is wanted
    ],
)
def test_guard_our_own_pages_and_programs_pass(headers: dict[str, str]) -> None:
    assert Guard("127.0.0.1").objection({"host": "localhost:8400", **headers}) is None


def test_guard_default_port_may_be_said_or_not() -> None:
    guard = Guard("127.0.0.1", frozenset(("gw.example",)))
    for host in ("gw.example", "gw.example:443"):
        assert guard.objection({"host": host, "origin": "https://gw.example"}) is None
        assert guard.objection({"host": host, "origin": "https://gw.example:443"}) is None


def test_guard_listening_everywhere_takes_addresses_but_no_names() -> None:
    guard = Guard("0.0.0.0")
    assert guard.objection({"host": "192.168.1.5:8400"}) is None
    assert guard.objection({"host": "rebound.example:8400"}) is not None


@pytest.mark.parametrize(
    ("address", "reach"),
    [("127.0.0.1", 1), ("::1", 1), ("localhost", 1), ("0.0.0.0", 0), ("::", 0), ("gw.example", 0)],
)
def test_is_loopback_knows_what_others_can_reach(address: str, reach: int) -> None:
    assert is_loopback(address) is bool(reach)


@pytest.mark.parametrize(
    ("header", "key"),
    [("Bearer k", "k"), ("bearer  k ", "k"), ("Basic k", ""), ("k", ""), ("", "")],
)
def test_bearer_reads_the_one_scheme(header: str, key: str) -> None:
    assert bearer({"authorization": header}) == key
