"""Host and gateway cores against each other: any prices, counts, chunk sizes and delays.

Nobody may wait for ever, no release may break the bound, and whoever cheats is caught within it.
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2p import limits
from p2p.receipts.chain import ReceiptChain
from p2p.receipts.cost import (
    Usage,
    completion_tokens_max,
    cost_micros,
    increment_micros,
    increment_tokens_after,
    prompt_tokens_max,
)
from p2p.receipts.counting import CountRefusal
from p2p.receipts.messages import ALLOWANCE, RECEIPT_BATCH, Quote, Receipt, Voucher
from p2p.receipts.tab import Customer
from p2p.receipts.vouchers import VoucherOutcome
from p2p.receipts.wallet import HostAccount
from p2p.signing import Signed, sealed
from p2p.testing import money
from p2p.types import FinishReason, RequestId

ALLOWANCE_ID = money.allowance_value().allowance_id


@dataclasses.dataclass
class Job:
    """What a request will be: its prompt, and its answer's events as token counts."""

    request_id: RequestId
    quote: Quote
    prompt_tokens: int
    cached_tokens: int
    events: list[int]
    body_bytes: int
    is_cancelled: bool = False


@dataclasses.dataclass
class HostRequest:
    """The host's shell for one request: what the engine made and what was sent of it."""

    job: Job
    state: str = "new"
    made: int = 0
    sent: int = 0
    claimed: int = 0
    cancelled: bool = False

    def usage(self, tokens: int) -> Usage:
        return Usage(self.job.prompt_tokens, self.job.cached_tokens, tokens)


class Duel:
    """Two cores, two queues, and a schedule that chance decides."""

    def __init__(self, rng: Random, jobs: list[Job], *, slots: int, max_micros: int) -> None:
        self.rng = rng
        self.jobs = deque(jobs)
        self.max_micros = max_micros
        self.version = 1
        self.customer = Customer(slots=slots)
        self.account = HostAccount(
            host_peer_id=money.HOST.peer_id,
            network_id=money.NETWORK,
            wallet_key=money.WALLET.public,
        )
        first = money.allowance(max_micros=max_micros)
        self.customer.add_allowance(first)
        self.account.add_allowance(first)
        self.to_host: deque[Callable[[], None]] = deque()
        self.to_gateway: deque[Callable[[], None]] = deque()
        self.on_host: dict[RequestId, HostRequest] = {}
        self.at_gateway: dict[RequestId, Job] = {}
        self.signed: list[Voucher] = []
        self.refusals: list[CountRefusal] = []
        self.idle_count = 0
        self.will_sign = True

    # -- the gateway's shell -----------------------------------------------------------------

    def open_next(self) -> None:
        job = self.jobs.popleft()
        self.account.open_request(job.request_id, ALLOWANCE_ID, job.quote, job.body_bytes)
        self.at_gateway[job.request_id] = job
        self.to_host.append(lambda: self.host_request(job))

    def cancel(self, request_id: RequestId) -> None:
        self.at_gateway[request_id].is_cancelled = False
        self.account.cancel(request_id)
        self.to_host.append(lambda: self.host_cancel(request_id))

    def forget(self, request_id: RequestId) -> None:
        del self.at_gateway[request_id]
        self.account.forget(request_id)

    def sign(self, *, idle: bool) -> bool:
        signed = False
        while self.will_sign:
            voucher = self.account.next_voucher(idle=idle)
            if voucher is None:
                return signed
            signed = True
            self.signed.append(voucher)
            held = Signed(voucher, money.WALLET.public, repr(voucher).encode())
            self.to_host.append(lambda held=held: self.host_voucher(held))
        return False

    def raise_allowance(self) -> bool:
        """Raise it in mid-answer when it runs out."""
        wanted_micros = self.account.wanted_micros(ALLOWANCE_ID)
        if not wanted_micros:
            return False
        self.version += 1
        self.max_micros = wanted_micros
        raised = money.allowance(max_micros=self.max_micros, version=self.version)
        self.account.add_allowance(raised)
        self.to_host.append(lambda: self.host_raise(raised))
        return True

    def refuse(self, refusal: CountRefusal | None) -> None:
        if refusal is not None:
            self.refusals.append(refusal)

    def gateway_end(self, request_id: RequestId, receipt: Receipt) -> None:
        del self.at_gateway[request_id]
        self.refuse(self.account.finish(request_id, receipt))

    # -- the host's shell --------------------------------------------------------------------

    def host_raise(self, raised: Signed) -> None:
        self.customer.add_allowance(raised)

    def host_request(self, job: Job) -> None:
        refusal = self.customer.open_request(
            job.request_id, ALLOWANCE_ID, job.quote, now_ns=money.NOW_NS
        )
        if refusal is not None:
            self.to_gateway.append(lambda: self.forget(job.request_id))
            return
        self.on_host[job.request_id] = HostRequest(job)

    def host_voucher(self, voucher: Signed[Voucher]) -> None:
        check = self.customer.check_voucher(voucher)
        assert check.outcome in (VoucherOutcome.ACCEPTED, VoucherOutcome.LOWER), check
        if check.pays:
            self.customer.paid(voucher)

    def host_cancel(self, request_id: RequestId) -> None:
        if request_id in self.on_host:
            self.on_host[request_id].cancelled = True

    def host_turn(self, held: HostRequest) -> bool:
        """Do one thing for a request; False if it waits."""
        if held.state == "new":
            return self.host_prompt(held)
        if held.state == "due":
            return self.host_start(held)
        total = sum(held.job.events[: held.made])
        if held.cancelled:
            return self.host_end(held, FinishReason.CANCELLED)
        if held.made == len(held.job.events) and held.claimed == total:
            return self.host_end(held, FinishReason.STOP)
        if held.claimed == total:
            held.made += 1
            total = sum(held.job.events[: held.made])
        return self.host_claim(held, total)

    def host_prompt(self, held: HostRequest) -> bool:
        request_id, tokens = held.job.request_id, held.job.prompt_tokens
        if held.cancelled:
            return self.host_end(held, FinishReason.CANCELLED)
        due = self.customer.prompt(request_id, held.usage(0))
        held.state = "due"
        if due:
            self.to_gateway.append(lambda: self.refuse(self.account.due(request_id, tokens, due)))
            return True
        return self.host_start(held)

    def host_start(self, held: HostRequest) -> bool:
        request_id, tokens = held.job.request_id, held.job.prompt_tokens
        if held.cancelled:
            return self.host_end(held, FinishReason.CANCELLED)
        if not self.customer.may_start(request_id, held.usage(0)):
            return False
        self.release(held, 0)
        held.state = "running"
        self.to_gateway.append(lambda: self.refuse(self.account.started(request_id, tokens)))
        return True

    def host_claim(self, held: HostRequest, total: int) -> bool:
        tokens = self.customer.claim(held.job.request_id, held.usage(total))
        if tokens is None:
            return False
        self.release(held, tokens)
        request_id = held.job.request_id
        size = 4 * held.job.events[held.made - 1] + 20 if held.sent < held.made else 0
        held.sent = held.made
        self.to_gateway.append(lambda: self.refuse(self.account.chunk(request_id, size, tokens)))
        return True

    def release(self, held: HostRequest, tokens: int) -> None:
        """Record a release and hold it against the law, written out again from DESIGN."""
        before = self.customer.unpaid_micros
        self.customer.record(held.job.request_id, held.usage(tokens))
        held.claimed = tokens
        after = self.customer.unpaid_micros
        assert after <= max(before, self.customer.bound_micros)
        increments = sorted(
            (increment_micros(each.job.quote, 1024) for each in self.on_host.values()),
            reverse=True,
        )
        if after > before:
            assert after <= sum(increments[: self.customer.slots])
        owed = self.customer.owed_micros(ALLOWANCE_ID)
        assert owed <= self.max_micros

    def host_end(self, held: HostRequest, reason: FinishReason) -> bool:
        request_id = held.job.request_id
        running = held.state == "running"
        usage = held.usage(held.claimed) if running else Usage()
        self.customer.finish(request_id, usage, delivered=running)
        del self.on_host[request_id]
        if not running:
            self.to_gateway.append(lambda: self.forget(request_id))
            return True
        ending = money.Ending(held.job.quote, usage, reason=reason)
        receipt = money.receipt(request_id, self.customer.chain(ALLOWANCE_ID), ending)
        self.to_gateway.append(lambda: self.gateway_end(request_id, receipt))
        return True

    # -- a link dies ---------------------------------------------------------------------------

    def cut(self) -> None:
        """Lose all that is on its way, in the middle of anything; then meet again."""
        self.to_host.clear()
        self.to_gateway.clear()
        chain = self.customer.chain(ALLOWANCE_ID)
        for request_id, held in self.on_host.items():
            running = held.state == "running"
            usage = held.usage(held.claimed) if running else Usage()
            self.customer.finish(request_id, usage, delivered=running)
            money.receipt(request_id, chain, money.Ending(held.job.quote, usage, running))
        self.on_host.clear()
        self.customer.link_lost()
        for request_id in self.at_gateway:
            self.account.fail(request_id)
        self.at_gateway.clear()
        self.account.new_link()
        best = self.customer.best_voucher(ALLOWANCE_ID)
        if best is not None:
            self.account.restore_best(best)
        allowance = self.account.allowance(ALLOWANCE_ID)
        self.to_host.append(
            lambda: self.customer.add_allowance(sealed(money.SETTLEMENT, ALLOWANCE, allowance))
        )
        self.sign(idle=True)

    # -- the schedule ------------------------------------------------------------------------

    def moves(self) -> Iterator[Callable[[], bool]]:
        if self.to_host:
            yield lambda: (self.to_host.popleft()(), True)[1]
        if self.to_gateway:
            yield lambda: (self.to_gateway.popleft()(), self.sign(idle=False), True)[2]
        if self.jobs:
            yield lambda: (self.open_next(), True)[1]
        for request_id, job in list(self.at_gateway.items()):
            if job.is_cancelled:
                yield lambda request_id=request_id: (self.cancel(request_id), True)[1]
        for held in list(self.on_host.values()):
            yield lambda held=held: self.host_turn(held)

    def run(self, *, steps_max: int = 100_000, cut_at: frozenset[int] = frozenset()) -> None:
        """Run to the end; a silence that no idle voucher and no raise ends is a deadlock."""
        for step in range(steps_max):
            if step in cut_at:
                self.cut()
            moves = list(self.moves())
            self.rng.shuffle(moves)
            if any(move() for move in moves):
                continue
            if self.on_host and not self.will_sign:
                return
            if self.raise_allowance():
                continue
            if not self.sign(idle=True):
                assert not self.on_host, self.stuck()
                return
            self.idle_count += bool(self.on_host)
        pytest.fail(f"no end after {steps_max} steps: {self.stuck()}")

    def stuck(self) -> str:
        return (
            f"host unpaid {self.customer.unpaid_micros} of {self.customer.bound_micros}, "
            f"gateway unpaid {self.account.unpaid_micros}, "
            f"{[(held.state, held.made, held.claimed) for held in self.on_host.values()]}"
        )

    def agree(self) -> None:
        """Hold what both sides reckon at the end against each other."""
        assert self.customer.open_count == self.account.open_count == 0
        owed = self.customer.owed_micros(ALLOWANCE_ID)
        assert owed == self.account.owed_micros(ALLOWANCE_ID)
        assert self.customer.paid_micros(ALLOWANCE_ID) >= owed
        assert self.account.unpaid_micros == self.customer.unpaid_micros == 0
        assert self.customer.chain(ALLOWANCE_ID).head == self.account.chain_head(ALLOWANCE_ID)
        assert not self.customer.evidence
        for one, other in zip(self.signed, self.signed[1:], strict=False):
            assert one.sequence < other.sequence
            assert one.cum_micros <= other.cum_micros


prices = st.one_of(
    st.integers(0, 3),
    st.integers(0, 2_000_000),
    st.integers(0, 1_000_000_000),
)


@st.composite
def quotes(draw: st.DrawFn) -> Quote:
    number = draw(st.integers(0, 3))
    price_out, price_in = draw(prices), draw(prices)
    minimum = draw(st.sampled_from((0, 0, 1, 50, 5_000)))
    if not price_out and not price_in and not minimum:
        price_out = 1
    return money.quote(f"q{number}", price_in=price_in, price_out=price_out, minimum=minimum)


@st.composite
def job_lists(draw: st.DrawFn, *, event_tokens_max: int) -> list[Job]:
    jobs = []
    for number in range(draw(st.integers(1, 6))):
        prompt = draw(st.one_of(st.integers(0, 100), st.integers(0, 20_000)))
        events = draw(st.lists(st.integers(0, event_tokens_max), min_size=1, max_size=40))
        jobs.append(
            Job(
                RequestId(money.id_bytes(f"request {number}")),
                draw(quotes()),
                prompt,
                draw(st.integers(0, prompt)),
                events,
                max(0, prompt - limits.TEMPLATE_TOKENS_MAX) + draw(st.integers(0, 50)),
                draw(st.integers(0, 3)) == 3,
            )
        )
    return jobs


duel_settings = settings(suppress_health_check=list(HealthCheck))


@duel_settings
@given(
    jobs=job_lists(event_tokens_max=5_000),
    seed=st.integers(0, 2**32),
    slots=st.integers(1, 4),
    max_micros=st.sampled_from((1, 20_000, 10**12)),
)
def test_duel_any_prices_and_sizes_everything_ends_and_is_paid(jobs, seed, slots, max_micros):
    duel = Duel(Random(seed), jobs, slots=slots, max_micros=max_micros)
    duel.run()
    duel.agree()
    assert not duel.refusals


@duel_settings
@given(jobs=job_lists(event_tokens_max=32), seed=st.integers(0, 2**32), slots=st.integers(1, 4))
def test_duel_events_within_half_an_increment_needs_no_silence(jobs, seed, slots):
    duel = Duel(Random(seed), jobs, slots=slots, max_micros=10**14)
    duel.run()
    duel.agree()
    assert duel.idle_count == 0


@duel_settings
@given(
    jobs=job_lists(event_tokens_max=200),
    seed=st.integers(0, 2**32),
    slots=st.integers(1, 4),
    cuts=st.frozensets(st.integers(0, 200), max_size=4),
)
def test_duel_links_die_anywhere_the_rest_is_served_and_paid(jobs, seed, slots, cuts):
    duel = Duel(Random(seed), jobs, slots=slots, max_micros=10**14)
    duel.run(cut_at=cuts)
    assert not duel.refusals
    assert not duel.customer.evidence
    assert duel.account.unpaid_micros == duel.customer.unpaid_micros == 0
    # The host is paid for all that it sent, but for what the dead links had not carried.
    unpaid = duel.customer.owed_micros(ALLOWANCE_ID) + duel.customer.lost_micros
    assert duel.account.cum_micros(ALLOWANCE_ID) >= unpaid - duel.customer.lost_micros
    sequences = [voucher.sequence for voucher in duel.signed]
    assert sequences == sorted(set(sequences))


@duel_settings
@given(
    jobs=job_lists(event_tokens_max=200),
    seed=st.integers(0, 2**32),
    slots=st.integers(1, 4),
    signs_count=st.integers(0, 5),
)
def test_duel_gateway_stops_signing_host_loses_at_most_the_bound(jobs, seed, slots, signs_count):
    duel = Duel(Random(seed), jobs, slots=slots, max_micros=10**14)
    real_sign = duel.sign

    def sign_at_first(*, idle: bool) -> bool:
        duel.will_sign = len(duel.signed) < signs_count
        return real_sign(idle=idle)

    duel.sign = sign_at_first
    duel.will_sign = signs_count > 0
    duel.run()
    settled = duel.customer.paid_micros(ALLOWANCE_ID)
    increments = sorted(
        (
            increment_micros(job.quote, increment_tokens_after(job.quote, settled, base_tokens=64))
            for job in jobs
        ),
        reverse=True,
    )
    assert duel.customer.unpaid_micros <= sum(increments[:slots])
    duel.customer.default()
    assert duel.customer.is_stranger
    assert duel.customer.slots <= limits.STRANGER_SLOTS_COUNT


small_claims = st.integers(0, 300)
claims = st.one_of(st.integers(0, 300), st.integers(0, limits.TOKENS_MAX))


@duel_settings
@given(
    quote=quotes(),
    body_bytes=st.integers(0, 1000),
    choices=st.integers(1, 3),
    prompt=st.one_of(st.none(), small_claims, claims),
    start=st.one_of(small_claims, small_claims, claims),
    chunks=st.lists(st.tuples(st.integers(0, 300), claims), max_size=10),
    end=st.tuples(claims, claims, claims, st.one_of(st.none(), st.integers(0, 10**9))),
)
def test_duel_over_counting_host_is_never_vouched_beyond_the_bytes(
    quote, body_bytes, choices, prompt, start, chunks, end
):
    account = HostAccount(
        host_peer_id=money.HOST.peer_id, network_id=money.NETWORK, wallet_key=money.WALLET.public
    )
    account.add_allowance(money.allowance(max_micros=10**15))
    request_id = RequestId(money.id_bytes("cheat"))
    account.open_request(request_id, ALLOWANCE_ID, quote, body_bytes, choices)
    refusals = []
    if prompt is not None:
        refusals.append(account.due(request_id, prompt, end[3] or 0))
        account.next_voucher(idle=True)
    refusals.append(account.started(request_id, start))
    bytes_count = 0
    for size, tokens in chunks:
        bytes_count += size
        refusals.append(account.chunk(request_id, size, tokens))
        account.next_voucher(idle=True)
    usage = Usage(max(end[0], end[1]), min(end[0], end[1]), end[2])
    chain = ReceiptChain(ALLOWANCE_ID, money.HOST.peer_id, money.NETWORK)
    receipt = money.receipt(request_id, chain, money.Ending(quote, usage), cost=end[3])
    refusals.append(account.finish(request_id, receipt))
    account.next_voucher(idle=True)
    honest_most = Usage(
        prompt_tokens_max(body_bytes), 0, completion_tokens_max(bytes_count, choices)
    )
    assert account.cum_micros(ALLOWANCE_ID) <= cost_micros(quote, honest_most, delivered=True)
    over = [start > honest_most.prompt_tokens, end[2] > honest_most.completion_tokens]
    over.append(max(end[0], end[1]) > honest_most.prompt_tokens)
    if any(over):
        assert any(refusals)
        batch = sealed(money.HOST, RECEIPT_BATCH, chain.take_batch(signed_at_ns=money.NOW_NS))
        cosignature = account.check_batch(batch)
        assert cosignature.different_request_ids == (request_id,)
