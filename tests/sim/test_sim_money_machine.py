"""Settlement's ledger, a host and a gateway, driven into any state: every invariant of the money.

Messages wait in two queues; links die, either side crashes or comes back from a backup, the
gateway equivocates, vouchers reach settlement from either side in any order and often, time passes.
"""

import dataclasses
from collections import deque
from collections.abc import Callable
from random import Random

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from p2p import limits
from p2p.receipts.cost import Usage, fee_micros, increment_micros
from p2p.receipts.messages import (
    ALLOWANCE,
    CLOSE,
    COSIGNATURE,
    RECEIPT_BATCH,
    VOUCHER,
    Allowance,
    Close,
    Quote,
    Receipt,
    ReceiptBatch,
    Voucher,
)
from p2p.receipts.tab import Customer
from p2p.receipts.vouchers import VoucherOutcome
from p2p.receipts.wallet import HostAccount
from p2p.signing import Signed, sealed, unseal
from p2p.testing import money
from p2p.types import AllowanceId, RequestId
from settlement import ledger
from settlement.issuer import Issuer
from settlement.ledger import AllowanceState, Order
from settlement.operations import (
    AllowanceRefusal,
    Credit,
    CreditOutcome,
    add_credit,
    place_order,
    post_closes,
    post_vouchers,
    sweep,
)
from settlement.queries import check_ledger
from settlement.store import Account, Machine
from settlement.store_memory import MemoryStore

NETWORK, HOST, WALLET = money.NETWORK, money.HOST, money.WALLET
ISSUER = Issuer(NETWORK, money.SETTLEMENT, bytes(32), b"", 500)
HOST_MACHINE = Machine(HOST.peer_id, "bob", "host", money.NOW_NS)
GATEWAY_MACHINE = Machine(money.key("gateway").peer_id, "alice", "gateway", money.NOW_NS)
SLOTS = 2
IDS = tuple(AllowanceId(money.id_bytes(f"allowance {each}")) for each in range(2))
QUOTES = (
    money.quote("even", price_in=1_000_000, price_out=1_000_000),
    money.quote("dear", price_in=3_000_000, price_out=15_000_000, minimum=100),
    money.quote("cheap", price_in=7, price_out=11),
)
Message = Callable[[], None]


def open_books() -> MemoryStore:
    """Return settlement's store with a client and a host in it."""
    store = MemoryStore()
    with store.writing() as writing:
        for name in ("alice", "bob"):
            writing.put_account(Account(name, name, money.NOW_NS))
        writing.put_machine(HOST_MACHINE)
        writing.put_machine(GATEWAY_MACHINE)
    return store


@dataclasses.dataclass
class Running:
    """A request at the host."""

    quote: Quote
    prompt_tokens: int
    allowance_id: AllowanceId
    claimed: int = 0
    is_started: bool = False
    is_cancelled: bool = False

    def usage(self, tokens: int) -> Usage:
        return Usage(self.prompt_tokens, self.prompt_tokens // 4, tokens)


class MoneyMachine(RuleBasedStateMachine):
    """One client's gateway, one host, and settlement."""

    @initialize(micros=st.sampled_from((300, 20_000, 900_000)))
    def begin(self, micros: int) -> None:
        self.now_ns = money.NOW_NS
        self.store = open_books()
        self.said: list[tuple[str, object, int]] = []  # what changes the books, in order
        self.credited_micros = 0
        self.allowances: dict[AllowanceId, Signed[Allowance]] = {}
        self.closed: set[AllowanceId] = set()
        self.vouchers: list[Signed[Voucher]] = []  # the gateway's journal
        self.stray: list[Signed[Voucher]] = []  # what a dishonest gateway signed besides
        self.best: dict[AllowanceId, Signed[Voucher]] = {}  # the host's journal
        self.finished: dict[AllowanceId, int] = {}
        self.running: dict[RequestId, Running] = {}
        self.sent: set[RequestId] = set()
        self.to_host: deque[Message] = deque()
        self.to_gateway: deque[Message] = deque()
        self.request_count = 0
        self.customer = Customer(slots=SLOTS)
        self.account = self.new_account()
        self.credit(micros=1_000_000, promo=False)
        self.order(which=0, micros=micros, doubled=False)

    def new_account(self) -> HostAccount:
        return HostAccount(host_peer_id=HOST.peer_id, network_id=NETWORK, wallet_key=WALLET.public)

    # -- settlement --------------------------------------------------------------------------

    @rule(micros=st.integers(1, 200_000), promo=st.booleans())
    def credit(self, *, micros: int, promo: bool) -> None:
        given = Credit("alice", micros, f"credit {len(self.said)}", promo)
        with self.store.writing() as writing:
            assert add_credit(writing, given, now_ns=self.now_ns) is CreditOutcome.CREDITED
        self.said.append(("credit", given, self.now_ns))
        self.credited_micros += micros

    @rule(which=st.integers(0, 1), micros=st.integers(1, 50_000), doubled=st.booleans())
    def order(self, *, which: int, micros: int, doubled: bool) -> None:
        held = self.allowances.get(IDS[which])
        if doubled and held is not None:
            micros = 2 * held.value.max_micros
        asked = Order(IDS[which], "alice", HOST.peer_id, WALLET.public, micros, limits.HOUR_NS)
        with self.store.writing() as writing:
            got = place_order(writing, ISSUER, asked, now_ns=self.now_ns)
        if isinstance(got, AllowanceRefusal):
            return
        self.said.append(("order", asked, self.now_ns))
        signed = unseal(ALLOWANCE, got, network_id=NETWORK)
        self.allowances[IDS[which]] = signed
        self.account.add_allowance(signed)
        self.to_host.append(lambda: self.host_allowance(signed))

    def host_allowance(self, signed: Signed[Allowance]) -> None:
        if signed.value.allowance_id not in self.closed:
            self.customer.add_allowance(signed)

    def submit(self, machine: Machine, voucher: Signed[Voucher]) -> None:
        self.said.append(("voucher", (machine, voucher), self.now_ns))
        with self.store.writing() as writing:
            (result,) = post_vouchers(writing, machine, [voucher], now_ns=self.now_ns)
        assert result.outcome is not ledger.VoucherOutcome.REFUSED or (
            self.now_ns > self.allowances[voucher.value.allowance_id].value.settle_by_ns
        )

    @precondition(lambda self: self.best)
    @rule(data=st.data())
    def settle_host(self, data: st.DataObject) -> None:
        self.submit(HOST_MACHINE, self.best[data.draw(st.sampled_from(sorted(self.best)))])

    @precondition(lambda self: self.vouchers or self.stray)
    @rule(data=st.data())
    def settle_gateway(self, data: st.DataObject) -> None:
        made = self.vouchers + self.stray
        self.submit(GATEWAY_MACHINE, made[data.draw(st.integers(0, len(made) - 1))])

    @precondition(lambda self: self.request_count > 3 and self.idle_allowances())
    @rule(data=st.data(), once_more=st.booleans())
    def close(self, *, data: st.DataObject, once_more: bool) -> None:
        allowance_id = data.draw(st.sampled_from(self.idle_allowances()))
        final = self.best[allowance_id].value.cum_micros
        close = sealed(
            HOST,
            CLOSE,
            Close(
                network_id=NETWORK,
                allowance_id=allowance_id,
                host_peer_id=HOST.peer_id,
                final_cum_micros=final,
            ),
        )
        self.submit(HOST_MACHINE, self.best[allowance_id])
        with self.store.writing() as writing:
            post_closes(writing, HOST_MACHINE, [close] * (1 + once_more), now_ns=self.now_ns)
        self.closed.add(allowance_id)
        self.customer.remove_allowance(allowance_id)

    def idle_allowances(self) -> list[AllowanceId]:
        """Return what the host may close."""
        held = set(self.customer.allowance_ids()) & set(self.best)
        return sorted(each for each in held if not self.customer.has_open(each))

    @rule(hours=st.sampled_from((0, 0, 0, 0, 0, 0, 0, 1, 20, 80)))
    def time_passes(self, hours: int) -> None:
        self.now_ns += hours * limits.HOUR_NS + limits.SECOND_NS
        with self.store.writing() as writing:
            sweep(writing, now_ns=self.now_ns)

    # -- the gateway -------------------------------------------------------------------------

    @precondition(lambda self: self.allowances and len(self.sent) < 4)
    @rule(
        data=st.data(),
        quote=st.sampled_from(QUOTES),
        prompt=st.one_of(st.integers(0, 80), st.integers(0, 4000)),
    )
    def open_request(self, data: st.DataObject, quote: Quote, prompt: int) -> None:
        self.send_request(data.draw(st.sampled_from(sorted(self.allowances))), quote, prompt)

    def send_request(self, allowance_id: AllowanceId, quote: Quote, prompt: int) -> None:
        self.request_count += 1
        request_id = RequestId(self.request_count.to_bytes(16, "big"))
        self.account.open_request(request_id, allowance_id, quote, body_bytes=prompt)
        self.sent.add(request_id)
        self.to_host.append(
            lambda: self.host_request(request_id, Running(quote, prompt, allowance_id))
        )

    @rule(idle=st.booleans())
    def sign(self, *, idle: bool) -> None:
        while (value := self.account.next_voucher(idle=idle)) is not None:
            voucher = sealed(WALLET, VOUCHER, value)
            self.vouchers.append(voucher)
            self.to_host.append(lambda voucher=voucher: self.host_voucher(voucher))

    @precondition(lambda self: self.vouchers)
    @rule(data=st.data(), cum=st.integers(0, 20_000), to_host=st.booleans())
    def equivocate(self, *, data: st.DataObject, cum: int, to_host: bool) -> None:
        """Sign another amount under a sequence that is used."""
        told = data.draw(st.sampled_from(self.vouchers[-3:])).value
        most = self.allowances[told.allowance_id].value.max_micros
        value = msgspec.structs.replace(told, cum_micros=min(cum, most))
        voucher = sealed(WALLET, VOUCHER, value)
        self.stray.append(voucher)
        if to_host:
            self.to_host.append(lambda: self.host_voucher(voucher))

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.sent)))
        self.account.cancel(request_id)

        def cancelled() -> None:
            if request_id in self.running:
                self.running[request_id].is_cancelled = True

        self.to_host.append(cancelled)

    def gateway_forget(self, request_id: RequestId) -> None:
        self.sent.discard(request_id)
        self.account.forget(request_id)

    def gateway_end(self, request_id: RequestId, receipt: Receipt) -> None:
        self.sent.discard(request_id)
        assert self.account.finish(request_id, receipt) is None

    def gateway_batch(self, batch: Signed[ReceiptBatch]) -> None:
        cosignature = self.account.check_batch(batch)
        if cosignature is not None:
            sealed(WALLET, COSIGNATURE, cosignature)
            assert cosignature.different_request_ids == ()

    # -- the host ----------------------------------------------------------------------------

    def host_request(self, request_id: RequestId, held: Running) -> None:
        refusal = self.customer.open_request(
            request_id, held.allowance_id, held.quote, now_ns=self.now_ns
        )
        if refusal is not None:
            self.to_gateway.append(lambda: self.gateway_forget(request_id))
            return
        self.running[request_id] = held
        due = self.customer.prompt(request_id, held.usage(0))
        if due:
            tokens = held.prompt_tokens
            self.to_gateway.append(lambda: self.gateway_due(request_id, tokens, due))

    def gateway_due(self, request_id: RequestId, tokens: int, micros: int) -> None:
        assert self.account.due(request_id, tokens, micros) is None

    def host_voucher(self, voucher: Signed[Voucher]) -> None:
        check = self.customer.check_voucher(voucher)
        if check.outcome is VoucherOutcome.REFUSED:
            assert voucher.value.allowance_id not in self.customer.allowance_ids()
        if check.pays:
            self.best[voucher.value.allowance_id] = voucher
            self.customer.paid(voucher)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), tokens=st.one_of(st.integers(0, 40), st.integers(0, 3000)))
    def host_works(self, data: st.DataObject, tokens: int) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.running)))
        self.host_turn(request_id, tokens)

    @rule(
        which=st.integers(0, 1),
        quote=st.sampled_from(QUOTES),
        prompt=st.one_of(st.integers(0, 80), st.integers(0, 4000)),
        tokens=st.lists(st.integers(0, 200), min_size=1, max_size=4),
        ends=st.booleans(),
    )
    def all_goes_well(
        self, *, which: int, quote: Quote, prompt: int, tokens: list[int], ends: bool
    ) -> None:
        """Open, deliver, work, sign and end in turn, so that lives get somewhere."""
        if IDS[which] in self.allowances and len(self.sent) < 4:
            self.send_request(IDS[which], quote, prompt)
        for count in (0, *tokens):
            self.deliver(most=5)
            self.sign(idle=False)
            self.deliver(most=5)
            for request_id in sorted(self.running):
                self.host_turn(request_id, count)
        for request_id in sorted(self.running)[: int(ends)]:
            self.host_end(request_id)

    def host_turn(self, request_id: RequestId, tokens: int) -> None:
        held = self.running[request_id]
        if not held.is_started:
            self.host_starts(request_id, held)
            return
        claimed = self.customer.claim(request_id, held.usage(held.claimed + tokens))
        if claimed is None:
            return
        self.release(request_id, held, claimed)
        size = 4 * tokens + 20
        self.to_gateway.append(lambda: self.gateway_chunk(request_id, size, claimed))

    def host_starts(self, request_id: RequestId, held: Running) -> None:
        if held.is_cancelled or not self.customer.may_start(request_id, held.usage(0)):
            return
        self.release(request_id, held, 0)
        held.is_started = True
        tokens = held.prompt_tokens
        self.to_gateway.append(lambda: self.gateway_started(request_id, tokens))

    def gateway_started(self, request_id: RequestId, tokens: int) -> None:
        assert self.account.started(request_id, tokens) is None

    def gateway_chunk(self, request_id: RequestId, size: int, tokens: int) -> None:
        assert self.account.chunk(request_id, size, tokens) is None

    def release(self, request_id: RequestId, held: Running, tokens: int) -> None:
        before = self.customer.unpaid_micros
        self.customer.record(request_id, held.usage(tokens))
        held.claimed = tokens
        after = self.customer.unpaid_micros
        largest = sorted(
            (increment_micros(each.quote, 1024) for each in self.running.values()), reverse=True
        )
        assert after <= before or after <= min(sum(largest[:SLOTS]), self.customer.bound_micros)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def host_ends(self, data: st.DataObject) -> None:
        self.host_end(data.draw(st.sampled_from(sorted(self.running))))

    def host_end(self, request_id: RequestId) -> None:
        held = self.running[request_id]
        if not held.is_started:
            self.end(request_id, held)
            self.to_gateway.append(lambda: self.gateway_forget(request_id))
            return
        # Nothing but the prompt was delivered: then only a client that cancelled owes it.
        if not held.claimed and not held.is_cancelled:
            return
        receipt = self.end(request_id, held)
        self.to_gateway.append(lambda: self.gateway_end(request_id, receipt))
        self.host_batches(held.allowance_id)

    def end(self, request_id: RequestId, held: Running) -> Receipt | None:
        usage = held.usage(held.claimed) if held.is_started else Usage()
        cost = self.customer.finish(request_id, usage, delivered=held.is_started)
        del self.running[request_id]
        allowance_id = held.allowance_id
        self.finished[allowance_id] = self.finished.get(allowance_id, 0) + cost
        if not held.is_started:
            return None
        ending = money.Ending(held.quote, usage)
        return money.receipt(request_id, self.customer.chain(allowance_id), ending)

    def host_batches(self, allowance_id: AllowanceId) -> None:
        chain = self.customer.chain(allowance_id)
        value = chain.take_batch(signed_at_ns=self.now_ns)
        batch = sealed(HOST, RECEIPT_BATCH, value)
        self.to_gateway.append(lambda: self.gateway_batch(batch))

    # -- the network -------------------------------------------------------------------------

    @precondition(lambda self: self.to_host or self.to_gateway)
    @rule(most=st.integers(1, 10))
    def deliver(self, most: int) -> None:
        for _ in range(most):
            for queue in (self.to_host, self.to_gateway):
                if queue:
                    queue.popleft()()

    @precondition(lambda self: self.request_count % 3 == 2)
    @rule(host_dies=st.booleans(), gateway_dies=st.booleans(), backup=st.integers(0, 3))
    def link_dies(self, *, host_dies: bool, gateway_dies: bool, backup: int) -> None:
        self.to_host.clear()
        self.to_gateway.clear()
        for request_id, held in list(self.running.items()):
            self.end(request_id, held)
        if host_dies:
            self.host_comes_back()
        else:
            self.customer.link_lost()
        for request_id in self.sent:
            self.account.fail(request_id)
        self.sent.clear()
        if gateway_dies:
            self.gateway_comes_back(backup)
        self.meet()

    def host_comes_back(self) -> None:
        self.customer = Customer(slots=SLOTS)
        for allowance_id, allowance in self.allowances.items():
            if allowance_id in self.closed:
                continue
            best = self.best.get(allowance_id)
            self.customer.add_allowance(
                allowance, best, self.finished.get(allowance_id, 0), batch_sequence=0
            )

    def gateway_comes_back(self, backup: int) -> None:
        """Restore from the journal, of which a backup lacks the last lines."""
        self.account = self.new_account()
        known = self.vouchers[: len(self.vouchers) - backup] if backup else self.vouchers
        for allowance_id, allowance in self.allowances.items():
            last = [each.value for each in known if each.value.allowance_id == allowance_id]
            if last:
                self.account.add_allowance(
                    allowance,
                    sequence=last[-1].sequence,
                    cum_micros=last[-1].cum_micros,
                    head=last[-1].chain_head,
                )
            else:
                self.account.add_allowance(allowance)

    def meet(self) -> None:
        """Greet: the host shows its best vouchers, the gateway its allowances."""
        self.account.new_link()
        for allowance_id in self.customer.allowance_ids():
            best = self.customer.best_voucher(allowance_id)
            if best is not None:
                self.account.restore_best(best)
        for signed in self.allowances.values():
            self.to_host.append(lambda signed=signed: self.host_allowance(signed))

    # -- what always holds -------------------------------------------------------------------

    @invariant()
    def books_are_right(self) -> None:
        with self.store.reading() as reading:
            check = check_ledger(reading)
            balances = reading.all_balances()
            states = list(reading.all_allowances())
        assert check.is_ok, check.problems
        posted = sum(state.posted_micros for state in states)
        earned = balances.get(f"host:payable:{HOST.peer_id}", 0)
        earned += balances.get(f"host:held:{HOST.peer_id}", 0)
        fees = sum(fee_micros(state.posted_micros, state.fee_bps) for state in states)
        assert balances.get("platform:fee", 0) == fees
        assert earned + fees == posted
        client = sum(held for name, held in balances.items() if name.startswith("client:"))
        assert client + posted == self.credited_micros
        for state in states:
            self.allowance_is_right(state)

    def allowance_is_right(self, state: AllowanceState) -> None:
        signed = [
            each.value.cum_micros
            for each in self.vouchers + self.stray
            if each.value.allowance_id == state.allowance_id
        ]
        assert state.posted_micros <= state.cum_micros <= max(signed, default=0)
        assert state.cum_micros <= state.max_micros
        assert state.posted_micros + state.voided_micros + state.reserved_micros == (
            state.max_micros
        )
        best = self.best.get(state.allowance_id)
        if best is not None:
            assert best.value.cum_micros <= state.max_micros

    @invariant()
    def wallets_are_right(self) -> None:
        tabs = self.customer.allowance_ids()
        unpaid = 0
        for allowance_id in tabs:
            owed = self.customer.owed_micros(allowance_id)
            paid = self.customer.paid_micros(allowance_id)
            most = self.allowances[allowance_id].value.max_micros
            assert 0 <= owed <= most
            assert paid <= most
            unpaid += max(0, owed - paid)
        assert self.customer.unpaid_micros == unpaid
        assert unpaid <= SLOTS * max(increment_micros(quote, 1024) for quote in QUOTES)
        unsigned = 0
        for allowance_id in self.account.allowance_ids():
            most = self.account.allowance(allowance_id).max_micros
            owed = min(self.account.owed_micros(allowance_id), most)
            unsigned += max(0, owed - self.account.cum_micros(allowance_id))
        assert self.account.unpaid_micros == unsigned

    def teardown(self) -> None:
        """Replay what settlement was told, vouchers in any order and twice: the same books."""
        if not hasattr(self, "said"):
            return
        told = [each for each in self.said if each[0] == "voucher"]
        mixed = told + told[::2]
        Random(len(told)).shuffle(mixed)
        one, other = (self.replay(vouchers) for vouchers in (told, mixed))
        assert one == other

    def replay(self, vouchers: list[tuple[str, object, int]]) -> tuple[object, object]:
        store = open_books()
        rest = [each for each in self.said if each[0] != "voucher"]
        with store.writing() as writing:
            for name, what, at_ns in rest:
                if name == "credit":
                    add_credit(writing, what, now_ns=at_ns)
                else:
                    place_order(writing, ISSUER, what, now_ns=at_ns)
            for _, (machine, voucher), _ in vouchers:
                post_vouchers(writing, machine, [voucher], now_ns=money.NOW_NS)
        with store.reading() as reading:
            return reading.all_balances(), sorted(reading.all_allowances(), key=repr)


# CI runs 2,000 lives of 50 steps, `make test` 200.
_LIVES_COUNT = 2000 if settings.get_current_profile_name() in ("ci", "explore") else 200
TestMoneyMachine = MoneyMachine.TestCase
TestMoneyMachine.settings = settings(max_examples=_LIVES_COUNT, stateful_step_count=50)
