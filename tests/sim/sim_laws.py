"""What must hold after every step of a simulation, and at its end.

A law that breaks raises ``LawBrokenError``; nothing here changes what happens.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

from sim_bounds import GATEWAY_BOUNDS, HOST_BOUNDS, Dealings, risk_micros
from sim_nodes import GatewayProcess, HostProcess
from sim_settlement import FEE_BPS
from sim_tap import Deal, Promise

from p2p.receipts.cost import fee_micros
from p2p.receipts.messages import Voucher
from p2p.receipts.vouchers import contradict
from p2p.signing import Signed
from p2p.types import AllowanceId, PeerId
from settlement.queries import check_ledger

if TYPE_CHECKING:
    from sim_world import World

REPLAYS_COUNT = 2


class LawBrokenError(AssertionError):
    """Raised when something happened that may never happen."""


def require(holds: object, law: str) -> None:
    """Raise unless something holds."""
    if not holds:
        raise LawBrokenError(law)


@dataclass
class Laws:
    """Checks a world."""

    world: "World"
    checks_count: int = 0
    _posted: dict[AllowanceId, int] = field(default_factory=dict)
    _paid_before: dict[str, dict[AllowanceId, int]] = field(default_factory=dict)

    # -- after each delivery ---------------------------------------------------------------------

    def after_delivery(self, receiver: PeerId) -> None:
        """Look at whoever just took something."""
        self.checks_count += 1
        host = self.world.hosts_by_peer.get(receiver)
        if host is not None and not host.cheat:
            self._host_is_right(host.process)
            return
        gateway = self.world.gateway_of(receiver)
        if gateway is not None and not gateway.cheat:
            self._gateway_is_right(gateway.process)

    def _host_is_right(self, host: HostProcess) -> None:
        """The risk bound: nobody owes more than one increment for each of its slots."""
        if host.server is None or not host.is_up:
            return
        for account in host.server.books._accounts.values():
            customer = account.customer
            unpaid = 0
            for allowance_id in customer.allowance_ids():
                promise = self.world.tap.promises[allowance_id]
                owed = customer.owed_micros(allowance_id)
                paid = customer.paid_micros(allowance_id)
                require(paid <= promise.arrived_micros, "a host counts what no voucher paid")
                require(owed <= promise.allowance.max_micros, "more is owed than was allowed")
                unpaid += max(0, owed - paid)
            require(customer.unpaid_micros == unpaid, "a customer's unpaid is not its sum")
            if unpaid:
                most = risk_micros(self._dealings_at(host, customer._paid_total_micros))
                require(unpaid <= most, f"{unpaid} unpaid at {host.name}, at most {most}")

    def _dealings_at(self, host: HostProcess, paid_micros: int) -> Dealings:
        return Dealings((), self.world.quote_of(host), paid_micros, host.config.engines[0].slots)

    def _gateway_is_right(self, gateway: GatewayProcess) -> None:
        if gateway.core is None:
            return
        for purse in gateway.core.wallet.purses():
            account = purse.account
            unsigned = 0
            for allowance_id in account.allowance_ids():
                most = account.allowance(allowance_id).max_micros
                cum = account.cum_micros(allowance_id)
                require(cum <= most, "more is vouched for than was allowed")
                unsigned += max(0, min(account.owed_micros(allowance_id), most) - cum)
            require(account.unpaid_micros == unsigned, "an account's unpaid is not its sum")

    # -- after each voucher and request that a gateway wrote ---------------------------------------

    def voucher_signed(self, promise: Promise, voucher: Signed[Voucher]) -> None:
        """An honest gateway never contradicts itself, nor pays for what it cannot have got."""
        gateway = self.world.gateway_of(promise.gateway)
        if gateway is None or gateway.cheat:
            return
        value = voucher.value
        for earlier in promise.vouchers:
            require(not contradict(earlier, value), "an honest gateway contradicts itself")
        require(value.cum_micros <= promise.allowance.max_micros, "a voucher above its allowance")
        ceiling = sum(deal.ceiling_micros for deal in promise.deals)
        require(
            value.cum_micros <= ceiling,
            f"{value.cum_micros} vouched for, {ceiling} at most can have been got",
        )

    def request_sent(self, deal: Deal) -> None:
        """An honest gateway sends nothing to a banned host, nor at a price that it did not see."""
        gateway = self.world.gateway_of(deal.gateway)
        if gateway is None or gateway.cheat:
            return
        known = gateway.process.core.table.get(deal.host)
        require(known is None or not known.is_banned, "a request goes to a banned host")
        prices = self.world.hosts_by_peer[deal.host].process.config.engines[0].prices
        require(
            deal.quote.price_out_micros_per_mtok <= prices.out_micros_per_mtok
            and deal.quote.price_in_micros_per_mtok <= prices.in_micros_per_mtok,
            "a request names a quote that is dearer than the record",
        )

    # -- after each transaction ------------------------------------------------------------------

    def after_transaction(self, kind: str) -> None:
        """The books: everything sums up, and nothing was posted that was not vouched for."""
        settlement = self.world.settlement
        with settlement.store.reading() as reading:
            check = check_ledger(reading)
            balances = reading.all_balances()
            states = list(reading.all_allowances())
        require(check.is_ok, f"the ledger is not right: {check.problems}")
        if kind == "restore":
            self._posted.clear()
        posted: defaultdict[PeerId, int] = defaultdict(int)
        fees: defaultdict[PeerId, int] = defaultdict(int)
        for state in states:
            self._allowance_is_right(state)
            posted[state.host_peer_id] += state.posted_micros
            fees[state.host_peer_id] += fee_micros(state.posted_micros, FEE_BPS)
        for host, micros in posted.items():
            earned = balances.get(f"host:payable:{host}", 0) + balances.get(f"host:held:{host}", 0)
            require(earned + fees[host] == micros, "host and fee are not what the clients paid")
        require(balances.get("platform:fee", 0) == sum(fees.values()), "the fees do not add up")

    def _allowance_is_right(self, state: object) -> None:
        before = self._posted.get(state.allowance_id, 0)
        require(state.posted_micros >= before, "what was posted was taken back")
        self._posted[state.allowance_id] = state.posted_micros
        require(
            state.posted_micros <= state.cum_micros <= state.max_micros,
            "posted, vouched for and allowed are not in order",
        )
        require(
            state.posted_micros + state.voided_micros + state.reserved_micros == state.max_micros,
            "an allowance's parts are not the whole",
        )
        promise = self.world.tap.promises.get(state.allowance_id)
        if promise is None:
            require(state.cum_micros == 0, "settlement knows a voucher that no host could use")
        elif not self.world.gateway_of(promise.gateway).cheat:
            most = sum(deal.ceiling_micros for deal in promise.deals)
            require(state.cum_micros <= most, "settlement knows more than can have been got")

    # -- around a crash --------------------------------------------------------------------------

    def host_died(self, host: HostProcess) -> None:
        """Remember what it counted as paid."""
        if host.server is None:
            return
        self._paid_before[host.name] = {
            allowance_id: account.customer.paid_micros(allowance_id)
            for account in host.server.books._accounts.values()
            for allowance_id in account.customer.allowance_ids()
        }

    def host_is_back(self, host: HostProcess) -> None:
        """What it relied on must have been on its disk."""
        if host.server is None or not host.is_up:
            return
        paid_now = {
            allowance_id: account.customer.paid_micros(allowance_id)
            for account in host.server.books._accounts.values()
            for allowance_id in account.customer.allowance_ids()
        }
        for allowance_id, paid in self._paid_before.pop(host.name, {}).items():
            is_closed = allowance_id in host.server.books.closes
            require(
                is_closed or paid_now.get(allowance_id, 0) >= paid,
                f"{host.name} relied on a voucher that was not on its disk",
            )

    # -- at the end ------------------------------------------------------------------------------

    def at_end(self) -> None:
        """What every cheat gained, and whether all was paid; then the books once more."""
        self.world.gains = self.gains_are_bounded()
        for host in self._honest_hosts():
            for gateway in self.world.gateways:
                if not gateway.cheat:
                    self._all_is_paid(host, gateway)
        self._settled_is_right()
        self._any_order_is_the_same()

    def gains_are_bounded(self) -> list[tuple[str, int, int]]:
        """Hold every gain against its bound; return cheat, gain and bound of each pair."""
        gains = []
        for host in self.world.hosts:
            for gateway in self.world.gateways:
                if gateway.name == gateway.payer:
                    gains += self._gains_of(host, gateway)
        for cheat, gain, bound in gains:
            require(gain <= bound, f"{cheat or 'honest'}: gained {gain}, at most {bound}")
        return gains

    def dealings(self, host: object, gateway: object) -> tuple[Dealings, list[Promise]]:
        """Return all that one host and one payer (with its twin, if it has one) did."""
        world = self.world
        promises = [
            each
            for each in world.tap.promises.values()
            if each.allowance.host_peer_id == host.peer_id
            and world.payer_of(each.gateway) == gateway.payer
        ]
        deals = [
            each
            for each in world.tap.deals.values()
            if each.host == host.peer_id and world.payer_of(each.gateway) == gateway.payer
        ]
        at = Dealings(
            deals,
            world.quote_of(host.process),
            sum(each.arrived_micros for each in promises),
            host.process.config.engines[0].slots,
            host.process.crashes_count,
            gateway.process.crashes_count,
        )
        return at, promises

    def _gains_of(self, host: object, gateway: object) -> Iterator[tuple[str, int, int]]:
        at, promises = self.dealings(host, gateway)
        if not gateway.cheat:
            gain = sum(each.signed_micros for each in promises)
            gain -= sum(deal.got_micros for deal in at.deals)
            yield host.cheat, gain, HOST_BOUNDS[host.cheat].micros(at)
        if not host.cheat:
            loss = sum(self._loss(promise) for promise in promises)
            yield gateway.cheat, loss, GATEWAY_BOUNDS[gateway.cheat].micros(at)

    def _loss(self, promise: Promise) -> int:
        sent = sum(deal.sent_micros for deal in promise.deals)
        return max(0, sent - promise.arrived_micros)

    def _all_is_paid(self, host: object, gateway: object) -> None:
        """What arrived is paid, but for what a crash of the gateway made it forget."""
        at, promises = self.dealings(host, gateway)
        owed = sum(
            max(0, sum(deal.got_micros for deal in each.deals) - each.arrived_micros)
            for each in promises
        )
        forgotten = at.gateway_crashes_count * risk_micros(at)
        law = f"{gateway.name} never paid {host.name} {owed} of what arrived; {forgotten} at most"
        require(owed <= forgotten, law)

    def _settled_is_right(self) -> None:
        """Every honest host got what its vouchers say, after it stopped.

        A settlement that came back from a backup has forgotten allowances. Those that an honest
        gateway still uses are ordered again; what others were vouched for is lost with the backup.
        """
        settlement, world = self.world.settlement, self.world
        posted = {each.allowance_id: each.posted_micros for each in settlement.allowances()}
        honest = {host.peer_id for host in self._honest_hosts()}
        for allowance_id, promise in world.tap.promises.items():
            must = not settlement.restores_count or allowance_id in world.in_use
            if must and promise.allowance.host_peer_id in honest:
                got, due = posted.get(allowance_id, 0), promise.arrived_micros
                require(got >= due, f"a voucher was never settled: {got} of {due} posted")

    def _honest_hosts(self) -> Iterator[object]:
        yield from (host for host in self.world.hosts if not host.cheat)

    def _any_order_is_the_same(self) -> None:
        """Say it all again, vouchers in any order and often, to a settlement that knows nothing."""
        settlement = self.world.settlement
        with settlement.store.reading() as reading:
            balances = reading.all_balances()
            states = sorted(reading.all_allowances(), key=lambda state: state.allowance_id)
        told = settlement.replayed(settlement.said)
        require(told == (balances, states), "the same words gave other books")
        for number in range(REPLAYS_COUNT):
            mixed = settlement.replayed(_mixed(settlement.said, Random(number)))
            require(mixed[0] == told[0], "another order of the same vouchers gave other balances")
            require(
                [_essence(each) for each in mixed[1]] == [_essence(each) for each in states],
                "another order of the same vouchers left allowances in another state",
            )


def _mixed(said: list, rng: Random) -> list:
    """Return what was said with vouchers moved anywhere after their allowance, and repeated.

    What gives and takes credit (orders, closes) keeps its order, and so do the vouchers of what
    was closed: a close gives back what no voucher has claimed by then.
    """
    closed = {each.what.value.allowance_id for each in said if each.kind == "close"}
    free = [
        each
        for each in said
        if each.kind == "voucher" and each.what.value.allowance_id not in closed
    ]
    rest = [each for each in said if each not in free]
    free += [each for each in free if rng.random() < 0.5]
    rng.shuffle(free)
    return rest + free


def _essence(state: object) -> tuple:
    """Return what of an allowance's state no order may change."""
    return (
        state.allowance_id,
        state.version,
        state.max_micros,
        state.posted_micros,
        state.limit_micros,
        state.cum_micros,
        state.sequence,
        state.closed,
    )
